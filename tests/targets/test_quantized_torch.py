"""A quantized student in torch: integers and values compute the same, on every path a model may take through them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

for package in ("torch", "transformers", "safetensors", "accelerate"):
    pytest.importorskip(package)

import torch  # noqa: E402
from safetensors.numpy import save_file  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from soloist.kernels.errors import ArtifactError, ResourceError, UsageError  # noqa: E402
from soloist.kernels.layout import dequantize  # noqa: E402
from soloist.kernels.pack import pack_ref  # noqa: E402
from soloist.targets import int8_cache, quantized_torch  # noqa: E402
from soloist.targets.base import Sampling  # noqa: E402
from soloist.targets.open import open_runtime  # noqa: E402
from soloist.targets.quantized import PLAN, WEIGHTS, arrays_of, carry, write_dequantized  # noqa: E402
from soloist.targets.quantized_torch import QuantizedGate, QuantizedLinear, place  # noqa: E402
from soloist.targets.repack import Matrix  # noqa: E402
from soloist.targets.run_torch import TorchRuntime  # noqa: E402

QUESTION = [{"role": "user", "content": "What is 12 + 30?"}]
FOLLOWUP = [*QUESTION, {"role": "assistant", "content": "42"}, {"role": "user", "content": "Solve x + 5 = 20."}]
EIGHT = {"bits": 8}


@pytest.fixture(autouse=True)
def _threads(one_thread):
    """One thread: sums in the same order."""


def quantized(student: Path, out: Path, settings=None, others=None) -> Path:
    """A folder as `soloist quantize` makes it; `others`: settings of matrices whose name holds the key."""
    out.mkdir()
    carry(student, out)
    weights = load_file(str(student / "model.safetensors"))
    tied = json.loads((student / "config.json").read_text())["tie_word_embeddings"]
    arrays, tensors = {}, {}
    for name, weight in weights.items():
        if tied and name == "lm_head.weight":
            continue
        if name.endswith(("_proj.weight", "embed_tokens.weight", "lm_head.weight")):
            chosen = next((some for key, some in (others or {}).items() if key in name), settings or {})
            matrix = Matrix.of(pack_ref(weight, **{"bits": 4, "group": 32, **chosen}))
            arrays |= arrays_of(name, matrix)
            tensors[name] = {"bits": matrix.bits, "group": matrix.group, "shape": list(matrix.shape)}
        else:
            arrays[name] = weight.float().numpy()
    save_file(arrays, str(out / WEIGHTS))
    (out / PLAN).write_text(json.dumps({"tied": tied, "tensors": tensors}))
    return out


@pytest.fixture(scope="module")
def qwen(tiny, tmp_path_factory) -> Path:
    return make_qwen(tiny, tmp_path_factory.mktemp("qwen") / "student", layers=2)


def make_qwen(tiny: Path, folder: Path, layers: int) -> Path:
    """Random weights of Qwen2's kind: biases, a head of its own, heads of 32; the tiny student's tokenizer."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    shutil.copytree(tiny, folder)
    torch.manual_seed(3)
    config = Qwen2Config(
        vocab_size=json.loads((tiny / "config.json").read_text())["vocab_size"],
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        initializer_range=0.15,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    model = Qwen2ForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_()
    model.save_pretrained(str(folder))
    return folder


CASES = {
    "4 bit, table in 8": ("tiny", {}, {"embed": EIGHT}),
    "8 bit": ("tiny", EIGHT, {}),
    "group 64, zero points": ("tiny", {"group": 64, "zeros": True}, {"embed": {"bits": 4, "group": 64}}),
    "short last group": ("tiny", {"group": 128}, {}),
    "mixed, gate unlike up": ("tiny", {}, {"gate_proj": EIGHT, "v_proj": {"group": 64}, "down_proj": EIGHT}),
    "Qwen2: biases, own head": ("qwen", {"group": 64}, {"lm_head": EIGHT}),
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def pair(request, tmp_path):
    """A quantized folder, and the float folder of what its integers stand for."""
    student, settings, others = request.param
    folder = quantized(request.getfixturevalue(student), tmp_path / "q", settings, others)
    write_dequantized(folder, tmp_path / "float")
    return folder, tmp_path / "float"


# --- integers and values ---


def test_integers_and_values_compute_what_the_integers_stand_for(pair):
    folder, floats = pair
    exact, values = TorchRuntime(floats), open_runtime(folder)
    integers = TorchRuntime(folder, kernels="reference")
    ids = exact.tokenize(exact.render(QUESTION) + "The sum of 12 and 30 is 42.")
    want = exact.logits(ids)
    assert np.array_equal(values.logits(ids), want)
    # the same float32 products; sums may be in another order
    np.testing.assert_allclose(integers.logits(ids), want, atol=1e-5 * np.abs(want).max(), rtol=1e-5)
    answers = {each.chat(FOLLOWUP, Sampling(max_tokens=12)).text for each in (exact, values, integers)}
    assert len(answers) == 1


def test_what_is_held_is_what_is_said(pair):
    folder, floats = pair
    exact, values = TorchRuntime(floats), open_runtime(folder)
    integers = TorchRuntime(folder, kernels="reference")
    assert values.weights_bytes == exact.weights_bytes
    assert exact.note == ""
    assert "float32 values, unpacked once" in values.note
    assert "Triton needs an NVIDIA GPU" in values.note
    assert "integers, 0.1 MB" in integers.note
    assert "as asked for" in integers.note
    stored = sum(tensor.nbytes for tensor in load_file(str(folder / WEIGHTS)).values())
    rotary = sum(buffer.nbytes for name, buffer in exact._model.named_buffers() if "inv_freq" in name)
    assert integers.weights_bytes == stored + rotary < exact.weights_bytes / 2.5
    assert not [name for name, _ in integers._model.named_parameters() if "_proj.weight" in name or "embed" in name]


def test_a_tied_head_is_the_embeddings_integers_and_rows_are_its_rows(tiny, tmp_path):
    folder = quantized(tiny, tmp_path / "q", others={"embed": EIGHT})
    model = TorchRuntime(folder, kernels="reference")._model
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert isinstance(head, QuantizedLinear)
    assert head.matrix is table.matrix
    assert head.codes is table.codes
    whole = dequantize(table.matrix)
    tokens = torch.tensor([[3, 0, 7], [370, 3, 3]])
    assert torch.equal(table(tokens), whole[tokens])


def test_gate_and_up_are_one_pass_where_they_agree(tiny, tmp_path):
    for others, fused in (({}, 2), ({"layers.1.mlp.up_proj": EIGHT}, 1)):
        folder = quantized(tiny, tmp_path / f"q{fused}", others=others)
        model = TorchRuntime(folder, kernels="reference")._model
        assert sum(isinstance(module, QuantizedGate) for module in model.modules()) == fused


# --- the kernels themselves ---


@pytest.fixture
def calls(monkeypatch):
    """What is called from here on: (kernel, rows, with up, with bias)."""
    seen = set()

    def spied(choose):
        def choosing(name, *rest):
            choice = choose(name, *rest)

            def run(*given, **more):
                seen.add((name, given[0].shape[0], more.get("up") is not None, more.get("bias") is not None))
                return choice.run(*given, **more)

            return replace(choice, run=run)

        return choosing

    for module in (quantized_torch, int8_cache):
        monkeypatch.setattr(module, "choose", spied(module.choose))
    return seen


def test_few_rows_go_to_gemv_and_more_to_gemm(qwen, tmp_path, calls):
    folder = quantized(qwen, tmp_path / "q", others={"down_proj": EIGHT, "lm_head": EIGHT})
    runtime = TorchRuntime(folder, kernels="reference", cache="int8")
    for rows, form in ((1, "gemv"), (16, "gemv"), (17, "gemm")):
        calls.clear()
        runtime._feed(list(range(rows)), 0)
        assert calls - {("append_int8", 1, False, False), ("decode_attention", 1, False, False)} == {
            (f"w4a16_{form}", rows, False, True),  # query, key, value
            (f"w4a16_{form}", rows, False, False),  # their output
            (f"w4a16_{form}", rows, True, False),  # gate and up
            (f"w8a16_{form}", rows, False, False),  # down
            ("w8a16_gemv", 1, False, False),  # the head, of the last token alone
        }
        assert (("decode_attention", 1, False, False) in calls) == (rows == 1)


def test_the_kernels_run_and_compute_alike(tiny, tmp_path, calls):
    """Under the interpreter: a prompt by gemm, tokens by gemv, gate and up in one, the cache in 8 bits."""
    folder = quantized(make_qwen(tiny, tmp_path / "qwen", layers=1), tmp_path / "q", others={"v_proj": EIGHT})
    plain = TorchRuntime(folder, kernels="reference", dtype="float16", cache="int8")
    runtime = TorchRuntime(folder, kernels="triton", dtype="float16")
    assert "integers" in runtime.note
    assert "interpreter" in runtime.note
    ids = runtime.tokenize(runtime.render(QUESTION))[:18]
    for tokens, keep in ((ids[:17], 0), (ids[17:], 17)):
        want, got = plain._feed(tokens, keep), runtime._feed(tokens, keep)
        # sums in float32 against torch's of float16: one rounding of each product's result, and of few products inside
        assert 0 < np.abs(got - want).max() < 0.01 * np.abs(want).max()
    assert {name for name, *_ in calls} == {
        "w4a16_gemm",
        "w8a16_gemm",
        "w4a16_gemv",
        "w8a16_gemv",
        "append_int8",
        "decode_attention",
    }


def test_bfloat16_is_what_triton_gets_unless_asked():
    assert place(None, None, "triton").dtype == torch.bfloat16
    assert place("cpu", "float16", "triton").dtype == torch.float16
    assert place("cpu", None, "auto").dtype == torch.float32
    with pytest.raises(UsageError, match="take float16 or bfloat16"):
        place("cpu", "float32", "triton")


def test_triton_on_a_cpu_without_its_interpreter_is_refused(tiny, tmp_path, monkeypatch):
    folder = quantized(tiny, tmp_path / "q")
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(UsageError, match="start the program with TRITON_INTERPRET=1"):
        TorchRuntime(folder, kernels="triton", device="cpu")
    with pytest.raises(UsageError, match="'cuda': choose auto, triton or reference"):
        TorchRuntime(folder, kernels="cuda")
    if not torch.cuda.is_available():
        with pytest.raises(ResourceError, match="no CUDA device here"):
            TorchRuntime(folder, device="cuda")


_ON_A_GPU = """
import sys
from pathlib import Path
import numpy as np
from soloist.targets.open import open_runtime
from soloist.targets.run_torch import TorchRuntime
folder, floats = map(Path, sys.argv[1:])
runtime, exact = open_runtime(folder), TorchRuntime(floats)
assert "integers" in runtime.note and "compiled for sm_" in runtime.note, runtime.note
ids = exact.tokenize("What is 12 + 30? What is 12 + 31? What is 12 + 32?")
want, rows = exact.logits(ids), runtime.logits(ids)
steps = np.stack([runtime._feed([token], at) for at, token in enumerate(ids)])
print(max(np.abs(got - want).max() for got in (rows, steps)) / np.abs(want).max())
"""


@pytest.mark.gpu
def test_a_gpu_is_taken_and_computes_alike(pair):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", _ON_A_GPU, *map(str, pair)], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.05  # bfloat16 through two layers


# --- the cache in 8 bits ---


def test_a_cache_in_8_bits_answers_with_a_prefix_as_without(qwen, monkeypatch):
    monkeypatch.setattr(int8_cache, "_FIRST", 4)  # it grows
    runtime, exact = TorchRuntime(qwen, cache="int8"), TorchRuntime(qwen)
    tokens = runtime.tokenize(runtime.render(QUESTION))
    want = exact.logits(tokens)
    whole = runtime._feed(tokens, 0)
    steps = [runtime._feed(tokens[:3], 0), *(runtime._feed([token], 3 + at) for at, token in enumerate(tokens[3:]))]
    np.testing.assert_allclose(steps[-1], whole, atol=1e-4)
    np.testing.assert_allclose(runtime._feed(tokens[4:], 4), whole, atol=1e-4)
    assert 1e-4 < np.abs(whole - want[-1]).max() < 0.02 * np.abs(want).max()
    for step, row in zip(steps, want[2:], strict=True):
        assert np.abs(step - row).max() < 0.02 * np.abs(want).max()
    assert np.array_equal(runtime.logits(tokens), want)
    layer = runtime._cache.layers[0]
    assert layer.parts[0].dtype == torch.int8
    assert layer.parts[0].shape[2] >= len(tokens) == layer.get_seq_length()
    runtime.chat(QUESTION, Sampling(max_tokens=8))
    second = runtime.chat(FOLLOWUP, Sampling(max_tokens=8))
    assert second.tokens_cached > 0
    assert second.text == TorchRuntime(qwen, cache="int8").chat(FOLLOWUP, Sampling(max_tokens=8)).text


def test_a_cache_that_cannot_be_is_refused(tiny):
    with pytest.raises(UsageError, match="heads of 32, 64, 80, 96, 128"):
        TorchRuntime(tiny, cache="int8")
    with pytest.raises(UsageError, match="choose auto, float or int8"):
        TorchRuntime(tiny, cache="int4")


# --- folders that do not fit ---


def _with(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize("kernels", ["auto", "reference"])
def test_integers_that_do_not_fit_the_config_are_refused(tiny, tmp_path, kernels):
    for number, (changes, message) in enumerate(
        (
            ({"intermediate_size": 96}, "size mismatch|in its model 64 x 96"),
            ({"num_hidden_layers": 3}, "layers.2.*is missing"),
            ({"num_hidden_layers": 1}, "layers.1.*no place there|has no such matrix"),
        )
    ):
        folder = quantized(tiny, tmp_path / str(number))
        _with(folder, **changes)
        with pytest.raises(ArtifactError, match=message):
            TorchRuntime(folder, kernels=kernels)


# --- the command, and SmolLM2 itself ---


def test_the_command_chats_with_a_quantized_folder(tiny, tmp_path):
    from click.testing import CliRunner

    from soloist.toolchain.cli import main

    folder = quantized(tiny, tmp_path / "q", EIGHT)
    done = CliRunner().invoke(main, ["chat", str(folder), "What is 12 + 30?"])
    assert done.exit_code == 0, done.output
    assert done.stdout.strip()
    assert "float32 values, unpacked once" in done.stderr


@pytest.mark.slow
def test_smollm2_in_integers_says_what_its_gguf_says(base_gguf, tmp_path):
    """The same integers in torch and in llama.cpp; there activations are rounded to 8 bits, so near ties may turn."""
    pytest.importorskip("gguf")
    from soloist.targets.from_gguf import from_gguf
    from soloist.targets.to_gguf import compile_gguf

    from_gguf(base_gguf, tmp_path / "base")
    folder = quantized(tmp_path / "base", tmp_path / "q", {"search": True}, {"embed": EIGHT})
    runtime = TorchRuntime(folder, kernels="reference")
    assert 85e6 < runtime.weights_bytes < 95e6
    assert "held as integers" in runtime.note
    compiled = open_runtime(tmp_path / compile_gguf(folder, tmp_path, "Q4_0", "SmolLM2")["file"])
    for question in ("What is the capital of France?", "What is 2 + 2?", "Name a color.", "Who wrote Hamlet?"):
        ids = runtime.tokenize(runtime.render([{"role": "user", "content": question}]))
        assert compiled.tokenize(compiled.render([{"role": "user", "content": question}])) == ids
        ours, theirs = runtime.logits(ids)[-1], compiled.logits(ids)[-1]
        assert ours.argmax() == theirs.argmax(), question

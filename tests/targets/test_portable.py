"""The portable graph: the student's logits, whatever is cached, padded or quantized, out of standard operators."""

from __future__ import annotations

import itertools
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

for package in ("torch", "transformers", "onnxruntime", "onnxscript", "onnx_ir", "onnx", "safetensors"):
    pytest.importorskip(package)

import onnx  # noqa: E402
import torch  # noqa: E402
from safetensors.numpy import save_file  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from soloist.kernels.pack import pack_ref  # noqa: E402
from soloist.targets.base import Sampling  # noqa: E402
from soloist.targets.open import format_of, open_runtime  # noqa: E402
from soloist.targets.portable.export import compile_portable  # noqa: E402
from soloist.targets.portable.facts import DATA, GRAPH, cache_names, read_facts  # noqa: E402
from soloist.targets.portable.graph import LEAD, check_portable  # noqa: E402
from soloist.targets.portable.run import PortableRuntime  # noqa: E402
from soloist.targets.quantized import PLAN, WEIGHTS, arrays_of, carry, read_quantized, write_dequantized  # noqa: E402
from soloist.targets.repack import Matrix  # noqa: E402
from soloist.targets.run_torch import TorchRuntime  # noqa: E402

QUESTION = [{"role": "user", "content": "What is 12 + 30?"}]
FOLLOWUP = [*QUESTION, {"role": "assistant", "content": "42"}, {"role": "user", "content": "Solve x + 5 = 20."}]
FAMILIES = ("llama", "qwen2", "qwen3", "smollm3", "gemma3")


@pytest.fixture(autouse=True)
def _threads(one_thread):
    """One thread: sums in the same order."""


def make(family: str, tiny: Path, folder: Path) -> Path:
    """A student of a family: random weights (Llama: the tiny student), the tiny student's tokenizer."""
    import transformers

    if family == "llama":
        return tiny
    shutil.copytree(tiny, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    sizes = {
        "vocab_size": json.loads((tiny / "config.json").read_text())["vocab_size"],
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 1 if family.startswith("qwen") else 2,  # all of Qwen's are alike
        "max_position_embeddings": 512,
        "initializer_range": 0.1,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    configs = {
        "qwen2": lambda: transformers.Qwen2Config(**sizes, tie_word_embeddings=False),
        "qwen3": lambda: transformers.Qwen3Config(**sizes, head_dim=32, tie_word_embeddings=True),
        "smollm3": lambda: transformers.SmolLM3Config(**sizes, tie_word_embeddings=True, no_rope_layers=[1, 0]),
        "gemma3": lambda: transformers.Gemma3TextConfig(
            **sizes,
            head_dim=32,
            sliding_window=6,
            layer_types=["sliding_attention", "full_attention"],
            query_pre_attn_scalar=32,
        ),
    }
    torch.manual_seed(7)
    model = transformers.AutoModelForCausalLM.from_config(configs[family]())
    for name, parameter in model.named_parameters():
        if name.endswith(("bias", "norm.weight")):
            torch.nn.init.normal_(parameter, mean=0.5, std=0.3)  # as made, they change nothing
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, tiny, tiny_portable, tmp_path_factory) -> tuple[Path, Path]:
    """A student and its portable folder."""
    if request.param == "llama":
        return tiny, tiny_portable
    out = tmp_path_factory.mktemp(request.param)
    student = make(request.param, tiny, out / "student")
    compile_portable(student, out / "portable")
    return student, out / "portable"


class Session:
    """The graph as a stranger runs it: onnxruntime, numpy arrays, names."""

    def __init__(self, folder: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        self.session = onnxruntime.InferenceSession(str(folder / GRAPH), options, providers=["CPUExecutionProvider"])
        self.facts = read_facts(folder)

    def __call__(self, ids, mask, positions, cache=None):
        facts = self.facts
        none = np.zeros((len(ids), facts.kv_heads, 0, facts.head_dim), np.dtype(facts.dtype))
        names = cache_names(facts.layers, "past_key_values")
        feeds = dict(zip(names, cache or [none] * len(names), strict=True))
        feeds |= {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        logits, *cache = self.session.run(None, {name: np.asarray(value) for name, value in feeds.items()})
        return logits, cache


def torch_logits(folder: Path, ids, mask=None, positions=None):
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval()
    with torch.inference_mode():
        return model(
            input_ids=torch.tensor(ids),
            attention_mask=None if mask is None else torch.tensor(mask),
            position_ids=None if positions is None else torch.tensor(positions),
            use_cache=False,
        ).logits.numpy()


def ids_of(rows: int, length: int) -> np.ndarray:
    return np.random.default_rng(5).integers(5, 300, (rows, length))


def test_prefill_and_steps_with_a_cache_give_the_students_logits(pair):
    student, portable = pair
    run, ids = Session(portable), ids_of(2, 14)
    wanted = torch_logits(student, ids)
    ones = np.ones((2, 14), np.int64)
    at = np.arange(14)[None].repeat(2, 0)
    whole, _ = run(ids, ones, at)
    np.testing.assert_allclose(whole, wanted, atol=2e-4, rtol=1e-4)
    first, cache = run(ids[:, :9], ones[:, :9], at[:, :9])
    rows = [first]
    for i in range(9, 13):
        step, cache = run(ids[:, i : i + 1], ones[:, : i + 1], at[:, i : i + 1], cache)
        rows.append(step)
    assert cache[0].shape[2] == 13
    last, _ = run(ids[:, 13:], ones, at[:, 13:], cache)
    np.testing.assert_allclose(np.concatenate([*rows, last], axis=1), wanted, atol=2e-4, rtol=1e-4)
    single, _ = run(ids[:1, :1], ones[:1, :1], at[:1, :1])
    np.testing.assert_allclose(single, wanted[:1, :1], atol=2e-4, rtol=1e-4)


def test_left_padding_changes_no_logits(pair):
    student, portable = pair
    run, ids = Session(portable), ids_of(2, 12)
    pad = 4
    mask = np.ones((2, 12), np.int64)
    mask[1, :pad] = 0
    at = np.clip(mask.cumsum(1) - 1, 0, None)
    logits, cache = run(ids[:, :8], mask[:, :8], at[:, :8])
    after, cache = run(ids[:, 8:], mask, at[:, 8:], cache)
    assert all(np.isfinite(tensor).all() for tensor in cache)
    both = np.concatenate([logits, after], axis=1)
    np.testing.assert_allclose(both[0], torch_logits(student, ids[:1])[0], atol=2e-4, rtol=1e-4)
    np.testing.assert_allclose(both[1, pad:], torch_logits(student, ids[1:, pad:])[0], atol=2e-4, rtol=1e-4)


def test_the_graph_is_standard_and_names_its_dimensions(pair):
    _, portable = pair
    facts = read_facts(portable)
    assert check_portable(portable / GRAPH) == facts.operators
    model = onnx.load(str(portable / GRAPH), load_external_data=False)
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 21)]
    assert model.ir_version == 10
    dims = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert dims["attention_mask"] == ["batch", "total"]
    assert dims["position_ids"] == ["batch", "sequence"]
    assert dims[f"past_key_values.{facts.layers - 1}.value"] == ["batch", 2, "past", facts.head_dim]
    assert dims["present.0.key"] == ["batch", 2, "total", facts.head_dim]
    assert dims["logits"] == ["batch", "sequence", facts.vocabulary]
    assert b"site-packages" not in (portable / GRAPH).read_bytes()
    assert sorted(path.name for path in portable.parent.iterdir() if path.name.startswith("portable")) == ["portable"]
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            assert {entry.key: entry.value for entry in tensor.external_data}["location"] == DATA


def test_the_runner_answers_as_the_student(pair):
    student, portable = pair
    runtime, reference = open_runtime(portable), TorchRuntime(student, context=512)
    assert format_of(portable) == "onnx-portable"
    assert runtime.stop_ids == reference.stop_ids
    assert runtime.render(FOLLOWUP) == reference.render(FOLLOWUP)
    for chat in (QUESTION, FOLLOWUP):
        ours, theirs = (one.chat(chat, Sampling(max_tokens=12)) for one in (runtime, reference))
        assert (ours.text, ours.tokens_in, ours.tokens_cached, ours.tokens_out) == (
            theirs.text,
            theirs.tokens_in,
            theirs.tokens_cached,
            theirs.tokens_out,
        )
    assert ours.tokens_cached > 20
    tokens = runtime.tokenize(runtime.render(QUESTION))
    np.testing.assert_allclose(runtime.logits(tokens), reference.logits(tokens), atol=2e-4, rtol=1e-4)
    runtime.close()


# --- quantized ---


def quantized(student: Path, out: Path, settings: dict, tables: dict) -> Path:
    """A folder as `soloist quantize` makes it; `tables`: what embedding and head are told instead."""
    out.mkdir()
    carry(student, out)
    tied = json.loads((student / "config.json").read_text())["tie_word_embeddings"]
    arrays, tensors = {}, {}
    for name, weight in load_file(str(student / "model.safetensors")).items():
        if name.endswith(("_proj.weight", "embed_tokens.weight", "lm_head.weight")):
            chosen = settings if name.endswith("_proj.weight") else tables
            matrix = Matrix.of(pack_ref(weight.float(), **chosen))
            arrays |= arrays_of(name, matrix)
            tensors[name] = {"bits": matrix.bits, "group": matrix.group, "shape": list(matrix.shape)}
        else:
            arrays[name] = weight.float().numpy()
    save_file(arrays, str(out / WEIGHTS))
    (out / PLAN).write_text(json.dumps({"tied": tied, "tensors": tensors}))
    return out


CASES = {
    # family, dtype, layers, embedding and head
    "tied, 4 and 8 bits": ("llama", "float32", {"bits": 4, "group": 32}, {"bits": 8, "group": 32}),
    "tied, all 4 bits, short last groups": ("llama", "float16", {"bits": 4, "group": 128}, {"bits": 4, "group": 64}),
    "head of its own, 5 and 4 bits": ("qwen2", "float32", {"bits": 5, "group": 64}, {"bits": 4, "group": 32}),
}


@pytest.fixture(scope="module", params=list(CASES))
def integers(request, tiny, tmp_path_factory) -> tuple[str, Path, Path, Path]:
    """dtype, a quantized student, the same as floats, its portable folder."""
    family, dtype, settings, tables = CASES[request.param]
    out = tmp_path_factory.mktemp("integers")
    student = make(family, tiny, out / "student")
    folder = quantized(student, out / "quantized", settings, tables)
    write_dequantized(folder, out / "floats")
    compile_portable(folder, out / "portable", dtype)
    return dtype, folder, out / "floats", out / "portable"


def test_integers_give_the_logits_of_their_values(integers):
    dtype, _, floats, portable = integers
    run, ids = Session(portable), ids_of(2, 10)
    wanted = torch_logits(floats, ids)
    ones, at = np.ones((2, 10), np.int64), np.arange(10)[None].repeat(2, 0)
    first, cache = run(ids[:, :6], ones[:, :6], at[:, :6])
    second, _ = run(ids[:, 6:], ones, at[:, 6:], cache)
    close = {"atol": 2e-4, "rtol": 1e-4} if dtype == "float32" else {"atol": 4e-2, "rtol": 1e-2}
    np.testing.assert_allclose(np.concatenate([first, second], axis=1), wanted, **close)


def test_the_file_holds_each_integer_once_and_no_float_of_it(integers):
    _, folder, _, portable = integers
    content = read_quantized(folder)
    model = onnx.load(str(portable / GRAPH), load_external_data=False)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    kinds = {4: onnx.TensorProto.INT4, 8: onnx.TensorProto.INT8}
    for name, matrix in content.matrices.items():
        codes = tensors.get(name.replace(".weight", ".codes"))
        if codes is not None:
            assert codes.data_type == kinds[matrix.stored_bits]
            assert tuple(codes.dims) == matrix.shape[::-1]
        assert name not in tensors
    assert "lm_head.weight" not in tensors
    place = {
        name: {entry.key: int(entry.value) for entry in tensor.external_data if entry.key in ("offset", "length")}
        for name, tensor in tensors.items()
    }
    if content.plan["tied"]:
        words, codes = place["model.embed_tokens.words"], place["model.embed_tokens.codes"]
        assert words == {"offset": codes["offset"] - 4 * LEAD, "length": codes["length"] + 4 * LEAD}
        del place["model.embed_tokens.words"]
    ends = sorted((at["offset"], at["offset"] + at["length"]) for at in place.values() if at)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(ends))
    floats = [tensor for tensor in tensors.values() if tensor.data_type == onnx.TensorProto.FLOAT]
    assert all(np.prod(tensor.dims) <= 128 for tensor in floats)  # norms and biases; scales are float16
    assert check_portable(portable / GRAPH)["DequantizeLinear"] == sum(
        1 for name in content.matrices if "embed_tokens" not in name
    ) + bool(content.plan["tied"])
    widths = Counter(str(matrix.bits) for matrix in content.matrices.values())
    assert dict(widths) == read_facts(portable).bits


def test_quantized_answers_are_those_of_the_values(integers):
    _, _, floats, portable = integers
    runtime, reference = PortableRuntime(portable, accuracy_level=1), TorchRuntime(floats, context=512)
    ours, theirs = (one.chat(QUESTION, Sampling(max_tokens=10)) for one in (runtime, reference))
    assert ours.text == theirs.text


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ["floats", "integers"])
def test_smollm2_keeps_its_logits(base_gguf, tmp_path, kind):
    pytest.importorskip("gguf")
    from soloist.targets.from_gguf import from_gguf

    student = reference = tmp_path / "student"
    from_gguf(base_gguf, student, "float32")
    if kind == "integers":
        student = quantized(reference, tmp_path / "quantized", {"bits": 4, "group": 32}, {"bits": 8, "group": 32})
        reference = tmp_path / "floats"
        write_dequantized(student, reference)
    compile_portable(student, tmp_path / "portable")
    runtime, wanted = PortableRuntime(tmp_path / "portable", accuracy_level=1), TorchRuntime(reference)
    assert runtime.render(FOLLOWUP) == wanted.render(FOLLOWUP)
    tokens = wanted.tokenize(wanted.render(FOLLOWUP))
    assert runtime.tokenize(wanted.render(FOLLOWUP)) == tokens
    np.testing.assert_allclose(runtime.logits(tokens), wanted.logits(tokens), atol=2e-3)
    ours, theirs = (one.chat(QUESTION, Sampling(max_tokens=24)) for one in (runtime, wanted))
    assert ours.text == theirs.text
    if kind == "integers":  # 4 bits, and 8 for embedding and head, which the file holds once
        assert (tmp_path / "portable" / DATA).stat().st_size < 91e6

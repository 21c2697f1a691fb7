"""Every family, torch against llama.cpp and back: on random checkpoints with all that is special switched on."""

from __future__ import annotations

import json
import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

for package in ("torch", "transformers", "gguf", "xllamacpp"):
    pytest.importorskip(package)

from soloist.kernels.errors import ArtifactError  # noqa: E402
from soloist.targets import families  # noqa: E402
from soloist.targets.from_gguf import from_gguf  # noqa: E402
from soloist.targets.quantized import (  # noqa: E402
    PLAN,
    WEIGHTS,
    arrays_of,
    carry,
    read_quantized,
    write_dequantized,
)
from soloist.targets.repack import Matrix  # noqa: E402
from soloist.targets.run_gguf import GgufRuntime  # noqa: E402
from soloist.targets.to_gguf import compile_gguf  # noqa: E402

gguf_blocks = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("gguf_blocks.py"))))
_TINY = runpy.run_path(str(Path(__file__).with_name("tiny_families.py")))
VARIANTS = tuple(_TINY["VARIANTS"])
TEXT = "The quick brown fox 12 + 30 = 42. naïve café " * 12
TOKENS = 250
# largest difference of a logit, by the largest logit: llama.cpp rounds activations to F16, or to 8 bits
LIMITS = {"F16": 0.01, "Q8_0": 0.25}
SAME_TOP = {"F16": 0.98, "Q8_0": 0.80}

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # transformers' own, about rotary parameters of so small a model
    pytest.mark.usefixtures("one_thread"),
]


@pytest.fixture(scope="module")
def students(tmp_path_factory):
    """Folders of the variants, each made when it is first asked for."""
    root, made = tmp_path_factory.mktemp("families"), {}

    def get(variant):
        if variant not in made:
            made[variant] = _TINY["build"](root / variant, variant)
        return made[variant]

    return get


def torch_logits(folder, ids):
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids])).logits[0].numpy()


def llama_logits(file):
    """Ids of the text, and the logits after each."""
    runtime = GgufRuntime(file, context=512, threads=1)
    ids = runtime.tokenize(TEXT)[:TOKENS]
    got = runtime.logits(ids)
    runtime.close()
    return ids, got


def difference(wanted, got):
    return float(np.abs(wanted - got).max() / np.abs(wanted).max())


@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_llama_cpp_gives_the_students_logits(students, variant, precision, tmp_path):
    student = students(variant)
    facts = compile_gguf(student, tmp_path, precision, "Tiny")
    ids, got = llama_logits(tmp_path / facts["file"])
    wanted = torch_logits(student, ids)
    assert len(ids) == TOKENS
    assert got.shape == wanted.shape
    assert difference(wanted, got) < LIMITS[precision]
    assert (got.argmax(-1) == wanted.argmax(-1)).mean() >= SAME_TOP[precision]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_way_back_ends_at_the_same_weights_and_logits(students, variant, tmp_path):
    from safetensors.numpy import load_file

    student = students(variant)
    file = tmp_path / compile_gguf(student, tmp_path, "F16", "Tiny")["file"]
    facts = from_gguf(file, tmp_path / "back", "float32")
    before, after = (load_file(str(folder / "model.safetensors")) for folder in (student, tmp_path / "back"))
    assert set(before) == set(after)
    for name, weight in before.items():
        np.testing.assert_array_equal(after[name], weight, err_msg=name)
    config = json.loads((student / "config.json").read_text())
    assert [facts["architecture"]] == config["architectures"]
    ids = list(range(3, 99))
    np.testing.assert_array_equal(torch_logits(tmp_path / "back", ids), torch_logits(student, ids))
    assert (tmp_path / "back/tokenizer.json").is_file()
    assert (tmp_path / "back/chat_template.jinja").is_file()


def quantized(student, folder, bits):
    """The folder of a quantized student: every matrix rounded to `bits`, one left as it is."""
    import torch
    from safetensors.torch import load_file, save_file

    from soloist.kernels.pack import pack_ref

    folder.mkdir()
    carry(student, folder)
    tensors, facts = {}, {}
    for name, weight in load_file(str(student / "model.safetensors")).items():
        if weight.dim() == 1 or name == LEFT:
            tensors[name] = weight
            continue
        matrix = Matrix.of(pack_ref(weight, bits=8 if "embed" in name else bits, group=32))
        tensors |= {key: torch.from_numpy(array) for key, array in arrays_of(name, matrix).items()}
        facts[name] = {"bits": matrix.bits, "group": 32, "shape": list(weight.shape)}
    save_file(tensors, str(folder / WEIGHTS))
    (folder / PLAN).write_text(json.dumps({"tensors": facts, "tied": True}))
    return folder


LEFT = "model.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize("bits", [4, 5, 6, 8])
@pytest.mark.parametrize("variant", ["llama3", "smollm3", "qwen2", "qwen3", "gemma3"])
def test_a_quantized_student_keeps_its_integers(students, variant, bits, tmp_path):
    """Row by row through the reordering; and the values they stand for give the logits."""
    from soloist.targets.gguf_file import read_gguf

    student = quantized(students(variant), tmp_path / "quantized", bits)
    content = read_quantized(student)
    facts = compile_gguf(student, tmp_path / "out", name="Tiny")
    file = tmp_path / "out" / facts["file"]
    assert facts["precision"] == {4: "Q4_0", 5: "Q5_0", 6: "Q8_0", 8: "Q8_0"}[bits]
    tensors = {tensor.name: tensor for tensor in read_gguf(file).tensors}
    where = families.places(json.loads((student / "config.json").read_text()), "here")
    read = {"Q4_0": gguf_blocks.from_q4_0, "Q5_0": gguf_blocks.from_q5_0, "Q8_0": gguf_blocks.from_q8_0}
    for name, matrix in content.matrices.items():
        tensor, heads = tensors[where[name].name], where[name].heads
        again = read[tensor.tensor_type.name](np.array(tensor.data).reshape(matrix.shape[0], -1))
        order = families.head_order(matrix.shape[0], heads) if heads else np.arange(matrix.shape[0])
        np.testing.assert_array_equal(again.codes, matrix.codes[order], err_msg=name)
        np.testing.assert_array_equal(again.scales, matrix.scales[order], err_msg=name)
    assert tensors[where[LEFT].name].tensor_type.name == "F16"
    write_dequantized(student, tmp_path / "values")
    ids, logits = llama_logits(file)
    assert difference(torch_logits(tmp_path / "values", ids), logits) < LIMITS["Q8_0"]
    with pytest.raises(ArtifactError, match="would round them again"):
        compile_gguf(student, tmp_path / "again", "Q4_K_M")


WRONG = [
    ("llama", {"reordered": False}, None),
    ("qwen2", {"reordered": True}, None),
    ("smollm3", {"architecture": "llama"}, None),  # rotates every layer
    ("gemma3", {"shift": 0.0}, None),
    ("llama3", {}, "Rope.factors"),
    ("llama-linear", {}, "Rope.metadata"),
    ("gemma3", {}, "windows"),
]


@pytest.mark.parametrize(("variant", "row", "forgotten"), WRONG)
def test_what_is_special_about_a_family_shows_in_the_logits(students, variant, row, forgotten, tmp_path, monkeypatch):
    """A file without it loads and answers: only the comparison above can tell."""
    student = students(variant)
    model_type = json.loads((student / "config.json").read_text())["model_type"]
    row = replace(families.FAMILIES[model_type], **row)
    monkeypatch.setattr(families, "FAMILIES", {**families.FAMILIES, model_type: row})
    if forgotten == "Rope.factors":
        monkeypatch.setattr("soloist.targets.ropes.Rope.factors", lambda self, head: None)
    elif forgotten == "Rope.metadata":
        monkeypatch.setattr("soloist.targets.ropes.Rope.metadata", lambda self, head: {"rope.freq_base": self.base})
    elif forgotten == "windows":
        monkeypatch.setattr(families, "windows", lambda config: [False] * config["num_hidden_layers"])
    facts = compile_gguf(student, tmp_path, "F16", "Tiny")
    ids, got = llama_logits(tmp_path / facts["file"])
    assert difference(torch_logits(student, ids), got) > 3 * LIMITS["F16"]


def test_the_names_are_those_of_the_gguf_package(students):
    """An independent table: gguf's own, which maps names of Hugging Face to its own."""
    import gguf

    architectures = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    for variant in ("llama-biased", "smollm3", "qwen2", "qwen3", "gemma3"):
        config = json.loads((students(variant) / "config.json").read_text())
        family = families.family_of(config, "here")
        names = gguf.get_tensor_name_map(architectures[family.architecture], config["num_hidden_layers"])
        for key, place in families.places(config, "here").items():
            assert names.get_name(key, try_suffixes=(".weight", ".bias")) == place.name, key


CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "vocab_size": 100,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "gemma3"}, "architecture 'gemma3' cannot become GGUF; only .*'gemma3_text' can"),
        ({"model_type": "smollm3", "no_rope_layers": [1, 0, 1, 0]}, "no_rope_layers is"),
        ({"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 1}, "attention is 'sliding windows'"),
        ({"model_type": "qwen2", "head_dim": 32}, "width of all heads is 128"),
        ({"model_type": "qwen3", "layer_types": ["sliding_attention"] * 4}, "attention is 'sliding windows'"),
        ({"model_type": "gemma3_text", "query_pre_attn_scalar": 64}, "query_pre_attn_scalar is 64"),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ({"model_type": "qwen3", "attention_bias": True}, "attention_bias is True"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"model_type": "qwen2", "rope_scaling": {"type": "llama3", "factor": 8.0}}, "of type 'llama3'"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "mscale": 0.7}}, "no mscale of 'yarn'"),
    ],
)
def test_what_llama_cpp_would_compute_differently_is_refused(config, message):
    families.check(CONFIG, "here")
    with pytest.raises(ArtifactError, match=message):
        families.check({**CONFIG, **config}, "here")


def test_configs_of_older_transformers_mean_the_same():
    from soloist.targets.ropes import ropes_of

    old = {**CONFIG, "rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}
    new = {**CONFIG, "rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 2.0}}
    assert ropes_of(old) == ropes_of(new)
    assert families.metadata(old, "here") == families.metadata(new, "here")
    gemma = {
        **CONFIG,
        "model_type": "gemma3_text",
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "sliding_window": 512,
        "num_hidden_layers": 12,
    }
    keys = families.metadata(gemma, "here")
    assert keys["rope.freq_base"] == 1e6
    assert keys["rope.freq_base_swa"] == 1e4
    assert keys["attention.sliding_window_pattern"] == ([True] * 5 + [False]) * 2

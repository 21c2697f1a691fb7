import json
import shutil

import numpy as np
import pytest

from soloist.kernels.errors import ArtifactError
from soloist.targets.to_gguf import PRECISIONS, compile_gguf, size_label

pytest.importorskip("gguf")
pytest.importorskip("torch")

MESSAGES = [{"role": "user", "content": "What is 12 + 30? naïve 🙂"}]
# mean KL allowed between float32 torch and llama.cpp on random weights, which quantize worse than trained ones
KL = {"F16": 1e-4, "Q8_0": 2e-3, "Q5_0": 0.1, "Q4_0": 0.3}


def test_every_precision_has_a_bound_here():
    assert set(KL) == set(PRECISIONS)


@pytest.fixture(scope="module")
def reference(tiny):
    from soloist.targets.run_torch import TorchRuntime

    runtime = TorchRuntime(tiny)
    yield runtime
    runtime.close()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_compiled_file_gives_the_students_logits(tiny, reference, precision, tmp_path):
    pytest.importorskip("xllamacpp")
    from soloist.targets.run_gguf import GgufRuntime
    from soloist.toolchain.verify.differences import divergence

    facts = compile_gguf(tiny, tmp_path, precision, "Tiny")
    assert facts["file"] == f"Tiny-{size_label(facts['parameters'])}-{precision}.gguf"
    assert sorted(path.name for path in tmp_path.iterdir()) == [facts["file"], facts["file"] + ".Modelfile"]
    runtime = GgufRuntime(tmp_path / facts["file"])
    text = reference.render(MESSAGES)
    assert runtime.render(MESSAGES) == text
    tokens = reference.tokenize(text)
    assert runtime.tokenize(text) == tokens
    kl = divergence(reference.logits(tokens), runtime.logits(tokens))
    runtime.close()
    assert 0 < kl.mean() < KL[precision]


def test_query_and_key_rows_are_reordered_for_llama_cpp(tiny, tiny_gguf):
    """Without the reordering position 0 is right and later ones are not, so a one-token check would miss it."""
    gguf = pytest.importorskip("gguf")
    from safetensors.numpy import load_file

    weights = load_file(str(tiny / "model.safetensors"))
    written = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tiny_gguf).tensors}
    rows = weights["model.layers.0.self_attn.q_proj.weight"].astype(np.float16)
    ours = written["blk.0.attn_q.weight"].reshape(rows.shape)
    np.testing.assert_array_equal(ours[0], rows[0])
    np.testing.assert_array_equal(ours[1], rows[8])  # heads of 16: the pair of row 0 is row 8
    np.testing.assert_array_equal(ours[2], rows[1])


def _changed(tiny, folder, **config):
    shutil.copytree(tiny, folder)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return folder


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "mamba"}, "architecture 'mamba' cannot become GGUF; only 'llama', 'smollm3', 'qwen2'"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "rotary embedding of type 'longrope'"),
        ({"hidden_act": "gelu"}, "activation is 'gelu' and llama.cpp computes 'llama' with 'silu'"),
        ({"num_attention_heads": None}, "config.json lacks or misstates"),
        ({"intermediate_size": 96}, r"mlp.*weight' is \[.* and its config.json says"),
        ({"tie_word_embeddings": False}, "1 weights are missing .lm_head.weight"),
        ({"num_hidden_layers": 3}, "weights are missing"),
        ({"vocab_size": 300}, "embed_tokens.weight' is .* and its config.json says"),
    ],
)
def test_a_student_gguf_cannot_carry_is_refused_and_leaves_nothing(tiny, tmp_path, config, message):
    student = _changed(tiny, tmp_path / "student", **config)
    with pytest.raises(ArtifactError, match=message):
        compile_gguf(student, tmp_path / "out", "F16")
    assert not list((tmp_path / "out").glob("*"))


def test_a_weight_without_a_place_is_refused(tiny, tmp_path):
    from safetensors.numpy import load_file, save_file

    student = _changed(tiny, tmp_path / "student")
    weights = load_file(str(student / "model.safetensors"))
    weights["model.layers.0.self_attn.q_proj.bias"] = np.zeros(64, dtype=np.float32)
    save_file(weights, str(student / "model.safetensors"))
    with pytest.raises(ArtifactError, match=r"q_proj.bias' has no place"):
        compile_gguf(student, tmp_path / "out", "F16")


def test_cut_off_weights_are_refused(tiny, tmp_path):
    student = _changed(tiny, tmp_path / "student")
    file = student / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ArtifactError, match="cut off or damaged"):
        compile_gguf(student, tmp_path / "out", "F16")


def test_a_name_that_says_its_size_says_it_once(tiny, tmp_path):
    label = compile_gguf(tiny, tmp_path, "F16", "Desk")["file"].split("-")[1]
    assert (
        compile_gguf(tiny, tmp_path, "F16", f"My {label.lower()} desk")["file"] == f"My-{label.lower()}-desk-F16.gguf"
    )


def test_a_shard_that_is_missing_is_named(tiny, tmp_path):
    from safetensors.numpy import load_file, save_file

    student = _changed(tiny, tmp_path / "student")
    weights = load_file(str(student / "model.safetensors"))
    (student / "model.safetensors").unlink()
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    halves = [sorted(weights)[:7], sorted(weights)[7:]]
    where = {}
    for name, keys in zip(names, halves, strict=True):
        save_file({key: weights[key] for key in keys}, str(student / name))
        where |= dict.fromkeys(keys, name)
    (student / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    whole = compile_gguf(tiny, tmp_path / "whole", "F16", "Tiny")
    made = compile_gguf(student, tmp_path / "sharded", "F16", "Tiny")
    gguf = pytest.importorskip("gguf")
    first, second = (
        {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / folder / facts["file"]).tensors}
        for folder, facts in (("whole", whole), ("sharded", made))
    )
    assert set(first) == set(second)
    for name, data in first.items():
        np.testing.assert_array_equal(data, second[name])
    (student / names[1]).unlink()
    with pytest.raises(ArtifactError, match=r"names model-00002-of-00002.safetensors, which is missing"):
        compile_gguf(student, tmp_path / "out", "F16")
    assert not list((tmp_path / "out").glob("*"))


def test_a_folder_that_is_no_student_and_an_unknown_precision_are_refused(tiny, tmp_path):
    with pytest.raises(ArtifactError, match="not a student"):
        compile_gguf(tmp_path, tmp_path / "out", "F16")
    with pytest.raises(ArtifactError, match=r"'Q3_K' is not one of F16, .*Q4_K_M"):
        compile_gguf(tiny, tmp_path / "out", "Q3_K")


@pytest.mark.parametrize(
    ("parameters", "label"), [(134_515_008, "135M"), (1_711_376_384, "1.7B"), (90_112, "90K"), (12e9, "12B")]
)
def test_size_label(parameters, label):
    assert size_label(parameters) == label

"""The same model in 8 bits, made once; and hidden states that are those of the torch model."""

from __future__ import annotations

import numpy as np
import pytest

from soloist.kernels.errors import ArtifactError
from soloist.targets.base import default_threads
from soloist.targets.gguf_file import read_gguf
from soloist.targets.llama_quantize import quantize_gguf
from soloist.targets.requantize import PRECISIONS, cache_folder, requantize
from soloist.targets.run_gguf import GgufRuntime

TEXT = "What is 12 + 30?"


def test_eight_bits_are_the_same_model_and_are_made_once(tiny_smollm2_gguf, tmp_path):
    made = requantize(tiny_smollm2_gguf, "q8_0", tmp_path)
    first = made.stat().st_mtime_ns
    assert requantize(tiny_smollm2_gguf, "q8_0", tmp_path) == made
    assert made.stat().st_mtime_ns == first
    assert [path.name for path in tmp_path.iterdir()] == [made.name]
    old, new = (GgufRuntime(path, context=128, threads=1) for path in (tiny_smollm2_gguf, made))
    tokens = old.tokenize(TEXT)
    assert tokens == new.tokenize(TEXT)
    a, b = old.logits(tokens), new.logits(tokens)
    assert np.abs(a - b).max() <= 0.05 * np.abs(a).max()
    old.close(), new.close()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_copy_is_the_file_llama_cpp_writes(tiny_gguf, precision, tmp_path):
    """Tensors bit for bit, and all metadata."""
    pytest.importorskip("llama_cpp", reason="needs the extra 'llama-quantize'")
    made = requantize(tiny_gguf, precision, tmp_path)
    quantize_gguf(tiny_gguf, tmp_path / "theirs.gguf", precision)
    ours, theirs = read_gguf(made), read_gguf(tmp_path / "theirs.gguf")
    assert {key: f.contents() for key, f in ours.fields.items()} == {k: f.contents() for k, f in theirs.fields.items()}
    wanted = {tensor.name: tensor for tensor in theirs.tensors}
    assert {tensor.name for tensor in ours.tensors} == set(wanted)
    for tensor in ours.tensors:
        assert tensor.tensor_type == wanted[tensor.name].tensor_type, tensor.name
        np.testing.assert_array_equal(tensor.data, wanted[tensor.name].data, err_msg=tensor.name)


def test_a_precision_there_is_no_copy_in_is_refused(tiny_gguf, tmp_path):
    with pytest.raises(ArtifactError, match="no copy in 'q4_k_m' is made; use one of q8_0, f16"):
        requantize(tiny_gguf, "q4_k_m", tmp_path)


def test_what_is_no_model_leaves_nothing(tmp_path):
    alien = tmp_path / "alien.gguf"
    alien.write_bytes(b"GGUF" + b"\x03\0\0\0" + b"\0" * 64)
    with pytest.raises(ArtifactError, match="names no architecture or has no tensors"):
        requantize(alien, "q8_0", tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*"))


def test_hidden_state_is_the_mean_of_torchs_last(tiny_smollm2, tiny_smollm2_gguf):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    runtime = GgufRuntime(tiny_smollm2_gguf, slots=2, context=128, threads=1)
    vector, count = runtime.embed(TEXT)
    tokens = runtime.tokenize(TEXT)
    model = transformers.AutoModelForCausalLM.from_pretrained(str(tiny_smollm2), dtype=torch.float32).model
    with torch.inference_mode():
        wanted = model(input_ids=torch.tensor([tokens])).last_hidden_state[0].mean(dim=0).numpy()
    assert count == len(tokens)
    assert vector.shape == wanted.shape
    assert np.abs(vector - wanted).max() <= 0.02 * np.abs(wanted).max() + 1e-3
    again, _ = runtime.embed(TEXT)
    assert np.allclose(again, vector, atol=1e-5)
    runtime.close()


def test_a_core_is_left_free_unless_told(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert default_threads() == 7
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    assert default_threads() == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert default_threads() == 3


def test_cache_folder_follows_the_convention(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "soloist"

"""The same model in 8 bits, made once; and hidden states that are those of the torch model."""

from __future__ import annotations

import numpy as np
import pytest

from soloist.kernels.errors import ArtifactError
from soloist.targets.base import default_threads
from soloist.targets.requantize import cache_folder, requantize
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


def test_what_is_no_model_leaves_nothing(tmp_path):
    alien = tmp_path / "alien.gguf"
    alien.write_bytes(b"GGUF" + b"\x03\0\0\0" + b"\0" * 64)
    with pytest.raises(ArtifactError, match="could not write it as q8_0"):
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

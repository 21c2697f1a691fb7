import json

import numpy as np
import pytest

from soloist.kernels.errors import ArtifactError
from soloist.targets.from_gguf import find_base, from_gguf, read_gguf, write_tokenizer
from soloist.targets.hostile import HOSTILE
from soloist.targets.pretokenizers import by_name

pytest.importorskip("gguf")
pytest.importorskip("transformers")


def test_find_base_finds_the_packaged_model(base_gguf):
    assert find_base("smollm2-135m") == base_gguf


def test_find_base_names_what_it_knows():
    with pytest.raises(ArtifactError, match=r"unknown base model 'gpt-9'.*smollm2-135m"):
        find_base("gpt-9")


def test_gguf_becomes_the_folder_it_was_made_from(tiny, tiny_gguf, tmp_path):
    from safetensors.numpy import load_file
    from transformers import AutoTokenizer

    facts = from_gguf(tiny_gguf, tmp_path / "back", "float32")
    assert facts["architecture"] == "LlamaForCausalLM"
    before, after = load_file(str(tiny / "model.safetensors")), load_file(str(tmp_path / "back/model.safetensors"))
    assert set(after) == set(before)  # tied embeddings: no lm_head
    for name, weight in before.items():
        np.testing.assert_allclose(after[name], weight, atol=1e-3, err_msg=name)
    old = AutoTokenizer.from_pretrained(str(tiny))
    new = AutoTokenizer.from_pretrained(str(tmp_path / "back"))
    assert [new.encode(text) for text in HOSTILE] == [old.encode(text) for text in HOSTILE]
    assert new.chat_template == old.chat_template
    config = json.loads((tmp_path / "back/config.json").read_text())
    original = json.loads((tiny / "config.json").read_text())
    for key in ("head_dim", "num_key_value_heads", "rope_parameters", "eos_token_id", "tie_word_embeddings"):
        assert config[key] == original[key], key


def test_bfloat16_halves_the_file(tiny_gguf, tmp_path):
    from_gguf(tiny_gguf, tmp_path / "half", "bfloat16")
    from_gguf(tiny_gguf, tmp_path / "full", "float32")
    half, full = (tmp_path / name / "model.safetensors" for name in ("half", "full"))
    assert half.stat().st_size < 0.6 * full.stat().st_size
    assert json.loads((tmp_path / "half/config.json").read_text())["dtype"] == "bfloat16"


def test_smollm2_cuts_hostile_texts_as_llama_cpp_does(base_gguf, tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp")
    from transformers import AutoTokenizer

    write_tokenizer(base_gguf, tmp_path, by_name("smollm"))
    tokenizer = AutoTokenizer.from_pretrained(str(tmp_path))
    llama = llama_cpp.Llama(str(base_gguf), vocab_only=True, verbose=False)
    for text in HOSTILE:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == llama.tokenize(text.encode(), add_bos=False, special=True), text
    assert tokenizer.chat_template == llama.metadata["tokenizer.chat_template"]
    assert len(tokenizer.encode("15", add_special_tokens=False)) == 2
    llama.close()


def test_missing_foreign_and_cut_off_files_are_refused(tiny_gguf, tmp_path):
    with pytest.raises(ArtifactError, match="no such file"):
        read_gguf(tmp_path / "absent.gguf")
    foreign = tmp_path / "foreign.gguf"
    foreign.write_bytes(b"PK\x03\x04 this is a zip")
    with pytest.raises(ArtifactError, match="not a GGUF file"):
        read_gguf(foreign)
    whole = tiny_gguf.read_bytes()
    for size in (10, 600, len(whole) // 2, len(whole) - 64):
        (tmp_path / "cut.gguf").write_bytes(whole[:size])
        with pytest.raises(ArtifactError, match="cut off or damaged"):
            from_gguf(tmp_path / "cut.gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unknown_dtype_is_refused(tiny_gguf, tmp_path):
    with pytest.raises(ArtifactError, match="'float8' is not one of"):
        from_gguf(tiny_gguf, tmp_path, "float8")

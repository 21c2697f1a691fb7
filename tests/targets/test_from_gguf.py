import json

import numpy as np
import pytest

from soloist.kernels.errors import ArtifactError
from soloist.targets.from_gguf import find_base, from_gguf
from soloist.targets.gguf_file import read_gguf
from soloist.targets.tokenizer_cases import TOKENIZER_CASES

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
    assert [new.encode(text) for text in TOKENIZER_CASES] == [old.encode(text) for text in TOKENIZER_CASES]
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


def test_smollm2_splits_tokenizer_cases_as_llama_cpp_does(base_gguf, smollm2_tokenizer, open_vocabulary):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(smollm2_tokenizer))
    llama = open_vocabulary(base_gguf)
    for text in TOKENIZER_CASES:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == llama.tokenize(text), text
    assert tokenizer.chat_template == llama.metadata("tokenizer.chat_template")
    assert len(tokenizer.encode("15", add_special_tokens=False)) == 2
    llama.close()


def test_missing_foreign_and_cut_off_files_are_refused(tiny_gguf, tmp_path):
    with pytest.raises(ArtifactError, match="no such model file"):
        read_gguf(tmp_path / "absent.gguf")
    foreign = tmp_path / "foreign.gguf"
    foreign.write_bytes(b"PK\x03\x04 this is a zip")
    with pytest.raises(ArtifactError, match="not a GGUF file"):
        read_gguf(foreign)
    whole = tiny_gguf.read_bytes()
    for size in (10, 600, len(whole) // 2, len(whole) - 64):
        (tmp_path / "part.gguf").write_bytes(whole[:size])
        with pytest.raises(ArtifactError, match="cut off or damaged"):
            from_gguf(tmp_path / "part.gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def rewritten(source, file, *, fields=None, tensors=None):
    """A GGUF file with other metadata, or other tensors (None takes one away)."""
    import gguf

    reader = read_gguf(source)
    architecture = (fields or {}).get("general.architecture") or reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(str(file), architecture)
    for name, known in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            value = (fields or {}).get(name, known.contents())
            if value is not None:
                writer.add_key_value(name, value, known.types[0], known.types[-1])
    for tensor in reader.tensors:
        data = (tensors or {}).get(tensor.name, tensor.data)
        if data is not None:
            writer.add_tensor(tensor.name, np.array(data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fields": {"general.architecture": "mamba"}}, "architecture 'mamba' cannot become a student; only 'llama'"),
        ({"fields": {"llama.block_count": None}}, "lacks block_count"),
        ({"fields": {"llama.block_count": 1}}, r"tensor 'blk.1.*' has no place in a 'llama' model"),
        ({"fields": {"tokenizer.ggml.model": "bert"}}, "its tokenizer is of kind 'bert'"),
        ({"fields": {"tokenizer.ggml.model": "llama"}}, "no scores for its tokens"),
        ({"fields": {"tokenizer.ggml.pre": "viking"}}, "the pre-tokenizer 'viking' is not one of"),
        ({"fields": {"llama.feed_forward_length": 96}}, r"tensor 'blk.0.ffn_.*its metadata say"),
        ({"tensors": {"blk.0.attn_q.weight": None}}, r"1 tensors are missing \(blk.0.attn_q.weight"),
        ({"tensors": {"token_embd.weight": None}}, "lacks token_embd.weight"),
        ({"tensors": {"output_norm.weight": np.ones(32, np.float32)}}, r"'output_norm.weight' is \(32,\)"),
    ],
)
def test_a_file_that_is_no_student_of_ours_is_refused_and_leaves_nothing(tiny_gguf, tmp_path, changes, message):
    file = rewritten(tiny_gguf, tmp_path / "other.gguf", **changes)
    with pytest.raises(ArtifactError, match=message):
        from_gguf(file, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_frequency_factors_of_no_llama_3_are_refused(tiny_gguf, tmp_path):
    from soloist.targets.ropes import rope_from

    with pytest.raises(ArtifactError, match="its frequency factors are not those of a Llama 3"):
        rope_from({"rope.freq_base": 5e5}.get, np.linspace(1, 9, 8, dtype=np.float32), 16, "here")
    with pytest.raises(ArtifactError, match="of type 'longrope' cannot become a student"):
        rope_from({"rope.scaling.type": "longrope"}.get, None, 16, "here")


def test_unknown_dtype_is_refused(tiny_gguf, tmp_path):
    with pytest.raises(ArtifactError, match="'float8' is not one of"):
        from_gguf(tiny_gguf, tmp_path, "float8")

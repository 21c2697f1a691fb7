"""The tokenizer inside a GGUF file: the ids of the student's own, or a refusal."""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path

import pytest

for package in ("torch", "transformers", "tokenizers", "gguf", "xllamacpp"):
    pytest.importorskip(package)

from soloist.kernels.errors import ArtifactError  # noqa: E402
from soloist.targets.from_gguf import from_gguf  # noqa: E402
from soloist.targets.gguf_file import read_gguf  # noqa: E402
from soloist.targets.gguf_tokenizer import NORMALIZER  # noqa: E402
from soloist.targets.pretokenizers import PRE_TOKENIZERS  # noqa: E402
from soloist.targets.to_gguf import compile_gguf  # noqa: E402
from soloist.targets.tokenizer_cases import TOKENIZER_CASES  # noqa: E402

_TESTS = Path(__file__).parents[1]
open_vocabulary = runpy.run_path(str(_TESTS / "vocabulary.py"))["Vocabulary"]
_TINY = runpy.run_path(str(Path(__file__).with_name("tiny_families.py")))
# what only a vocabulary of pieces has: runs around its longest ones, and its own signs written out
PIECES = (
    *TOKENIZER_CASES,
    *(" " * count for count in range(1, 40)),
    *("a" * count for count in range(1, 20)),
    "▁ x▁",
    "\n" * 9,
)
USER = [{"role": "user", "content": "2 + 2"}]


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """A random student, to be given other tokenizers: no logits are asked for here."""
    return _TINY["build"](tmp_path_factory.mktemp("family") / "student", "llama")


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    return _TINY["build_pieces"](tmp_path_factory.mktemp("pieces") / "student")


def same_ids(student, file, texts):
    """Compare every text, with and without what encoding adds."""
    import tokenizers

    ours = tokenizers.Tokenizer.from_file(str(student / "tokenizer.json"))
    llama = open_vocabulary(file)
    for text in texts:
        ids = ours.encode(text, add_special_tokens=False).ids
        assert llama.tokenize(text) == ids, repr(text)
        plain = ours.decode(ids, skip_special_tokens=False).strip()
        assert llama.text(ids).strip() == plain, repr(text)
        assert llama.tokenize(text, add=True) == ours.encode(text).ids, repr(text)
    llama.close()


def changed(student, folder, change):
    """A copy whose tokenizer.json went through `change`."""
    shutil.copytree(student, folder)
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    change(content)
    file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return folder


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_byte_level_ids_are_the_students_for_every_cut(family, pre, tmp_path):
    student = tmp_path / "student"
    shutil.copytree(family, student)
    _TINY["make_tokenizer"](student, pre)
    facts = compile_gguf(student, tmp_path, "Q8_0", "Tiny")
    same_ids(student, tmp_path / facts["file"], TOKENIZER_CASES)
    assert "notes" not in facts
    assert "Note:" not in (tmp_path / f"{facts['file']}.Modelfile").read_text()
    llama = open_vocabulary(tmp_path / facts["file"])
    assert llama.metadata("tokenizer.chat_template") == (student / "chat_template.jinja").read_text()
    assert llama.ends() == (1, 2)
    llama.close()


def test_pieces_have_the_ids_of_the_student_and_come_back(gemma, tmp_path):
    file = tmp_path / compile_gguf(gemma, tmp_path, "F16", "Tiny")["file"]
    same_ids(gemma, file, PIECES)
    from_gguf(file, tmp_path / "back", "float32")
    same_ids(tmp_path / "back", file, PIECES)
    reader = read_gguf(file)
    assert reader.fields["tokenizer.ggml.model"].contents() == "llama"
    assert reader.fields["tokenizer.ggml.add_bos_token"].contents() is True


def test_pieces_with_a_space_in_front(gemma, tmp_path):
    student = changed(gemma, tmp_path / "student", lambda content: content.update(_TINY["pieces"](prepend=True)))
    file = tmp_path / compile_gguf(student, tmp_path, "F16", "Tiny")["file"]
    same_ids(student, file, PIECES)
    from_gguf(file, tmp_path / "back", "float32")
    same_ids(tmp_path / "back", file, PIECES)


def test_a_normalizer_is_noted_and_comes_back(family, tmp_path):
    student = changed(family, tmp_path / "student", lambda content: content.update(normalizer={"type": "NFC"}))
    facts = compile_gguf(student, tmp_path, "F16", "Tiny")
    assert facts["notes"] == ["the student's tokenizer normalizes text to NFC, llama.cpp does not: give it text in NFC"]
    assert f"# Note: {facts['notes'][0]}." in (tmp_path / f"{facts['file']}.Modelfile").read_text()
    assert read_gguf(tmp_path / facts["file"]).fields[NORMALIZER].contents() == "NFC"
    from_gguf(tmp_path / facts["file"], tmp_path / "back", "float32")
    back = json.loads((tmp_path / "back/tokenizer.json").read_text(encoding="utf-8"))
    assert back["normalizer"] == {"type": "NFC"}


def test_an_added_token_without_a_row_is_left_out(family, tmp_path):
    extra = {"id": 5000, "content": "<image>", "special": True, "normalized": False}
    student = changed(family, tmp_path / "student", lambda content: content["added_tokens"].append(extra))
    file = tmp_path / compile_gguf(student, tmp_path, "F16", "Tiny")["file"]
    assert "<image>" not in read_gguf(file).fields["tokenizer.ggml.tokens"].contents()
    with pytest.raises(ArtifactError, match="token 5000 lies outside the embedding"):
        compile_gguf(changed(student, tmp_path / "plain", _not_special), tmp_path / "out", "F16")


def _not_special(content):
    content["added_tokens"][-1]["special"] = False


def test_two_tokens_end_an_answer(family, tmp_path):
    student = tmp_path / "student"
    shutil.copytree(family, student)
    (student / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0]}))
    file = tmp_path / compile_gguf(student, tmp_path, "F16", "Tiny")["file"]
    assert read_gguf(file).fields["tokenizer.ggml.eot_token_id"].contents() == 0
    from_gguf(file, tmp_path / "back", "float32")
    assert json.loads((tmp_path / "back/generation_config.json").read_text())["eos_token_id"] == [2, 0]


def _trained(content):
    content["model"]["merges"] = [merge for merge in content["model"]["merges"] if merge != ["▁▁", "▁"]]


def _mixed(content):
    content["model"]["merges"].append(content["model"]["merges"].pop(0))
    content["model"]["merges"].insert(0, ["aa", "a"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_trained, "1 of 2 ways to make '▁▁▁' are merges in a row"),
        (_mixed, "the merges that make 'aaa' are merges in a row"),
        (lambda content: content.update(normalizer=None), "are not those of Llama 2 or Gemma"),
        (lambda content: content.update(pre_tokenizer={"type": "Whitespace"}), "are not those of Llama 2 or Gemma"),
        (lambda content: content["model"]["vocab"].pop("<0x0A>"), "byte fallback without the tokens <0x0A>"),
        (lambda content: content["model"].update(type="Unigram"), "a Unigram tokenizer cannot become GGUF"),
        (lambda content: content["model"].update(dropout=0.1), "dropout of its BPE model"),
        (lambda content: content.pop("model"), "cut off or not a tokenizer"),
    ],
)
def test_a_tokenizer_llama_cpp_cannot_follow_is_refused_and_leaves_nothing(gemma, change, message, tmp_path):
    student = changed(gemma, tmp_path / "student", change)
    with pytest.raises(ArtifactError, match=message):
        compile_gguf(student, tmp_path / "out", "F16")
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda content: content.update(pre_tokenizer={"type": "Whitespace"}),
            "add its split to targets/pretokenizers.py",
        ),
        (lambda content: content.update(normalizer={"type": "Lowercase"}), "normalizer 'Lowercase' has no place"),
        (lambda content: content["model"].update(ignore_merges=True), "with ignore_merges has no name in GGUF"),
    ],
)
def test_a_byte_level_one_is_refused_with_what_to_do(family, change, message, tmp_path):
    with pytest.raises(ArtifactError, match=message):
        compile_gguf(changed(family, tmp_path / "student", change), tmp_path / "out", "F16")


def test_files_that_are_missing_are_named(family, tmp_path):
    for name, message in (("tokenizer.json", "no tokenizer.json"), ("chat_template.jinja", "no chat template")):
        student = tmp_path / name.split(".")[0]
        shutil.copytree(family, student)
        (student / name).unlink()
        with pytest.raises(ArtifactError, match=message):
            compile_gguf(student, tmp_path / "out", "F16")

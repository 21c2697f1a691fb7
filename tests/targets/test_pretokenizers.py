import json

import pytest

from soloist.kernels.errors import ArtifactError
from soloist.targets.pretokenizers import PRE_TOKENIZERS, by_name, name_of
from soloist.targets.tokenizer_cases import TOKENIZER_CASES


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_name_of_finds_the_name_of_each_spec(name):
    known = PRE_TOKENIZERS[name]
    assert name_of(known.spec, known.ignore_merges) == name


def test_name_of_ignores_what_does_not_change_the_cut():
    spec = json.loads(json.dumps(PRE_TOKENIZERS["smollm"].spec))
    spec["pretokenizers"][1]["trim_offsets"] = False
    assert name_of(spec) == "smollm"
    assert name_of({"type": "Sequence", "pretokenizers": [PRE_TOKENIZERS["gpt-2"].spec]}) == "gpt-2"


@pytest.mark.parametrize("spec", [None, {"type": "Whitespace"}])
def test_name_of_refuses_an_unknown_cut(spec):
    with pytest.raises(ArtifactError, match="cannot become a GGUF file: train it from a base"):
        name_of(spec)


def test_name_of_tells_apart_whole_words_that_skip_the_merges():
    spec = PRE_TOKENIZERS["llama-bpe"].spec
    assert (name_of(spec, True), name_of(spec, False)) == ("llama-bpe", "smaug-bpe")
    with pytest.raises(ArtifactError, match="pre_tokenizer with ignore_merges has no name"):
        name_of(PRE_TOKENIZERS["qwen2"].spec, True)


def test_by_name_refuses_an_unknown_name():
    with pytest.raises(ArtifactError, match="'viking' is not one of smollm"):
        by_name("viking")


@pytest.mark.parametrize("name", [name for name, known in PRE_TOKENIZERS.items() if known.plain])
def test_plain_spelling_cuts_like_the_spec(name):
    tokenizers = pytest.importorskip("tokenizers")

    def cut(spec, text):
        blank = {"type": "BPE", "vocab": {}, "merges": []}
        whole = {"version": "1.0", "added_tokens": [], "model": blank, "pre_tokenizer": spec}
        return tokenizers.Tokenizer.from_str(json.dumps(whole)).pre_tokenizer.pre_tokenize_str(text)

    known = PRE_TOKENIZERS[name]
    for text in TOKENIZER_CASES:
        assert [piece for piece, _ in cut(known.plain, text)] == [piece for piece, _ in cut(known.spec, text)], text

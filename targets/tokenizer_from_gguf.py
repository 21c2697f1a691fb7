"""The tokenizer inside a GGUF file -> tokenizer.json and tokenizer_config.json: what `gguf_tokenizer.py` undoes.

transformers' own reading is not enough: it drops the pre-tokenizer named in the file (SmolLM2 then reads "15" as one
token where it was trained on two) and knows no SmolLM3. The pre-tokenizer comes from `pretokenizers`. Merges of a
SentencePiece-like vocabulary are every split of a token into two, the tokens by their scores.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from soloist.kernels.errors import ArtifactError
from soloist.targets.gguf_tokenizer import NORMALIZER, SPACE
from soloist.targets.pretokenizers import PreTokenizer

Get = Callable[..., Any]
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = range(1, 6)
_SPECIAL = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
_DEFAULTS = {"llama": {"bos": 1, "eos": 2, "unk": 0}}


def special_ids(get: Get) -> dict[str, int]:
    """The ids of bos, eos, pad and unk, of those the file has; `get(key, default)` reads its metadata."""
    defaults = _DEFAULTS.get(get("tokenizer.ggml.model"), {})
    ids = {}
    for kind, key in _SPECIAL.items():
        number = get(f"tokenizer.ggml.{key}_token_id", defaults.get(kind))
        if number is not None:
            ids[kind] = int(number)
    return ids


def files(get: Get, pre: PreTokenizer | None) -> dict[str, str]:
    """The tokenizer's files by name, chat template included; `pre` is None for SentencePiece's kind.

    Raises:
        ArtifactError: the file's lists of tokens are not what its kind of tokenizer needs.
    """
    tokens, types = get("tokenizer.ggml.tokens"), get("tokenizer.ggml.token_type")
    if not tokens or not types or len(tokens) != len(types):
        raise ArtifactError("the GGUF file has no list of tokens and their types; use another model")
    ids = special_ids(get)
    vocabulary: dict[str, int] = {}
    added = []
    for number, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind != _UNUSED or token != f"[PAD{number}]":  # a row of the embedding without a token
            vocabulary[token] = number
        if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED):
            added.append(_added(number, token, kind))
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        **_spelled(get, vocabulary, types, ids, pre),
        "post_processor": _processor(get, tokens, ids),
    }
    settings: dict[str, Any] = {"backend": "tokenizers", "model_max_length": 10**30}
    for name, number in ids.items():
        settings[f"{name}_token"] = tokens[number]
    settings["tokenizer_class"] = "TokenizersBackend"
    template = get("tokenizer.chat_template")
    return {
        "tokenizer.json": json.dumps(content, ensure_ascii=False),
        "tokenizer_config.json": json.dumps(settings, indent=2),
        **({"chat_template.jinja": template} if template else {}),
    }


def _added(number: int, token: str, kind: int) -> dict[str, Any]:
    return {
        "id": number,
        "content": token,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": kind != _USER_DEFINED,
    }


def _spelled(
    get: Get, vocabulary: dict[str, int], types: Sequence[int], ids: Mapping[str, int], pre: PreTokenizer | None
) -> dict[str, Any]:
    model: dict[str, Any] = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": "",
        "end_of_word_suffix": "",
        "fuse_unk": pre is None,
        "byte_fallback": pre is None,
        "ignore_merges": pre is not None and pre.ignore_merges,
        "vocab": vocabulary,
    }
    if pre is not None:
        model["merges"] = [merge.split(" ", 1) for merge in get("tokenizer.ggml.merges") or []]
        normalizer = get(NORMALIZER)
        decoder = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
        return {
            "normalizer": {"type": normalizer} if normalizer else None,
            "pre_tokenizer": dict(pre.spec),
            "decoder": decoder,
            "model": model,
        }
    scores = get("tokenizer.ggml.scores")
    if not scores or len(scores) != len(types):
        raise ArtifactError("the GGUF file has no scores for its tokens; use another model")
    model["merges"] = _merges(vocabulary, types, scores)
    unknown = ids.get("unk")
    model["unk_token"] = None if unknown is None else get("tokenizer.ggml.tokens")[unknown]
    prefix = bool(get("tokenizer.ggml.add_space_prefix", True))
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    steps = [{"type": "Prepend", "prepend": SPACE}, spaces] if prefix else [spaces]
    undo = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"}]
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    return {
        "normalizer": {"type": "Sequence", "normalizers": steps} if prefix else spaces,
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [*undo, {"type": "Fuse"}, *strip]},
        "model": model,
    }


def _merges(vocabulary: Mapping[str, int], types: Sequence[int], scores: Sequence[float]) -> list[list[str]]:
    made = [token for token, number in vocabulary.items() if types[number] in (_NORMAL, _USER_DEFINED)]
    merges = []
    for token in sorted(made, key=lambda token: -scores[vocabulary[token]]):
        for at in range(1, len(token)):
            if token[:at] in vocabulary and token[at:] in vocabulary:
                merges.append([token[:at], token[at:]])
    return merges


def _processor(get: Get, tokens: Sequence[str], ids: Mapping[str, int]) -> dict[str, Any]:
    """What encoding adds in front of a text and behind it."""
    special: dict[str, dict[str, Any]] = {}

    def added(kind: str, default: bool, segment: int) -> list[dict[str, Any]]:
        if kind not in ids or not get(f"tokenizer.ggml.add_{kind}_token", default):
            return []
        text = tokens[ids[kind]]
        special[text] = {"id": text, "ids": [ids[kind]], "tokens": [text]}
        return [{"SpecialToken": {"id": text, "type_id": segment}}]

    def around(part: str, segment: int) -> list[dict[str, Any]]:
        inside = {"Sequence": {"id": part, "type_id": segment}}
        bos = added("bos", get("tokenizer.ggml.model") == "llama", segment)
        return [*bos, inside, *added("eos", False, segment)]

    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": around("A", 0) + around("B", 1),
        "special_tokens": special,
    }

"""tokenizer.json -> the tokenizer inside a GGUF file: the same ids for the same text, or a refusal.

    byte-level BPE         "gpt2"    merges as they are; the pre-tokenizer by its name (pretokenizers.py)
    BPE with byte fallback "llama"   SentencePiece's way, as of Llama 2 and Gemma: "▁" for a space, <0x0A> for a byte
                                     no token has; llama.cpp merges by a token's score and not by a pair's rank

The second kind is exact only where the rank of a merge is that of the token it makes, and every split of a token into
two tokens is among the merges. Tokenizers converted from SentencePiece are such; one trained as BPE is not, and is
refused. Among splits of one token llama.cpp takes the leftmost, which differs from rank only in runs of one character;
the gate compares ids. One text stays apart: Gemma lists "▁▁" as an added token, which splits text that has this very
character twice; llama.cpp would then print it for spaces, so it is a plain token there.

Nor can GGUF name a normalizer: llama.cpp reads text as it comes, so that a student with Unicode NFC (Qwen) gets other
ids for text that is not in NFC. That is a note in the Modelfile, and the key `soloist.tokenizer.normalizer`, by which
our own runtime normalizes. Left out: unigram and WordPiece models.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from soloist.kernels.errors import ArtifactError
from soloist.targets.base import require
from soloist.targets.pretokenizers import name_of

SPACE = "▁"
NORMALIZER = "soloist.tokenizer.normalizer"
_BYTES = frozenset(f"<0x{byte:02X}>" for byte in range(256))
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}


def add(writer: Any, student: Path, config: Mapping[str, Any]) -> list[str]:
    """Write the tokenizer, its special tokens and the chat template; returns what the user should know.

    Raises:
        ArtifactError: no tokenizer.json or template, or one whose ids llama.cpp would not give.
    """
    file = student / "tokenizer.json"
    if not file.is_file():
        raise ArtifactError(f"{student}: no tokenizer.json; save the student's fast tokenizer beside its weights")
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        model = content["model"]
        vocabulary, added = dict(model["vocab"]), list(content.get("added_tokens") or [])
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{file}: cut off or not a tokenizer ({error}); save the tokenizer again") from error
    if model.get("type", "BPE") != "BPE":
        raise ArtifactError(f"{file}: a {model['type']} tokenizer cannot become GGUF; only BPE can")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise ArtifactError(f"{file}: {key} of its BPE model has no place in GGUF")
    size = int(config["vocab_size"])
    ids = _identifiers(vocabulary, added, size, file)
    pairs = []
    for merge in model["merges"]:
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        pairs.append((left, right))
    if model.get("byte_fallback"):
        notes = _pieces(writer, content, ids, pairs, size, file)
    else:
        notes = _byte_level(writer, content, ids, pairs, size)
    _special(writer, student, config, ids)
    return notes


def _identifiers(vocabulary: Mapping[str, int], added: list[dict[str, Any]], size: int, file: Path) -> dict[str, int]:
    """Every token by its text. A special token without a row in the embedding cannot be used, and is left out."""
    ids = dict(vocabulary)
    for token in added:
        if int(token["id"]) < size or not token["special"]:
            ids[token["content"]] = int(token["id"])
    last = max(ids.values(), default=0)
    if last >= size:
        raise ArtifactError(f"{file}: token {last} lies outside the embedding of {size} rows")
    return ids


def _add_tokens(writer: Any, ids: Mapping[str, int], types: Mapping[int, Any], size: int) -> None:
    tokens = [f"[PAD{number}]" for number in range(size)]
    kinds = [require("gguf", "train").TokenType.UNUSED] * size
    # Gemma's vocabulary has the tabulator twice: as itself and as <0x09>, which is what llama.cpp looks for
    for token, number in sorted(ids.items(), key=lambda item: item[0] in _BYTES):
        tokens[number], kinds[number] = token, types[number]
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)


def _types(content: Mapping[str, Any], ids: Mapping[str, int]) -> dict[int, Any]:
    kinds = require("gguf", "train").TokenType
    types = dict.fromkeys(ids.values(), kinds.NORMAL)
    for token in content.get("added_tokens") or []:
        if int(token["id"]) in types:
            types[int(token["id"])] = kinds.CONTROL if token["special"] else kinds.USER_DEFINED
    return types


def _byte_level(
    writer: Any,
    content: Mapping[str, Any],
    ids: Mapping[str, int],
    pairs: list[tuple[str, str]],
    size: int,
) -> list[str]:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name_of(content.get("pre_tokenizer"), bool(content["model"].get("ignore_merges"))))
    _add_tokens(writer, ids, _types(content, ids), size)
    writer.add_token_merges(list(map(" ".join, pairs)))
    writer.add_add_space_prefix(False)
    normalizer = content.get("normalizer")
    if normalizer is None:
        return []
    if normalizer.get("type") != "NFC":
        raise ArtifactError(f"tokenizer.json: the normalizer '{normalizer.get('type')}' has no place in GGUF")
    writer.add_string(NORMALIZER, "NFC")
    return ["the student's tokenizer normalizes text to NFC, llama.cpp does not: give it text in NFC"]


def _pieces(
    writer: Any,
    content: Mapping[str, Any],
    ids: Mapping[str, int],
    pairs: list[tuple[str, str]],
    size: int,
    file: Path,
) -> list[str]:
    prefix = _space_prefix(content, file)
    absent = sorted(_BYTES - set(ids))
    if absent:
        raise ArtifactError(f"{file}: byte fallback without the tokens {', '.join(absent[:3])} … cannot become GGUF")
    made = set(map("".join, pairs))
    own = dict(ids)
    for token in content.get("added_tokens") or []:
        if token["content"] not in made:
            own.pop(token["content"], None)
    scores = _scores(own, pairs, file)
    kinds = require("gguf", "train").TokenType
    types = _types(content, ids)
    for token, number in ids.items():
        if token in _BYTES:
            types[number] = kinds.BYTE
        elif SPACE in token and token in made:
            types[number] = kinds.NORMAL  # Gemma lists runs of spaces as added tokens too; as such they would print "▁"
    unknown = content["model"].get("unk_token")
    if unknown in ids:
        types[ids[unknown]] = kinds.UNKNOWN
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    _add_tokens(writer, ids, types, size)
    listed = [-float(len(scores)) - 1] * size
    for token, number in ids.items():
        listed[number] = scores.get(token, listed[number])
    writer.add_token_scores(listed)
    writer.add_add_space_prefix(prefix)
    return []


def _space_prefix(content: Mapping[str, Any], file: Path) -> bool:
    """Whether a space is put in front of text. Raises ArtifactError for a split that llama.cpp does not make."""
    normalizer = content.get("normalizer") or {}
    steps = normalizer.get("normalizers", [normalizer]) if normalizer else []
    prefix = steps[:1] == [{"type": "Prepend", "prepend": SPACE}]
    split = content.get("pre_tokenizer")
    # Gemma splits at spaces, of which the normalizer has left none
    harmless = split is None or (split.get("type") == "Split" and split.get("pattern") == {"String": " "})
    if steps[int(prefix) :] == [_REPLACE] and harmless:
        return prefix
    if not steps and split == {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "never", "split": False}:
        return False
    raise ArtifactError(
        f"{file}: its normalizer and pre_tokenizer are not those of Llama 2 or Gemma ('▁' for every space, in front of "
        "a text or not); llama.cpp would give other ids, so the student cannot become GGUF"
    )


def _scores(vocabulary: Mapping[str, int], pairs: list[tuple[str, str]], file: Path) -> dict[str, float]:
    """The score of each token that merges make: minus its place among them.

    Raises:
        ArtifactError: merging by a token's score is not merging by a pair's rank here.
    """
    scores: dict[str, float] = {}
    splits = Counter(left + right for left, right in pairs)
    before = ""
    for left, right in pairs:
        token = left + right
        if token != before and token in scores:
            raise ArtifactError(f"{file}: the merges that make '{token}' {_NOT_PIECES}")
        scores.setdefault(token, -float(len(scores)))
        before = token
    for token in (*vocabulary, *splits):
        if token in _BYTES and token not in splits:
            continue
        possible = 0
        for at in range(1, len(token)):  # llama.cpp also joins characters that are no token themselves
            left_is_token = at == 1 or token[:at] in vocabulary
            right_is_token = at == len(token) - 1 or token[at:] in vocabulary
            possible += left_is_token and right_is_token
        if possible != splits[token]:
            raise ArtifactError(f"{file}: {splits[token]} of {possible} ways to make '{token}' {_NOT_PIECES}")
    return scores


_NOT_PIECES = (
    "are merges in a row, so llama.cpp's scores cannot give the same ids; the student needs a tokenizer converted from "
    "SentencePiece, or a byte-level one"
)


def _special(writer: Any, student: Path, config: Mapping[str, Any], ids: Mapping[str, int]) -> None:
    chosen: dict[str, int] = {}
    for kind in ("bos", "eos", "pad", "unk"):
        text = special_token(student, kind)
        number = ids.get(text) if text else config.get(f"{kind}_token_id")
        if isinstance(number, list):
            number = number[0] if number else None
        if number is not None:
            chosen[kind] = int(number)
            getattr(writer, f"add_{kind}_token_id")(int(number))
    ends = _json(student / "generation_config.json").get("eos_token_id")
    for number in ends if isinstance(ends, list) else []:
        if number != chosen.get("eos"):
            writer.add_eot_token_id(number)  # Gemma ends a turn with another token than a text
            break
    writer.add_add_bos_token(adds(student, "bos"))
    writer.add_add_eos_token(adds(student, "eos"))
    writer.add_chat_template(chat_template(student))


def special_token(student: Path, kind: str) -> str:
    """The text of "bos", "eos", "pad" or "unk" by the tokenizer's settings; empty where they name none."""
    token = _json(student / "tokenizer_config.json").get(f"{kind}_token")
    return str((token.get("content") if isinstance(token, dict) else token) or "")


def adds(student: Path, kind: str) -> bool:
    """Whether encoding adds "bos" or "eos" to a text: what the post-processor does, else what the settings say."""
    processor = _json(student / "tokenizer.json").get("post_processor") or {}
    for step in processor.get("processors", [processor]):
        if step.get("type") == "TemplateProcessing":
            return "SpecialToken" in step["single"][0 if kind == "bos" else -1]
    return bool(_json(student / "tokenizer_config.json").get(f"add_{kind}_token", False))


def chat_template(student: Path) -> str:
    """The student's chat template. Raises ArtifactError where it has none."""
    file = student / "chat_template.jinja"
    text: Any = _json(student / "tokenizer_config.json").get("chat_template")
    if file.is_file():
        text = file.read_text(encoding="utf-8")
    if not text or not isinstance(text, str):
        raise ArtifactError(f"{student}: no chat template (chat_template.jinja); a chat student needs one")
    return text


def _json(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return content

"""tokenizer.json -> the tokenizer inside a GGUF file: the same ids for the same text, or a refusal.

    byte-level BPE         "gpt2"    merges as they are; the cut before them by its name (pretokenizers.py)
    BPE with byte fallback "llama"   SentencePiece's way, as of Llama 2 and Gemma: "▁" for a space, <0x0A> for a byte
                                     no token has; llama.cpp merges by a token's score and not by a pair's rank

The second kind is exact only where the rank of a merge is that of the token it makes, and every cut of a token into
two tokens is among the merges. Tokenizers converted from SentencePiece are such; one trained as BPE is not, and is
refused. Among cuts of one token llama.cpp takes the leftmost, which differs from rank only in runs of one sign; the
gate compares ids. One text stays apart: Gemma lists "▁▁" as an added token, which cuts text that has this very sign
twice; llama.cpp would then print the sign for spaces, so it is a plain token there.

Nor can GGUF name a normalizer: llama.cpp reads text as it comes, so that a student with Unicode NFC (Qwen) gets other
ids for text that is not in NFC. That is a note in the Modelfile, and the key `soloist.tokenizer.normalizer`, by which
our own runtime normalizes. Left out: unigram and WordPiece models.
"""

from __future__ import annotations

import json
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
    pairs = [tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    if model.get("byte_fallback"):
        notes = _pieces(writer, content, ids, pairs, size, file)
    else:
        notes = _byte_level(writer, content, ids, pairs, size)
    _special(writer, student, config, ids)
    return notes


def _identifiers(vocabulary: Mapping[str, int], added: list[dict[str, Any]], size: int, file: Path) -> dict[str, int]:
    """Every token by its text. A special token without a row in the embedding cannot be used, and is left out."""
    ids = dict(vocabulary)
    ids |= {token["content"]: int(token["id"]) for token in added if int(token["id"]) < size or not token["special"]}
    beyond = max(ids.values(), default=0)
    if beyond >= size:
        raise ArtifactError(f"{file}: token {beyond} lies outside the embedding of {size} rows")
    return ids


def _add_tokens(
    writer: Any,
    ids: Mapping[str, int],
    types: Mapping[int, Any],
    size: int,
) -> None:
    unused = require("gguf", "train").TokenType.UNUSED
    # Gemma's vocabulary has the tabulator twice: as itself and as <0x09>, which is what llama.cpp looks for
    by_id = {number: token for token, number in sorted(ids.items(), key=lambda item: item[0] in _BYTES)}
    writer.add_token_list([by_id.get(number, f"[PAD{number}]") for number in range(size)])
    writer.add_token_types([types.get(number, unused) for number in range(size)])


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
    pairs: list[tuple[str, ...]],
    size: int,
) -> list[str]:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name_of(content.get("pre_tokenizer"), bool(content["model"].get("ignore_merges"))))
    _add_tokens(writer, ids, _types(content, ids), size)
    writer.add_token_merges([" ".join(pair) for pair in pairs])
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
    pairs: list[tuple[str, ...]],
    size: int,
    file: Path,
) -> list[str]:
    prefix = _space_prefix(content, file)
    absent = sorted(_BYTES - set(ids))
    if absent:
        raise ArtifactError(f"{file}: byte fallback without the tokens {', '.join(absent[:3])} … cannot become GGUF")
    listed = {token["content"] for token in content.get("added_tokens") or []} - {left + right for left, right in pairs}
    scores = _scores({token: number for token, number in ids.items() if token not in listed}, pairs, file)
    kinds = require("gguf", "train").TokenType
    types = _types(content, ids)
    types |= dict.fromkeys((ids[token] for token in _BYTES), kinds.BYTE)
    made = set(scores)
    for token, number in ids.items():
        if SPACE in token and token in made:
            types[number] = kinds.NORMAL  # Gemma lists runs of spaces as added tokens too; as such they would print "▁"
    unknown = content["model"].get("unk_token")
    if unknown in ids:
        types[ids[unknown]] = kinds.UNKNOWN
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    _add_tokens(writer, ids, types, size)
    by_id = {number: token for token, number in ids.items()}
    last = -float(len(scores)) - 1
    writer.add_token_scores([scores.get(by_id.get(number, ""), last) for number in range(size)])
    writer.add_add_space_prefix(prefix)
    return []


def _space_prefix(content: Mapping[str, Any], file: Path) -> bool:
    """Whether a space is put in front of text. Raises ArtifactError for a cut that llama.cpp does not make."""
    normalizer = content.get("normalizer") or {}
    steps = normalizer.get("normalizers", [normalizer]) if normalizer else []
    prefix = steps[:1] == [{"type": "Prepend", "prepend": SPACE}]
    cut = content.get("pre_tokenizer")
    # Gemma splits at spaces, of which the normalizer has left none
    harmless = cut is None or (cut.get("type") == "Split" and cut.get("pattern") == {"String": " "})
    if steps[int(prefix) :] == [_REPLACE] and harmless:
        return prefix
    if not steps and cut == {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "never", "split": False}:
        return False
    raise ArtifactError(
        f"{file}: its normalizer and pre_tokenizer are not those of Llama 2 or Gemma ('▁' for every space, in front of "
        "a text or not); llama.cpp would give other ids, so the student cannot become GGUF"
    )


def _scores(vocabulary: Mapping[str, int], pairs: list[tuple[str, ...]], file: Path) -> dict[str, float]:
    """The score of each token that merges make: minus its place among them.

    Raises:
        ArtifactError: merging by a token's score is not merging by a pair's rank here.
    """
    scores: dict[str, float] = {}
    cuts = {token: 0 for token in vocabulary if len(token) > 1 and token not in _BYTES}
    before = ""
    for left, right in pairs:
        token = left + right
        if token != before and token in scores:
            raise ArtifactError(f"{file}: the merges that make '{token}' {_NOT_PIECES}")
        scores.setdefault(token, -float(len(scores)))
        cuts[token] = cuts.get(token, 0) + 1
        before = token
    for token, count in cuts.items():
        # llama.cpp also joins signs that are no token themselves
        possible = sum(
            (at == 1 or token[:at] in vocabulary) and (at == len(token) - 1 or token[at:] in vocabulary)
            for at in range(1, len(token))
        )
        if possible != count:
            raise ArtifactError(f"{file}: {count} of {possible} ways to make '{token}' {_NOT_PIECES}")
    return scores


_NOT_PIECES = (
    "are merges in a row, so llama.cpp's scores cannot give the same ids; the student needs a tokenizer converted from "
    "SentencePiece, or a byte-level one"
)


def _special(
    writer: Any,
    student: Path,
    config: Mapping[str, Any],
    ids: Mapping[str, int],
) -> None:
    settings = _json(student / "tokenizer_config.json")
    add = {
        "bos": writer.add_bos_token_id,
        "eos": writer.add_eos_token_id,
        "pad": writer.add_pad_token_id,
        "unk": writer.add_unk_token_id,
    }
    chosen: dict[str, int] = {}
    for kind, write in add.items():
        token = settings.get(f"{kind}_token")
        text = token.get("content") if isinstance(token, dict) else token
        number = ids.get(text) if text else config.get(f"{kind}_token_id")
        if isinstance(number, list):
            number = number[0] if number else None
        if number is not None:
            chosen[kind] = int(number)
            write(int(number))
    ends = _json(student / "generation_config.json").get("eos_token_id")
    others = [number for number in (ends if isinstance(ends, list) else []) if number != chosen.get("eos")]
    if others:
        writer.add_eot_token_id(others[0])  # Gemma ends a turn with another token than a text
    writer.add_add_bos_token(adds(student, "bos"))
    writer.add_add_eos_token(adds(student, "eos"))
    writer.add_chat_template(chat_template(student))


def adds(student: Path, kind: str) -> bool:
    """Whether encoding adds "bos" or "eos" to a text: what the post-processor does, else what the settings say."""
    processor = _json(student / "tokenizer.json").get("post_processor") or {}
    for step in processor.get("processors", [processor]):
        if step.get("type") == "TemplateProcessing":
            parts = ["SpecialToken" in part for part in step["single"]]
            return parts[0] if kind == "bos" else parts[-1]
    return bool(_json(student / "tokenizer_config.json").get(f"add_{kind}_token", False))


def chat_template(student: Path) -> str:
    """The student's chat template. Raises ArtifactError where it has none."""
    file = student / "chat_template.jinja"
    text = (
        file.read_text(encoding="utf-8")
        if file.is_file()
        else _json(student / "tokenizer_config.json").get("chat_template")
    )
    if not text or not isinstance(text, str):
        raise ArtifactError(f"{student}: no chat template (chat_template.jinja); a chat student needs one")
    return text


def _json(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return found

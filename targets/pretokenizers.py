"""The pre-tokenizers GGUF knows by name, and what each is in `tokenizer.json`.

A GGUF file stores only a word such as "smollm" for the step that splits text before the byte-pair merges;
`tokenizer.json` spells the step out. Both conversions read this one table, so that a round trip cannot end
with another split. It holds the byte-level BPE families whose two spellings were compared id by id; a
tokenizer outside it is refused, because a wrong split goes unseen: the text still decodes.

Qwen2, Qwen2.5 and Qwen3 split alike ("qwen2"), SmolLM3 as Llama 3 ("llama-bpe"). Where Llama 3's split comes
without its rule that whole words skip the merges, the word is "smaug-bpe".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from soloist.kernels.errors import ArtifactError

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def _bytes(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _split(*patterns: str) -> dict[str, Any]:
    steps: list[dict[str, Any]] = []
    for pattern in patterns:
        steps.append({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False})
    return {"type": "Sequence", "pretokenizers": [*steps, _bytes(False)]}


@dataclass(frozen=True)
class PreTokenizer:
    """`spec` is the `pre_tokenizer` of tokenizer.json; `ignore_merges` says whole words skip the merges.

    `plain` is the same split in regular expressions only, for runtimes that misread `spec`:
    onnxruntime-genai takes `Digits` for ASCII digits, so that "½" or "٣" gets other ids than in training.
    """

    spec: Mapping[str, Any]
    ignore_merges: bool = False
    plain: Mapping[str, Any] | None = None


_DIGITS = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, _bytes(True)]}

PRE_TOKENIZERS: Mapping[str, PreTokenizer] = {
    "smollm": PreTokenizer(_DIGITS, plain=_split(r"\p{N}", _GPT2)),
    "gpt-2": PreTokenizer(_bytes(True)),
    "llama-bpe": PreTokenizer(_split(_LLAMA3), ignore_merges=True),
    "smaug-bpe": PreTokenizer(_split(_LLAMA3)),
    "qwen2": PreTokenizer(_split(_QWEN2)),
}


def by_name(pre: str) -> PreTokenizer:
    """The pre-tokenizer GGUF calls `pre`."""
    if pre not in PRE_TOKENIZERS:
        raise ArtifactError(f"the pre-tokenizer '{pre}' is not one of {', '.join(PRE_TOKENIZERS)}; use another model")
    return PRE_TOKENIZERS[pre]


def _normalized(spec: Mapping[str, Any] | None) -> object:
    """A spec without what does not change the split: offsets, and a sequence of one."""
    if spec is None:
        return None
    if spec.get("type") == "Sequence":
        parts = list(map(_normalized, spec["pretokenizers"]))
        return parts[0] if len(parts) == 1 else parts
    return {key: value for key, value in spec.items() if key != "trim_offsets"}


def name_of(spec: Mapping[str, Any] | None, ignore_merges: bool | None = None) -> str:
    """GGUF's word for the `pre_tokenizer` of a tokenizer.json; `ignore_merges` of its model, if that is to count."""
    for name, known in PRE_TOKENIZERS.items():
        if _normalized(known.spec) == _normalized(spec) and ignore_merges in (None, known.ignore_merges):
            return name
    rule = " with ignore_merges" if ignore_merges else ""
    raise ArtifactError(
        f"tokenizer.json: this pre_tokenizer{rule} has no name in GGUF among {', '.join(PRE_TOKENIZERS)}; the student "
        "cannot become a GGUF file: train it from a base whose tokenizer splits like one of these, or add its split to "
        "targets/pretokenizers.py with a comparison id by id"
    )

"""What a file of a target takes, matrix by matrix and beside its matrices, before it is written."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from soloist.toolchain.quantize.plan import Rule
from soloist.toolchain.quantize.weights import Source

Target = Literal["gguf", "onnx"]
# bits that a code takes in a file, by the bits it needs: no format has blocks of 32 for all of them
CONTAINERS: Mapping[Target, Mapping[int, int]] = {
    "gguf": {4: 4, 5: 5, 6: 8, 8: 8},
    "onnx": {4: 4, 5: 8, 6: 8, 8: 8},
}
_SCALE_BITS: Mapping[Target, int] = {"gguf": 16, "onnx": 32}  # MatMulNBits on a CPU wants scales in fp32
_DESCRIPTION: Mapping[Target, int] = {"gguf": 128, "onnx": 2048}  # bytes of a tensor's name, shape and nodes, at most
_SETTINGS = 8192  # bytes, at most


def size_of(shape: Sequence[int], rule: Rule, target: Target) -> int:
    """Bytes of a matrix (N, K) in the files of a target: codes in their container, a scale a group."""
    rows, columns = shape
    if target == "gguf":  # blocks of 32, whatever the group
        return rows * (columns // 32) * (32 * CONTAINERS["gguf"][rule.bits] + _SCALE_BITS["gguf"]) // 8
    groups = -(-columns // rule.group)
    return rows * (groups * rule.group * CONTAINERS[target][rule.bits] + groups * _SCALE_BITS[target]) // 8


def other_bytes(folder: Path, kept: Mapping[str, Source], tensors: int, target: Target) -> int:
    """At most what a file holds beside its matrices: norms in fp32, the tokenizer's text, names and settings.

    Args:
        kept: the tensors that stay floats.
        tensors: how many there are in all.
    """
    floats = sum(4 * math.prod(source.shape) for source in kept.values())
    template = folder / "chat_template.jinja"
    text = template.stat().st_size if template.is_file() else 0
    return _SETTINGS + _DESCRIPTION[target] * tensors + floats + text + _tokenizer_bytes(folder, target)


def _tokenizer_bytes(folder: Path, target: Target) -> int:
    """ONNX folders carry tokenizer.json; GGUF every text with its length, and a type and at most a score of a token."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return 0
    if target != "gguf":
        return file.stat().st_size
    content = json.loads(file.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]  # of BPE text -> id, of Unigram pairs of text and score
    tokens = set(vocabulary) if isinstance(vocabulary, dict) else {text for text, _ in vocabulary}
    tokens |= {token["content"] for token in content.get("added_tokens") or []}
    size: int = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("vocab_size", 0)
    total = 32 * max(0, size - len(tokens))  # rows of the embedding that no text has get one
    for token in tokens:
        total += 16 + len(token.encode())
    for merge in content["model"].get("merges") or []:  # "a b", or ["a", "b"]
        total += 8 + len((merge if isinstance(merge, str) else " ".join(merge)).encode())
    return total

"""How far two texts or two sequences are apart: edits over the longer length, on case-folded tokens."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence

_TOKEN = re.compile(r"\d+(?:\.\d+)?|\w+|[^\w\s]")


def edit_distance(first: Sequence[Hashable], second: Sequence[Hashable]) -> float:
    """Levenshtein distance over the longer length: 0 for equal sequences, 1 where nothing is shared."""
    if not first and not second:
        return 0.0
    row = list(range(len(second) + 1))
    for i, one in enumerate(first, 1):
        corner, row[0] = row[0], i
        for j, two in enumerate(second, 1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (one != two))
    return row[-1] / max(len(first), len(second))


def tokens(text: str) -> tuple[str, ...]:
    """Words, numbers and signs, case folded."""
    return tuple(_TOKEN.findall(text.casefold()))

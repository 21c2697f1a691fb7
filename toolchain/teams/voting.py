"""Majority votes over answers, equal up to the question's own scorer-independent folding."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from soloist.toolchain.tasks.base import to_number

# The whole answer is a number: a clock time or a date holds numbers and is none.
_NUMBER = re.compile(r"[-−]?[$€]?(?:\d{1,3}(?:,\d{3})+|\d*)(?:\.?\d+)?(?:/\d+)?%?|-?\\[dt]?frac\{-?\d+\}\{\d+\}")


def fold_answer(answer: str) -> str:
    """Answers that say the same fold to the same text: numbers by value, words by case and spacing."""
    text = " ".join(answer.casefold().split()).rstrip(" .")
    number = to_number(text) if _NUMBER.fullmatch(text) else None
    return str(number) if number is not None else text


def majority(answers: Sequence[str | None]) -> tuple[str | None, float]:
    """The most frequent answer (first spoken wins a tie) and its share of all voters. None if nobody answered."""
    counts: Counter[str] = Counter()
    spoken: dict[str, str] = {}  # of each folded answer the first one
    for answer in filter(None, answers):
        key = fold_answer(answer)
        counts[key] += 1
        spoken.setdefault(key, answer)
    if not spoken:
        return None, 0.0
    winner, votes = counts.most_common(1)[0]  # of equally many the one counted first
    return spoken[winner], votes / len(answers)

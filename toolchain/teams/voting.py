"""Majority votes over answers, equal up to the question's own scorer-independent folding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from soloist.toolchain.tasks.base import to_number


def fold_answer(answer: str) -> str:
    """Answers that say the same fold to the same text: numbers by value, words by case and spacing."""
    number = to_number(answer) if any(c.isdigit() for c in answer) and len(answer.split()) == 1 else None
    return str(number) if number is not None else " ".join(answer.casefold().split()).strip(" .")


def majority(answers: Sequence[str | None]) -> tuple[str | None, float]:
    """The most frequent answer (first spoken wins a tie) and its share of all voters. None if nobody answered."""
    said = [(fold_answer(a), a) for a in answers if a]
    if not said:
        return None, 0.0
    counts = Counter(key for key, _ in said)
    best = max(counts.values())
    winner = next(key for key, _ in said if counts[key] == best)
    return next(a for key, a in said if key == winner), counts[winner] / len(answers)

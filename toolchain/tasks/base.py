"""A question, where it comes from, and how an answer to it is scored.

Scorers are exact: no part marks. `extract` finds the answer in free text first (`####`, `\\boxed{}`,
"answer is", last line), so that prose is neither rewarded nor punished.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Split = Literal["train", "held-out", "unseen-wording", "test"]
Scorer = Callable[[str, "Question"], bool]


class Question(BaseModel):
    """One question. `task` is its family; `scorer` a name in SCORERS or `module:function`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    question: str
    gold: str | None
    task: str = ""
    split: Split = "train"
    source: str = ""
    scorer: str = "exact"
    choices: tuple[str, ...] = ()
    pattern: str | None = None


def question_key(text: str) -> str:
    """Key for de-duplication and contamination checks: hash of the text, case and spacing folded."""
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return hashlib.sha256(folded.encode()).hexdigest()[:16]


_MARKED = [
    re.compile(r"####\s*(.+)"),
    re.compile(r"\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}"),
    re.compile(r"(?:final answer|answer)(?:\s+is|\s*:)\s*(.+)", re.IGNORECASE),
]
_NUMBER = re.compile(r"[-−]?\$?\d[\d,]*(?:\.\d+)?(?:\s*/\s*\d+)?%?")


def extract(text: str) -> str | None:
    """The answer in a text: the last marked one, else the last non-empty line; None for an empty text."""
    for pattern in _MARKED:
        found = pattern.findall(text)
        if found:
            return str(found[-1]).strip().strip("*$").rstrip(".").strip() or None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else None


def to_number(text: str) -> Fraction | None:
    """The last number in a text as an exact fraction: signs, thousands, decimals, a/b, percent sign dropped."""
    found = _NUMBER.findall(text)
    if not found:
        return None
    cleaned = found[-1].replace("−", "-").replace("$", "").replace(",", "").replace("%", "").replace(" ", "")
    try:
        return Fraction(cleaned)
    except (ValueError, ZeroDivisionError):
        return None


def _fold(text: str) -> str:
    return " ".join(text.casefold().split()).strip(" .'\"`")


def score_exact(answer: str, question: Question) -> bool:
    """Equal up to case, spacing, quotes and a final period."""
    return question.gold is not None and _fold(answer) == _fold(question.gold)


def score_number(answer: str, question: Question) -> bool:
    """Equal as exact rational numbers."""
    if question.gold is None:
        return False
    got, want = to_number(answer), to_number(question.gold)
    return got is not None and got == want


def score_choice(answer: str, question: Question) -> bool:
    """The first choice letter or choice text named is the gold one."""
    if question.gold is None:
        return False
    letter = re.search(r"\(?\b([A-Z])\b\)?", answer.strip())
    if letter and len(question.gold) == 1:
        return letter.group(1) == question.gold.upper()
    named = [c for c in question.choices if _fold(c) in _fold(answer)]
    return bool(named) and _fold(named[0]) == _fold(question.gold)


def score_regex(answer: str, question: Question) -> bool:
    """The whole answer matches the question's `pattern` (or its gold, as a pattern)."""
    pattern = question.pattern or question.gold
    return pattern is not None and re.fullmatch(pattern, answer.strip()) is not None


SCORERS: Mapping[str, Scorer] = {
    "exact": score_exact,
    "number": score_number,
    "choice": score_choice,
    "regex": score_regex,
}


def resolve_scorer(name: str) -> Scorer:
    """A scorer by name, or by `module:function` for the user's own."""
    if name in SCORERS:
        return SCORERS[name]
    return resolve_entry_point(name, "scorer", ", ".join(SCORERS))


def resolve_entry_point(name: str, what: str, known: str) -> Any:  # noqa: ANN401 - the user's object
    """Import `module:attribute`. Raises UsageError naming what is missing."""
    import importlib

    from soloist.kernels.errors import UsageError

    module, colon, attribute = name.partition(":")
    if not colon:
        raise UsageError(f"unknown {what} '{name}': use one of {known}, or module:function")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"{what} '{name}' cannot be imported: {error}") from error


def score(answer: str | None, question: Question) -> bool:
    """Whether `answer` (already extracted) is right. No answer is wrong."""
    return answer is not None and bool(resolve_scorer(question.scorer)(answer, question))

"""A question, where it comes from, and how an answer to it is scored.

Scorers are exact: no part marks. `extract` finds the answer in free text first (`####`, `\\boxed{}`,
"answer is", last line), so that prose is neither rewarded nor punished.
"""

from __future__ import annotations

import hashlib
import re
import string
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

from soloist.toolchain.core.entry_points import resolve_entry_point
from soloist.toolchain.tasks.math_answers import same_answer

Split = Literal["train", "held-out", "unseen-wording", "test", "selection", "selection-wording"]
Scorer = Callable[[str, "Question"], bool]


class Question(BaseModel):
    """One question. `task` is its family; `scorer` a name in SCORERS or `module:function`.

    `benchmark` names the public benchmark whose *test* question this is: a student trained on such a
    question is never reported on that benchmark, whatever `split` the question was imported under.
    """

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
    benchmark: str | None = None

    @model_serializer(mode="wrap")
    def _leave_out_no_benchmark(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A question of no benchmark is written, and so hashed into plans, without the field."""
        fields: dict[str, Any] = handler(self)
        if self.benchmark is None:
            fields.pop("benchmark", None)
        return fields


def question_key(text: str) -> str:
    """Key for de-duplication and contamination checks: hash of the text, case and spacing folded."""
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return hashlib.sha256(folded.encode()).hexdigest()[:16]


def questions_digest(questions: Sequence[Question]) -> str:
    """Which questions a stage was given, in which order: 16 hex digits for its plan."""
    return hashlib.sha256("\n".join(question.model_dump_json() for question in questions).encode()).hexdigest()[:16]


T = TypeVar("T")


def interleave(columns: Sequence[Sequence[T]]) -> list[T]:
    """One of each column in turn, until the longest has ended."""
    mixed: list[T] = []
    for row in range(max(map(len, columns), default=0)):
        mixed += [column[row] for column in columns if row < len(column)]
    return mixed


def spread(questions: Sequence[Question], count: int) -> list[Question]:
    """`count` questions, evenly over the families, each text once."""
    distinct: dict[str, Question] = {}
    for question in questions:
        distinct[question_key(question.question)] = question
    families: dict[str, list[Question]] = {}
    for question in distinct.values():
        families.setdefault(question.task, []).append(question)
    if count < len(families):
        names = list(families)
        return [families[names[i * len(names) // count]][0] for i in range(count)]
    return interleave(list(families.values()))[:count]


_MARKED = [
    re.compile(r"####\s*(.+)"),
    re.compile(r"\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}"),
    re.compile(r"(?:final answer|answer)(?:\s+is|\s*:)\s*(.+?)(?:\.\s+[A-Z].*)?$", re.IGNORECASE | re.MULTILINE),
]
_NUMBER = re.compile(
    r"(?:(?<![\w)])[-−])?[$€]?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!\d)|\d+(?:\.\d+)?|\.\d+)(?:\s*/\s*\d+)?"
)
_FRACTION = re.compile(r"\\[dt]?frac\{(-?\d+)\}\{(\d+)\}")


def extract(text: str) -> str | None:
    """The answer in a text: the last marked one, else the last non-empty line; None for an empty text."""
    for pattern in _MARKED:
        marked = pattern.findall(text)
        if marked:
            return str(marked[-1]).lstrip("*$` ").rstrip("*$`. ") or None
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else None


def to_number(text: str) -> Fraction | None:
    """The last number in a text as an exact fraction: signs, thousands, decimals, a/b; percent signs dropped."""
    numbers = _NUMBER.findall(_FRACTION.sub(r"\1/\2", text))
    if not numbers:
        return None
    cleaned = re.sub(r"[$€,\s]", "", numbers[-1]).replace("−", "-")
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


_LETTERS = [
    re.compile(r"\(([A-Z])\)"),
    re.compile(r"\A([A-Z])(?:[).:]|\Z|\s)"),
    re.compile(r"(?<!['’])\b([A-Z])\b(?!['’])"),
]


def _chosen(answer: str, choices: tuple[str, ...]) -> str | None:
    """The letter of the choice an answer names: by its text (the earliest, longest one), else by its letter."""
    spots = []
    for index, choice in enumerate(choices):
        match = re.search(rf"(?<!\w){re.escape(_fold(choice))}(?!\w)", _fold(answer))
        if match and len(_fold(choice)) > 1:
            spots.append((match.start(), -len(choice), chr(65 + index)))
    if spots:
        return min(spots)[2]
    allowed = string.ascii_uppercase[: len(choices) or 26]
    for pattern in _LETTERS:
        for letter in pattern.findall(answer.strip()):
            if letter in allowed:
                return str(letter)
    return None


def score_choice(answer: str, question: Question) -> bool:
    """The choice named, by letter (A is the first) or by its text, is the gold one."""
    if question.gold is None:
        return False
    got = _chosen(answer, question.choices)
    folded = list(map(_fold, question.choices))
    gold = question.gold.strip()
    want = chr(65 + folded.index(_fold(gold))) if _fold(gold) in folded else gold.upper()
    return got is not None and got == want


def score_math(answer: str, question: Question) -> bool:
    """Equal as mathematics: fractions, LaTeX, units, thousands, lists; see `math_answers`."""
    return question.gold is not None and same_answer(answer, question.gold)


def score_regex(answer: str, question: Question) -> bool:
    """The whole answer matches the question's `pattern` (or its gold, as a pattern)."""
    pattern = question.pattern or question.gold
    return pattern is not None and re.fullmatch(pattern, answer.strip()) is not None


SCORERS: Mapping[str, Scorer] = {
    "exact": score_exact,
    "number": score_number,
    "math": score_math,
    "choice": score_choice,
    "regex": score_regex,
}


def resolve_scorer(name: str) -> Scorer:
    """A scorer by name, or by `module:function` for the user's own."""
    if name in SCORERS:
        return SCORERS[name]
    scorer: Scorer = resolve_entry_point(name, "scorer", ", ".join(SCORERS))
    return scorer


def score(answer: str | None, question: Question) -> bool:
    """Whether `answer` (already extracted) is right. No answer is wrong."""
    return answer is not None and bool(resolve_scorer(question.scorer)(answer, question))

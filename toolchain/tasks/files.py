"""Users' own questions, one JSON object per line.

    {"question": "...", "answer": "...", "scorer": "number", "id": "q7", "task": "...",
     "choices": ["..."], "pattern": "...", "benchmark": "...", "split": "unseen-wording", "source": "..."}

`question` and `answer` are needed (with scorer `regex`, `pattern` may stand for the answer), the rest
is optional; `benchmark` names the public benchmark whose test question this is, `split` tells apart wordings that no
training has seen. A question as our traces and measurements write it (with `gold`) is such a line, too. The file is
checked strictly and all its faults are reported at once, each with its line and field. A question whose text was there
before is dropped and counted; the same text with another answer is a fault.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soloist.kernels.errors import DataError, UsageError
from soloist.toolchain.core.config import shortened
from soloist.toolchain.core.files import write_atomic
from soloist.toolchain.tasks.base import Question, Split, question_key, resolve_scorer

_MEASURED = ("held-out", "test")
_TEXTS = ("question", "answer", "scorer", "id", "task", "pattern", "benchmark", "split", "source")
_FIELDS = (*_TEXTS, "choices")


@dataclass(frozen=True)
class Loaded:
    """The questions of a file, and how many were dropped because their text was there before."""

    questions: tuple[Question, ...]
    duplicates: int


def _row_faults(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Field and fault of everything wrong with one row."""
    for name in row:
        if name not in _FIELDS:
            yield name, f"unknown field; known are {', '.join(_FIELDS)}"
    for name in _TEXTS:
        value = row.get(name)
        if name in row and not (name == "answer" and isinstance(value, int | float) and not isinstance(value, bool)):
            if not isinstance(value, str):
                yield name, f"must be a text, is {type(value).__name__}"
            elif not value.strip():
                yield name, "must not be empty"
    if "question" not in row:
        yield "question", "missing"
    if "answer" not in row and not (row.get("scorer") == "regex" and "pattern" in row):
        yield "answer", "missing"
    choices = row.get("choices", [])
    if not isinstance(choices, list) or not all(isinstance(c, str) and c.strip() for c in choices):
        yield "choices", "must be a list of texts"
    elif row.get("scorer") == "choice" and len(choices) < 2:
        yield "choices", "scorer 'choice' needs at least two"
    yield from _scorer_faults(row)


def _scorer_faults(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    scorer = row.get("scorer", "exact")
    if isinstance(scorer, str) and scorer.strip():
        try:
            resolve_scorer(scorer)
        except UsageError as error:
            yield "scorer", str(error)
    pattern = row.get("pattern", row.get("answer") if scorer == "regex" else None)
    if isinstance(pattern, str):
        try:
            re.compile(pattern)
        except re.error as error:
            yield "pattern" if "pattern" in row else "answer", f"not a regular expression ({error})"


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Line number and row, or line number and why there is none."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            yield number, f"not JSON ({error})"
            continue
        yield number, _as_written(row) if isinstance(row, dict) else f"must be a JSON object, is {type(row).__name__}"


def _as_written(row: dict[str, Any]) -> dict[str, Any]:
    """A question as `Question` dumps itself (in traces and measurements) is a row, too: its gold is the answer."""
    if "gold" not in row or "answer" in row:
        return row
    written = {}
    for name, value in row.items():
        if value not in (None, ""):
            written["answer" if name == "gold" else name] = value
    return written


def _question(row: dict[str, Any], number: int, path: Path, split: Split) -> Question:
    answer = row.get("answer")
    return Question(
        id=row.get("id", f"{path.stem}-{number:05d}"),
        question=row["question"].strip(),
        gold=None if answer is None else str(answer).strip(),
        task=row.get("task", ""),
        split="unseen-wording" if row.get("split") == "unseen-wording" and split in _MEASURED else split,
        source=row.get("source", path.name),
        scorer=row.get("scorer", "exact"),
        choices=tuple(row.get("choices", ())),
        pattern=row.get("pattern"),
        benchmark=row.get("benchmark"),
    )


def load_questions(path: Path, split: Split = "test") -> Loaded:
    """Read a question file. Raises DataError listing every fault as file:line: field: fault."""
    faults: list[str] = []
    kept: dict[str, tuple[int, Question]] = {}
    ids: dict[str, int] = {}
    duplicates = 0
    for number, row in _rows(path):
        if isinstance(row, str):
            faults.append(f"{path}:{number}: {row}")
            continue
        wrong = [f"{path}:{number}: {name}: {fault}" for name, fault in _row_faults(row)]
        faults += wrong
        if wrong:
            continue
        question = _question(row, number, path, split)
        key = question_key(question.question)
        if key in kept:
            first, before = kept[key]
            duplicates += 1
            if before.gold != question.gold:
                faults.append(f"{path}:{number}: answer: line {first} has the same question with another answer")
            continue
        if question.id in ids:
            faults.append(f"{path}:{number}: id: '{question.id}' is that of line {ids[question.id]}")
        ids[question.id] = number
        kept[key] = number, question
    if not kept and not faults:
        faults.append(f"{path}: no questions in it")
    if faults:
        raise DataError("\n".join(shortened(faults)))
    return Loaded(tuple(question for _, question in kept.values()), duplicates)


def save_questions(path: Path, questions: Sequence[Question]) -> None:
    """Write a question file that `load_questions` reads back."""
    text = ""
    for question in questions:
        text += question.model_dump_json(exclude_none=True, exclude_defaults=True) + "\n"
    write_atomic(path, text)

"""Sub-questions: those behind the calls of a run, and those that people wrote.

A sub-question names a call's tool and arguments but not their values, because finding those is the solver's part:
`solve(3*x + 4 = 19)` answers "Which equation goes to solve?". Files are real supervision for a decomposer, read
where the user put them:

    StrategyQA     a JSON list of {"question", "decomposition": [sub-question, ...]}; the answers are not there
    GSM8K Socratic JSON lines of {"question", "answer": "sub-question ** answer\\n...\\n#### 72"}

The content says which of the two a file is. Calculator marks (`<<48/2=24>>`) are dropped. A record that does not fit is
counted with its reason; a file of which nothing fits is refused, and so is one that by its name holds test or
dev questions: the records do not say whose they are, so no report could refuse that benchmark later.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soloist.kernels.errors import DataError
from soloist.targets.base import Message
from soloist.toolchain.distill.data import reasons
from soloist.toolchain.student.artifact import Mode
from soloist.toolchain.tasks.base import question_key
from soloist.toolchain.tools.calls import MORE
from soloist.toolchain.traces.schema import ToolUse

_MARKS = re.compile(r"<<[^<>]*>>")
_BETWEEN = " ** "
_HELD_OUT = re.compile(r"(?<![a-z])(?:test|dev)(?![a-z])")


def sub_question(use: ToolUse, mode: Mode, *, first: bool) -> str:
    """What a call answers, in words."""
    names = [re.sub(r"[_\W]+", " ", name).strip() for name in use.arguments]
    listed = ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else "".join(names) or "values"
    go = "go" if len(names) != 1 or listed.endswith("s") else "goes"
    called = f"Which {listed} {go} to {use.name}?"
    text = called if mode == "tools" else f"What does {use.name} of the {listed} give?"
    return text if first else f"With that result: {text[0].lower()}{text[1:]}"


def taken_apart(uses: Sequence[ToolUse], answer: str | None, mode: Mode) -> tuple[list[str], list[list[Message]]]:
    """The sub-questions behind some calls, and the solver's turn (with the tool's result) on each."""
    sub_questions: list[str] = []
    replies: list[list[Message]] = []
    for index, use in enumerate(uses):
        last = index + 1 == len(uses)
        sub_questions.append(sub_question(use, mode, first=not index))
        if mode == "tools":
            replies.append([{"role": "assistant", "content": use.call.strip().removesuffix(MORE).rstrip()}])
            if not last:
                replies[-1].append({"role": "tool", "content": (use.result or "").strip()})
        else:
            lines = list(use.steps) or [use.call.strip()]
            text = "\n".join([*lines, f"#### {answer}"] if last and answer is not None else lines)
            replies.append([{"role": "assistant", "content": text}])
    return sub_questions, replies


@dataclass(frozen=True)
class Decomposed:
    """A question with its sub-questions, and where the file has them their answers (else empty)."""

    question: str
    sub_questions: tuple[str, ...]
    answers: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        return question_key(self.question)


def read_decompositions(path: Path) -> tuple[list[Decomposed], dict[str, int]]:
    """The usable records of a file, and how many were left out for which reason. Raises DataError."""
    if _HELD_OUT.search(path.stem.lower()):
        raise DataError(
            f"{path}: by its name these are a benchmark's test or dev questions, which are not for training; "
            "give the file of its training questions"
        )
    usable: list[Decomposed] = []
    refused: Counter[str] = Counter()
    for record in _records(path):
        made = _read(record)
        if isinstance(made, str):
            refused[made] += 1
        else:
            usable.append(made)
    if not usable:
        why = reasons(refused) or "it is empty"
        raise DataError(
            f"{path}: no decomposition in it ({why}); give StrategyQA's train.json or GSM8K's train_socratic.jsonl"
        )
    return usable, dict(refused)


def _records(path: Path) -> Sequence[Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: decompositions cannot be read ({error}); check the option") from error
    try:
        whole = json.loads(text)
        return whole if isinstance(whole, list) else [whole]
    except ValueError:
        pass
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise DataError(f"{path}:{number}: neither JSON nor JSON lines ({error})") from error
    return rows


def _read(record: Any) -> Decomposed | str:
    if not isinstance(record, dict) or not isinstance(record.get("question"), str) or not record["question"].strip():
        return "no question"
    question, parts = record["question"].strip(), record.get("decomposition")
    if isinstance(parts, list):
        if not parts or not all(isinstance(part, str) and part.strip() for part in parts):
            return "an empty decomposition"
        return Decomposed(question, tuple(" ".join(part.split()) for part in parts))
    answer = record.get("answer")
    if not isinstance(answer, str) or _BETWEEN not in answer:
        return "no sub-questions"
    return _socratic(question, answer)


def _socratic(question: str, answer: str) -> Decomposed | str:
    steps, _, final = _MARKS.sub("", answer).partition("####")
    sub_questions, answers = [], []
    for line in filter(str.strip, steps.splitlines()):
        one, between, other = line.partition(_BETWEEN)
        if not between or not one.strip() or not other.strip():
            return "a line without a sub-question"
        sub_questions.append(one.strip())
        answers.append(other.strip())
    if not final.strip():
        return "no final answer"
    answers[-1] += f"\n#### {final.strip()}"
    return Decomposed(question, tuple(sub_questions), tuple(answers))

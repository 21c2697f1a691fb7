"""What all importers share: reading a file of records, counting what became of them, building a run.

An importer is a record (`Importer`): how to recognize a file, and how to turn one row of it into a run. It
raises DataError to refuse a row and calls `reading.repaired` where it mended one; the driver counts both and
goes on with the next row. Files are JSON or JSON lines, told apart by their content, not by their name;
a pickle is refused unopened, because opening one runs the code in it. Text is never changed.

A turn that nobody graded has verdict `unknown`, never `wrong`; an agent that did not speak has no turn.
No importer invents times or tokens: where a file holds none they are 0.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from soloist.kernels.errors import DataError
from soloist.toolchain.tasks.base import Question, extract, question_key, score
from soloist.toolchain.tasks.math_answers import final_answer, fold_math
from soloist.toolchain.traces.schema import ChatMessage, Edge, Run, ToolUse, Turn, Verdict

UNRECORDED = "unrecorded"  # a model answered, the file does not say which
MOST_PLACES = 20
_MOST_WORDS = 5  # a longer gold answer can be said in other words, which no exact comparison sees


@dataclass(frozen=True)
class Row:
    """One record of a file: its number, where it stands, and itself (for an object of entries: key and value)."""

    number: int
    where: str
    value: Any


@dataclass(frozen=True)
class Document:
    """A file read. `entries` are the members of a JSON object, `rows` the items of a list or the lines."""

    path: Path
    rows: tuple[Row, ...]
    entries: tuple[Row, ...] = ()
    broken: tuple[tuple[str, str], ...] = ()


@dataclass
class Tally:
    """What became of the records: counts by reason, and the first places of the refused ones."""

    kept: int = 0
    repaired: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    noted: Counter[str] = field(default_factory=Counter)
    places: list[str] = field(default_factory=list)

    def refuse(self, place: str, reason: str) -> None:
        self.refused[reason] += 1
        if len(self.places) < MOST_PLACES:
            self.places.append(f"{place}: {reason}")


@dataclass(frozen=True)
class Reading:
    """The import of one file: what the user said about it, and the tally to count in.

    `asked` holds the user's questions once an importer has read them.
    """

    document: Document
    origin: str
    tally: Tally = field(default_factory=Tally)
    benchmark: str | None = None
    questions: Path | None = None
    asked: list[Question] = field(default_factory=list)

    def repaired(self, reason: str) -> None:
        self.tally.repaired[reason] += 1

    def noted(self, reason: str, count: int = 1) -> None:
        self.tally.noted[reason] += count

    def question(
        self,
        row: Row,
        text: str,
        gold: str | None,
        *,
        scorer: str,
        task: str = "",
        benchmark: str | None = None,
        choices: tuple[str, ...] = (),
    ) -> Question:
        """The question of a row; one of a benchmark's test set is of split `test`."""
        named = self.benchmark or benchmark
        if not text.strip():
            raise DataError("an empty question")
        return Question(
            id=question_key(text),
            question=text.strip(),
            gold=gold,
            task=task,
            split="test" if named else "train",
            source=f"{self.document.path.name} {row.where} ({self.origin})",
            scorer=scorer,
            choices=choices,
            benchmark=named,
        )


@dataclass(frozen=True)
class Importer:
    """One format. `fits` counts the records it knows; `check` may refuse a file; `convert` makes a row a run."""

    name: str
    about: str
    origin: str
    fits: Callable[[Document], int]
    convert: Callable[[Row, Reading], Run]
    rows: Callable[[Document], Sequence[Row]] = lambda document: document.rows
    check: Callable[[Reading], None] = lambda reading: None


# ---------------------------------------------------------------- reading files


def load_document(path: Path) -> Document:
    """Read a file of JSON or JSON lines. Raises DataError with file and place."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the name") from error
    if raw[:1] == b"\x80" or path.suffix in (".p", ".pkl", ".pickle"):
        raise DataError(f"{path}: a pickle, which Soloist never opens; save its content as JSON")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}; convert it to UTF-8 JSON") from error
    if not text.strip():
        raise DataError(f"{path}: empty file; nothing to import")
    try:
        value = _parse(text)
    except (ValueError, RecursionError) as error:
        return _lines(path, text, error)
    if isinstance(value, dict):
        entries = tuple(Row(i, f"entry {i}", pair) for i, pair in enumerate(value.items(), 1))
        return Document(path, (Row(1, "the object", value),), entries)
    if isinstance(value, list):
        return Document(path, tuple(Row(i, f"item {i}", item) for i, item in enumerate(value, 1)))
    raise DataError(f"{path}: holds {type(value).__name__}, not records; give a list, an object or JSON lines")


def _lines(path: Path, text: str, error: Exception) -> Document:
    """The file as JSON lines; where even its first line is no JSON, the fault of the whole is the one to tell."""
    rows, broken = [], []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            rows.append(Row(number, f"line {number}", _parse(line)))
        except (ValueError, RecursionError) as fault:
            broken.append((f"line {number}", f"not JSON ({str(fault).split(':')[0]})"))
    if not rows or (broken and broken[0][0] == "line 1"):
        raise DataError(f"{path}: not JSON ({error}); save it again, or leave it out") from error
    return Document(path, tuple(rows), broken=tuple(broken))


def _parse(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = Counter(key for key, _ in pairs)
        raise ValueError(f"the key {names.most_common(1)[0][0][:60]!r} stands twice in one object")
    return record


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


# ---------------------------------------------------------------- fields of a row


def mapping(value: object, what: str = "the record") -> dict[str, Any]:
    """The value as an object, or DataError."""
    if not isinstance(value, dict):
        raise DataError(f"{what} is no object")
    return value


def text_of(record: dict[str, Any], key: str) -> str:
    """A text field that must be there."""
    value = record.get(key)
    if not isinstance(value, str):
        raise DataError(f"'{key}' is {'missing' if value is None else 'no text'}")
    return value


def gold_of(record: dict[str, Any], key: str) -> str | None:
    """A gold answer: text or number, None where there is none."""
    value = record.get(key)
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DataError(f"'{key}' is no answer")
    return str(value).strip()


# ---------------------------------------------------------------- grading

_LETTER = re.compile(r"\(([A-Ja-j])\)|(?i:answer|choice|option)(?i:\s+is|:)?\s*\(?([A-J])\b")  # "is a" names none


def scorer_for(gold: str | None) -> str:
    """How answers to this gold are compared: a letter as a choice, mathematics as such, anything else exactly."""
    if gold is not None and re.fullmatch(r"\(?[A-J]\)?", gold):
        return "choice"
    return "math" if gold is None or re.search(r"\d|\\[a-z]|\$", gold) else "exact"


def answer_in(text: str, question: Question) -> str | None:
    """The answer in a text, found the way the question's scorer reads it."""
    if question.scorer == "math":
        return final_answer(text)
    if question.scorer == "choice":
        letters = [(first or second).upper() for first, second in _LETTER.findall(text)]
        bare = re.fullmatch(r"\W*([A-J])\W*", text)
        return letters[-1] if letters else bare[1] if bare else None
    return extract(text)


def grade(answer: str | None, question: Question) -> Verdict:
    """Right or wrong; unknown where there is no answer, or nothing to compare it with exactly."""
    if answer is None or question.gold is None:
        return "unknown"
    if score(answer, question):
        return "correct"
    prose = question.scorer == "exact" and len(question.gold.split()) > _MOST_WORDS
    return "unknown" if prose else "wrong"


# ---------------------------------------------------------------- building a run


class Graph:
    """Turns and edges of one run, in the order in which they were spoken: every edge points forward."""

    def __init__(self, question: Question, model: str | None = UNRECORDED) -> None:
        self.question, self.model = question, model
        self.turns: list[Turn] = []
        self.edges: list[Edge] = []
        self._last: dict[str, int] = {}

    def say(
        self,
        agent: str,
        text: str,
        *,
        round: int = 0,
        role: str = "solver",
        reads: Iterable[int] = (),
        messages: Sequence[ChatMessage] = (),
        tools: tuple[ToolUse, ...] = (),
        by_model: bool = True,
        answer: str | None = None,
        verdict: Verdict | None = None,
    ) -> int:
        """Add a turn that was shown the turns `reads`; graded here unless its verdict is given. Returns its id."""
        number = len(self.turns)
        if verdict is None:
            answer = answer_in(text, self.question) if answer is None else answer
            verdict = grade(answer, self.question)
        self.turns.append(
            Turn(
                id=number,
                agent=agent,
                role=role,
                round=round,
                messages=tuple(messages),
                text=text,
                tools=tools,
                model=self.model if by_model else None,
                answer=answer,
                verdict=verdict,
            )
        )
        if agent in self._last:
            self.edges.append(Edge(source=self._last[agent], target=number, kind="continuity"))
        for source in sorted(set(reads)):
            if self.turns[source].agent != agent:
                self.edges.append(Edge(source=source, target=number, kind="influence"))
        self._last[agent] = number
        return number

    def run(self, team: str, *, answer: str | None, path: Sequence[int] = (), verdict: Verdict | None = None) -> Run:
        """The finished run; graded here unless its verdict is given."""
        if not self.turns:
            raise DataError("nobody spoke")
        return Run(
            question=self.question,
            team=team,
            turns=tuple(self.turns),
            edges=tuple(self.edges),
            path=tuple(path),
            answer=answer,
            verdict=grade(answer, self.question) if verdict is None else verdict,
        )

    def voted(self, team: str, voters: Sequence[int]) -> Run:
        """The run whose answer is that of most `voters` (the first spoken on a tie); its path is their first."""
        votes = {turn: self._key(turn) for turn in voters if self.turns[turn].answer is not None}
        if not votes:
            return self.run(team, answer=None)
        counts = Counter(votes.values())
        first = max(votes, key=lambda turn: (counts[votes[turn]], -turn))
        winner = next(turn for turn, vote in votes.items() if vote == votes[first])
        return self.run(team, answer=self.turns[winner].answer, path=[winner])

    def _key(self, turn: int) -> str:
        answer = self.turns[turn].answer or ""
        return fold_math(answer) if self.question.scorer == "math" else " ".join(answer.casefold().split())


def quoted(shown: str, text: str) -> bool:
    """Whether a debate's prompt quotes this text between the fences it uses."""
    return bool(text.strip()) and f"```{text}```" in shown


def chat(value: object) -> list[ChatMessage]:
    """A conversation: an optional system message, then user and assistant in turn."""
    if not isinstance(value, list) or not value:
        raise DataError("a context is no list of messages")
    messages = []
    for item in value:
        record = mapping(item, "a message")
        messages.append(ChatMessage(role=text_of(record, "role"), content=text_of(record, "content")))
    spoken = messages[1:] if messages[0].role == "system" else messages
    if len(spoken) % 2 or any(m.role != ("user", "assistant")[i % 2] for i, m in enumerate(spoken)):
        raise DataError("a context is not user and assistant in turn")
    return messages

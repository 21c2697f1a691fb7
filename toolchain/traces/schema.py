"""The one trace schema: a run of a team on one question is a typed graph.

    Run ── question, final answer, verdict, wall time
     ├── Turn*   nodes: who said what when, with which tools, from which messages, at what cost
     └── Edge*   continuity · influence · tool · agrees · disputes · corrects  (always forward in time)

Everything that follows (training data, methods, anatomy, cost) reads only this. Versioned: a file of
another version or with a field we do not know is refused by that field's name, never half-read.
Times are seconds since the run began. Tokens are counted on the turns a model answered, and only there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from soloist.toolchain.tasks.base import Question

SCHEMA = 1

Verdict = Literal["correct", "wrong", "unknown", "absent"]
EdgeKind = Literal["continuity", "influence", "tool", "agrees", "disputes", "corrects"]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ChatMessage(_Record):
    """One message a turn was shown."""

    role: str
    content: str


class ToolUse(_Record):
    """One tool call of a turn. `call` is its text form; exactly one of `result` and `error` is set."""

    name: str
    arguments: dict[str, Any]
    call: str
    result: str | None = None
    steps: tuple[str, ...] = ()
    error: str | None = None
    seconds: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _one_outcome(self) -> ToolUse:
        if (self.result is None) == (self.error is None):
            raise ValueError("exactly one of result and error must be set")
        return self


class Turn(_Record):
    """One node. `model` is None where no model answered (a tool, a vote): it then has no tokens."""

    id: int = Field(ge=0)
    agent: str
    role: str
    round: int = Field(default=0, ge=0)
    messages: tuple[ChatMessage, ...] = ()
    text: str = ""
    tools: tuple[ToolUse, ...] = ()
    model: str | None = None
    tokens_in: int = Field(default=0, ge=0)
    tokens_cached: int = Field(default=0, ge=0)
    tokens_out: int = Field(default=0, ge=0)
    start: float = Field(default=0.0, ge=0)
    first_token: float | None = None
    end: float = Field(default=0.0, ge=0)
    finish: str | None = None
    error: str | None = None
    answer: str | None = None
    verdict: Verdict = "unknown"

    @model_validator(mode="after")
    def _consistent(self) -> Turn:
        if self.end < self.start:
            raise ValueError(f"end {self.end} is before start {self.start}")
        if self.model is None and (self.tokens_in or self.tokens_out):
            raise ValueError("tokens on a turn that no model answered")
        if self.tokens_cached > self.tokens_in:
            raise ValueError(f"tokens_cached {self.tokens_cached} is more than tokens_in {self.tokens_in}")
        return self


class Edge(_Record):
    """A directed edge between two turns, by id."""

    source: int = Field(ge=0)
    target: int = Field(ge=0)
    kind: EdgeKind


class Run(_Record):
    """One run of one team on one question. `path`: ids of the turns that make the answer, in order."""

    schema_version: int = Field(default=SCHEMA, alias="schema")
    question: Question
    team: str
    turns: tuple[Turn, ...] = ()
    edges: tuple[Edge, ...] = ()
    path: tuple[int, ...] = ()
    answer: str | None = None
    verdict: Verdict = "unknown"
    wall: float = Field(default=0.0, ge=0)
    seed: int = 0
    error: str | None = None

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, serialize_by_alias=True)

    @model_validator(mode="after")
    def _graph(self) -> Run:
        if self.schema_version != SCHEMA:
            raise ValueError(f"schema {self.schema_version}: this Soloist reads schema {SCHEMA}")
        ids = [turn.id for turn in self.turns]
        if ids != list(range(len(ids))):
            raise ValueError(f"turn ids must be 0..{len(ids) - 1} in order")
        if any(step >= len(ids) for step in self.path) or list(self.path) != sorted(set(self.path)):
            raise ValueError(f"path {list(self.path)} does not name turns in order")
        for edge in self.edges:
            if edge.target >= len(ids) or edge.source >= edge.target:
                raise ValueError(f"edge {edge.source}->{edge.target} ({edge.kind}) does not point forward in time")
        return self

    @property
    def trajectory(self) -> tuple[ToolUse, ...]:
        """The tool calls along `path`: what a student that acts has to learn."""
        return uses_of(self.turns[step] for step in self.path)

    @property
    def calls(self) -> tuple[Turn, ...]:
        """The turns a model answered: the only place where tokens and calls are counted."""
        return tuple(turn for turn in self.turns if turn.model is not None)

    @property
    def tokens_in(self) -> int:
        return sum(turn.tokens_in for turn in self.calls)

    @property
    def tokens_cached(self) -> int:
        return sum(turn.tokens_cached for turn in self.calls)

    @property
    def tokens_out(self) -> int:
        return sum(turn.tokens_out for turn in self.calls)

    @property
    def critical_path(self) -> float:
        """Seconds of the longest chain of turns along edges: the wall time with unlimited parallelism."""
        return critical_path(self.turns, self.edges)

    @property
    def time_to_first_token(self) -> float | None:
        """Seconds to the first token of the turn that gave the answer: what a waiting user sees."""
        for turn in reversed(self.calls):
            if turn.first_token is not None:
                return turn.first_token
        return None


def uses_of(turns: Iterable[Turn]) -> tuple[ToolUse, ...]:
    """The tool calls of turns, in order."""
    uses: list[ToolUse] = []
    for turn in turns:
        uses += turn.tools
    return tuple(uses)


def critical_path(turns: Sequence[Turn], edges: Sequence[Edge]) -> float:
    """Length in seconds of the longest path, each turn weighing its own duration.

    An edge counts as a dependency only if its target began after its source had ended: readers who
    agree with each other in one batch did not wait for each other.
    """
    longest = [turn.end - turn.start for turn in turns]
    for edge in sorted(edges, key=lambda e: e.target):
        if turns[edge.target].start < turns[edge.source].end:
            continue
        own = turns[edge.target].end - turns[edge.target].start
        longest[edge.target] = max(longest[edge.target], longest[edge.source] + own)
    return max(longest, default=0.0)

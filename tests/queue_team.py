"""A team whose model is a queue of replies, so that a topology can be followed step by step."""

from __future__ import annotations

import time
from collections.abc import Iterable

import pytest

from soloist.targets.base import Reply
from soloist.toolchain.tasks.base import Question
from soloist.toolchain.teams.config import TeamConfig
from soloist.toolchain.teams.team import Team

SUMS = Question(id="q1", question="What is 2 + 3?", gold="5", task="sums", scorer="number")


class QueueEngine:
    """Answers with the next replies of a queue; keeps what it was asked, batch by batch. Counts words as tokens."""

    model = "queue"

    def __init__(self, replies: Iterable[str | Exception]) -> None:
        self.replies = list(replies)
        self.batches = []
        self.closed = False

    def ask(self, asks):
        self.batches.append(list(asks))
        start = time.perf_counter()
        answered = []
        for ask in asks:
            assert self.replies, f"asked more often than expected: {ask.messages[-1]['content']}"
            text = self.replies.pop(0)
            if isinstance(text, Exception):
                raise text
            words = sum(len(message["content"].split()) for message in ask.messages)
            now = time.perf_counter()
            answered.append(Reply(text, words, 0, len(text.split()), start, now, now, "stop"))
        return answered

    def close(self) -> None:
        self.closed = True

    @property
    def asks(self):
        return [ask for batch in self.batches for ask in batch]


@pytest.fixture
def play():
    """Let a team of `roles` (or agents) work on a question with queued replies. Returns the run and the engine."""

    def run(topology, roles, replies, *, options=None, question=SUMS, tools=(), seed=0):
        agents = [
            role if isinstance(role, dict) else {"name": f"{role}-{number}", "role": role}
            for number, role in enumerate(roles)
        ]
        config = TeamConfig.model_validate(
            {
                "name": "team",
                "topology": topology,
                "agents": agents,
                "options": options or {},
                "tools": tools,
                "engine": {"kind": "gguf", "model": "never-opened"},
            }
        )
        engine = QueueEngine(replies)
        with Team(config, engine=engine) as team:
            record = team.answer(question, seed=seed)
        assert engine.closed and not engine.replies, f"not asked: {engine.replies}"
        return record, engine

    return run


@pytest.fixture
def queue():
    """The engine itself."""
    return QueueEngine


@pytest.fixture
def edges():
    """Edges of one kind, as pairs."""
    return lambda run, kind: [(edge.source, edge.target) for edge in run.edges if edge.kind == kind]

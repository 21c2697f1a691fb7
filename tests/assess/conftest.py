"""Runs and teams that a script answers for, so that every distance and score is known beforehand."""

from __future__ import annotations

import time

import pytest

from soloist.targets.base import Reply
from soloist.toolchain.tasks.base import Question
from soloist.toolchain.teams.config import TeamConfig
from soloist.toolchain.traces.schema import Run, ToolUse, Turn


def ask(number, split="train", task="sums"):
    return Question(
        id=f"q{number}",
        question=f"What is {number} + 3?",
        gold=str(number + 3),
        task=task,
        split=split,
        scorer="number",
    )


def make_run(calls, *, number=2, correct=True, role="reader", split="train", task="sums", seed=0, steps=(), error=None):
    """One turn per call, `(text, result)`; the last result is the answer."""
    turns = tuple(
        Turn(
            id=i,
            agent=role,
            role=role,
            text=text,
            model="script",
            answer=result,
            verdict="unknown" if result is None else "correct" if correct else "wrong",
            tools=(
                ToolUse(
                    name=text.partition("(")[0],
                    arguments={},
                    call=text,
                    result=result,
                    steps=tuple(steps),
                    error=None if result is not None else "cannot be computed",
                ),
            ),
        )
        for i, (text, result) in enumerate(calls)
    )
    answer = calls[-1][1] if calls else None
    return Run(
        question=ask(number, split, task),
        team="script",
        turns=turns,
        path=tuple(range(len(turns))),
        answer=answer,
        verdict="absent" if answer is None else "correct" if correct else "wrong",
        seed=seed,
        wall=0.5,
        error=error,
    )


class Script:
    """An engine whose reply is `say(question, seed)`; keeps every call it was asked."""

    model = "script"

    def __init__(self, say):
        self.say, self.asks, self.closed = say, [], False

    def ask(self, asks):
        self.asks += asks
        now = time.perf_counter()
        texts = [self.say(ask.messages[-1]["content"], ask.sampling.seed) for ask in asks]
        return [Reply(text, 5, 0, 3, now, now, now, "stop") for text in texts]

    def close(self):
        self.closed = True


@pytest.fixture
def run_of():
    return make_run


@pytest.fixture
def question():
    return ask


@pytest.fixture
def script():
    return Script


@pytest.fixture
def team():
    """One agent with the desk's calc, and a scribe that is never asked."""
    return TeamConfig.model_validate(
        {
            "name": "adder",
            "topology": "solo",
            "engine": {"kind": "gguf", "model": "never-opened"},
            "tools": ["soloist.toolchain.desk.tools:desk_tools"],
            "agents": [
                {
                    "name": "ann",
                    "role": "solver",
                    "tools": ["calc"],
                    "prompt": "Only add.",
                    "sampling": {"max_tokens": 9},
                },
                {"name": "sam", "role": "scribe"},
            ],
        }
    )

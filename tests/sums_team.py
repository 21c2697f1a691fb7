"""A team for tests, as a user would bring one: a topology as an entry point, sums as questions, a whole job.

One model call, one exact tool call, one check. Times and cache hits are set to constants, so that the same
questions give the same traces byte for byte and everything made from them has the same digest.
"""

from __future__ import annotations

import re
from pathlib import Path

from soloist.kernels.errors import EngineError
from soloist.toolchain.core.config import Config
from soloist.toolchain.pipeline.job import Job, Task
from soloist.toolchain.quantize.stage import QuantizeConfig
from soloist.toolchain.tasks.base import Question
from soloist.toolchain.teams.config import Demonstration, TeamConfig
from soloist.toolchain.teams.session import Say, messages_for

MUTE = "please say nothing"
BROKEN = "please break down"
DEAD = "please drop dead"
FORMATS = ("gguf-f16", "gguf-q8_0", "gguf")


class Sums:
    """Adds the two numbers of a question with the desk's `calc`; the words above make it fail."""

    class Options(Config):
        shift: int = 0  # added to the first number: a team that is wrong

    @staticmethod
    def run(session, options):
        reader, critic = session.team.agents
        question = session.question.question
        if BROKEN in question:
            raise EngineError("http://nowhere cannot be reached (2 retries): is the server running?")
        if DEAD in question:
            import os

            os._exit(3)
        (turn,) = session.say([Say(reader, messages_for(reader, question))])
        if MUTE in question:
            return timeless(session.finish(None, [turn]))
        first, second = re.findall(r"\d+", question)[:2]
        use = session.run_tool(turn, f"calc({int(first) + options.shift} + {second})")
        session.answer(turn, use.result)
        check = session.note(critic, f"{use.result} holds", answer=use.result)
        session.edge(turn, check, "agrees")
        return timeless(session.finish(use.result, [turn]))


def timeless(run):
    """The run with constants where clocks and caches would be."""
    turns = []
    for turn in run.turns:
        tools = tuple(use.model_copy(update={"seconds": 0.001}) for use in turn.tools)
        first = None if turn.first_token is None else turn.id + 0.25
        times = {"start": float(turn.id), "first_token": first, "end": turn.id + 0.5}
        turns.append(turn.model_copy(update={"tools": tools, "tokens_cached": 0, **times}))
    return run.model_copy(update={"turns": tuple(turns), "wall": len(turns) - 0.5})


def team(model: Path, **options) -> TeamConfig:
    """The team on a GGUF file."""
    return TeamConfig.model_validate(
        {
            "name": "sums",
            "topology": "sums_team:Sums",
            "options": options,
            "engine": {"kind": "gguf", "model": str(model), "slots": 2, "context": 256, "threads": 1},
            "tools": ["soloist.toolchain.desk.tools:desk_tools"],
            "agents": [
                {"name": "reader", "role": "reader", "tools": ["calc"], "sampling": {"max_tokens": 4}},
                {"name": "critic", "role": "critic"},
            ],
        }
    )


def questions(count: int, split: str = "train", start: int = 0, words: str = "") -> list[Question]:
    """Sums that differ from each other; `words` are put behind them."""
    made = []
    for number in range(start, start + count):
        a, b = 11 + number, 12 + (7 * number) % 80
        text = " ".join(filter(None, (f"What is {a} + {b}?", words)))
        made.append(
            Question(id=f"{split}-{number}", question=text, gold=str(a + b), task="sums", split=split, scorer="number")
        )
    return made


def job(base: Path, model: Path, out: Path) -> Job:
    """The whole way in miniature: 24 questions to learn from, 8 held out, of which the team leaves one unanswered."""
    task = Task(
        team=team(model),
        train=questions(24),
        test=[
            *questions(5, "held-out", 100),
            *questions(1, "held-out", 105, MUTE),
            *questions(2, "unseen-wording", 200),
        ],
        selection=[*questions(3, "selection", 400), *questions(2, "selection-wording", 500)],
        examples=[Demonstration(question="What is 1 + 2?", reply="calc(1 + 2)")],
        warmup=questions(1, "train", 300),
    )
    return Job(
        task=task, base=str(base), out=out, formats=FORMATS, quantize=QuantizeConfig(samples=4, group=32), epochs=3
    )

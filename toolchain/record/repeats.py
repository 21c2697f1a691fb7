"""Several runs of a team per question, for `soloist assess`.

A greedy team answers the same every time, so every agent that proposes gets a temperature (its own if that is
higher), each run a seed of its own and, where `approaches` are given, one of them at the end of its prompts
(the paper seeds approaches by prompt; small models with demonstrations do better left alone, so the default
is none). Routers and scribes stay as they are: they hand on the words of others.

Runs are appended one by one, one file per run number, so that a kill loses at most one.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from soloist.toolchain.core.config import Config
from soloist.toolchain.core.events import EventLog
from soloist.toolchain.tasks.base import Question
from soloist.toolchain.teams.config import TeamConfig
from soloist.toolchain.teams.engines.base import Engine
from soloist.toolchain.teams.team import Team
from soloist.toolchain.traces.schema import Run
from soloist.toolchain.traces.store import TraceWriter, read_runs

HAND_ON = ("router", "scribe")
_APART = 100_000  # seeds of two runs; a topology adds less to tell its own samples apart


class Sampled(Config):
    """How runs are made to differ."""

    runs: int = Field(default=6, ge=3)  # of two there is one pair, and nothing correlates
    temperature: float = Field(default=0.7, gt=0, le=2)
    seed: int = 42
    approaches: tuple[str, ...] = ()

    def seed_of(self, number: int) -> int:
        return self.seed + _APART * number


def varied(team: TeamConfig, how: Sampled, number: int) -> TeamConfig:
    """The team as run `number` asks it."""
    approach = how.approaches[number % len(how.approaches)] if how.approaches else ""

    agents = []
    for agent in team.agents:
        if agent.role in HAND_ON:
            agents.append(agent)
            continue
        warm = max(agent.sampling.temperature, how.temperature)
        sampling = agent.sampling.model_copy(update={"temperature": warm})
        prompt = "\n".join(filter(None, (agent.prompt, approach)))
        agents.append(agent.model_copy(update={"sampling": sampling, "prompt": prompt}))
    return team.model_copy(update={"agents": tuple(agents)})


def record_repeats(
    team: TeamConfig,
    questions: Sequence[Question],
    folder: Path,
    how: Sampled,
    engine: Engine,
    events: EventLog,
    *,
    stage: str,
) -> list[Run]:
    """Ask every question `how.runs` times and return all runs, question by question. Goes on where it was killed."""
    order = {question.question: place for place, question in enumerate(questions)}
    total, done = how.runs * len(questions), 0
    rounds: list[list[Run]] = []
    for number in range(how.runs):
        path = folder / f"run-{number}.jsonl"
        asking = Team(varied(team, how, number), engine=engine)  # the engine is the caller's to close
        with TraceWriter(path) as writer:
            for question in questions:
                if question.question not in writer:
                    run = asking.try_answer(question, seed=how.seed_of(number))
                    writer.add(run)
                    if run.error is not None:
                        events.emit(stage, "warning", question=question.id, text=run.error)
                done += 1
                events.progress(stage, done, total)
        rounds.append(sorted(read_runs(path), key=lambda run: order[run.question.question]))
    return list(itertools.chain.from_iterable(zip(*rounds, strict=True)))

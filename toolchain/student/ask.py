"""A student as a team of one, so that it is asked, timed and counted by the code that asks any team."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from soloist.kernels.errors import DataError
from soloist.targets.open import PARTS, parts
from soloist.toolchain.tasks.base import Question
from soloist.toolchain.teams.config import AgentConfig, SamplingConfig, StudentEngineConfig, TeamConfig
from soloist.toolchain.teams.team import Team

_CALL_TOKENS, _ANSWER_TOKENS = 64, 256


def student_team(path: Path, tools: Sequence[str] = (), entries: Sequence[str] = ()) -> TeamConfig:
    """A student, alone: no prompt, no demonstrations, the same tools as its team (none: it answers in words).

    A student of two models is one system as well: its decomposer asks, its solver calls the tools.
    """
    sampling = SamplingConfig(max_tokens=_CALL_TOKENS if tools else _ANSWER_TOKENS)
    student = AgentConfig(name="student", role="student", tools=tuple(tools), sampling=sampling)
    topology, agents = "solo", [student]
    if parts(path):
        topology = "socratic"
        agents = [
            student.model_copy(update={"name": name, "role": name, "model": name, "tools": called})
            for name, called in zip(PARTS, ((), student.tools), strict=True)
        ]
    return TeamConfig(
        name="student",
        topology=topology,
        engine=StudentEngineConfig(kind="student", path=str(path)),
        agents=tuple(agents),
        tools=tuple(entries) if tools else (),
    )


def ask(team: TeamConfig, questions: Sequence[Question]) -> list[int]:
    """Verdicts of a team on questions, 1 for right. Raises DataError where some could not be asked at all."""
    with Team(team) as asked:
        runs = [asked.try_answer(question) for question in questions]
    failed = [run.error for run in runs if run.error is not None]
    if failed:
        raise DataError(f"{len(failed)} of {len(runs)} questions failed; the first: {json.dumps(failed[0])}")
    return [int(run.verdict == "correct") for run in runs]

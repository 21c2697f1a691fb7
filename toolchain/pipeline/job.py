"""From a team file and question files of the user's to a Job."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from soloist.kernels.errors import UsageError
from soloist.toolchain.pipeline.run import Job
from soloist.toolchain.tasks.files import load_questions
from soloist.toolchain.teams.config import TeamConfig, load_team


def own_job(team: str, base: str, out: Path, train: Path | None, test: Path, **more: Any) -> Job:
    """A team of the user's on questions of the user's."""
    config = load_team(team)
    if train is None:
        raise UsageError("a team of your own needs questions to be recorded on: --train FILE.jsonl")
    held_out = [q.model_copy(update={"split": "held-out"}) for q in load_questions(test).questions]
    asked = load_questions(train, split="train").questions
    return Job(
        team=config,
        base=base,
        out=out,
        test=held_out,
        train=asked,
        warmup=asked[:2],
        examples=_agent_examples(config),
        **more,
    )


def _agent_examples(config: TeamConfig) -> Sequence[Any]:
    """Demonstrations a lone tool-using agent is given: those the team's own agents have."""
    return [d for agent in config.agents if isinstance(agent.demonstrations, tuple) for d in agent.demonstrations]

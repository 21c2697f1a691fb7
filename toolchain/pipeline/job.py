"""From what a user says on the command line to a Job: the embedded desk, or a team of their own."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from soloist.kernels.errors import UsageError
from soloist.toolchain.core.artifact import MANIFEST
from soloist.toolchain.pipeline.run import Job
from soloist.toolchain.tasks.base import Question
from soloist.toolchain.teams.config import TeamConfig, load_team

DESK_TRAIN = 1120
HELD_OUT_SEED = 7  # not the seed that training settings were chosen on (benchmarks/LOG.md)


def recorded() -> Path | None:
    """The recording of the desk that ships with Soloist, if this installation has one."""
    path = Path(str(files("soloist.toolchain.desk.recorded")))
    return path if (path / MANIFEST).is_file() else None


def desk_train(config: TeamConfig, count: int) -> list[Question]:
    """The questions the desk is recorded on."""
    from soloist.toolchain.desk import questions as desk

    return desk.questions("train", count, seed=0, families=config.options["families"])


def desk_test(config: TeamConfig, count: int, unseen: int, seed: int = HELD_OUT_SEED) -> list[Question]:
    """Held-out questions, and questions in wordings that occur nowhere in training, evenly over the families."""
    from soloist.toolchain.desk import questions as desk

    families = config.options["families"]
    columns = [[q for q in desk.unseen_questions() if q.task == family] for family in families]
    spread = [column[row] for row in range(max(map(len, columns))) for column in columns if row < len(column)]
    return [*desk.questions("held-out", count, seed=seed, families=families), *spread[:unseen]]


def desk_job(
    base: str,
    out: Path,
    *,
    questions: int,
    unseen: int,
    fresh: bool,
    train: int,
    **more: Any,
) -> Job:
    """The main job: the embedded team, its student, its report."""
    from soloist.toolchain.desk import questions as desk
    from soloist.toolchain.desk.specialties import load_specialties

    team = load_team("desk")
    families = tuple(team.options["families"])
    recording = None if fresh else recorded()
    return Job(
        team=team,
        base=base,
        out=out,
        test=desk_test(team, questions, unseen),
        train=desk_train(team, train) if recording is None else (),
        recording=recording,
        examples=load_specialties("desk", families).examples(1, seed=4),
        warmup=desk.questions("train", len(families), seed=9, families=families),
        **more,
    )


def own_job(team: str, base: str, out: Path, train: Path | None, test: Path, **more: Any) -> Job:
    """A team of the user's on questions of the user's."""
    from soloist.toolchain.tasks.files import load_questions

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

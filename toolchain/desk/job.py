"""The main job of the desk, and the questions its team is recorded and measured on."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from soloist.kernels.errors import UsageError
from soloist.toolchain.assess.stage import spread
from soloist.toolchain.core.artifact import MANIFEST
from soloist.toolchain.desk import questions as desk
from soloist.toolchain.desk.specialties import QUESTIONS, load_specialties
from soloist.toolchain.pipeline.run import Job
from soloist.toolchain.tasks.base import Question, interleave
from soloist.toolchain.tasks.files import load_questions
from soloist.toolchain.teams.config import TeamConfig, load_team

DESK_TRAIN = 1120  # questions that the team is recorded on
HELD_OUT_SEED = 7  # not the seed that training settings were chosen on (benchmarks/LOG.md)


def recorded() -> Path | None:
    """The recording of the desk that ships with Soloist, if this installation has one."""
    path = Path(str(files("soloist.toolchain.desk.recorded")))
    return path if (path / MANIFEST).is_file() else None


def _families(team: TeamConfig) -> tuple[str, ...]:
    return tuple(team.options.get("families") or desk.FAMILIES)


def desk_train(team: TeamConfig, count: int) -> list[Question]:
    """The questions the desk is recorded on."""
    return desk.questions("train", count, seed=0, families=_families(team))


def desk_test(team: TeamConfig, count: int, unseen: int, seed: int = HELD_OUT_SEED) -> list[Question]:
    """Held-out questions, and questions in wordings that occur nowhere in training, evenly over the families."""
    columns: dict[str, list[Question]] = {family: [] for family in _families(team)}
    for question in desk.unseen_questions():
        if question.task in columns:
            columns[question.task].append(question)
    held_out = desk.questions("held-out", count, seed=seed, families=tuple(columns))
    return [*held_out, *interleave(list(columns.values()))[:unseen]]


def questions_for(team: TeamConfig, file: Path | None, count: int) -> list[Question]:
    """`count` questions to ask a team: of a file, or of the desk's own for training. Raises UsageError."""
    if file is not None:
        return spread(load_questions(file, split="train").questions, count)
    if team.topology != load_team("desk").topology or team.options.get("specialties", QUESTIONS) != QUESTIONS:
        raise UsageError("a team of your own needs questions: --questions FILE.jsonl")
    return spread(desk_train(team, max(count, len(_families(team)))), count)


def desk_job(base: str, out: Path, *, questions: int, unseen: int, fresh: bool, train: int, **more: Any) -> Job:
    """The main job: the embedded team, its student, its report."""
    team = load_team("desk")
    families = _families(team)
    recording = None if fresh else recorded()
    return Job(
        team=team,
        base=base,
        out=out,
        test=desk_test(team, questions, unseen),
        train=desk_train(team, train) if recording is None else (),
        recording=recording,
        examples=load_specialties(families=families).examples(1, seed=4),
        warmup=desk.questions("train", len(families), seed=9, families=families),
        **more,
    )

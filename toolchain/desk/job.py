"""The task of the main job: the desk, and the questions its team is recorded and measured on."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from soloist.kernels.errors import UsageError
from soloist.toolchain.core.artifact import MANIFEST
from soloist.toolchain.desk import questions as desk
from soloist.toolchain.desk.specialties import QUESTIONS, load_specialties
from soloist.toolchain.pipeline.job import Task
from soloist.toolchain.tasks.base import Question, interleave, question_key, spread
from soloist.toolchain.tasks.files import load_questions
from soloist.toolchain.teams.config import TeamConfig, load_team

DESK_TRAIN = 1120  # questions that the team is recorded on
SELECTION_SEED = 21
MOST_UNSEEN = 90  # unseen wordings that may be reported on; the others are for choosing
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
    return [*desk.questions("held-out", count, seed=seed, families=_families(team)), *_unseen(team)[:unseen]]


def _unseen(team: TeamConfig) -> list[Question]:
    """All questions in unseen wordings, evenly over the families."""
    columns: dict[str, list[Question]] = {family: [] for family in _families(team)}
    for question in desk.unseen_questions():
        if question.task in columns:
            columns[question.task].append(question)
    return interleave(list(columns.values()))


def questions_for(team: TeamConfig, file: Path | None, count: int) -> list[Question]:
    """`count` questions to ask a team: of a file, or of the desk's own for training. Raises UsageError."""
    if file is not None:
        return spread(load_questions(file, split="train").questions, count)
    if team.topology != load_team("desk").topology or team.options.get("specialties", QUESTIONS) != QUESTIONS:
        raise UsageError("a team of your own needs questions: --questions FILE.jsonl")
    return spread(desk_train(team, max(count, len(_families(team)))), count)


def desk_selection(team: TeamConfig, count: int) -> list[Question]:
    """What the desk's files are chosen on: questions like those of training, and unseen wordings nobody is reported on.

    `count` of the first kind, in numbers that occur nowhere in training; of the second all that `desk_test` never asks.
    """
    trained = {question_key(question.question) for question in desk_train(team, DESK_TRAIN)}
    drawn = desk.questions("train", 2 * count, seed=SELECTION_SEED, families=_families(team))
    known = [question for question in drawn if question_key(question.question) not in trained][:count]
    spare = _unseen(team)[MOST_UNSEEN:]
    return [
        *(question.model_copy(update={"split": "selection"}) for question in known),
        *(question.model_copy(update={"split": "selection-wording"}) for question in spare),
    ]


def undebated(team: TeamConfig) -> TeamConfig:
    """The desk without its debate: the router and one reader with its tools; nobody checks, nobody writes it out."""
    readers = [agent for agent in team.agents if agent.role == "reader"]
    routers = [agent for agent in team.agents if agent.role == "router"]
    options = {**team.options, "rounds": 1, "escalations": 0}
    return team.model_copy(update={"name": "undebated", "agents": (*routers, readers[0]), "options": options})


def desk_task(*, count: int, unseen: int, selection: int, fresh: bool = False, train: int = DESK_TRAIN) -> Task:
    """The embedded team and its own questions: `count` held out, `unseen` in unseen wordings, `selection` to choose on.

    Args:
        fresh: record `train` questions anew instead of taking the recording that ships with Soloist.
    """
    team = load_team("desk")
    families = _families(team)
    recording = None if fresh else recorded()
    return Task(
        team=team,
        test=desk_test(team, count, unseen),
        selection=desk_selection(team, selection),
        train=desk_train(team, train) if recording is None else (),
        traces=recording,
        examples=load_specialties(families=families).examples(1, seed=4),
        warmup=desk.questions("train", len(families), seed=9, families=families),
        undebated=undebated(team),
        team_shares={"unseen-wording": 1 / 3},  # it debates them for seconds; files are asked all of them
        notes=["The team's time includes its scribe, who writes the solution out; the student answers without one."],
    )

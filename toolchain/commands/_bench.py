"""What `soloist bench` is told, opened: models, students and exports; a team's task or a file of questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import click

from soloist.kernels.errors import ArtifactError, UsageError
from soloist.toolchain.bench.systems import System
from soloist.toolchain.core.artifact import MANIFEST, Artifact
from soloist.toolchain.core.lineage import artifact_around
from soloist.toolchain.desk.job import desk_task
from soloist.toolchain.pipeline.job import Task, agent_examples
from soloist.toolchain.student.find import find_model
from soloist.toolchain.student.student import DISTILL, QUANTIZE, Student, open_student, parent_of
from soloist.toolchain.tasks.base import question_key
from soloist.toolchain.tasks.files import load_questions
from soloist.toolchain.teams.config import load_team
from soloist.toolchain.verify.verdict import EXPORT, check_openable

_SELECTION = 40


@dataclass
class Named:
    """The models of a command line: `systems` are files and folders named one by one.

    `artifacts` are what the measurement descends from.
    """

    systems: list[System] = field(default_factory=list)
    exports: list[Artifact] = field(default_factory=list)
    student: Student | None = None
    traces: Artifact | None = None
    artifacts: list[Artifact] = field(default_factory=list)

    @classmethod
    def of(cls, models: Sequence[Path], tools: Sequence[str], *, force: bool) -> Named:
        """Open them.

        Raises:
            UsageError: students of two distillations, which no report could tell apart, or tools that nobody named.
            GateError: a file without a passing verdict.
        """
        named = cls()
        for path in models:
            stage = _stage(path)
            if stage in (DISTILL, QUANTIZE):
                named._take(open_student(path).reference)
            elif stage == EXPORT:
                export = Artifact.open(path, stage=EXPORT)
                named.exports.append(export)
                named._take(open_student(parent_of(export)).reference)
            else:
                named._take_model(path, tools, force=force)
        named._descend()
        return named

    def _take(self, student: Student) -> None:
        if self.student is not None and self.student.digest != student.digest:
            raise UsageError(f"{student.path} and {self.student.path}: measure the files of one student at a time")
        self.student = student

    def _take_model(self, path: Path, tools: Sequence[str], *, force: bool) -> None:
        model = find_model(path, tools)
        if note := check_openable(model.path, force=force, command="bench"):
            click.echo(note, err=True)
        around = artifact_around(model.path)
        if around is not None:
            self.artifacts.append(around)
        kind = model.path.suffix.removeprefix(".") or "folder"
        self.systems.append(
            System(id=f"{len(self.systems)}-{model.path.stem}", kind="artifact", format=kind, team=model.team)
        )

    def _descend(self) -> None:
        """The artifacts in the order of the data, each once."""
        if self.student is not None:
            try:
                self.traces = self.student.traces()
            except ArtifactError:  # moved away: a comparison does without them, and its report says so
                self.traces = None
            first = [] if self.traces is None else [self.traces]
            self.artifacts = [*first, self.student.artifact, *self.exports, *self.artifacts]
        self.artifacts = list({artifact.digest: artifact for artifact in self.artifacts}.values())


def _stage(path: Path) -> str | None:
    return str(Artifact.open(path, verify=False).manifest["stage"]) if (path / MANIFEST).is_file() else None


def task_of(
    team: str | None, questions: Path | None, count: int, unseen: int, named: Named, choose_on: Path | None = None
) -> Task:
    """Whom to ask what: the desk's own questions, or those of a file with or without a team.

    Raises:
        UsageError: no questions, or a team without a student to compare with it.
    """
    if team is not None and named.student is None:
        raise UsageError(
            "--team: a team is compared with a student or the files of one: name their folders beside the files"
        )
    if questions is None:
        if team != "desk":
            raise UsageError("what to ask? give --questions FILE.jsonl (the desk has its own: --team desk)")
        return desk_task(count=count, unseen=unseen, selection=_SELECTION)
    asked = load_questions(questions, split="held-out").questions
    selection = load_questions(choose_on, split="selection").questions if choose_on is not None else ()
    chosen_on = {question_key(question.question) for question in selection}
    if any(question_key(question.question) in chosen_on for question in asked):
        raise UsageError("--choose-on and --questions share a question: choose on others than those that are reported")
    if team == "desk":
        return replace(desk_task(count=1, unseen=0, selection=1), test=asked, selection=selection)
    known = load_team(team) if team is not None else None
    examples = agent_examples(known) if known is not None else ()
    return Task(team=known, test=asked, selection=selection, examples=examples, warmup=asked[:1])

"""A method and its work: which conversations it takes from the traces, what it optimizes, the passes of training.

    runs ── Method.select ──► groups of conversations ── Objective ──► terms of the loss
                                                            └─ counts: what each term is averaged over

A method is one file in `methods/`: a `METHOD` that says how to select and what to optimize, and the options it
has. Most train once, through `Work.once`: select groups, build a trainer on a base, fit, save a plain Hugging Face
folder. One that trains several models, or one model several times, gives `train` and names each pass (`phase`);
a phase that is done is not done again, one that was killed goes on at its last checkpoint. Of several processes
all make every pass, and only the main one writes: a method that writes files of its own asks `processes.main`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, Field, JsonValue

from soloist.toolchain.core.artifact import Facts
from soloist.toolchain.core.config import Config
from soloist.toolchain.core.events import EventLog
from soloist.toolchain.core.files import write_atomic
from soloist.toolchain.distill.data import CheckSteps, Group, Selection, reasons, within
from soloist.toolchain.distill.distributed import ALONE, Processes
from soloist.toolchain.distill.model import Student
from soloist.toolchain.distill.objective import Objective
from soloist.toolchain.distill.train import STAGE, TrainConfig, Trainer
from soloist.toolchain.student.artifact import DataFacts, Mode, TrainingFacts, Variant
from soloist.toolchain.traces.schema import Run

PHASES = "phases"
_DONE = "phase.json"

C = TypeVar("C", bound=Config)
P = TypeVar("P", bound=BaseModel)


@dataclass(frozen=True)
class Setup:
    """All that selecting and optimizing may depend on. `Work.chosen` cuts what exceeds the target tokens."""

    tokenizer: Any
    check_steps: CheckSteps
    mode: Mode = "tools"
    max_length: int = 1024
    seed: int = 0
    variant: Variant = "paper"
    options: Config = field(default_factory=Config)
    max_target_tokens: int | None = None

    def options_of(self, kind: type[C]) -> C:
        """The options as a method's own kind; its defaults where none were given."""
        return self.options if isinstance(self.options, kind) else kind.model_validate(self.options.model_dump())


Select = Callable[[Sequence[Run], Setup], Selection]


class Fitted(Facts):
    """What one pass of training took, and the precision it computed in."""

    training: TrainingFacts
    precision: str
    precision_reason: str


class Distilled(Fitted):
    """What a method hands back when its student is saved; `tools`, where given, replace those of the traces."""

    data: DataFacts
    tools: tuple[str, ...] | None = None
    context: bool = False
    parts: tuple[str, ...] = ()
    notes: Mapping[str, JsonValue] = Field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """A way to distill. `defaults` are its own settings of TrainConfig where the user gives none.

    `objective` gets the student, so that it can build what depends on its width. `train`, where given,
    replaces the single pass of select and fit. `passes` says over how many trainings `max_train_tokens` of TrainConfig
    are divided. `released`: there is a variant of that name. `check` refuses options, or a machine, that cannot work,
    before anything is recorded or loaded.
    """

    select: Select
    objective: Callable[[Student, Setup], Objective]
    options: type[Config] = Config
    defaults: Mapping[str, Any] = field(default_factory=dict)
    train: Callable[[Work], Distilled] | None = None
    passes: int = 1
    released: bool = False
    check: Callable[[Any], object] | None = None


@dataclass
class Work:
    """The inputs of one distillation. `folder` becomes the student's artifact; `scratch` is deleted at the end.

    `max_target_tokens` bounds the trained tokens of each pass.
    """

    method: Method
    runs: Sequence[Run]
    base: Path
    folder: Path
    mode: Mode
    train: TrainConfig
    variant: Variant
    options: Any
    check_steps: CheckSteps
    events: EventLog
    max_target_tokens: int | None = None
    processes: Processes = ALONE

    @property
    def scratch(self) -> Path:
        return self.folder / PHASES

    def trainer(self, base: Path | None = None, **changes: Any) -> Trainer:
        """A trainer on the base model, or on what an earlier phase left; `changes` to the training settings.

        Each of the method's passes gets an equal share of `max_train_tokens`.
        """
        if self.train.max_train_tokens is not None:
            changes = {"max_train_tokens": max(1, self.train.max_train_tokens // self.method.passes), **changes}
        return Trainer(base or self.base, self.train.model_copy(update=changes), self.processes)

    def setup(self, tokenizer: Any) -> Setup:
        return Setup(
            tokenizer,
            self.check_steps,
            self.mode,
            self.train.max_length,
            self.train.seed,
            self.variant,
            self.options,
            self.max_target_tokens,
        )

    def chosen(self, setup: Setup, select: Select | None = None) -> Selection:
        """What the method (or `select`, of one of its phases) takes from the runs, within the budget of tokens."""
        chosen = within((select or self.method.select)(self.runs, setup), self.max_target_tokens, setup.seed)
        counts, rejected = chosen.counts, reasons(chosen.rejected)
        self.note(f"{counts.kept} kept" + (f"; rejected: {rejected}" if rejected else ""), **counts.model_dump())
        return chosen

    def note(self, text: str, **facts: Any) -> None:
        """A line in the event log."""
        self.events.emit(STAGE, "note", text=text, **facts)

    def once(self) -> Distilled:
        """The single pass that most methods are: the selected groups, the method's objective, saved as the student."""
        trainer = self.trainer()
        setup = self.setup(trainer.student.tokenizer)
        chosen = self.chosen(setup)
        fitted = fit(self, trainer, chosen.groups, self.method.objective(trainer.student, setup), self.folder)
        return Distilled(data=chosen.counts, **dict(fitted))

    def phase(self, name: str, kind: type[P], build: Callable[[Path], P]) -> tuple[Path, P]:
        """Do `build(folder)` unless it is done; returns its folder and its facts.

        The folder lies in `scratch`; it is marked as done after `build` has returned, so a kill repeats only
        what its own checkpoints do not hold. Of several processes the main one's facts are everybody's.
        """
        folder = self.scratch / name
        done = folder / _DONE
        whole = self.processes.main and done.is_file()
        known = self.processes.share(json.loads(done.read_text(encoding="utf-8")) if whole else None)
        if known is not None:
            self.note(f"phase {name}: done before")
            return folder, kind.model_validate(known)
        if self.processes.main:
            folder.mkdir(parents=True, exist_ok=True)
        self.note(f"phase {name}")
        facts = self.processes.share(build(folder).model_dump(mode="json"))
        if self.processes.main:
            write_atomic(done, json.dumps(facts))
        return folder, kind.model_validate(facts)


def fit(work: Work, trainer: Trainer, groups: Sequence[Group], objective: Objective, folder: Path) -> Fitted:
    """Fit and save into `folder`."""
    trainer.optimize(objective)
    trained = trainer.fit(groups, folder, events=work.events)
    trainer.save(folder)
    precision = f"{trainer.dtype}".removeprefix("torch.")
    return Fitted(training=trained.facts(), precision=precision, precision_reason=trainer.precision_reason)

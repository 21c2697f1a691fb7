"""A distillation at work: what a method is given, and the passes of training it may make.

One pass: select groups, build a trainer on a base, fit, save a plain Hugging Face folder. A method with
several passes names each (`phase`); a phase that is done is not done again, one that was killed goes on
at its last checkpoint. Of several processes all make every pass, and only the main one writes: a method that
writes files of its own asks `processes.main`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soloist.toolchain.core.events import EventLog
from soloist.toolchain.core.files import write_atomic
from soloist.toolchain.distill.data import CheckSteps, Group, Mode, Selection, within
from soloist.toolchain.distill.distributed import ALONE, Processes
from soloist.toolchain.distill.methods.base import Method, Select, Setup, Variant
from soloist.toolchain.distill.model import Student
from soloist.toolchain.distill.objective import Objective
from soloist.toolchain.distill.train import STAGE, TrainConfig, Trainer
from soloist.toolchain.traces.schema import Run

PHASES = "phases"
_DONE = "phase.json"


@dataclass
class Work:
    """The inputs of one distillation. `folder` becomes the student's artifact; `scratch` is deleted at the end.

    `tokens` is how many trained tokens any one pass may be given.
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
    tokens: int | None = None
    processes: Processes = ALONE

    @property
    def scratch(self) -> Path:
        return self.folder / PHASES

    def trainer(self, base: Path | None = None, **changes: Any) -> Trainer:
        """A trainer on the base model, or on what an earlier phase left; `changes` to the training settings.

        Of a number of tokens to spend each of the method's passes gets an equal share.
        """
        if self.train.spend is not None:
            changes = {"spend": max(1, self.train.spend // self.method.passes), **changes}
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
            self.tokens,
        )

    def chosen(self, setup: Setup, select: Select | None = None) -> Selection:
        """What the method (or `select`, of one of its phases) takes from the runs, within the budget of tokens."""
        found = within((select or self.method.select)(self.runs, setup), self.tokens, setup.seed)
        self.note(_describe(found.counts), **found.counts)
        return found

    def note(self, text: str, **facts: Any) -> None:
        """A line in the event log."""
        self.events.emit(STAGE, "note", text=text, **facts)

    def once(self) -> dict[str, Any]:
        """The single pass that most methods are: the selected groups, the method's objective, saved as the student."""
        trainer = self.trainer()
        setup = self.setup(trainer.student.tokenizer)
        chosen = self.chosen(setup)
        facts = fit(self, trainer, chosen.groups, self.method.objective(trainer.student, setup), self.folder)
        return {"data": chosen.counts, **facts}

    def phase(self, name: str, build: Callable[[Path], Mapping[str, Any]]) -> tuple[Path, dict[str, Any]]:
        """Do `build(folder)` unless it is done; returns its folder and its facts.

        The folder lies in `scratch`; it is marked as done after `build` has returned, so a kill repeats only
        what its own checkpoints do not hold. Of several processes the main one's facts are everybody's.
        """
        folder = self.scratch / name
        done = folder / _DONE
        whole = self.processes.main and done.is_file()
        known: dict[str, Any] | None = json.loads(done.read_text(encoding="utf-8")) if whole else None
        known = self.processes.share(known)
        if known is not None:
            self.note(f"phase {name}: done before")
            return folder, known
        if self.processes.main:
            folder.mkdir(parents=True, exist_ok=True)
        self.note(f"phase {name}")
        facts: dict[str, Any] = self.processes.share(dict(build(folder)))
        if self.processes.main:
            write_atomic(done, json.dumps(facts))
        return folder, facts


def fit(work: Work, trainer: Trainer, groups: Sequence[Group], objective: Objective, folder: Path) -> dict[str, Any]:
    """Fit and save into `folder`; facts: `training`, `precision`."""
    trainer.optimize(objective)
    trained = trainer.fit(groups, folder, events=work.events)
    trainer.save(folder)
    precision = f"{trainer.dtype}".removeprefix("torch.")
    return {"training": trained.facts(), "precision": precision, "precision_reason": trainer.precision_reason}


def frozen(path: Path, like: Student) -> Student:
    """A model that is only read (a reference, a teacher), in the student's precision and place."""
    from soloist.toolchain.distill.model import load_base

    model, tokenizer = load_base(path)
    reader = Student(model, tokenizer, like.device)
    reader.compute_in(next(like.model.parameters()).dtype)
    reader.model.eval().requires_grad_(False)
    return reader


def _describe(counts: Mapping[str, Any]) -> str:
    rejected = ", ".join(f"{count} {reason}" for reason, count in counts["rejected"].items())
    return f"{counts['kept']} kept" + (f"; rejected: {rejected}" if rejected else "")

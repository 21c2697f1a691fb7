"""What a method is: which conversations it takes from the traces, and what it optimizes on them.

    runs ── Method.select ──► groups of conversations ── Objective ──► terms of the loss
                                                            └─ counts: what each term is averaged over

A method is one file: a `METHOD` that says how to select and what to optimize, and the options it has.
Most train once, through `Work.once`. One that trains several models, or one model several times, gives
`train` and does so phase by phase, each phase an own folder that is not done again after a kill.
The catalog (`catalog.py`) says what each needs without importing torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from soloist.toolchain.config import Config
from soloist.toolchain.distill.data import CheckSteps, Group, Mode, Selection
from soloist.toolchain.distill.packing import Batch
from soloist.toolchain.distill.student import Student
from soloist.toolchain.traces.schema import Run

if TYPE_CHECKING:
    from soloist.toolchain.distill.work import Work

Variant = Literal["paper", "released"]


@dataclass(frozen=True)
class Setup:
    """All that selecting and optimizing may depend on. What exceeds `tokens` trained tokens is cut by `Work.chosen`."""

    tokenizer: Any
    check_steps: CheckSteps
    mode: Mode = "acts"
    max_length: int = 1024
    seed: int = 0
    variant: Variant = "paper"
    options: Config = field(default_factory=Config)
    tokens: int | None = None


class Objective(Protocol):
    """A loss as a sum of named terms.

    A step is split into parts that fit in memory and over processes, and what is averaged is averaged over
    the whole step: `counts` is asked once, with all groups of the step, and `terms` of each part divides by
    it. So a split never changes a gradient.
    """

    @property
    def names(self) -> Sequence[str]:
        """The terms, always the same ones."""
        ...

    @property
    def parameters(self) -> Sequence[tuple[str, nn.Parameter]]:
        """Weights beside the student's that are trained along and thrown away (a graph network, a head)."""
        ...

    def counts(self, groups: Sequence[Group]) -> Mapping[str, float]:
        """What the terms of a step are divided by, from all groups of that step."""
        ...

    def terms(self, student: Student, batch: Batch, counts: Mapping[str, float]) -> Mapping[str, Tensor]:
        """This part's share of each term, a scalar."""
        ...


@runtime_checkable
class Refreshing(Protocol):
    """What an objective also is if it replaces the groups of a step, by the student's own words for instance."""

    def refresh(self, student: Student, groups: Sequence[Group], step: int) -> Sequence[Group]:
        """The groups to take instead: a function of the student and the step, because a resumed run asks again.

        torch's random numbers are seeded for the step before.
        """
        ...


@runtime_checkable
class Observing(Protocol):
    """What an objective also is if its `terms` hold more than the loss: shares that are added up and logged only."""

    @property
    def observed(self) -> Sequence[str]:
        """Their names, as they stand in a step's record."""
        ...


Select = Callable[[Sequence[Run], Setup], Selection]


@dataclass(frozen=True)
class Method:
    """A way to distill. `defaults` are its own settings of TrainConfig where the user gives none.

    `objective` gets the student, so that it can build what depends on its width. `train`, where given,
    replaces the single pass of select and fit, and returns facts for the manifest. `passes` says over how many
    trainings a `spend` of TrainConfig is divided. `released`: there is a variant of that name. `check` refuses
    options, or a machine, that cannot work, before anything is recorded or loaded.
    """

    select: Select
    objective: Callable[[Student, Setup], Objective]
    options: type[Config] = Config
    defaults: Mapping[str, Any] = field(default_factory=dict)
    train: Callable[[Work], Mapping[str, Any]] | None = None
    passes: int = 1
    released: bool = False
    check: Callable[[Any], object] | None = None


class SelfContained:
    """For objectives that train nothing beside the student."""

    @property
    def parameters(self) -> Sequence[tuple[str, nn.Parameter]]:
        return ()

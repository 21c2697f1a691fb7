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
from typing import TYPE_CHECKING, Any, Literal

from soloist.toolchain.core.config import Config
from soloist.toolchain.distill.data import CheckSteps, Mode, Selection
from soloist.toolchain.distill.model import Student
from soloist.toolchain.distill.objective import Objective
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

"""What a report is made from besides measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from soloist.toolchain.assess.result import Assessment
from soloist.toolchain.bench.recommend import Recommendation
from soloist.toolchain.core.lineage import Lineage
from soloist.toolchain.report.schema import Parity, StageCost, TrainingPoint
from soloist.toolchain.traces.schema import Run


@dataclass(frozen=True)
class Context:
    """Everything a report says that is not a measurement.

    `overlap` is the number of held-out questions whose text was found in the training data; None means
    nobody looked. `lineage` is what the students descend from. `simulated` says that the team's agents were
    not real models.
    """

    command: str = ""
    created: str = ""
    seeds: Mapping[str, int] = field(default_factory=dict)
    method: Sequence[str] = ()
    prices: Sequence[str] = ()
    training: Sequence[TrainingPoint] = ()
    parity: Sequence[Parity] = ()
    runs: Sequence[Run] = ()
    overlap: int | None = None
    lineage: Lineage = field(default_factory=Lineage)
    simulated: bool = False
    notes: Sequence[str] = ()
    assessment: Assessment | None = None
    recommended: Recommendation | None = None
    stages: Sequence[StageCost] = ()

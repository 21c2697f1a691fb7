"""report.json: the contract that other programs read.

The top-level keys and those of a system are fixed; what does not apply is null, never left out and never
0. All that only our own page needs stands under `details`, which a reader may ignore and we may change.
Fractions are shares from 0 to 1, times seconds, sizes 10^6 bytes, money US dollars.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from soloist.kernels.errors import DataError
from soloist.toolchain.assess.result import Assessment
from soloist.toolchain.bench.recommend import Recommendation
from soloist.toolchain.bench.records import Kind, Label, TestSplit
from soloist.toolchain.core.config import describe
from soloist.toolchain.traces.schema import Run

SCHEMA: Literal[1] = 1


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Share(_Part):
    """An accuracy with its 95 % interval."""

    value: float = Field(ge=0, le=1)
    low: float = Field(ge=0, le=1)
    high: float = Field(ge=0, le=1)


class Difference(_Part):
    """Accuracy minus the team's on the same questions, with its 95 % interval."""

    difference: float = Field(ge=-1, le=1)
    low: float = Field(ge=-1, le=1)
    high: float = Field(ge=-1, le=1)


class Latency(_Part):
    """Median and 95th percentile of the seconds per question."""

    p50: float = Field(ge=0)
    p95: float = Field(ge=0)


class System(_Part):
    """One system on one set of questions. Calls and tokens are means per question, `ttft_s` is a median."""

    id: str
    split: TestSplit
    kind: Kind
    format: str | None
    size_mb: float | None
    n: int = Field(ge=1)
    correct: int = Field(ge=0)
    accuracy: Share
    vs_team: Difference | None
    latency_s: Latency
    ttft_s: float | None
    calls: float
    tokens_in: float
    tokens_out: float
    peak_mb: float | None
    usd_per_1k: float | None
    label: Label


class TrainingPoint(_Part):
    """One line of the training log."""

    step: int
    loss: float
    tokens_per_second: float | None = None


class Parity(_Part):
    """One compiled file against the torch student.

    "not run" is an engine whose GPU is not here: `kl` and `top1` are then those of its graph. What has no passing
    verdict is not `measured`.
    """

    file: str
    format: str
    size_mb: float
    kl: float | None
    top1: float | None
    tolerance: str
    verdict: Literal["pass", "fail", "not run", "none"]
    measured: bool = True
    note: str = ""


class StageCost(_Part):
    """What a stage took: wall seconds since its last start, and the peak memory of its processes together."""

    stage: str
    folder: str
    seconds: float
    peak_mb: float | None = None


class Family(_Part):
    """One system on one family of questions."""

    system: str
    split: TestSplit
    task: str
    n: int
    correct: int


class Role(_Part):
    """What one role of the team used, over all recorded runs given."""

    role: str
    calls: int
    tokens_in: int
    tokens_cached: int
    tokens_out: int
    seconds: float


class Extra(_Part):
    """Of one system: what the contract has no key for. `kept` .. `neither` count questions against the team.

    `vs_16_bits` is a file's accuracy minus that of the 16-bit file, paired. `hosted_usd_per_1k` is what its tokens
    would cost at `Details.hosted_price`.
    """

    system: str
    split: TestSplit
    latencies: tuple[float, ...]
    p50_interval: tuple[float, float] | None
    p95_interval: tuple[float, float] | None
    critical_path_s: float | None
    tokens_cached: float
    errors: int
    joules_per_question: float | None
    p_value: float | None = None
    kept: int | None = None
    gained: int | None = None
    lost: int | None = None
    neither: int | None = None
    vs_16_bits: Difference | None = None
    hosted_usd_per_1k: float | None = None


class OneOff(_Part):
    """Dollars spent once; null where unknown."""

    recording: float | None = None
    training: float | None = None
    evaluation: float | None = None


class Details(_Part):
    """What the page needs beyond the contract."""

    headline: str | None = None
    command: str = ""
    created: str = ""
    seeds: dict[str, int] = Field(default_factory=dict)
    method: tuple[str, ...] = ()
    prices: tuple[str, ...] = ()
    one_off_usd: OneOff | None = None
    break_even_reason: str = ""
    break_even_interval: tuple[int, int | None] | None = None
    hosted_price: str = ""
    caveats: tuple[str, ...] = ()
    extras: tuple[Extra, ...] = ()
    families: tuple[Family, ...] = ()
    roles: tuple[Role, ...] = ()
    training: tuple[TrainingPoint, ...] = ()
    parity: tuple[Parity, ...] = ()
    anatomy: Run | None = None
    assessment: Assessment | None = None
    recommended: Recommendation | None = None
    stages: tuple[StageCost, ...] = ()


class Report(_Part):
    """The whole of report.json."""

    schema_version: Literal[1] = Field(default=SCHEMA, alias="schema")
    commit: str | None
    device: dict[str, Any]
    versions: dict[str, str]
    task: str
    systems: tuple[System, ...] = Field(min_length=1)
    break_even_questions: int | None
    details: Details | None = None

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, populate_by_name=True, serialize_by_alias=True
    )

    def to_json(self) -> str:
        """The text of report.json."""
        return self.model_dump_json(indent=1) + "\n"

    def of(self, split: TestSplit) -> tuple[System, ...]:
        """The systems on one set of questions, in order."""
        return tuple(system for system in self.systems if system.split == split)

    def team(self, split: TestSplit) -> System | None:
        """The team on one set of questions."""
        return next((system for system in self.of(split) if system.kind == "team"), None)

    def asked(self, split: TestSplit) -> int:
        """How many questions of a set were asked; systems that are slow answered a part of them."""
        return max(system.n for system in self.of(split))

    def find(self, system: str, split: TestSplit) -> System | None:
        """One system on one set of questions."""
        return next((one for one in self.of(split) if one.id == system), None)


def read_report(path: Path) -> Report:
    """Read report.json; a DataError names every field that does not fit."""
    try:
        return Report.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); make it with 'soloist report'") from error
    except ValidationError as error:
        raise DataError(f"{path}: not a report of schema {SCHEMA}: {describe(error)}") from error

"""What measuring leaves behind: one record per system and set of questions, one line per question.

Shared by the side that measures and the side that reports, so a report can be made again from disk
without running a model. Nothing here is an average: averages and intervals are taken once, in the report.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from soloist.kernels.errors import DataError
from soloist.toolchain.core.config import describe
from soloist.toolchain.core.files import write_atomic

Kind = Literal["team", "undebated", "base", "tool-agent", "self-consistency", "student", "artifact"]
TestSplit = Literal["held-out", "unseen-wording", "selection", "selection-wording"]
REPORTED: tuple[TestSplit, ...] = ("held-out", "unseen-wording")
SELECTION: tuple[TestSplit, ...] = ("selection", "selection-wording")  # files are chosen on these, never reported on
Label = Literal["measured", "recorded", "predicted"]


class Answered(BaseModel):
    """One question put to one system. Times in seconds; tokens and calls summed over the whole system.

    `critical_path` is the wall time with unlimited parallelism (teams). `usd` is the price of the calls
    of this question, priced call by call, for a system behind a paid API; None where it is unknown.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    question_id: str
    task: str
    correct: bool
    seconds: float = Field(ge=0)
    ttft: float | None = Field(default=None, ge=0)
    calls: int = Field(default=1, ge=0)
    tokens_in: int = Field(default=0, ge=0)
    tokens_cached: int = Field(default=0, ge=0)
    tokens_out: int = Field(default=0, ge=0)
    error: str | None = None
    critical_path: float | None = Field(default=None, ge=0)
    usd: float | None = Field(default=None, ge=0)


class Measurement(BaseModel):
    """One system on one set of questions. `where` says which price applies: this machine's or an API's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    system_id: str
    split: TestSplit
    kind: Kind
    format: str | None = None
    size_mb: float | None = Field(default=None, ge=0)
    label: Label = "measured"
    answers: tuple[Answered, ...] = Field(min_length=1)
    peak_mb: float | None = Field(default=None, ge=0)
    where: Literal["local", "api"] = "local"

    @property
    def correct(self) -> int:
        return sum(answer.correct for answer in self.answers)


_MEASUREMENTS = TypeAdapter(tuple[Measurement, ...])


def save_measurements(path: Path, measurements: Sequence[Measurement]) -> None:
    """Write measurements as one JSON file, whole or not at all."""
    lines = ",\n".join(json.dumps(one.model_dump(mode="json"), ensure_ascii=False) for one in measurements)
    write_atomic(path, f"[\n{lines}\n]\n")


def load_measurements(path: Path) -> tuple[Measurement, ...]:
    """Read what `save_measurements` wrote; a DataError names the file and every field that does not fit."""
    try:
        return _MEASUREMENTS.validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); measure first with 'soloist bench'") from error
    except ValidationError as error:
        raise DataError(f"{path}: not measurements of ours: {describe(error)}") from error

"""What several commands read the same way: KEY=VALUE pairs of `--set`, and prices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from soloist.kernels.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from soloist.toolchain.bench.cost import LocalPrice
    from soloist.toolchain.student.student import Student
    from soloist.toolchain.verify.process import Prompts

PROMPTS = 24


def method_options(pairs: Sequence[str]) -> dict[str, Any]:
    """Values as YAML would read them. Raises UsageError."""
    import yaml

    options: dict[str, Any] = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign or not key:
            raise UsageError(f"--set {pair}: expected KEY=VALUE")
        if key in options:
            raise UsageError(f"--set {key}: given twice")
        try:
            options[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            options[key] = value
    return options


def prompts_for(student: Student, file: Path | None) -> Prompts:
    """What a student's files are compared on: questions of a file, else some of the traces that it learned from.

    Raises:
        UsageError: no file, and its traces are gone.
    """
    from soloist.kernels.errors import ArtifactError
    from soloist.toolchain.tasks.base import spread
    from soloist.toolchain.tasks.files import load_questions
    from soloist.toolchain.traces.recording import TRACES
    from soloist.toolchain.traces.store import read_runs
    from soloist.toolchain.verify.process import prompts_of

    if file is not None:
        return prompts_of(load_questions(file).questions[:PROMPTS])
    try:
        traces = student.traces()
    except ArtifactError as error:
        raise UsageError(f"{error}; or name questions to compare on: --prompts FILE.jsonl") from error
    return prompts_of(spread([run.question for run in read_runs(traces.path / TRACES)], PROMPTS))


def token_price(text: str | None) -> tuple[float, float] | None:
    """Dollars per million tokens, read and written, from `IN,OUT`. Raises UsageError."""
    if text is None:
        return None
    try:
        price_in, price_out = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--api-price: expected two numbers as IN,OUT, got '{text}'") from None
    return price_in, price_out


def local_price(usd_per_hour: float | None, watts: float | None, usd_per_kwh: float | None) -> LocalPrice:
    """What this machine costs: as given, and where nothing is given as assumed for the device it is taken for.

    Raises:
        UsageError: a price that is no price.
    """
    from soloist.targets.devices.here import this_machine
    from soloist.toolchain.bench.cost import LocalPrice

    try:
        if usd_per_hour is None and watts is None and usd_per_kwh is None:
            here = this_machine()
            return LocalPrice(here.usd_per_hour, here.watts, here.usd_per_kwh, assumed=here.assumptions)
        return LocalPrice(usd_per_hour, watts, usd_per_kwh)
    except ValueError as error:
        raise UsageError(f"price of this machine: {error}") from error

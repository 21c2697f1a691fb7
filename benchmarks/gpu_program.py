"""The command line, the row and the bars of the kernels' benchmarks (`gpu_timing.py` measures).

    program("w4a16_gemv", __doc__, measure)      measure(run) -> Found(shapes, bars)

One run is one row: device, driver, versions, commit, the copy's bandwidth before and after, clocks, a list of shapes,
and the bars with their verdicts. The row is the last line on stdout; the bars follow on stderr. A missed bar is a
finding and no error; a wrong kernel, or no GPU, ends the program with the exit code of its error, and no row.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu_timing import Clock, CudaClock, copy_rate

from soloist.kernels.errors import ResourceError, SoloistError

FOLDER = Path(__file__).parent / "results"
TUNED = Path(__file__).resolve().parents[1] / "kernels" / "tuned"


@dataclass(frozen=True)
class Bar:
    """A number that is to be reached.

    Args:
        value: what was measured; None where it was not.
        most: the limit is an upper one.
    """

    name: str
    limit: float
    value: float | None
    most: bool = False

    @property
    def verdict(self) -> str:
        if self.value is None:
            return "not measured"
        return "met" if (self.value <= self.limit if self.most else self.value >= self.limit) else "missed"

    def line(self) -> str:
        """For people."""
        number = "" if self.value is None else f"{self.value:.3f} "
        return f"{self.verdict}: {number}({'at most' if self.most else 'at least'} {self.limit:g})  {self.name}"

    def plain(self) -> dict[str, Any]:
        """For the row."""
        return {"bar": self.name, "limit": self.limit, "most": self.most, "value": self.value, "verdict": self.verdict}


def worst(values: Sequence[float]) -> float | None:
    """The value that decides a lower bar over several; none where nothing was measured."""
    return min(values, default=None)


@dataclass
class Found:
    """What a benchmark came to."""

    shapes: list[dict[str, Any]] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)


@dataclass(frozen=True)
class Run:
    """What a benchmark is handed.

    Args:
        rate: bytes a second of a copy on this GPU.
        say: reports progress.
    """

    clock: Clock
    facts: dict[str, Any]
    rate: float
    options: argparse.Namespace
    say: Callable[[str], None]


def program(
    bench: str,
    about: str,
    measure: Callable[[Run], Found],
    add: Callable[[argparse.ArgumentParser], None] = lambda _: None,
    *,
    clock: Callable[[], Clock] = CudaClock,
    arguments: Sequence[str] | None = None,
) -> int:
    """Read the command line, measure, append the row, print it and the bars; the exit code."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a subset, in about a minute")
    parser.add_argument("--rounds", type=int, default=25, help="how often each side is timed")
    parser.add_argument("--seed", type=int, help="of the random operands; another one in each run unless given")
    parser.add_argument("--results", type=Path, default=FOLDER / f"{bench}.jsonl", help="file the row is appended to")
    parser.add_argument("--dry", action="store_true", help="do not append the row")
    parser.add_argument("--tune", action="store_true", help="first try all configurations of each shape; minutes more")
    parser.add_argument("--tuned", type=Path, default=TUNED, help="folder of the tables that --tune writes to")
    add(parser)
    options = parser.parse_args(arguments)
    options.seed = time.time_ns() % 2**31 if options.seed is None else options.seed
    try:
        row, bars = _measured(bench, measure, clock(), options)
    except SoloistError as error:
        print(f"{bench}: {error}", file=sys.stderr)
        return error.exit_code
    text = json.dumps(row)
    if not options.dry:
        options.results.parent.mkdir(parents=True, exist_ok=True)
        with options.results.open("a", encoding="utf-8") as file:
            file.write(text + "\n")
    print(text, flush=True)
    for bar in bars:
        print(bar.line(), file=sys.stderr)
    return 0


def _measured(
    bench: str, measure: Callable[[Run], Found], clock: Clock, options: argparse.Namespace
) -> tuple[dict[str, Any], list[Bar]]:
    from soloist.toolchain.core.environment import commit, device, versions

    began, facts = time.perf_counter(), clock.facts()

    def say(text: str) -> None:
        print(f"{time.perf_counter() - began:6.1f} s  {text}", file=sys.stderr, flush=True)

    rate = copy_rate(clock, facts)
    state = clock.state()
    say(f"{facts['name']}: a copy moves {rate / 1e9:.0f} GB/s, L2 {facts['l2_bytes'] / 2**20:.0f} MiB")
    try:
        found = measure(Run(clock, facts, rate, options, say))
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported here
            raise
        raise ResourceError(f"the GPU's memory does not do: {str(error).splitlines()[0]}; try --quick") from error
    after = copy_rate(clock, facts)
    row = {
        "bench": bench,
        "label": clock.label,
        "device": device(),
        "gpu": facts,
        "versions": versions(),
        "commit": commit(),
        "seed": options.seed,
        "rounds": options.rounds,
        "quick": options.quick,
        "copy_gb_s": {"before": round(rate / 1e9, 1), "after": round(after / 1e9, 1)},
        "state": {"before": state, "after": clock.state()},
        "seconds": round(time.perf_counter() - began, 1),
        "shapes": found.shapes,
        "bars": [bar.plain() for bar in found.bars],
    }
    return row, found.bars

"""Tuned configurations: one JSON file per GPU, read here, written by the benchmarks that measured them.

    h100.json   {"device": "NVIDIA H100 80GB HBM3", "architecture": 90, "measured": {"commit": …, "triton": …},
                 "kernels": {"w4a16_gemv": [{"sizes": {"M": 1, "N": 4096, "K": 4096}, "options": {"group": 128},
                             "configuration": {"constants": {"BLOCK_N": 16}, "warps": 4, "stages": 2,
                                               "registers": null},
                             "microseconds": 7.1}]}}

`tuned("w4a16_gemv", "NVIDIA H100 80GB HBM3", {"M": 1, …}, {"group": 128})` gives the configuration measured best at the
nearest sizes with the same options, or None: the kernel then goes by its own rule. Nearest means the smallest sum of
|log2| of the ratios, and no size further off than a factor of two. A GPU is known by the name its driver gives it.
Left out: tuning while a user waits.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from soloist.kernels.errors import ArtifactError
from soloist.kernels.spec import Configuration

FURTHEST = 1.0  # log2 of the ratio of sizes


@dataclass(frozen=True)
class Entry:
    """The best configuration measured at some sizes."""

    sizes: Mapping[str, int]
    options: Mapping[str, Any]
    configuration: Configuration
    microseconds: float

    def distance(self, sizes: Mapping[str, int]) -> float:
        """How far other sizes are; infinite where they differ by more than a factor of two, or by name."""
        if set(sizes) != set(self.sizes):
            return math.inf
        apart = [abs(math.log2(sizes[name] / size)) for name, size in self.sizes.items()]
        return sum(apart) if max(apart, default=0.0) <= FURTHEST else math.inf


@dataclass(frozen=True)
class Table:
    """What was measured on one GPU."""

    device: str
    architecture: int
    measured: Mapping[str, str]
    kernels: Mapping[str, tuple[Entry, ...]]


def tuned(
    kernel: str, device: str, sizes: Mapping[str, int], options: Mapping[str, Any] | None = None
) -> Configuration | None:
    """The configuration measured best near these sizes on this GPU, or None."""
    table = tables().get(device)
    if table is None:
        return None
    near = []
    for entry in table.kernels.get(kernel, ()):
        if entry.options == (options or {}) and math.isfinite(entry.distance(sizes)):
            near.append(entry)
    best = min(near, key=lambda entry: (entry.distance(sizes), entry.microseconds), default=None)
    return best.configuration if best else None


@functools.cache
def tables() -> Mapping[str, Table]:
    """All tables that ship, by name of the GPU."""
    shipped = {}
    for file in resources.files(__name__).iterdir():
        if file.name.endswith(".json"):
            table = read_table(file.read_text("utf-8"), file.name)
            shipped[table.device] = table
    return shipped


def read_table(text: str, name: str) -> Table:
    """A table from its JSON text. Raises ArtifactError."""
    try:
        data = json.loads(text)
        kernels = {kernel: tuple(map(_entry, entries)) for kernel, entries in data["kernels"].items()}
        return Table(str(data["device"]), int(data["architecture"]), dict(data["measured"]), kernels)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{name}: not a table of tuned configurations ({type(error).__name__}: {error})") from error


def _entry(data: Mapping[str, Any]) -> Entry:
    config = data["configuration"]
    ceiling = config["registers"]
    registers = None if ceiling is None else int(ceiling)
    configuration = Configuration(dict(config["constants"]), int(config["warps"]), int(config["stages"]), registers)
    return Entry(dict(data["sizes"]), dict(data["options"]), configuration, float(data["microseconds"]))


def write_table(path: Path, table: Table) -> None:
    """Write a table, entries in order of their sizes, so that two runs differ only where they measured differently."""

    def order(entry: Entry) -> Any:
        return sorted(entry.options.items(), key=str), sorted(entry.sizes.items())

    data = {**dataclasses.asdict(table), "kernels": {}}
    for name, entries in sorted(table.kernels.items()):
        data["kernels"][name] = [dataclasses.asdict(entry) for entry in sorted(entries, key=order)]
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")

"""`--tune` of the kernels' benchmarks: the best of all configurations at each shape, into the table of this GPU.

An entry has the names of sizes and options under which the kernel's entry point asks (`choose_config`), so that what is
measured after tuning is the entry point's own choice. Every configuration must be right before it is timed.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gpu_program import Run
from gpu_timing import Side, interleave

from soloist.kernels.errors import GateError, ResourceError
from soloist.kernels.spec import Configuration, Kernel
from soloist.kernels.tuned import Entry, Table, read_table, tables, write_table

ROUNDS = 7


def best_of(
    run: Run,
    kernel: Kernel,
    sizes: Mapping[str, int],
    options: Mapping[str, Any],
    make: Callable[[Configuration], Side],
    check: Callable[[Side], object],
) -> Entry:
    """The fastest configuration of a kernel.

    Args:
        make: our side with a configuration.
        check: raises GateError for a side that is wrong.

    Raises:
        GateError: a configuration is wrong.
        ResourceError: none runs on this GPU.
    """
    sides, refused = [], {}
    for config in kernel.configurations:
        side = make(config)
        try:
            check(side)
        except GateError:
            raise
        except Exception as error:  # too much shared memory, say: not for this GPU
            refused[config.name] = f"{type(error).__name__}: {error}".split("\n")[0]
        else:
            sides.append((config, side))
    where = " ".join(f"{name} {size}" for name, size in {**sizes, **options}.items())
    if not sides:
        raise ResourceError(f"{kernel.name} at {where}: no configuration runs here; {next(iter(refused.values()))}")
    times = interleave(run.clock, [side for _, side in sides], ROUNDS).seconds
    microseconds, best = min(
        ((1e6 * statistics.median(times[side.name]), config) for config, side in sides), key=lambda pair: pair[0]
    )
    run.say(f"{kernel.name} {where}: best of {len(sides)} is {best.name}, {microseconds:.2f} us")
    for name, reason in refused.items():
        run.say(f"    {name} does not run here: {reason}")
    return Entry(sizes, options, best, round(microseconds, 3))


def write_entries(run: Run, kernel: Kernel, best: Sequence[Entry]) -> Path:
    """Put entries into this GPU's table; those of other kernels, sizes and options stay."""
    from soloist.toolchain.core.environment import commit, versions

    path = table_path(run.options.tuned, run.facts["name"])
    old = dict(read_table(path.read_text("utf-8"), path.name).kernels) if path.exists() else {}
    kept = [one for one in old.get(kernel.name, ()) if not any(_same(one, other) for other in best)]
    measured = {
        "commit": str(commit()),
        "triton": versions().get("triton", ""),
        "driver": str(run.facts["driver"]),
        "label": run.clock.label,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(path, Table(run.facts["name"], run.facts["sm"], measured, {**old, kernel.name: (*kept, *best)}))
    tables.cache_clear()  # entry points have not asked for these sizes in this process yet
    run.say(f"{path}: {len(best)} entries of {kernel.name}")
    return path


def _same(one: Entry, other: Entry) -> bool:
    return one.sizes == other.sizes and one.options == other.options


def table_path(folder: Path, name: str) -> Path:
    """`h100.json` for an "NVIDIA H100 80GB HBM3"; the whole name where that file is another GPU's."""
    words = re.findall(r"[a-z0-9]+", name.lower())
    short = [word for word in words if not re.fullmatch(r"nvidia|geforce|\d+gb|hbm\d\w*", word)] or words
    path = folder / f"{'-'.join(short)}.json"
    if path.exists() and read_table(path.read_text("utf-8"), path.name).device != name:
        return folder / f"{'-'.join(words)}.json"
    return path

"""Timing on a GPU, for the kernels' benchmarks: rotated buffers, sides in turns, medians.

What would flatter a kernel, and what is done about it:

    cache       a side's calls go round copies of its operands that together hold four times the L2 cache
    launches    calls are captured into a CUDA graph of at least a millisecond; a replay ahead of the timed one keeps
                the GPU's queue full, so that no launch from Python is inside of the time
    clocks      the GPU works before anything is timed, and clocks are in the row; the sides take turns, each
                round begins with another one, so a drift meets all of them
    roofline    the bandwidth is that of a copy on this GPU in this run, not a datasheet's
    errors      what is timed was compared with float64 first, on the very copies, outputs poisoned (the benchmarks do)

A device is a `Clock`; tests run whole benchmarks on a CPU with a made-up one. Rows made with it are not labeled
"measured". Left out: several GPUs, power, other makers' GPUs.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from soloist.kernels.errors import MissingExtraError, ResourceError, UsageError

L2_TIMES = 4  # what the copies of a side hold together, in L2 caches
SAMPLE = 1e-3  # seconds of work in a timed replay: an event resolves half a microsecond
MOST_CALLS = 8192  # in a graph
HEAT = 0.3  # seconds; an idle H100 runs its cores at a sixth of the clock

Replay = Callable[[], None]


class Clock(Protocol):
    """A device that work can be timed on."""

    label: str  # what rows made with it are called
    device: str  # torch's name

    def facts(self) -> dict[str, Any]:
        """name, driver, sm, l2_bytes, memory_bytes."""

    def state(self) -> dict[str, Any]:
        """Clocks, power and temperature now, where they can be read."""

    def compiled(self, function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        """The function as `torch.compile` makes it."""

    def replay(self, name: str, calls: Sequence[Callable[[], object]], *, graph: bool) -> Replay:
        """All calls one after another, as one thing that can be run again; each was run before."""

    def seconds(self, replay: Replay) -> float:
        """Device time of a replay."""

    def heat(self, replay: Replay) -> None:
        """Keep the device busy until its clocks are up."""

    def peak(self, call: Callable[[], object]) -> tuple[int, int]:
        """Bytes allocated before the call, and at most during it."""


class CudaClock:
    """The GPU that torch sees first."""

    label = "measured"
    device = "cuda"

    def __init__(self) -> None:
        """Raise ResourceError where there is no GPU."""
        try:
            import torch
        except ImportError as error:
            raise MissingExtraError("torch", "kernels") from error
        from soloist.kernels.choose import interpreting

        if not torch.cuda.is_available():
            raise ResourceError(
                f"this benchmark needs an NVIDIA GPU and a torch built for it; torch {torch.__version__} sees none here"
            )
        if interpreting():
            raise UsageError("TRITON_INTERPRET is set, and the interpreter is for checking: unset it to measure")
        self.torch = torch

    def facts(self) -> dict[str, Any]:
        found = self.torch.cuda.get_device_properties(0)
        return {
            "name": found.name,
            "driver": self._smi("driver_version").get("driver_version"),
            "sm": 10 * found.major + found.minor,
            "processors": found.multi_processor_count,
            "l2_bytes": found.L2_cache_size,
            "memory_bytes": found.total_memory,
        }

    def state(self) -> dict[str, Any]:
        return self._smi("clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "power.draw", "temperature.gpu")

    def compiled(self, function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        self.torch._dynamo.reset()  # each shape for itself: torch would go over to dynamic shapes
        return self.torch.compile(function, dynamic=False, options=options or None)

    def replay(self, name: str, calls: Sequence[Callable[[], object]], *, graph: bool) -> Replay:
        def one_by_one() -> None:
            for call in calls:
                call()

        if not graph:
            return one_by_one
        captured = self.torch.cuda.CUDAGraph()
        with self.torch.cuda.graph(captured):
            one_by_one()
        return captured.replay

    def seconds(self, replay: Replay) -> float:
        start, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        replay()  # fills the queue: the timed one is there when this one is done
        start.record()
        replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def heat(self, replay: Replay) -> None:
        until = time.perf_counter() + HEAT
        while time.perf_counter() < until:
            replay()
            self.torch.cuda.synchronize()

    def peak(self, call: Callable[[], object]) -> tuple[int, int]:
        import gc

        gc.collect()
        self.torch.cuda.synchronize()
        self.torch.cuda.reset_peak_memory_stats()
        before = self.torch.cuda.memory_allocated()
        call()
        self.torch.cuda.synchronize()
        return before, self.torch.cuda.max_memory_allocated()

    def _smi(self, *names: str) -> dict[str, Any]:
        uuid = getattr(self.torch.cuda.get_device_properties(0), "uuid", None)  # torch and the tool may count otherwise
        return ask_smi("0" if uuid is None else f"GPU-{uuid}", *names)


def ask_smi(which: str, *names: str) -> dict[str, Any]:
    """What nvidia-smi says of a GPU; nothing where it is not there or does not answer."""
    if shutil.which("nvidia-smi") is None:
        return {}
    command = ["nvidia-smi", "-i", which, f"--query-gpu={','.join(names)}", "--format=csv,noheader,nounits"]
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
        values = [value.strip() for value in answer.stdout.strip().split(",")]
        if answer.returncode == 0 and len(values) == len(names):
            return dict(zip(names, values, strict=True))
    return {}


# ---------------------------------------------------------------- sides and rounds


class AbsentError(Exception):
    """A baseline that cannot take part, and why."""


@dataclass(frozen=True)
class Side:
    """One side of a comparison.

    Args:
        calls: the work, once for each copy of its operands.
        moved: bytes that a call must move at least: operands once, results once.
        graph: whether the calls are captured into a CUDA graph.
        ours: a failure of ours is an error, one of a baseline a remark.
    """

    name: str
    calls: Sequence[Callable[[], Any]]
    moved: int
    graph: bool = True
    ours: bool = False


@dataclass
class Times:
    """Seconds a call of each side, by round, and why some have none."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)


def copies_for(size: int, facts: dict[str, Any]) -> int:
    """How many copies of operands of so many bytes do not fit in the L2 cache by far; two at least."""
    return max(2, min(MOST_CALLS, math.ceil(L2_TIMES * facts["l2_bytes"] / size)))


def interleave(clock: Clock, sides: Sequence[Side], rounds: int) -> Times:
    """Time the sides in turns; each round begins with another one."""
    found, ready = Times(), []
    for side in sides:
        try:
            ready.append((side, *_prepared(clock, side)))
        except Exception as error:  # a baseline is somebody else's program: whatever it raises, the rest is measured
            if side.ours:
                raise
            found.absent[side.name] = _said(error)
    if ready:
        clock.heat(ready[0][1])
    for index in range(rounds):
        start = index % len(ready)
        for side, replay, count in ready[start:] + ready[:start]:
            found.seconds.setdefault(side.name, []).append(clock.seconds(replay) / count)
    return found


def _prepared(clock: Clock, side: Side) -> tuple[Replay, int]:
    """A replay of at least SAMPLE seconds, and how many calls it is."""
    for call in side.calls:  # compiles, tunes, loads
        call()
    replay, count = clock.replay(side.name, side.calls, graph=side.graph), len(side.calls)
    once = clock.seconds(replay)
    again = min(math.ceil(SAMPLE / max(once, 1e-9)), max(1, MOST_CALLS // count))
    if again > 1:  # one graph, not several replays: between two of them the GPU idles
        replay, count = clock.replay(side.name, list(side.calls) * again, graph=side.graph), count * again
    return replay, count


def absent_or(make: Callable[[], Side]) -> Side | str:
    """A baseline's side, or why there is none."""
    try:
        return make()
    except Exception as error:  # somebody else's program, as above
        return _said(error)


def _said(error: Exception) -> str:
    first = str(error).strip().split("\n")[0][:200]
    return first if isinstance(error, AbsentError) else f"{type(error).__name__}: {first}"


def summary(values: Sequence[float], digits: int = 3) -> dict[str, float]:
    """Median and 20 / 80 percentiles."""
    low, high = (values[0],) * 2
    if len(values) > 1:
        cuts = statistics.quantiles(values, n=5, method="inclusive")
        low, high = cuts[0], cuts[-1]
    return {"median": round(statistics.median(values), digits), "p20": round(low, digits), "p80": round(high, digits)}


def compared(times: Times, sides: Sequence[Side], rate: float) -> dict[str, Any]:
    """Each side's microseconds, bandwidth and share of the copy's; of baselines, how many times ours are faster.

    Ratios are made round by round, of what was timed side by side.
    """
    row: dict[str, Any] = {}
    ours = [side.name for side in sides if side.ours]
    for side in sides:
        if side.name not in times.seconds:
            continue
        own = times.seconds[side.name]
        middle = statistics.median(own)
        row[side.name] = {
            "us": summary([1e6 * value for value in own]),
            "bytes": side.moved,
            "copies": len(side.calls),
            "gb_s": round(side.moved / middle / 1e9, 1),
            "of_copy": round(side.moved / middle / rate, 4),
            "graph": side.graph,
        }
        if not side.ours:
            row[side.name]["times_slower_than"] = {
                name: summary([other / mine for other, mine in zip(own, times.seconds[name], strict=True)])
                for name in ours
            }
    return row


def told(row: dict[str, Any]) -> str:
    """A row's sides in a line."""
    return ", ".join(f"{name} {side['us']['median']:.2f} us ({side['of_copy']:.0%})" for name, side in row.items())


def copy_rate(clock: Clock, facts: dict[str, Any], rounds: int = 15) -> float:
    """Bytes a second, read and written, of a copy far larger than the cache."""
    import torch

    size = min(max(8 * facts["l2_bytes"], 1 << 30), facts["memory_bytes"] // 8)
    source = torch.randint(0, 256, (size,), dtype=torch.uint8, device=clock.device)
    target = torch.empty_like(source)
    side = Side("copy", [lambda: target.copy_(source)], 2 * size, graph=False, ours=True)
    return side.moved / statistics.median(interleave(clock, [side], rounds).seconds["copy"])

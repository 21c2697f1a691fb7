"""The kernels' benchmarks as modules, and a clock that makes times up, so that they run whole on a CPU."""

from __future__ import annotations

import importlib
import itertools
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
DEVICE = "NVIDIA T9000 80GB HBM3"


class MadeUpClock:
    """Times by the name of a side: seconds a call, a number or one for each time it is asked.

    `timed` is who was timed, in order; `replays` what was captured, as (name, calls, graph).
    """

    label, device = "made up", "cpu"

    def __init__(self, seconds=None, *, l2_bytes=1024, peaks=()):
        self.costs = {
            name: itertools.cycle(cost if isinstance(cost, list) else [cost]) for name, cost in (seconds or {}).items()
        }
        self.l2_bytes, self.peaks = l2_bytes, list(peaks)
        self.timed, self.replays, self.heated = [], [], 0

    def facts(self):
        return {
            "name": DEVICE,
            "driver": "1.2.3",
            "sm": 90,
            "processors": 4,
            "l2_bytes": self.l2_bytes,
            "memory_bytes": 1 << 16,
        }

    def state(self):
        return {"clocks.sm": "1980"}

    def compiled(self, function, **_):
        return function

    def replay(self, name, calls, *, graph):
        self.replays.append((name, list(calls), graph))
        return SimpleNamespace(name=name, count=len(calls))

    def seconds(self, replay):
        self.timed.append(replay.name)
        return next(self.costs.get(replay.name, itertools.repeat(2e-3))) * replay.count

    def heat(self, replay):
        self.heated += 1

    def peak(self, call):
        call()
        return self.peaks.pop(0)


@pytest.fixture(scope="session")
def benches():
    """The modules of the kernels' benchmarks by name, and `MadeUpClock`."""
    pytest.importorskip("torch")
    pytest.importorskip("triton", reason="kernels under the interpreter: install 'soloist[kernels]'")
    names = [
        "gpu_timing",
        "gpu_program",
        "gpu_tuning",
        "gpu_matmul",
        "bench_w4a16_gemv",
        "bench_w4a16_gemm",
        "bench_w8a16",
        "bench_decode_attention",
        "bench_linear_kl",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names}, MadeUpClock=MadeUpClock)
        for name in names:
            sys.modules.pop(name, None)


@pytest.fixture
def started(tmp_path, capsys):
    """Runs a benchmark's main on a made-up clock: `(exit code, row or None, what it said)`."""

    def start(bench, clock, *arguments, rounds=2):
        results = tmp_path / "results" / "rows.jsonl"
        given = ["--rounds", str(rounds), "--results", str(results), "--tuned", str(tmp_path / "tuned"), *arguments]
        code = bench.main(clock=lambda: clock, arguments=given)
        said = capsys.readouterr()
        row = json.loads(said.out.splitlines()[-1]) if said.out else None
        kept = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
        assert (kept[-1:] == [row]) or (row is None and not kept)
        return code, row, said.err

    return start


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """What entry points ask of the tables in the folder of `started`, as if the made-up GPU were theirs.

    A list of (kernel, sizes, options, the configuration they get or None), one for each different question.
    """
    from soloist.kernels import choose, tuned

    found = []
    real = tuned.tuned

    def known():
        files = (tmp_path / "tuned").glob("*.json")
        return {table.device: table for table in (tuned.read_table(f.read_text(), f.name) for f in files)}

    def recorded(kernel, device, sizes, options):
        found.append((kernel, sizes, options, real(kernel, device, sizes, options)))
        return found[-1][-1]

    known.cache_clear = lambda: None
    monkeypatch.setattr(tuned, "tables", known)
    monkeypatch.setattr(choose, "tuned", recorded)
    monkeypatch.setattr(choose, "_tuned_for", lambda _: DEVICE)
    choose._tuned_config.cache_clear()
    yield found
    choose._tuned_config.cache_clear()

"""What the kernels' benchmarks time, in what order, and what becomes of the times."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
SCRIPTS = ["bench_w4a16_gemv", "bench_w4a16_gemm", "bench_w8a16", "bench_decode_attention", "bench_linear_kl"]


def _sides(benches, *names, calls=2, **more):
    return [benches.gpu_timing.Side(name, [lambda: None] * calls, 1000, **more) for name in names]


def test_sides_take_turns_and_each_is_first_once(benches):
    clock = benches.MadeUpClock()
    times = benches.gpu_timing.interleave(clock, _sides(benches, "a", "b", "c"), 3)
    assert "".join(clock.timed[3:]) == "abc" + "bca" + "cab", "the first three only say how long a replay is"
    assert {name: len(values) for name, values in times.seconds.items()} == {"a": 3, "b": 3, "c": 3}
    assert clock.heated == 1


def test_short_work_is_repeated_in_one_graph_until_it_can_be_timed(benches):
    clock = benches.MadeUpClock({"short": 2**-19, "long": 4e-3})
    times = benches.gpu_timing.interleave(clock, _sides(benches, "short", "long", calls=10), 2)
    assert [(name, len(calls)) for name, calls, _ in clock.replays] == [("short", 10), ("short", 530), ("long", 10)]
    assert times.seconds["short"] == [2**-19] * 2 and times.seconds["long"] == pytest.approx([4e-3] * 2)


def test_a_graph_has_an_end(benches):
    clock = benches.MadeUpClock({"tiny": 1e-12})
    benches.gpu_timing.interleave(clock, _sides(benches, "tiny", calls=3000), 1)
    assert [len(calls) for _, calls, _ in clock.replays] == [3000, 6000]


def test_what_needs_no_graph_is_captured_into_none(benches):
    clock = benches.MadeUpClock()
    benches.gpu_timing.interleave(clock, [*_sides(benches, "eager", graph=False), *_sides(benches, "captured")], 1)
    assert {name: graph for name, _, graph in clock.replays} == {"eager": False, "captured": True}


def test_drift_that_meets_all_sides_leaves_the_ratio_alone(benches):
    drift = [1e-3, 1e-3, 2e-3, 3e-3, 4e-3, 5e-3]  # the first says how long a replay is
    clock = benches.MadeUpClock({"ours": drift, "baseline": [3 * value for value in drift]})
    sides = [*_sides(benches, "ours", ours=True), *_sides(benches, "baseline")]
    row = benches.gpu_timing.compared(benches.gpu_timing.interleave(clock, sides, 5), sides, rate=2e6)
    assert row["ours"]["us"] == {"median": 3000.0, "p20": 1800.0, "p80": 4200.0}
    assert row["ours"]["gb_s"] == pytest.approx(0.0, abs=0.1) and row["ours"]["of_copy"] == round(1000 / 3e-3 / 2e6, 4)
    assert row["baseline"]["times_slower_than"] == {"ours": {"median": 3.0, "p20": 3.0, "p80": 3.0}}
    assert "times_slower_than" not in row["ours"]


def test_a_baseline_that_breaks_is_named_and_ours_is_an_error(benches):
    def broken():
        raise ValueError("no such shape\nand more")

    sides = [*_sides(benches, "ours", ours=True), benches.gpu_timing.Side("baseline", [broken], 1)]
    times = benches.gpu_timing.interleave(benches.MadeUpClock(), sides, 1)
    assert times.absent == {"baseline": "ValueError: no such shape"} and list(times.seconds) == ["ours"]
    with pytest.raises(ValueError, match="no such shape"):
        benches.gpu_timing.interleave(
            benches.MadeUpClock(), [benches.gpu_timing.Side("ours", [broken], 1, ours=True)], 1
        )


def test_copies_do_not_fit_in_the_cache(benches):
    copies = functools.partial(benches.gpu_timing.copies_for, facts={"l2_bytes": 50 << 20})
    assert copies(62_208) * 62_208 >= 4 * (50 << 20) > (copies(62_208) - 1) * 62_208
    assert copies(1 << 30) == 2, "even of a huge matrix another one comes in between"


def test_a_copy_counts_what_is_read_and_what_is_written(benches):
    clock = benches.MadeUpClock({"copy": 1e-3})
    rate = benches.gpu_timing.copy_rate(clock, clock.facts())
    assert rate == pytest.approx(2 * (1 << 13) / 1e-3), "an eighth of 64 KiB of memory, twice"


@pytest.mark.parametrize(
    ("value", "limit", "most", "verdict"),
    [
        (2.3, 2.3, False, "met"),
        (2.29, 2.3, False, "missed"),
        (0.5, 0.5, True, "met"),
        (0.51, 0.5, True, "missed"),
        (None, 1.0, False, "not measured"),
    ],
)
def test_a_bar_is_met_or_missed_with_its_number(benches, value, limit, most, verdict):
    bar = benches.gpu_program.Bar("speed", limit, value, most)
    assert bar.plain() == {"bar": "speed", "limit": limit, "most": most, "value": value, "verdict": verdict}
    assert bar.line().startswith(f"{verdict}: ") and (value is None or f"{value:.3f}" in bar.line())


def test_a_replay_goes_ahead_of_the_timed_one(benches):
    told = []

    class Event:
        def __init__(self, *, enable_timing):
            self.name = "start" if not any("made" in one for one in told) else "end"
            told.append(f"{self.name} made")

        def record(self):
            told.append(self.name)

        def synchronize(self):
            told.append("waited")

        def elapsed_time(self, other):
            return 2.0 if (self.name, other.name) == ("start", "end") else -2.0

    clock = object.__new__(benches.gpu_timing.CudaClock)
    clock.torch = SimpleNamespace(cuda=SimpleNamespace(Event=Event))
    assert clock.seconds(lambda: told.append("replay")) == 2e-3, "milliseconds in, seconds out"
    assert told[2:] == ["replay", "start", "replay", "end", "waited"]


def test_what_the_driver_says_is_read_or_left_out(benches, tmp_path, monkeypatch):
    ask = benches.gpu_timing.ask_smi
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ask("0", "driver_version") == {}, "there is no such program"
    smi = tmp_path / "nvidia-smi"
    smi.write_text('#!/bin/sh\n[ "$2" = GPU-1 ] && [ "$3" = --query-gpu=clocks.sm,power.draw ] && echo "1980, [N/A]"\n')
    smi.chmod(0o755)
    assert ask("GPU-1", "clocks.sm", "power.draw") == {"clocks.sm": "1980", "power.draw": "[N/A]"}
    assert ask("GPU-2", "clocks.sm", "power.draw") == {}, "it does not know that GPU"


def test_only_a_gpus_rows_are_called_measured(benches):
    assert benches.gpu_timing.CudaClock.label == "measured" != benches.MadeUpClock.label


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: it would be measured")
@pytest.mark.parametrize("name", SCRIPTS)
def test_without_a_gpu_one_line_says_what_is_needed(benches, name, tmp_path, capsys):
    results = tmp_path / "rows.jsonl"
    assert getattr(benches, name).main(arguments=["--results", str(results)]) == 7
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and "needs an NVIDIA GPU" in said.err
    assert not results.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: it would be measured")
def test_the_command_in_the_readme_starts(tmp_path):
    done = subprocess.run(
        [sys.executable, "-P", str(FOLDER / "bench_w4a16_gemv.py"), "--quick", "--dry"],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=tmp_path,
        env={**os.environ, "TRITON_INTERPRET": "0"},
    )
    assert done.returncode == 7, done.stderr
    assert done.stderr.startswith("w4a16_gemv: ") and done.stdout == ""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_the_quick_run_on_a_gpu(tmp_path):
    results = tmp_path / "rows.jsonl"
    done = subprocess.run(
        [sys.executable, "-P", str(FOLDER / "bench_w4a16_gemv.py"), "--quick", "--results", str(results)],
        capture_output=True,
        text=True,
        check=False,
        timeout=540,
        env={**os.environ, "TRITON_INTERPRET": "0"},
    )
    assert done.returncode == 0, done.stderr
    row = json.loads(results.read_text())
    assert (
        row["label"] == "measured" and row["gpu"]["driver"] and all(each["sides"]["cublas"] for each in row["shapes"])
    )

"""The training benchmark itself: both trainers on the same tokens, in real processes, on a tiny model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "bench_train.py"


def test_both_trainers_read_the_same_tokens_and_start_from_the_same_loss(tiny_smollm2):
    pytest.importorskip("trl", reason="the baseline is TRL: install 'soloist[bench]'")
    size = [
        "--rounds",
        "1",
        "--steps",
        "3",
        "--batch",
        "4",
        "--threads",
        "1",
        "--precision",
        "fp32",
        "--baselines",
        "trl",
    ]
    done = subprocess.run(
        [sys.executable, "-P", str(SCRIPT), "--dry", "--model", str(tiny_smollm2), *size],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout.splitlines()[-1])
    assert row["ours_tok_s"]["n"] == row["trl_tok_s"]["trl"]["n"] == 1
    assert len(row["loss"]["ours"]) == len(row["loss"]["trl"]) == 3
    assert row["loss_gap"]["max"] < 1e-3  # fp32: the same mathematics, step by step
    assert 0 < row["trained_tokens"] < row["tokens"]

"""What the table of methods claims: intervals, pairs, which rows stand together, what beats sft."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "readme_tables.py"
SPLITS = ["held-out"] * 200 + ["unseen-wording"] * 60


@pytest.fixture(scope="module")
def tables():
    return SimpleNamespace(**runpy.run_path(str(SCRIPT)))


def row(
    method, right, *, setting="few", seed=0, max_train_tokens=100, asked="a", traces="t", splits=SPLITS, seconds=60.0
):
    return {
        "setting": setting,
        "method": method,
        "seed": seed,
        "max_train_tokens": max_train_tokens,
        "asked": asked,
        "traces": traces,
        "splits": splits,
        "right": right,
        "team_right": [1] * len(splits),
        "tokens_read": max_train_tokens,
        "train_seconds": seconds,
        "commit": "c",
        "device": {"cpu": "x", "cores": 2},
    }


def answers(share, splits=SPLITS):
    """Every tenth question and so on: `share` tenths of them are right."""
    return [int(i % 10 < share) for i in range(len(splits))]


def test_a_mean_has_the_binomial_interval_where_seeds_agree(tables):
    mean, low, high = tables.interval(np.array([answers(8)[:200]] * 3, float))
    assert mean == 0.8
    half = 1.96 * (0.8 * 0.2 / 200) ** 0.5
    assert (low, high) == (pytest.approx(0.8 - half, abs=0.006), pytest.approx(0.8 + half, abs=0.006))


def test_seeds_that_differ_widen_the_interval(tables):
    same = np.array([answers(5)[:200]] * 3, float)
    differ = np.array([answers(share)[:200] for share in (3, 5, 7)], float)
    width = {name: np.ptp(tables.interval(right)[1:]) for name, right in (("same", same), ("differ", differ))}
    assert width["differ"] > 1.5 * width["same"]


def test_a_difference_is_paired_by_question(tables):
    """The same questions right but for one: as unpaired samples nothing could be said of them."""
    one = np.array([answers(5)[:200]] * 2, float)
    assert tables.interval(one, one.copy()) == (0, 0, 0)
    other = one.copy()
    other[:, ::10] = 0
    mean, low, high = tables.interval(one, other)
    assert mean == pytest.approx(0.1) and 0.05 < low < high < 0.15


def test_only_rows_of_one_comparison_stand_together(tables):
    small = row("sft", answers(5)[:40], splits=SPLITS[:40])
    old, new = row("sft", answers(5), max_train_tokens=50), row("sft", answers(5))
    elsewhere = row("sft", answers(5), setting="cot", max_train_tokens=7)
    assert tables.comparable([old, elsewhere, new, small]) == [elsewhere, new]
    assert tables.comparable([new, row("da", answers(5), traces="other")])[0]["traces"] == "other"
    assert tables.comparable([]) == []


def test_what_beats_sft_is_said_with_its_cost_and_with_chance(tables, tmp_path, monkeypatch):
    rows = [row("sft", answers(5), seed=seed) for seed in range(3)]
    rows += [row("magdi", answers(7), seed=seed, seconds=240.0) for seed in range(3)]
    rows += [row("da", answers(5), seed=seed) for seed in range(3)]
    rows += [row("answer-only", answers(2), seed=seed) for seed in range(3)]
    (tmp_path / "methods.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    monkeypatch.setitem(tables.read.__globals__, "RESULTS", tmp_path)
    said = tables.methods()
    assert "seeds 0, 1, 2; the traces" in said
    assert "interval: magdi (few traces, 4.0× the training time), magdi (unseen wordings" in said
    assert "Worse: answer-only (few traces" in said and "The other 2 of 6 comparisons show no difference" in said
    (line,) = [line for line in said.splitlines() if line.startswith("| magdi | 70 (")]
    found = re.match(r".*? \| \+20 \(\+(\d+) to \+(\d+)\) \| -30 \(-(\d+) to -(\d+)\) \|", line)
    assert found and [int(end) for end in found.groups()] == pytest.approx([14.5, 25.5, 36.4, 23.6], abs=1.5)
    assert line.endswith("| 0.1 / – | 4.0 / – |")
    assert any(line.startswith("| the team, live | 100 (100–100) |  |  |") for line in said.splitlines())
    once = tables.methods_note([*rows, row("pad", answers(5), seed=0)])
    assert "seeds 0, 1, 2 (fewer: `pad` 1; their intervals know less of chance); the traces" in once


def test_files_stand_by_size_with_what_they_lose_and_why_one_is_not_there(tables):
    def file(variant, mb, kl=None, family="ours", **more):
        found = {} if kl is None else {"kl_mean": kl, "kl_p99": 9 * kl, "top1": 1 - kl, "tokens": 50, "prompts": 5}
        stamp = {"commit": "c", "device": {"cpu": "x", "cores": 2}, "max_mb": 100.0, "family": family}
        return {"variant": variant, "size_mb": mb, "mode": "tools", **found, **more, **stamp}

    asked = {"f16": [1] * 80 + [0] * 20, "ours": [1] * 78 + [0] * 22}
    rows = [
        file("f16", 200.0, 0.0, "reference"),
        file("ours", 90.0, 0.001),
        file("other", 95.0, 0.25, "llama.cpp"),
        file("wide", 101.0, 0.1, "llama.cpp"),
        file("bad", 0.0, refused="crashed"),
        *(file(name, 1.0, right=right) for name, right in asked.items()),
    ]
    said = tables.quantized("tools", rows).splitlines()
    assert [line.split("|")[1].strip() for line in said[2:5]] == ["ours", "other", "f16"]
    assert said[2].startswith("| ours | 90.0 | 0.00100 | 0.0090 | 99.9 | 78 (") and "-2 (" in said[2]
    assert said[3].endswith("| 75.0 |  |  |") and "Refused: bad (`crashed`)." in said[-1]
    assert "Baselines of more than 100 MB, only in the results: 1." in said[-1]

"""The comparison of methods: who gets which traces, what is done again after a kill, what a failure leaves."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from soloist.kernels.errors import DataError
from soloist.toolchain.student.artifact import TrainingFacts
from soloist.toolchain.tasks.base import Question

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "bench_methods.py"
ASKED = [Question(id=f"q{i}", question=f"{i}?", gold="1", split="held-out") for i in range(3)]


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """The script with a team and cells that cost nothing; `trained` is what was trained, in order."""
    found = SimpleNamespace(**runpy.run_path(str(SCRIPT)), trained=[])
    spaces = found.measure.__globals__

    def student_of(setting, method, seed, budget, options, traces, work, name, **extra):
        found.trained.append((name, method, seed, budget, extra))
        (work / name).mkdir(exist_ok=True)
        if method == "pad":
            raise DataError("no question with both a right and a wrong attempt")
        training = SimpleNamespace(passes=(SimpleNamespace(tokens=budget, seconds=2.0),))
        return SimpleNamespace(
            path=work / name, read=lambda _: SimpleNamespace(training=training), manifest={"seconds": 9.0}
        )

    def cell(setting, method, seed, budget, options, traces, work, asked):
        student = spaces["student_of"](
            setting, method, seed, budget, options, traces, work, f"{setting}-{method}-{seed}"
        )
        return {
            "setting": setting,
            "method": method,
            "seed": seed,
            "max_train_tokens": budget,
            "traces": traces.digest,
            "right": [1, 0, 1],
            **found.cost_of(student),
        }

    monkeypatch.setitem(spaces, "student_of", student_of)
    monkeypatch.setitem(spaces, "cell", cell)
    monkeypatch.setitem(spaces, "team_answers", lambda *_: [1, 1, 0])
    found.options = SimpleNamespace(
        work=str(tmp_path / "work"),
        results=str(tmp_path / "rows.jsonl"),
        max_train_tokens=100,
        keep=False,
        agent=None,
        settings=["few", "cot"],
        methods=["sft", "pad"],
        seeds=[0, 1],
    )
    found.rows = lambda: [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    return found


TRACES = SimpleNamespace(digest="t")


def test_what_failed_is_told_and_the_rest_is_measured_once(bench):
    failed = bench.measure(bench.options, TRACES, ASKED)
    assert len(failed) == 4 and failed[0].startswith("few pad seed 0: no question with both")
    assert [(r["setting"], r["method"], r["seed"]) for r in bench.rows()] == [
        ("few", "sft", 0),
        ("cot", "sft", 0),
        ("few", "sft", 1),
        ("cot", "sft", 1),
    ]
    assert all(r["team_right"] == [1, 1, 0] and r["train_seconds"] == 9.0 for r in bench.rows())
    before = len(bench.trained)
    assert len(bench.measure(bench.options, TRACES, ASKED)) == 4
    assert [method for _, method, *_ in bench.trained[before:]] == ["pad"] * 4, "sft is in the results"


def test_an_agent_with_a_skill_card_is_asked_once_beside_the_students(bench, tmp_path, monkeypatch):
    from soloist.toolchain.teams.config import load_team

    team = tmp_path / "skill_agent.yaml"
    team.write_text(
        yaml.safe_dump({**load_team("desk").model_dump(mode="json", exclude_defaults=True), "name": "card"})
    )
    asked_of = []

    def ask(system, asked, note):
        asked_of.append(system.name)
        return {"right": [0, 1, 0], "failed": 0, "ask_seconds": 1.0}

    monkeypatch.setitem(bench.measure.__globals__, "ask", ask)
    bench.options.agent, bench.options.methods = str(team), []
    assert bench.measure(bench.options, TRACES, ASKED) == [] and bench.measure(bench.options, TRACES, ASKED) == []
    (row,) = bench.rows()
    assert (row["setting"], row["method"], row["max_train_tokens"], row["tokens_read"]) == ("few", "adaskill", 100, 0)
    assert row["right"] == [0, 1, 0] and row["team_right"] == [1, 1, 0] and asked_of == ["card"] and bench.trained == []


def test_students_are_removed_only_once_their_row_is_written(bench, tmp_path, monkeypatch):
    bench.options.methods = ["sft"]
    bench.measure(bench.options, TRACES, ASKED)
    assert not list((tmp_path / "work").glob("*-sft-*"))
    bench.options.max_train_tokens = 200
    monkeypatch.setitem(bench.measure.__globals__, "team_answers", lambda *_: {1})  # a row that cannot be written
    with pytest.raises(TypeError, match="not JSON serializable"):
        bench.measure(bench.options, TRACES, ASKED)
    assert [path.name for path in (tmp_path / "work").glob("*-sft-*")] == ["few-sft-0"]


def test_other_questions_traces_or_tokens_are_another_comparison(bench):
    bench.options.methods, bench.options.seeds = ["sft"], [0]
    for asked, traces, budget in ((ASKED, "t", 100), (ASKED[:2], "t", 100), (ASKED, "u", 100), (ASKED, "t", 101)):
        bench.options.max_train_tokens = budget
        bench.measure(bench.options, SimpleNamespace(digest=traces), asked)
    assert len(bench.rows()) == 2 * 4


@pytest.mark.parametrize(
    ("last", "before", "cost"),
    [
        ((5, 1.0), (7, 2.0), {"tokens_read": 12, "train_seconds": 4.0}),
        ((5, 10.0), (11, 20.0), {"tokens_read": 16, "train_seconds": 30.0}),
    ],
)
def test_cost_counts_every_pass(bench, last, before, cost):
    def took(tokens, seconds, **phases):
        counts = dict.fromkeys(("steps", "processes", "trained_tokens", "computed_tokens"), 1)
        return TrainingFacts(tokens=tokens, seconds=seconds, phases=phases, **counts)

    facts = SimpleNamespace(training=took(*last, first=took(*before)))
    assert bench.cost_of(SimpleNamespace(read=lambda _: facts, manifest={"seconds": 4.0})) == cost

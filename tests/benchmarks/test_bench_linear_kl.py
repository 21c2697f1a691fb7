"""The benchmark of the distillation loss, whole, at a tiny vocabulary under the interpreter, with made-up times."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton", reason="kernels under the interpreter: install 'soloist[kernels]'")

SIZE = ("--rows", "6")


@pytest.fixture
def tiny(benches, monkeypatch):
    bench = benches.bench_linear_kl
    monkeypatch.setattr(bench, "STUDENTS", {"tiny": (131, 16)})
    monkeypatch.setattr(bench, "REFERENCE_ROWS", 4)  # two pieces
    return bench


def test_speed_and_memory_are_told_for_each_loss(benches, tiny, started):
    peaks = [(100, 140), (100, 300), (100, 260)] * 3
    clock = benches.MadeUpClock({"ours": 2e-3, "plain": 3e-3, "compiled": 2.5e-3}, peaks=peaks)
    code, row, _ = started(tiny, clock, *SIZE)
    assert code == 0 and [shape["loss"] for shape in row["shapes"]] == ["forward", "jsd", "top-64"]
    assert {graph for name, _, graph in clock.replays} == {False}
    first = row["shapes"][0]
    assert [first[key] for key in ("student", "T", "V", "D")] == ["tiny", 6, 131, 16]
    assert first["sides"]["ours"]["peak_bytes"] == 140 and first["sides"]["ours"]["above_inputs_bytes"] == 40
    assert first["sides"]["plain"]["times_slower_than"]["ours"]["median"] == 1.5
    assert set(first["error"]) == {"values", "dh", "dW"} and all(0 <= e <= 1 for e in first["error"].values())
    assert [(bar["value"], bar["verdict"]) for bar in row["bars"]] == [
        (pytest.approx(140 / 300), "met"),
        (1.5, "met"),
    ] * 3


def test_too_much_memory_and_too_little_speed_miss_their_bars(benches, tiny, started):
    clock = benches.MadeUpClock({"ours": 3e-3, "plain": 2.9e-3}, peaks=[(100, 160), (100, 300), (100, 300)] * 3)
    _, row, said = started(tiny, clock, *SIZE)
    assert [bar["verdict"] for bar in row["bars"]] == ["missed"] * 6 and said.count(
        "\nmissed: 0.533 (at most 0.5)"
    ) == 3


@pytest.mark.parametrize("loss", ["forward", "jsd", "top-64"])
def test_the_plain_loss_is_the_same_loss(benches, tiny, loss):
    run = SimpleNamespace(clock=benches.MadeUpClock(), options=SimpleNamespace(rows=6, seed=5))
    given = tiny.problem(run, "tiny", loss)
    wanted = tiny.exact(given)
    values = tiny.step(tiny.plain_loss, given)
    for one, other in zip((values, given.hidden.grad, given.weight.grad), wanted, strict=True):
        assert float((one.double() - other).norm() / other.norm()) < 0.03


@pytest.mark.parametrize("what", ["values", "gradient", "nothing"])
def test_a_wrong_loss_is_not_timed(benches, tiny, started, monkeypatch, what):
    right = tiny.KERNEL.run

    def run(hidden, weight, teacher, **how):
        found = right(hidden, weight, teacher, **how)
        if what == "values":
            return found + 0.01
        return found.detach() + (found - found.detach()) * 1.1 if what == "gradient" else found * torch.nan

    monkeypatch.setattr(tiny, "KERNEL", dataclasses.replace(tiny.KERNEL, run=run))
    clock = benches.MadeUpClock()
    code, row, said = started(tiny, clock, *SIZE)
    assert code == 6 and row is None and "linear_kl is wrong, forward, ours: " in said
    assert set(clock.timed) == {"copy"}


def test_what_was_tuned_is_what_the_entry_point_takes(benches, tiny, started, asked):
    configs = tiny.KERNEL.configurations
    clock = benches.MadeUpClock({configs[1].name: 1e-6}, peaks=[(1, 2)] * 9)
    code, _, said = started(tiny, clock, "--tune", *SIZE)
    assert code == 0 and said.count(f"best of {len(configs)} is {configs[1].name}") == 3
    assert {(kernel, options["kind"], answer and answer.name) for kernel, sizes, options, answer in asked} == {
        ("linear_kl", kind, configs[1].name) for kind in ("forward", "jsd", "lse")
    }


def test_two_students_of_one_size_leave_one_entry(benches):
    from soloist.kernels.tuned import Entry

    config = benches.bench_linear_kl.KERNEL.configurations[0]
    slow, fast = (Entry({"T": 6, "C": 256}, {"kind": "jsd"}, config, us) for us in (3.0, 2.0))
    other = Entry({"T": 6, "C": 256}, {"kind": "lse"}, config, 9.0)
    assert benches.bench_linear_kl._different([slow, other, fast]) == [fast, other]

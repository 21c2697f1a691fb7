"""The benchmark of attention at decoding, whole, at a tiny shape under the interpreter, with made-up times."""

from __future__ import annotations

import dataclasses

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton", reason="kernels under the interpreter: install 'soloist[kernels]'")


@pytest.fixture
def tiny(benches, monkeypatch):
    bench = benches.bench_decode_attention
    monkeypatch.setattr(bench, "MODELS", {"tiny": (4, 2, 32)})
    monkeypatch.setattr(bench, "CONTEXTS", (96,))
    return bench


def test_both_caches_are_compared_with_torchs_attention(benches, tiny, started):
    code, row, said = started(tiny, benches.MadeUpClock({"ours": 2e-6, "ours-int8": 1e-6, "sdpa": 3e-6}))
    assert code == 0 and row["bars"] == [] and "tiny at 96: ours 2.00 us" in said
    (shape,) = row["shapes"]
    assert [shape[key] for key in ("model", "B", "H", "HKV", "S", "D")] == ["tiny", 1, 4, 2, 96, 32]
    around = 2 * 2 * 4 * 32  # query and result
    sides = shape["sides"]
    assert sides["ours"]["bytes"] == sides["sdpa"]["bytes"] == 2 * 2 * 96 * 32 * 2 + around
    assert sides["ours-int8"]["bytes"] == 2 * 2 * 96 * (32 + 2) + around
    assert {name: each["median"] for name, each in sides["sdpa"]["times_slower_than"].items()} == {
        "ours": 1.5,
        "ours-int8": 3.0,
    }
    assert all(0 <= error <= 1 for error in shape["error"].values()) and len(shape["error"]) == 2


def test_caches_are_rotated(benches, tiny):
    clock = benches.MadeUpClock(l2_bytes=30_000)
    run = benches.gpu_program.Run(clock, clock.facts(), 1e9, type("Given", (), {"seed": 1}), lambda _: None)
    for quantized in (False, True):
        caches = tiny.made(run, 4, 2, 32, 96, quantized=quantized)
        places = {each.data_ptr() for kept in caches.kept for each in kept[:2]}
        assert len(places) == 2 * len(caches.kept) > 8
        assert len(caches.kept) * caches.moved >= 4 * clock.l2_bytes
        assert all(each.is_contiguous() for kept in caches.kept for each in kept)


@pytest.mark.parametrize("quantized", [False, True])
def test_wrong_attention_is_not_timed(benches, tiny, started, monkeypatch, quantized):
    right = tiny.KERNEL.run

    def run(query, key, *more, **how):
        found = right(query, key, *more, **how)
        return found + 0.05 if (key.dtype == torch.int8) == quantized else found

    monkeypatch.setattr(tiny, "KERNEL", dataclasses.replace(tiny.KERNEL, run=run))
    clock = benches.MadeUpClock()
    code, row, said = started(tiny, clock)
    assert code == 6 and row is None and f"wrong, ours{'-int8' if quantized else ''}, cache (1, 2, 96, 32)" in said
    assert set(clock.timed) == {"copy"}


def test_what_was_tuned_is_what_the_entry_point_takes(benches, tiny, started, asked):
    first, second = tiny.KERNEL.configurations
    asks = 1 + benches.gpu_tuning.ROUNDS  # of each kind of cache: fp16, then int8
    clock = benches.MadeUpClock({first.name: [1e-6] * asks + [3e-6] * asks, second.name: 2e-6})
    code, _, said = started(tiny, clock, "--tune")
    assert code == 0 and said.count("best of 2 is ") == 2
    assert {(kernel, options["int8"], answer and answer.name) for kernel, _, options, answer in asked} == {
        ("decode_attention", False, first.name),
        ("decode_attention", True, second.name),
    }

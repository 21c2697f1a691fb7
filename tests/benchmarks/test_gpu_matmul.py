"""The benchmarks of the low-bit matmuls, whole, at tiny shapes under the interpreter, with made-up times."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton", reason="kernels under the interpreter: install 'soloist[kernels]'")

N, K = 16, 128


@pytest.fixture
def tiny(benches, monkeypatch):
    """`bench_w4a16_gemv` with one matrix that is both a square and a student's, at 1 and 2 rows."""
    bench, matmul = benches.bench_w4a16_gemv, benches.gpu_matmul
    for module in (bench, matmul):
        monkeypatch.setattr(module, "SQUARES", ((N, K),))
        monkeypatch.setattr(module, "STUDENTS", ((N, K),))
    monkeypatch.setattr(
        bench, "SHAPES", (matmul.Shape(1, N, K, 128), matmul.Shape(2, N, K, 128), matmul.Shape(1, N, K, 32, gated=True))
    )
    monkeypatch.setattr(bench, "QUICK", bench.SHAPES[:1])
    return bench


def _run(benches, clock, **options):
    given = argparse.Namespace(dtype="float16", seed=3, rounds=1, baselines=[], tune=False, **options)
    return benches.gpu_program.Run(clock, clock.facts(), 1e9, given, lambda _: None)


def test_a_whole_run_is_one_row_with_what_a_stranger_needs(benches, tiny, started):
    clock = benches.MadeUpClock({"ours": 1e-6, "cublas": 2.5e-6, "compiled": 5e-6, "copy": 1e-6})
    code, row, said = started(tiny, clock)
    assert code == 0
    assert row["label"] == "made up" and row["bench"] == "w4a16_gemv"
    assert row["gpu"]["name"] == "NVIDIA T9000 80GB HBM3" and row["gpu"]["driver"] == "1.2.3"
    assert {"device", "versions", "commit", "seed", "copy_gb_s", "state", "seconds"} < set(row)
    first, second, gated = row["shapes"]
    assert [first[key] for key in ("kernel", "M", "N", "K", "group")] == ["w4a16_gemv", 1, N, K, 128]
    assert second["M"] == 2 and 0 <= first["error"] <= 1 and first["dtype"] == "float16"
    ours, cublas = first["sides"]["ours"], first["sides"]["cublas"]
    assert ours["bytes"] == N * K // 2 + 2 * N + 2 * (N + K) and cublas["bytes"] == 2 * (N * K + N + K)
    assert ours["us"] == {"median": 1.0, "p20": 1.0, "p80": 1.0} and ours["graph"]
    assert cublas["times_slower_than"] == {"ours": {"median": 2.5, "p20": 2.5, "p80": 2.5}}
    assert ours["of_copy"] == round(ours["bytes"] / 1e-6 / (2 * (1 << 13) / 1e-6), 4)
    assert set(first["sides"]) == {"ours", "cublas", "compiled"} and set(second["sides"]) == {"ours", "cublas"}
    assert "CUDA" in first["absent"]["tinygemm"] and "rows only" in second["absent"]["compiled"]
    assert gated["gated"] and gated["sides"]["ours"]["bytes"] == 2 * (N * K // 2 + 2 * N * 4) + 2 * (N + K)
    assert gated["sides"]["cublas"]["bytes"] == 2 * (2 * N * K + N + K) and set(gated["sides"]) == set(first["sides"])
    assert [bar["verdict"] for bar in row["bars"]] == ["met", "met", "not measured", "met"]
    assert said.count("\nmet: 2.500 (at least ") == 3 and "2 rows" in said


@pytest.mark.skipif(importlib.util.find_spec("gemlite") is not None, reason="GemLite is here")
def test_a_baseline_that_is_not_installed_is_named(benches, tiny, started):
    _, row, _ = started(tiny, benches.MadeUpClock(), "--quick", "--baselines", "gemlite")
    assert row["quick"] and list(row["shapes"][0]["absent"]) == ["gemlite"]
    assert "not installed" in row["shapes"][0]["absent"]["gemlite"]


def test_no_call_meets_the_matrix_before_it_in_the_cache(benches):
    clock = benches.MadeUpClock(l2_bytes=40_000)
    work = benches.gpu_matmul.Operands(_run(benches, clock), benches.gpu_matmul.Shape(1, 64, 128, 32), 4)
    from soloist.kernels.gemv import W4A16 as KERNEL

    for side, bytes_of in (
        (benches.gpu_matmul.ours(KERNEL, work), lambda call: call.keywords["weight"].codes),
        (benches.gpu_matmul.cublas(work), lambda call: call.args[1]),
    ):
        seen = [bytes_of(call) for call in side.calls]
        assert len({one.data_ptr() for one in seen}) == len(seen) > 2
        assert sum(one.numel() * one.element_size() for one in seen) >= 3.5 * clock.l2_bytes
        assert all(one.data_ptr() % 16 == 0 for one in seen)
    assert not torch.equal(work.weights[0].codes, work.weights[1].codes)


def _left_out(x, *, weight, out, **_):
    out[:, :-1] = (x.double() @ _exact(weight).T).to(x.dtype)[:, :-1]
    return out


def _slightly_off(x, *, weight, out, **_):
    out[:] = (x.double() @ _exact(weight).T).to(x.dtype)
    out[0, 7] += 0.05
    return out


def _exact(weight):
    from soloist.kernels.layout import dequantize

    return dequantize(weight, torch.float64)


@pytest.mark.parametrize("wrong", [_left_out, _slightly_off])
def test_a_wrong_kernel_is_not_timed(benches, tiny, started, monkeypatch, wrong):
    monkeypatch.setattr(tiny, "KERNEL", dataclasses.replace(tiny.KERNEL, run=wrong))
    clock = benches.MadeUpClock()
    code, row, said = started(tiny, clock)
    assert code == 6 and row is None and "is wrong at 16 × 128, group 128, 1 row" in said
    assert set(clock.timed) == {"copy"}


def test_a_kernel_that_is_wrong_on_the_last_copy_only_is_not_timed(benches, tiny, started, monkeypatch):
    right = tiny.KERNEL.run
    codes = []

    def run(x, *, weight, out, **more):
        if weight.codes.data_ptr() not in codes:
            codes.append(weight.codes.data_ptr())
        return right(x, weight=weight, out=out, **more) if len(codes) < 2 else _slightly_off(x, weight=weight, out=out)

    monkeypatch.setattr(tiny, "KERNEL", dataclasses.replace(tiny.KERNEL, run=run))
    code, _, said = started(tiny, benches.MadeUpClock(), "--quick", "--baselines")  # one shape, one matrix, two copies
    assert code == 6 and len(codes) == 2, said


def test_a_wrong_baseline_is_named_and_not_timed(benches, tiny, started, monkeypatch):
    clock = benches.MadeUpClock()
    monkeypatch.setattr(clock, "compiled", lambda function, **_: lambda x, codes, *_: torch.zeros(len(x), len(codes)))
    code, row, _ = started(tiny, clock, "--quick")
    assert code == 0 and "wrong here: relative error 1" in row["shapes"][0]["absent"]["compiled"]
    assert "compiled" not in clock.timed and "ours" in clock.timed


@pytest.mark.parametrize(("bits", "group", "k"), [(4, 32, 128), (4, 128, 256), (8, 32, 96), (8, 64, 128)])
@pytest.mark.parametrize("gated", [False, True])
def test_what_is_compiled_is_the_same_product(benches, bits, group, k, gated):
    run = _run(benches, benches.MadeUpClock())
    work = benches.gpu_matmul.Operands(run, benches.gpu_matmul.Shape(3, 24, k, group, gated), bits)
    weight = work.weights[0]
    found = benches.gpu_matmul.dequantized_product(work.x, weight.codes, weight.scales, group, gated)
    assert work.relative_error(found, 0) < 2e-3
    assert work.relative_error(benches.gpu_matmul.cublas(work).calls[0](), 0) < 2e-3
    assert gated or float(work.exact[0].std()) == pytest.approx(1, abs=0.5), "tolerances are for results of that size"


def test_a_short_last_group_is_no_reshape(benches):
    work = benches.gpu_matmul.Operands(
        _run(benches, benches.MadeUpClock()), benches.gpu_matmul.Shape(1, 24, 160, 128), 4
    )
    with pytest.raises(benches.gpu_timing.AbsentError, match="short last group"):
        benches.gpu_matmul.compiled(work)


def _rows(speeds, of_copy=0.8, n=4096, group=128):
    return [
        {
            "M": m,
            "N": n,
            "K": n,
            "group": group,
            "sides": {"ours": {"of_copy": of_copy}, "cublas": {"times_slower_than": {"ours": {"median": speed}}}},
        }
        for m, speed in speeds.items()
    ]


def test_the_bars_are_those_of_the_issue(benches):
    rows = _rows({1: 2.4, 2: 2.2, 16: 1.31}) + _rows({1: 2.29, 16: 1.29}, of_copy=0.69, n=8192)
    rows += _rows({1: 0.9}, n=4096, group=32)  # another group size decides nothing
    small = _rows({1: 1.2}, n=576) + _rows({1: 0.99}, n=896)
    small[0]["K"], small[1]["K"] = 1536, 4864
    found = [(bar.value, bar.limit, bar.verdict) for bar in benches.bench_w4a16_gemv.bars(rows + small)]
    assert found == [
        (2.4, 2.3, "met"),
        (1.31, 1.3, "met"),
        (2.29, 2.3, "missed"),
        (1.29, 1.3, "missed"),
        (0.69, 0.7, "missed"),
        (0.99, 1.0, "missed"),
    ]
    assert {bar.verdict for bar in benches.bench_w4a16_gemv.bars([])} == {"not measured"}


def test_the_default_shapes_are_what_the_bars_ask_for(benches):
    shapes = {(s.m, s.n, s.k, s.group) for s in benches.bench_w4a16_gemv.SHAPES}
    assert {(m, n, n, 128) for n in (4096, 8192) for m in (1, 16)} < shapes
    assert {(1, n, k, 32) for n, k in ((576, 1536), (1536, 576), (576, 192), (896, 4864), (2048, 5632))} < shapes


@pytest.mark.parametrize("name", ["bench_w4a16_gemm", "bench_w8a16"])
def test_the_siblings_run_whole(benches, started, monkeypatch, name):
    bench, shape = getattr(benches, name), benches.gpu_matmul.Shape
    some = (shape(1, 16, 64, 32),), (shape(17, 16, 64, 32),)
    monkeypatch.setattr(bench, "QUICK", some if name == "bench_w8a16" else some[1])
    code, row, _ = started(bench, benches.MadeUpClock(), "--quick", "--dtype", "bfloat16")
    assert code == 0
    wanted = ["w8a16_gemv", "w8a16_gemm"] if name == "bench_w8a16" else ["w4a16_gemm"]
    assert [each["kernel"] for each in row["shapes"]] == wanted
    assert all(each["dtype"] == "bfloat16" and "cublas" in each["sides"] for each in row["shapes"])
    assert [bar["verdict"] for bar in row["bars"]] == ["not measured"] * (2 if name == "bench_w8a16" else 0)


# ---------------------------------------------------------------- tuning


@pytest.mark.parametrize("name", ["bench_w4a16_gemv", "bench_w4a16_gemm", "bench_w8a16"])
def test_what_was_tuned_is_what_the_entry_point_takes(benches, started, monkeypatch, asked, name):
    bench, shape = getattr(benches, name), benches.gpu_matmul.Shape
    best = {}
    for kernel in {"bench_w8a16": ["GEMV", "GEMM"]}.get(name, ["KERNEL"]):
        full = getattr(bench, kernel)
        some = full.configurations[:2]
        best[full.name] = some[1].name
        monkeypatch.setattr(bench, kernel, dataclasses.replace(full, configurations=some))
    shapes = (shape(1, 16, 64, 32), shape(1, 16, 64, 32, gated=True)), (shape(17, 16, 64, 32),)
    monkeypatch.setattr(bench, "QUICK", shapes if len(best) == 2 else shapes[name == "bench_w4a16_gemm"])
    code, row, said = started(
        bench, benches.MadeUpClock(dict.fromkeys(best.values(), 1e-6)), "--quick", "--tune", "--baselines"
    )
    assert code == 0 and said.count("best of 2 is ") == len(row["shapes"]) == len(asked)
    assert {kernel: answer and answer.name for kernel, _, _, answer in asked} == best
    assert {each["kernel"]: each["tuned"] for each in row["shapes"]} == best


def test_other_entries_of_a_table_stay(benches, tmp_path):
    from soloist.kernels.tuned import Entry, read_table

    first, second = benches.bench_w8a16.GEMV, benches.bench_w4a16_gemv.KERNEL
    run = _run(benches, benches.MadeUpClock(), tuned=tmp_path / "tables")
    configs = first.configurations

    def entry(n, config, microseconds):
        return Entry({"M": 1, "N": n, "K": 64}, {"group": 32}, config, microseconds)

    write = benches.gpu_tuning.write_entries
    write(run, first, [entry(64, configs[0], 5.0), entry(128, configs[0], 6.0)])
    write(run, second, [entry(64, second.configurations[0], 7.0)])
    path = write(run, first, [entry(64, configs[1], 4.0)])
    table = read_table(path.read_text(), path.name)
    assert (table.device, table.architecture) == ("NVIDIA T9000 80GB HBM3", 90)
    assert table.measured["label"] == "made up" and table.measured["driver"] == "1.2.3"
    kept = {(kernel, e.sizes["N"]): e.microseconds for kernel, entries in table.kernels.items() for e in entries}
    assert kept == {("w8a16_gemv", 64): 4.0, ("w8a16_gemv", 128): 6.0, ("w4a16_gemv", 64): 7.0}


def test_a_wrong_configuration_ends_tuning_and_one_that_does_not_fit_is_passed_over(benches, tmp_path):
    from soloist.kernels.errors import GateError, ResourceError

    kernel = benches.bench_w4a16_gemv.KERNEL
    kernel = dataclasses.replace(kernel, configurations=kernel.configurations[:2])
    run = _run(benches, benches.MadeUpClock())

    def tuned(check):
        return benches.gpu_tuning.best_of(
            run,
            kernel,
            {"M": 1},
            {},
            lambda config: benches.gpu_timing.Side(config.name, [lambda: None], 1, ours=True),
            check,
        )

    def too_large(side):
        if side.name == kernel.configurations[0].name:
            raise RuntimeError("out of resource: shared memory")

    assert tuned(too_large).configuration == kernel.configurations[1]

    def wrong(_):
        raise GateError("wrong")

    def none_fits(_):
        raise RuntimeError("out of resource: shared memory")

    with pytest.raises(GateError, match="wrong"):
        tuned(wrong)
    with pytest.raises(ResourceError, match="no configuration runs here; RuntimeError: out of resource"):
        tuned(none_fits)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA H200", "h200"),
        ("Orin", "orin"),
        ("NVIDIA A100-SXM4-80GB", "a100-sxm4"),
    ],
)
def test_a_table_is_named_after_its_gpu(benches, tmp_path, name, file):
    assert benches.gpu_tuning.table_path(tmp_path, name) == tmp_path / f"{file}.json"


def test_another_gpus_table_is_left_alone(benches, tmp_path):
    taken = SimpleNamespace(device="NVIDIA A100-SXM4-40GB", architecture=80, measured={}, kernels={})
    (tmp_path / "a100-sxm4.json").write_text(json.dumps(vars(taken)))
    path = benches.gpu_tuning.table_path(tmp_path, "NVIDIA A100-SXM4-80GB")
    assert path.name == "nvidia-a100-sxm4-80gb.json"
    assert benches.gpu_tuning.table_path(tmp_path, "NVIDIA A100-SXM4-40GB").name == "a100-sxm4.json"

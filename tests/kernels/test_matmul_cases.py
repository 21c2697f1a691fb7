"""The tables of the four low-bit matmuls in the interpreter, what they cover, any shape, and that errors show."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from soloist.kernels.choose import REGISTRY  # noqa: E402
from soloist.kernels.matmul import check_matmul, compare, configuration_of, matmul_case  # noqa: E402

KERNELS = {name: REGISTRY[name].load() for name in ("w4a16_gemv", "w4a16_gemm", "w8a16_gemv", "w8a16_gemm")}
GEMVS = ("w4a16_gemv", "w8a16_gemv")
DTYPES, GROUPS = ("float16", "bfloat16"), (32, 64, 128)
ADDITIONS = {"bias", "zeros", "gated"}
CASES = []
for _kernel in KERNELS.values():
    for _case in _kernel.cases:
        CASES.append(
            pytest.param(_kernel, _case, id=f"{_kernel.name}-{_case.name}", marks=[pytest.mark.slow] * _case.slow)
        )


@pytest.mark.parametrize(("kernel", "case"), CASES)
def test_case_is_within_its_tolerance(kernel, case):
    outcome = kernel.check(case, "cpu", torch.seed() % 2**31)
    assert outcome.passed, outcome


@pytest.mark.parametrize("name", KERNELS)
def test_the_table_holds_every_configuration_and_no_row_twice(name):
    kernel = KERNELS[name]
    assert {c.options["config"] for c in kernel.cases if "config" in c.options} == set(
        range(len(kernel.configurations))
    )
    assert len({config.name for config in kernel.configurations}) == len(kernel.configurations)
    assert len({case.name for case in kernel.cases}) == len(kernel.cases)


@pytest.mark.parametrize("name", GEMVS)
def test_what_the_gemv_offers_is_in_its_table(name):
    """By default, nothing slow: 1 to 16 rows; on either path each type, group size, addition, split and undivided."""
    kernel = KERNELS[name]
    rows, kinds, added, split = set(), set(), set(), set()
    for case in kernel.cases:
        if case.slow:
            continue
        config = configuration_of(kernel.run, case, "cpu").constants
        path = "BLOCK_M" in config
        rows.add(case.sizes["M"])
        kinds.add((path, case.dtype, case.options["group"]))
        for extra in ADDITIONS & set(case.options) or {""}:
            added.add((path, case.dtype, extra))
            split.add((path, config["SPLITS"] > 1, extra))
    extras = ("", "bias", "gated", *(("zeros",) if kernel.run.bits == 4 else ()))
    assert rows == set(range(1, 17))
    assert kinds == set(itertools.product((False, True), DTYPES, GROUPS))
    assert added == set(itertools.product((False, True), DTYPES, extras))
    assert split == set(itertools.product((False, True), (False, True), extras))


@pytest.mark.parametrize("name", ["w4a16_gemm", "w8a16_gemm"])
def test_what_the_gemm_offers_is_in_its_table(name):
    kinds, added = set(), set()
    for case in KERNELS[name].cases:
        if not case.slow:
            kinds.add((case.dtype, case.options["group"]))
            added |= ADDITIONS & set(case.options)
    assert kinds == set(itertools.product(DTYPES, GROUPS))
    assert added == ADDITIONS - ({"zeros"} if KERNELS[name].run.bits == 8 else set())


@pytest.mark.parametrize("name", KERNELS)
@settings(max_examples=8, deadline=None)
@given(draw=st.data(), blocks=st.integers(1, 21), group=st.sampled_from(GROUPS), dtype=st.sampled_from(DTYPES))
def test_any_shape_agrees_with_float64(name, draw, blocks, group, dtype):
    run = KERNELS[name].run
    m, n = draw.draw(st.integers(1, run.max_rows or 80)), draw.draw(st.integers(1, 40 if run.max_rows else 150))
    extra = draw.draw(st.sampled_from(["", "bias", "gated", *(["zeros"] if run.bits == 4 else [])]))
    case = matmul_case(run, m, n, 32 * blocks, dtype, group, extra)
    outcome = check_matmul(run, case, "cpu", draw.draw(st.integers(0, 2**31)))
    assert outcome.passed, outcome


def _with(kernel, change):
    """The outcome of a kernel's first case where something goes wrong."""
    case = kernel.cases[0]
    config = configuration_of(kernel.run, case, "cpu")
    return compare(change, kernel.run.bits, config, case, "cpu", 3)


@pytest.mark.parametrize("name", GEMVS)
def test_a_wrong_scale_does_not_pass(name):
    def off_by_one_percent(x, weight, **options):
        weight.scales.mul_(1.01)
        y = KERNELS[name].run(x, weight, **options)
        weight.scales.div_(1.01)
        return y

    assert _with(KERNELS[name], KERNELS[name].run).passed
    assert not _with(KERNELS[name], off_by_one_percent).passed


@pytest.mark.parametrize("name", GEMVS)
def test_memory_outside_is_guarded(name):
    def writes_past_the_end(x, weight, out, **options):
        y = KERNELS[name].run(x, weight, out=out, **options)
        out.as_strided((1,), (1,), out.storage_offset() + out.numel())[0] = 0
        return y

    assert _with(KERNELS[name], writes_past_the_end).worst == float("inf")

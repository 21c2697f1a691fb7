"""8-bit W times any number of rows: the table, odd shapes, agreement with the gemv, refusals."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from soloist.kernels import matmul_check  # noqa: E402
from soloist.kernels import w8a16_gemm as module  # noqa: E402
from soloist.kernels import w8a16_gemv as gemv  # noqa: E402
from soloist.kernels.errors import UsageError  # noqa: E402

KERNEL, CONFIGURATIONS, choose = module.KERNEL, module.CONFIGURATIONS, module.choose_configuration
BITS = 8


def _weight(n, k, group=32, seed=0):
    return matmul_check.random_weight(n, k, BITS, group, False, torch.Generator().manual_seed(seed))


def _x(m, k, dtype=torch.float16):
    return torch.randn(m, k, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.slow] * case.slow, id=case.name) for case in KERNEL.cases]
)
def test_case_is_within_its_tolerance(case):
    outcome = KERNEL.check(case, "cpu", torch.seed() % 2**31)
    assert outcome.passed, outcome


def test_the_table_holds_every_configuration():
    assert {case.options["cut"] for case in KERNEL.cases if "cut" in case.options} == set(range(len(CONFIGURATIONS)))


def test_what_is_chosen_ships_and_what_ships_is_chosen():
    chosen = [choose(m, n, 576, 32) for m in (1, 16, 17, 33, 65, 300, 2000) for n in (192, 576, 2048, 49152)]
    assert all(cut in CONFIGURATIONS for cut in chosen)
    assert all(cut in chosen for cut in CONFIGURATIONS)


@settings(max_examples=10, deadline=None)
@given(
    m=st.integers(1, 80), n=st.integers(1, 150), blocks=st.integers(1, 13), group=st.sampled_from([32, 64, 128]),
    dtype=st.sampled_from(["float16", "bfloat16"]), extra=st.sampled_from(["", "bias", "gated"]),
    seed=st.integers(0, 2**31),
)  # fmt: skip
def test_any_shape_agrees_with_float64(m, n, blocks, group, dtype, extra, seed):
    options = {extra: True} if extra else {}
    case = matmul_check.row(m, n, 32 * blocks, dtype, group, tensor_cores=True, **options)
    cut = choose(m, n, 32 * blocks, group, extra == "gated")
    outcome = matmul_check.check_matmul(KERNEL.run, BITS, cut, case, "cpu", seed)
    assert outcome.passed, outcome


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rows_are_those_of_the_gemv(dtype):
    x, weight = _x(18, 352, dtype), _weight(67, 352, 64)
    together = KERNEL.run(x, weight)
    apart = torch.cat([gemv.KERNEL.run(x[at : at + 1], weight) for at in (0, 11, 17)])
    allowed = 4e-3 if dtype == torch.float16 else 4e-2
    assert torch.allclose(together[[0, 11, 17]].float(), apart.float(), atol=allowed, rtol=allowed)


def test_rows_do_not_depend_on_their_neighbors():
    x, weight = _x(40, 352), _weight(67, 352, 64)
    other = x.clone()
    other[1:] = 0
    cut = CONFIGURATIONS[2]
    assert torch.equal(KERNEL.run(x, weight, configuration=cut)[0], KERNEL.run(other, weight, configuration=cut)[0])


def test_gated_is_two_calls():
    x, gate, up = _x(18, 352), _weight(67, 352, 64), _weight(67, 352, 64, seed=2)
    together = KERNEL.run(x, gate, up=up).float()
    apart = torch.nn.functional.silu(KERNEL.run(x, gate).float()) * KERNEL.run(x, up).float()
    assert torch.allclose(together, apart, atol=1e-2, rtol=1e-2)
    assert together.abs().max() > 0.5


def test_what_does_not_fit_is_refused():
    with pytest.raises(UsageError, match="no rows"):
        KERNEL.run(_x(0, 64), _weight(8, 64))
    with pytest.raises(UsageError, match="32 bits"):
        KERNEL.run(torch.zeros(1 << 25, 64, dtype=torch.float16, device="meta"), _weight(8, 64))
    with pytest.raises(UsageError, match=r"takes contiguous \(M, 64\)"):
        KERNEL.run(_x(64, 20).T, _weight(8, 64))


def test_builds_are_named_apart_and_complete():
    builds = list(KERNEL.builds())
    assert len({build.name for build in builds}) == len(builds)
    for build in builds:
        assert set(build.signature) | set(build.constants) == set(build.function.arg_names)

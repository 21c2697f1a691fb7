"""4-bit W times 1 to 16 rows: the table, every configuration, repeatability, odd shapes, refusals."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from soloist.kernels import matmul_check, matmul_host  # noqa: E402
from soloist.kernels import w4a16_gemv as module  # noqa: E402
from soloist.kernels.errors import UsageError  # noqa: E402

KERNEL, CONFIGURATIONS, choose = module.KERNEL, module.CONFIGURATIONS, module.choose_configuration
SPLIT = [cut for cut in CONFIGURATIONS if cut.constants["SPLITS"] == 4][:3]


def _weight(n, k, group=32, seed=0, bits=4, zeros=False):
    return matmul_check.random_weight(n, k, bits, group, zeros, torch.Generator().manual_seed(seed))


def _x(m, k, dtype=torch.float16, seed=1):
    return torch.randn(m, k, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.slow] * case.slow, id=case.name) for case in KERNEL.cases]
)
def test_case_is_within_its_tolerance(case):
    outcome = KERNEL.check(case, "cpu", torch.seed() % 2**31)
    assert outcome.passed, outcome


def test_the_table_holds_every_configuration():
    assert {case.options["cut"] for case in KERNEL.cases if "cut" in case.options} == set(range(len(CONFIGURATIONS)))
    assert len({cut.name for cut in CONFIGURATIONS}) == len(CONFIGURATIONS)


def test_what_is_chosen_ships_and_what_ships_is_chosen():
    sides = (192, 576, 1536, 4096, 8192, 49152)
    chosen = [choose(m, n, k, 32, gated) for m in range(1, 17) for n in sides for k in sides for gated in (False, True)]
    assert all(cut in CONFIGURATIONS for cut in chosen)
    assert all(cut in chosen for cut in CONFIGURATIONS)


@settings(max_examples=12, deadline=None)
@given(
    m=st.integers(1, 16), n=st.integers(1, 40), blocks=st.integers(1, 21), group=st.sampled_from([32, 64, 128]),
    dtype=st.sampled_from(["float16", "bfloat16"]), extra=st.sampled_from(["", "bias", "zeros", "gated"]),
    seed=st.integers(0, 2**31),
)  # fmt: skip
def test_any_shape_agrees_with_float64(m, n, blocks, group, dtype, extra, seed):
    cut = choose(m, n, 32 * blocks, group, extra == "gated")
    options = {extra: True} if extra else {}
    case = matmul_check.row(
        m, n, 32 * blocks, dtype, group, tensor_cores="BLOCK_M" in cut.constants, **options
    )  # fmt: skip
    outcome = matmul_check.check_matmul(KERNEL.run, 4, cut, case, "cpu", seed)
    assert outcome.passed, outcome


@pytest.mark.parametrize("cut", SPLIT, ids=lambda cut: cut.name)
def test_split_columns_give_the_same_bits_every_time(cut):
    x, weight = _x(1 if "BLOCK_M" not in cut.constants else 5, 1056), _weight(67, 1056)
    first = KERNEL.run(x, weight, configuration=cut)
    assert torch.equal(first, KERNEL.run(x, weight, configuration=cut))
    whole = KERNEL.reference(x, weight, inside=torch.float64)
    assert (first - whole).abs().max() < 1e-2
    assert whole.abs().max() > 1


@pytest.mark.parametrize("m", [1, 6])
def test_gated_is_two_calls(m):
    x, gate, up = _x(m, 352), _weight(67, 352, 64), _weight(67, 352, 64, seed=2)
    cut = choose(m, 67, 352, 64, True)
    together = KERNEL.run(x, gate, up=up, configuration=cut).float()
    apart = torch.nn.functional.silu(KERNEL.run(x, gate).float()) * KERNEL.run(x, up).float()
    assert torch.allclose(together, apart, atol=1e-2, rtol=1e-2)
    assert together.abs().max() > 0.5


def test_a_wrong_scale_does_not_pass():
    case = next(case for case in KERNEL.cases if not case.slow)

    def off_by_one_percent(x, weight, **options):
        weight.scales.mul_(1.01)
        y = KERNEL.run(x, weight, **options)
        weight.scales.div_(1.01)
        return y

    outcome = matmul_check.check_matmul(off_by_one_percent, 4, CONFIGURATIONS[0], case, "cpu", 3)
    assert not outcome.passed


def test_memory_outside_is_guarded():
    case = next(case for case in KERNEL.cases if not case.slow)

    def writes_past_the_end(x, weight, out, **options):
        y = KERNEL.run(x, weight, out=out, **options)
        out.as_strided((1,), (1,), out.storage_offset() + out.numel())[0] = 0
        return y

    outcome = matmul_check.check_matmul(writes_past_the_end, 4, CONFIGURATIONS[0], case, "cpu", 3)
    assert outcome.worst == float("inf")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"x": torch.zeros(1, 64)}, "float16 or bfloat16"),
        ({"x": torch.zeros(1, 96, dtype=torch.float16)}, r"takes contiguous \(M, 64\)"),
        ({"x": torch.zeros(17, 64, dtype=torch.float16)}, "17 rows: this kernel takes 1 to 16"),
        ({"x": torch.zeros(0, 64, dtype=torch.float16)}, "no rows"),
        ({"weight": _weight(8, 64, bits=8)}, "8-bit codes"),
        ({"up": _weight(8, 96)}, "must agree"),
        ({"up": _weight(8, 64, zeros=True)}, "must agree"),
        ({"up": _weight(8, 64), "bias": torch.zeros(8, dtype=torch.float16)}, "bias together with up"),
        ({"bias": torch.zeros(9, dtype=torch.float16)}, "bias must be"),
        ({"bias": torch.zeros(8)}, "bias must be"),
        ({"out": torch.zeros(1, 9, dtype=torch.float16)}, "out must be"),
        ({"configuration": SPLIT[0], "workspace": torch.zeros(31)}, "at least 32 elements"),
        ({"x": torch.zeros(1, 64, dtype=torch.float16, device="meta")}, "x on meta"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(change, says):
    arguments = {"x": torch.zeros(1, 64, dtype=torch.float16), "weight": _weight(8, 64), **change}
    with pytest.raises(UsageError, match=says) as caught:
        KERNEL.run(**arguments)
    assert "\n" not in str(caught.value)


def test_without_the_interpreter_a_cpu_tensor_is_refused(monkeypatch):
    monkeypatch.setattr(matmul_host, "interpreting", lambda: False)
    with pytest.raises(UsageError, match="use the reference"):
        KERNEL.run(_x(1, 64), _weight(8, 64))


def test_builds_are_named_apart_and_cover_the_configurations():
    builds = list(KERNEL.builds())
    assert len({build.name for build in builds}) == len(builds)
    built = [build.configuration for build in builds]
    assert all(cut in built for cut in CONFIGURATIONS)
    for build in builds:
        assert set(build.signature) | set(build.constants) == set(build.function.arg_names)
        assert not set(build.signature) & set(build.constants)
        assert set(build.aligned) <= set(build.signature)

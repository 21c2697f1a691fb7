"""The entry points of the four low-bit matmuls: choice, repeatability, agreement among them, refusals, builds."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from soloist.kernels import choose, matmul, tuned  # noqa: E402
from soloist.kernels.aot import build_kernels  # noqa: E402
from soloist.kernels.choose import REGISTRY  # noqa: E402
from soloist.kernels.errors import UsageError  # noqa: E402
from soloist.kernels.gemv import CONFIGURATIONS, GATED_ROWS  # noqa: E402
from soloist.kernels.listing import read_sass  # noqa: E402

KERNELS = {name: REGISTRY[name].load() for name in ("w4a16_gemv", "w4a16_gemm", "w8a16_gemv", "w8a16_gemm")}
GEMVS, GEMMS = ("w4a16_gemv", "w8a16_gemv"), ("w4a16_gemm", "w8a16_gemm")
SPLIT = [config for config in CONFIGURATIONS if config.constants["SPLITS"] > 1]


def _weight(bits, n, k, group=32, seed=0, zeros=False):
    return matmul.random_weight(n, k, bits, group, zeros, torch.Generator().manual_seed(seed))


def _x(m, k, dtype=torch.float16):
    return torch.randn(m, k, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("name", KERNELS)
def test_what_is_chosen_ships_and_what_ships_is_chosen(name):
    run, sides = KERNELS[name].run, (192, 576, 1536, 2048, 4096, 8192, 49152)
    rows = range(1, 17) if name in GEMVS else (1, 16, 17, 33, 65, 300, 2000)
    chosen = set()
    for m, n, k, gated in itertools.product(rows, sides, sides, (False, True)):
        config = run.rule(m, n, k, run.bits, gated)
        assert config in run.configurations, config.name
        chosen.add(config.name)
    assert chosen == {config.name for config in run.configurations}


class Spy:
    """Stands for a function on the device and notes how it is launched."""

    def __init__(self, function, seen):
        self.function, self.seen = function, seen

    def __getitem__(self, grid):
        return lambda *given, **how: self.seen.append(how) or self.function[grid](*given, **how)


@pytest.fixture
def spied(monkeypatch):
    """A kernel with spies inside and what they see, on a CPU that counts as a GPU with a table of one entry."""
    monkeypatch.setattr(choose, "_tuned_for", lambda device: "Test GPU")
    choose._tuned_config.cache_clear()

    def of(name, sizes, options, configuration):
        entry = tuned.Entry(sizes, options, configuration, 1.0)
        monkeypatch.setattr(tuned, "tables", lambda: {"Test GPU": tuned.Table("Test GPU", 90, {}, {name: (entry,)})})
        run, seen = KERNELS[name].run, []
        return dataclasses.replace(run, gemm=Spy(run.gemm, seen), gemv=Spy(run.gemv, seen)), seen

    yield of
    choose._tuned_config.cache_clear()


@pytest.mark.parametrize("name", KERNELS)
def test_the_given_configuration_is_launched_else_the_tuned_one_else_the_rules(name, spied):
    m, best = (3, CONFIGURATIONS[11]) if name in GEMVS else (20, KERNELS[name].configurations[3])
    run, seen = spied(name, {"M": m, "N": 40, "K": 96}, {"group": 64}, best)
    x, weight, up = _x(m, 96), _weight(run.bits, 40, 96, 64), _weight(run.bits, 40, 96, 64, seed=2)

    def launched(**how):
        run(x, weight, **how)
        return seen[-1].items()

    given = dataclasses.replace(KERNELS[name].configurations[0], registers=168)
    assert given.constants.items() | given.launch_options().items() <= launched(configuration=given)
    assert given.launch_options()["maxnreg"] == 168
    assert best.constants.items() | best.launch_options().items() <= launched()
    own = run.rule(m, 40, 96, run.bits, True)  # the table's entry is of the plain form
    assert own != best
    assert own.constants.items() | own.launch_options().items() <= launched(up=up)


@pytest.mark.parametrize("name", GEMVS)
@pytest.mark.parametrize("config", SPLIT, ids=lambda config: config.name)
def test_split_columns_give_the_same_bits_every_time(name, config):
    kernel, m = KERNELS[name], 5 if "BLOCK_M" in config.constants else 1
    x, weight = _x(m, 1056), _weight(kernel.run.bits, 67, 1056)
    up = _weight(kernel.run.bits, 67, 1056, seed=2) if config in GATED_ROWS else None
    first = kernel.run(x, weight, up=up, configuration=config)
    assert torch.equal(first, kernel.run(x, weight, up=up, configuration=config))
    whole = kernel.reference(x, weight, up=up, inside=torch.float64)
    assert (first - whole).abs().max() < 2e-2
    assert whole.abs().max() > 1


@pytest.mark.parametrize("splits", [2, 4, 8])
def test_parts_are_added_in_the_order_of_their_columns(splits):
    parts = torch.randn(splits, 3, 67, generator=torch.Generator().manual_seed(splits))
    y = torch.full((3, 67), torch.nan)
    config = matmul.sum_config(splits).constants
    matmul._sum_parts_kernel[(1,)](parts, None, y, y.numel(), 67, GATED=False, **config)
    ordered, backwards = torch.zeros(3, 67), torch.zeros(3, 67)
    for at in range(splits):
        ordered, backwards = ordered + parts[at], backwards + parts[-1 - at]
    assert torch.equal(y, ordered)
    assert splits == 2 or not torch.equal(y, backwards)


def test_split_columns_meet_without_atomics(tmp_path):
    """In the machine code: whichever program finishes first, the bits are the same."""
    names = {}
    for name in GEMVS:
        for build in KERNELS[name].builds():
            if build.constants["SPLITS"] == 4:
                names.setdefault((name, build.function.__name__), build.name)
    assert len(names) == 6  # the gemv, the gemm and the sum over parts, of each
    impls = [REGISTRY[name] for name in GEMVS]
    for record in build_kernels(impls, (90,), tmp_path, tmp_path / "cache", only=list(names.values())):
        sass = read_sass(tmp_path / record["files"]["cubin"]["path"])
        assert sass["EXIT"], record["build"]
        assert not [name for name in sass if name.startswith(("ATOM", "RED"))], record["build"]


@pytest.mark.parametrize("m", [1, 6, 18])
@pytest.mark.parametrize("bits", [4, 8])
def test_gated_is_two_calls(bits, m):
    run = KERNELS[f"w{bits}a16_{'gemv' if m <= 16 else 'gemm'}"].run
    x, gate, up = _x(m, 352), _weight(bits, 67, 352, 64), _weight(bits, 67, 352, 64, seed=2)
    together = run(x, gate, up=up).float()
    apart = torch.nn.functional.silu(run(x, gate).float()) * run(x, up).float()
    assert torch.allclose(together, apart, atol=1e-2, rtol=1e-2)
    assert together.abs().max() > 0.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bits", [4, 8])
def test_rows_of_the_gemm_are_those_of_the_gemv(bits, dtype):
    x, weight = _x(18, 352, dtype), _weight(bits, 67, 352, 64)
    together = KERNELS[f"w{bits}a16_gemm"].run(x, weight)
    apart = torch.cat([KERNELS[f"w{bits}a16_gemv"].run(x[at : at + 1], weight) for at in (0, 11, 17)])
    allowed = 4e-3 if dtype == torch.float16 else 4e-2
    assert torch.allclose(together[[0, 11, 17]].float(), apart.float(), atol=allowed, rtol=allowed)


@pytest.mark.parametrize("name", GEMMS)
def test_rows_do_not_depend_on_their_neighbors(name):
    run = KERNELS[name].run
    x, weight, config = _x(40, 352), _weight(run.bits, 67, 352, 64), run.configurations[2]
    other = x.clone()
    other[1:] = 0
    assert torch.equal(run(x, weight, configuration=config)[0], run(other, weight, configuration=config)[0])


HALF = {"dtype": torch.float16}


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda bits: {"x": torch.zeros(1, 64)}, "float16 or bfloat16"),
        (lambda bits: {"x": torch.zeros(1, 96, **HALF)}, r"takes contiguous \(M, 64\)"),
        (lambda bits: {"x": torch.zeros(64, 9, **HALF).T}, r"takes contiguous \(M, 64\)"),
        (lambda bits: {"x": torch.zeros(17, 64, **HALF)}, "17 rows: this kernel takes 1 to 16"),
        (lambda bits: {"x": torch.zeros(0, 64, **HALF)}, "no rows"),
        (lambda bits: {"x": torch.zeros(1 << 25, 64, device="meta", **HALF)}, "32 bits"),
        (lambda bits: {"weight": _weight(12 - bits, 8, 64)}, "-bit codes, this kernel reads"),
        (lambda bits: {"up": _weight(bits, 8, 96)}, "must agree"),
        (lambda bits: {"up": _weight(bits, 8, 64, group=64)}, "must agree"),
        (lambda bits: {"up": _weight(bits, 8, 64), "bias": torch.zeros(8, **HALF)}, "bias together with up"),
        (lambda bits: {"bias": torch.zeros(9, **HALF)}, "bias must be"),
        (lambda bits: {"bias": torch.zeros(8)}, "bias must be"),
        (lambda bits: {"out": torch.zeros(1, 9, **HALF)}, "out must be"),
        (lambda bits: {"configuration": CONFIGURATIONS[6], "workspace": torch.zeros(31)}, "at least 32 elements"),
        (lambda bits: {"x": torch.zeros(1, 64, device="meta", **HALF)}, "x on meta"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(bits, change, says):
    arguments = {"x": torch.zeros(1, 64, **HALF), "weight": _weight(bits, 8, 64), **change(bits)}
    with pytest.raises(UsageError, match=says) as caught:
        KERNELS[f"w{bits}a16_gemv"].run(**arguments)
    assert "\n" not in str(caught.value)


def test_one_matrix_with_zero_points_and_one_without_is_refused():
    with pytest.raises(UsageError, match="must agree"):
        KERNELS["w4a16_gemv"].run(_x(1, 64), _weight(4, 8, 64), up=_weight(4, 8, 64, zeros=True))


@pytest.mark.parametrize("name", KERNELS)
def test_without_the_interpreter_a_cpu_tensor_is_refused(name, monkeypatch):
    monkeypatch.setattr(matmul, "interpreting", lambda: False)
    run = KERNELS[name].run
    with pytest.raises(UsageError, match="use the reference"):
        run(_x(1, 64), _weight(run.bits, 8, 64))


@pytest.mark.parametrize("name", KERNELS)
def test_every_configuration_is_built(name):
    built = [build.configuration for build in KERNELS[name].builds()]
    for config in KERNELS[name].configurations:
        assert config in built, config.name

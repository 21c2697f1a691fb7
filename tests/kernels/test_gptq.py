import itertools

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from soloist.kernels.errors import DataError, UsageError  # noqa: E402
from soloist.kernels.gptq import KERNEL, Gram, gptq, gptq_ref  # noqa: E402
from soloist.kernels.layout import dequantize  # noqa: E402
from soloist.kernels.pack import pack_ref  # noqa: E402


def _marked(case):
    return pytest.param(case, id=case.name, marks=[pytest.mark.slow] if case.slow else [])


@pytest.mark.parametrize("case", [_marked(case) for case in KERNEL.cases])
def test_the_kernel_gives_the_references_bits_and_loses_less_than_rounding(case):
    outcome = KERNEL.check(case, "cpu", torch.seed() % 2**31)
    assert outcome.passed, outcome


@pytest.mark.gpu
@pytest.mark.parametrize("case", [_marked(case) for case in KERNEL.cases])
def test_the_same_on_a_gpu(case):
    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU")
    outcome = KERNEL.check(case, "cuda", torch.seed() % 2**31)
    assert outcome.passed, outcome


def _problem(rows=24, columns=96, seed=0):
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(300, columns, generator=random) @ torch.randn(columns, columns, generator=random)
    gram = Gram(columns)
    gram.add(x[:100].reshape(4, 25, columns))
    gram.add(x[100:])
    return torch.randn(rows, columns, generator=random), x, gram


def test_the_hessian_is_twice_the_mean_of_the_inputs_squared():
    _, x, gram = _problem()
    exact = 2 * x.double().T @ x.double() / 300
    assert torch.allclose(gram.hessian.double(), exact, rtol=1e-4, atol=1e-3)
    assert torch.allclose(gram.mean_square.double(), x.double().square().mean(0), rtol=1e-4)


def test_without_blocks_by_the_formula_of_the_paper():
    """One column after another in float64 with the inverse Hessian updated by elimination, no factor and no blocks."""
    weight, _, gram = _problem(rows=8, columns=64)
    found = gptq_ref(weight, gram.hessian, search=False, damping=0.01)
    h = gram.hessian.double()
    h = h + 0.01 * h.diagonal().mean() * torch.eye(64)
    inverse = torch.linalg.inv(h)
    w, value = weight.double().clone(), torch.zeros(8, 64).double()
    same = 0
    for j in range(64):
        s = found.scales[:, j // 32].double()
        value[:, j] = (w[:, j] / s).round().clamp(-8, 7) * s
        w -= ((w[:, j] - value[:, j]) / inverse[j, j])[:, None] * inverse[j]
        inverse = inverse - inverse[:, j : j + 1] @ inverse[j : j + 1] / inverse[j, j]
    same = (value == dequantize(found, torch.float64)).double().mean()
    assert same > 0.98  # a code on the edge may fall to the other side, and then later ones of its row


@pytest.mark.parametrize("order", ["natural", "activation"])
@pytest.mark.parametrize("group", [32, 128])
def test_it_loses_less_on_the_inputs_than_rounding_and_than_a_search(order, group):
    weight, x, gram = _problem(columns=224)
    lost = {
        name: float(((dequantize(q) - weight) @ x.T).square().mean())
        for name, q in (
            ("rtn", pack_ref(weight, group=group)),
            ("awq", pack_ref(weight, group=group, search=True, importance=gram.mean_square)),
            ("gptq", gptq_ref(weight, gram.hessian, group=group, order=order)),
        )
    }
    assert lost["gptq"] < 0.7 * lost["awq"] < lost["rtn"]


def test_the_first_group_has_the_scales_of_the_weights_as_they_are():
    weight, _, gram = _problem()
    plain = pack_ref(weight)
    assert torch.equal(gptq_ref(weight, gram.hessian, search=False).scales[:, 0], plain.scales[:, 0])
    static = gptq_ref(weight, gram.hessian, search=False, order="activation")
    assert torch.equal(static.scales, plain.scales)


def test_an_input_that_is_always_zero_costs_nothing_and_gets_zero():
    weight, x, _ = _problem()
    x[:, 5] = 0
    gram = Gram(96)
    gram.add(x)
    for run in (gptq, gptq_ref):
        assert not dequantize(run(weight, gram.hessian))[:, 5].any()


def test_few_inputs_are_enough_with_more_damping():
    weight, x, _ = _problem()
    gram = Gram(96)
    gram.add(x[:1])
    assert torch.isfinite(dequantize(gptq_ref(weight, gram.hessian, damping=1e-12))).all()


def test_what_cannot_be_is_refused():
    weight, _, gram = _problem()
    with pytest.raises(UsageError, match="order 'random'"):
        gptq_ref(weight, gram.hessian, order="random")
    for hessian in (gram.hessian[:32], gram.hessian * float("nan")):
        with pytest.raises(DataError, match="Hessian of 96 inputs"):
            gptq_ref(weight, hessian)
    with pytest.raises(DataError, match="cannot be factored"):
        gptq_ref(weight, -gram.hessian)
    with pytest.raises(DataError, match="largest weight"):
        gptq_ref(weight * float("inf"), gram.hessian)


def test_every_width_is_built_for_every_block():
    built = {(build.constants["TOP"], build.constants["COLUMNS"]) for build in KERNEL.builds()}
    assert built == set(itertools.product((15, 31, 63, 254), (32, 64, 128)))

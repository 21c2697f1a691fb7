"""The loss from hidden states: the table, its formulas in numpy, gradients through everything that wraps it, memory."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

from soloist.kernels.errors import UsageError  # noqa: E402
from soloist.kernels.linear_kl import KERNEL, Head, TopK, linear_kl, linear_kl_ref  # noqa: E402
from soloist.kernels.spec import Configuration  # noqa: E402

CASES = [pytest.param(case, id=case.name, marks=[pytest.mark.slow] * case.slow) for case in KERNEL.cases]
KINDS = [("forward", 0.5), ("reverse", 0.5), ("jsd", 0.5), ("jsd", 0.1), ("jsd", 0.9)]
PLAIN = pytest.mark.parametrize("plain", [True, False], ids=["plain", "triton"])


@pytest.mark.parametrize("case", CASES)
def test_kernel_is_its_reference(case):
    outcome = KERNEL.check(case, "cpu", 0)
    assert outcome.passed, outcome


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("case", CASES)
def test_kernel_is_its_reference_on_a_gpu(case):
    outcome = KERNEL.check(case, "cuda", 0)
    assert outcome.passed, outcome


def drawn(rows=6, vocabulary=45, width=8, dtype=torch.float64):
    torch.manual_seed(0)
    hidden = torch.randn(rows, width, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(vocabulary, width, dtype=torch.float64).to(dtype).requires_grad_()
    return hidden, weight, (torch.randn(rows, vocabulary, dtype=torch.float64) * 3).to(dtype)


def softmax(logits):
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def by_formula(p, q, kind, beta):
    """Equation 1 of arXiv 2306.13649 and the two KLs in numpy; 0 log 0 is 0."""

    def kl(one, other):
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(one > 0, one * np.log(one / other), 0).sum(-1)

    mixed = beta * p + (1 - beta) * q
    return {"forward": kl(p, q), "reverse": kl(q, p), "jsd": beta * kl(p, mixed) + (1 - beta) * kl(q, mixed)}[kind]


@pytest.mark.parametrize(("kind", "beta"), KINDS)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_reference_and_the_plain_form_are_the_formula(kind, beta, temperature):
    hidden, weight, teacher = drawn()
    q = softmax((hidden @ weight.T).detach().numpy() / temperature)
    wanted = by_formula(softmax(teacher.numpy() / temperature), q, kind, beta)
    how = {"kind": kind, "beta": beta, "temperature": temperature}
    np.testing.assert_allclose(linear_kl_ref(hidden, weight, teacher, **how).detach().numpy(), wanted, rtol=1e-10)
    found = linear_kl(hidden, weight, teacher, **how, chunk=13, plain=True)
    np.testing.assert_allclose(found.detach().numpy(), wanted, rtol=1e-10)


@pytest.mark.parametrize(("kind", "beta"), KINDS)
@pytest.mark.parametrize("rest", ["renormalized", "bucket"])
def test_top_k_is_the_formula_over_k_tokens_and_the_rest(kind, beta, rest):
    if (kind, rest) == ("reverse", "renormalized"):
        return
    hidden, weight, teacher = drawn()
    likely = teacher.log_softmax(-1).topk(4)
    p, q = softmax(teacher.numpy()), softmax((hidden @ weight.T).detach().numpy())
    few = likely.indices.numpy()
    p, q = (np.take_along_axis(each, few, 1) for each in (p, q))
    if rest == "renormalized":
        p = np.concatenate([p / p.sum(1, keepdims=True), np.zeros((6, 1))], 1)
    else:
        p = np.concatenate([p, 1 - p.sum(1, keepdims=True)], 1)
    q = np.concatenate([q, 1 - q.sum(1, keepdims=True)], 1)
    top = TopK(likely.indices, likely.values, rest)
    for function, how in ((linear_kl_ref, {}), (linear_kl, {"plain": True, "chunk": 13})):
        found = function(hidden, weight, top, kind=kind, beta=beta, **how)
        np.testing.assert_allclose(found.detach().numpy(), by_formula(p, q, kind, beta), rtol=1e-8, atol=1e-12)


@PLAIN
def test_one_token_renormalized_is_cross_entropy(plain):
    hidden, weight, _ = drawn(dtype=torch.float32)
    labels = torch.randint(0, len(weight), (len(hidden),))
    one = TopK(labels[:, None], torch.zeros(len(labels), 1))
    found = linear_kl(hidden, weight, one, chunk=13, plain=plain)
    wanted = torch.nn.functional.cross_entropy(hidden @ weight.T, labels, reduction="none")
    assert torch.allclose(found, wanted, rtol=1e-5)
    for got, right in zip(gradients(found, hidden, weight), gradients(wanted, hidden, weight), strict=True):
        assert torch.allclose(got, right, atol=1e-5)


def gradients(rows, *leaves):
    weights = torch.linspace(-1, 2, len(rows), dtype=rows.dtype)
    return torch.autograd.grad((rows * weights).sum(), leaves, retain_graph=True)


def teachers(hidden, weight, logits):
    states = torch.randn(len(hidden), 5, dtype=logits.dtype)
    likely = logits.log_softmax(-1).topk(6)
    return {
        "logits": logits,
        "head": Head(
            states, torch.randn(len(weight), 5, dtype=logits.dtype), torch.randn(len(weight)).to(logits.dtype)
        ),
        "renormalized": TopK(likely.indices, likely.values),
        "bucket": TopK(likely.indices, likely.values, "bucket"),
    }


@pytest.mark.parametrize(("kind", "beta"), KINDS[:4])
@pytest.mark.parametrize("teacher", ["logits", "head", "renormalized", "bucket"])
@pytest.mark.parametrize("chunk", [7, 16, 1000])
def test_plain_gradients_are_autograds(kind, beta, teacher, chunk):
    if (kind, teacher) == ("reverse", "renormalized"):
        return
    hidden, weight, logits = drawn()
    bias = torch.randn(len(weight), dtype=torch.float64, requires_grad=True)
    taught = teachers(hidden, weight, logits)[teacher]
    how = {"kind": kind, "beta": beta, "temperature": 1.5, "bias": bias}
    found = linear_kl(hidden, weight, taught, **how, plain=True, chunk=chunk)
    wanted = linear_kl_ref(hidden, weight, taught, **how)
    assert torch.allclose(found, wanted, rtol=1e-10)
    leaves = (hidden, weight, bias)
    for got, right in zip(gradients(found, *leaves), gradients(wanted, *leaves), strict=True):
        assert torch.allclose(got, right, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("kind", "beta"), KINDS)
@PLAIN
def test_a_student_that_is_its_teacher_has_nothing_to_learn(kind, beta, plain):
    hidden, weight, _ = drawn(dtype=torch.float32)
    teacher = (hidden @ weight.T).detach() + 7.0  # equal up to a constant
    rows = linear_kl(hidden, weight, teacher, kind=kind, beta=beta, chunk=13, plain=plain)
    assert rows.abs().max() < 1e-5
    assert max(float(each.abs().max()) for each in gradients(rows, hidden, weight)) < 1e-5


@pytest.mark.parametrize("kind", ["forward", "reverse", "jsd"])
@PLAIN
def test_rows_of_weight_zero_are_never_looked_at(kind, plain):
    hidden, weight, teacher = drawn(dtype=torch.float32)
    weights = torch.tensor([0.0, 2.0, 0.0, 0.5, 1.0, 0.0])
    keep = weights > 0
    wanted = linear_kl_ref(hidden, weight, teacher, kind=kind, weights=weights)
    right = gradients(wanted, hidden, weight)
    with torch.no_grad():
        hidden[~keep], teacher[~keep] = torch.nan, torch.nan
    found = linear_kl(hidden, weight, teacher, kind=kind, weights=weights, chunk=13, plain=plain)
    assert torch.equal(found[~keep], torch.zeros(3))
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-5)
    got = gradients(found, hidden, weight)
    assert torch.equal(got[0][~keep], torch.zeros_like(got[0][~keep]))
    for one, other in zip(got, right, strict=True):
        assert torch.allclose(one, other, atol=1e-4)


def test_tokens_that_a_teacher_rules_out_count_nothing():
    hidden, weight, teacher = drawn(dtype=torch.float32)
    teacher[:, 5:20] = -torch.inf
    for kind in ("forward", "jsd"):
        wanted = linear_kl_ref(hidden, weight, teacher, kind=kind)
        right = gradients(wanted, hidden, weight)
        assert all(each.isfinite().all() for each in right)
        for plain in (True, False):
            found = linear_kl(hidden, weight, teacher, kind=kind, plain=plain, chunk=10)
            assert torch.allclose(found, wanted, rtol=1e-4)
            for one, other in zip(gradients(found, hidden, weight), right, strict=True):
                assert torch.allclose(one, other, atol=1e-4)


@PLAIN
def test_no_rows_are_no_loss(plain):
    hidden, weight, teacher = drawn(dtype=torch.float32)
    rows = linear_kl(hidden, weight, teacher, weights=torch.zeros(len(hidden)), plain=plain)
    rows.sum().backward()
    assert torch.equal(rows, torch.zeros(len(hidden)))
    assert torch.equal(hidden.grad, torch.zeros_like(hidden))
    assert linear_kl(hidden[:0], weight, teacher[:0], plain=plain).sum().item() == 0


def test_a_tied_embedding_gets_both_gradients():
    _, weight, teacher = drawn()
    ids = torch.tensor([1, 4, 4, 0, 9, 30])

    def loss(function, **how):
        embedded = torch.nn.functional.embedding(ids, weight)
        return function((embedded * 1.1).tanh(), weight, teacher, kind="jsd", **how).sum()

    (got,) = torch.autograd.grad(loss(linear_kl, plain=True, chunk=10), weight)
    (right,) = torch.autograd.grad(loss(linear_kl_ref), weight)
    assert torch.allclose(got, right, atol=1e-11)


@PLAIN
def test_a_frozen_head_gets_no_gradient_and_costs_none(plain):
    hidden, weight, teacher = drawn(dtype=torch.float32)
    made = []

    def counted(*shape, **how):
        made.append(tuple(shape[0]))
        return torch.empty(*shape, **how)

    rows = linear_kl(hidden, weight.detach(), teacher, chunk=16, plain=plain, empty=counted)
    (got,) = torch.autograd.grad(rows.sum(), hidden)
    (right,) = torch.autograd.grad(linear_kl_ref(hidden, weight, teacher).sum(), hidden)
    assert torch.allclose(got, right, atol=1e-4)
    assert tuple(weight.shape) not in made


@pytest.mark.parametrize("reentrant", [True, False])
def test_under_checkpointing_gradients_are_the_same(reentrant):
    hidden, weight, teacher = drawn()
    again = checkpoint(
        lambda h, w: linear_kl(h, w, teacher, kind="reverse", plain=True, chunk=10),
        hidden,
        weight,
        use_reentrant=reentrant,
    )
    right = gradients(linear_kl_ref(hidden, weight, teacher, kind="reverse"), hidden, weight)
    weights = torch.linspace(-1, 2, len(again), dtype=again.dtype)
    (again * weights).sum().backward()
    assert torch.allclose(hidden.grad, right[0], atol=1e-11)
    assert torch.allclose(weight.grad, right[1], atol=1e-11)


def test_under_autocast_products_are_rounded_and_gradients_are_not():
    hidden, weight, teacher = drawn(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rows = linear_kl(hidden, weight, teacher, plain=True, chunk=10)
    exact = linear_kl_ref(hidden, weight, teacher)
    assert rows.dtype == torch.float32
    assert 0 < float((rows - exact).detach().abs().max()) < 0.1
    for got, right in zip(gradients(rows, hidden, weight), gradients(exact, hidden, weight), strict=True):
        assert got.dtype == torch.float32
        assert torch.allclose(got, right, atol=0.03 * float(right.abs().max()))


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation makes."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.untyped_storage().data_ptr() not in self.given:
            self.bytes = max(self.bytes, made.untyped_storage().nbytes())
        return made


@pytest.mark.parametrize("kind", ["forward", "reverse", "jsd"])
@pytest.mark.parametrize("teacher", ["logits", "head", "bucket"])
@PLAIN
def test_the_logits_are_never_whole(kind, teacher, plain):
    hidden, weight, logits = drawn(rows=24, vocabulary=400, width=8, dtype=torch.float32)
    taught = teachers(hidden, weight, logits)[teacher]
    watch = Largest()
    watch.given = {each.untyped_storage().data_ptr() for each in (hidden, weight, logits)}
    if isinstance(taught, Head):
        watch.given.add(taught.weight.untyped_storage().data_ptr())
    config = Configuration({"BLOCK_T": 8, "BLOCK_V": 64})  # few programs for the interpreter
    with watch:
        rows = linear_kl(hidden, weight.detach(), taught, kind=kind, chunk=64, plain=plain, configuration=config)
        rows.sum().backward()
    buffer, whole = 4 * 24 * (64 + 16), 4 * 24 * 400
    assert watch.bytes == buffer < whole / 4


def test_upstream_of_each_row_is_used_and_tiny_ones_survive_fp16():
    hidden, weight, teacher = drawn(rows=9, dtype=torch.float16)
    rows = linear_kl(hidden, weight, teacher, plain=True, chunk=10)
    tiny = torch.logspace(-7, -5, 9)
    (got,) = torch.autograd.grad((rows * tiny).sum(), weight)
    exact = linear_kl_ref(hidden.double(), weight.double(), teacher.double())
    (right,) = torch.autograd.grad((exact * tiny).sum(), weight)
    scaled = linear_kl(hidden, weight, teacher, plain=True, chunk=10) * tiny * 2.0**14
    (large,) = torch.autograd.grad(scaled.sum(), weight)
    assert torch.allclose(large.double() / 2.0**14, right.double(), atol=0.01 * float(right.abs().max()))
    assert torch.allclose(got.double(), right.double(), atol=2.0**-24)  # nothing but the last rounding


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"teacher": torch.zeros(6, 44)}, r"student's logits are \(6, 45\), the teacher's \(6, 44\)"),
        ({"teacher": Head(torch.zeros(6, 5), torch.zeros(44, 5))}, r"the teacher's \(6, 44\)"),
        ({"teacher": TopK(torch.zeros(5, 2, dtype=torch.long), torch.zeros(5, 2))}, r"the teacher's \(5, 45\)"),
        ({"teacher": TopK(torch.arange(45).expand(6, 45), torch.zeros(6, 45))}, "fewer than all"),
        ({"teacher": TopK(torch.zeros(6, 2, dtype=torch.long), torch.zeros(6, 2)), "kind": "reverse"}, "infinite"),
        ({"weight": torch.zeros(45, 9)}, "do not fit a matrix of 9 columns"),
        ({"kind": "jsd", "beta": 0.0}, "is no mixture"),
        ({"kind": "backward"}, "choose forward, reverse or jsd"),
        ({"temperature": 0.0}, "temperature 0"),
        ({"hidden": torch.zeros(6, 8, dtype=torch.float64)}, "no Triton for fp64"),
    ],
)
def test_what_does_not_fit_is_refused(change, said):
    hidden, weight, teacher = drawn(dtype=torch.float32)
    with pytest.raises(UsageError, match=said):
        linear_kl(**{"hidden": hidden, "weight": weight, "teacher": teacher, **change})


def test_on_a_cpu_without_the_interpreter_it_says_what_to_do(monkeypatch):
    hidden, weight, teacher = drawn(dtype=torch.float32)
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(UsageError, match="choose plain"):
        linear_kl(hidden, weight, teacher)
    assert linear_kl(hidden, weight, teacher, plain=True).isfinite().all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", ["forward", "reverse", "jsd"])
def test_on_a_gpu_it_takes_at_most_half_the_memory_of_the_plain_loss(kind):
    torch.manual_seed(0)
    hidden = torch.randn(2048, 576, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(49152, 576, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    states, matrix = torch.randn_like(hidden), torch.randn_like(weight)

    def peak(function):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        grads = torch.autograd.grad(function(hidden, weight, Head(states, matrix), kind=kind).sum(), (hidden, weight))
        torch.cuda.synchronize()
        del grads
        return torch.cuda.max_memory_allocated() - before

    assert peak(linear_kl) <= 0.5 * peak(linear_kl_ref)

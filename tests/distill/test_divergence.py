"""Divergences: against float64 numpy from the formulas, their gradients, and TRL's own loss."""

from __future__ import annotations

import importlib.util
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from soloist.kernels.errors import UsageError  # noqa: E402
from soloist.toolchain.distill import divergence as module  # noqa: E402
from soloist.toolchain.distill.data import as_groups  # noqa: E402
from soloist.toolchain.distill.divergence import (  # noqa: E402
    cross_entropies,
    divergences,
    head_of,
    row_cross_entropy,
    row_divergence,
    row_entropy,
)
from soloist.toolchain.distill.model import Student, load_base  # noqa: E402
from soloist.toolchain.distill.packing import pack  # noqa: E402

KINDS = [("forward", 0.5), ("reverse", 0.5), ("jsd", 0.5), ("jsd", 0.1), ("jsd", 0.9)]


def logits_pair(rows=37, width=19, dtype=torch.float64):
    torch.manual_seed(0)
    student = (torch.randn(rows, width, dtype=torch.float64) * 3).to(dtype).requires_grad_()
    return student, (torch.randn(rows, width, dtype=torch.float64) * 3).to(dtype)


def softmax(logits):
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def by_formula(student, teacher, kind, beta):
    """Equation 1 of arXiv 2306.13649 and the two KLs, written out in numpy."""
    p, q = softmax(teacher.detach().double().numpy()), softmax(student.detach().double().numpy())

    def kl(one, other):
        return (one * np.log(one / other)).sum(-1)

    mixed = beta * p + (1 - beta) * q
    return {"forward": kl(p, q), "reverse": kl(q, p), "jsd": beta * kl(p, mixed) + (1 - beta) * kl(q, mixed)}[kind]


def with_autograd(student, teacher, kind, beta):
    """The same in plain torch, for the gradient."""
    log_q, log_p = torch.log_softmax(student, -1), torch.log_softmax(teacher, -1)
    if kind == "forward":
        return (log_p.exp() * (log_p - log_q)).sum(-1)
    if kind == "reverse":
        return (log_q.exp() * (log_q - log_p)).sum(-1)
    log_m = torch.log(beta * log_p.exp() + (1 - beta) * log_q.exp())
    return beta * (log_p.exp() * (log_p - log_m)).sum(-1) + (1 - beta) * (log_q.exp() * (log_q - log_m)).sum(-1)


@pytest.mark.parametrize(("kind", "beta"), KINDS)
@pytest.mark.parametrize("consume", [False, True])
def test_values_and_gradients_are_those_of_the_formula(kind, beta, consume):
    student, teacher = logits_pair()
    expected = by_formula(student, teacher, kind, beta)
    weights = torch.linspace(-1, 2, len(student), dtype=torch.float64)
    (wanted,) = torch.autograd.grad((with_autograd(student, teacher, kind, beta) * weights).sum(), student)
    found = row_divergence(student, teacher.clone(), kind, beta, consume=consume)
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-10)
    (got,) = torch.autograd.grad((found * weights).sum(), student)
    assert torch.allclose(got, wanted, atol=1e-12)


def test_two_tokens_by_hand():
    # P = (3/4, 1/4), Q = (1/2, 1/2)
    teacher, student = torch.tensor([[3.0, 1.0]]).double().log(), torch.zeros(1, 2).double()
    forward = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
    reverse = 0.5 * np.log(0.5 / 0.75) + 0.5 * np.log(0.5 / 0.25)
    assert row_divergence(student, teacher, "forward").item() == pytest.approx(forward, rel=1e-12)
    assert row_divergence(student, teacher, "reverse").item() == pytest.approx(reverse, rel=1e-12)
    # beta 1/2: M = (5/8, 3/8)
    of_p = 0.75 * np.log(6 / 5) + 0.25 * np.log(2 / 3)
    of_q = 0.5 * np.log(4 / 5) + 0.5 * np.log(4 / 3)
    assert row_divergence(student, teacher, "jsd", 0.5).item() == pytest.approx((of_p + of_q) / 2, rel=1e-12)


@pytest.mark.parametrize(("kind", "beta"), KINDS)
def test_identical_distributions_have_no_divergence_and_no_gradient(kind, beta):
    student, _ = logits_pair(dtype=torch.float32)
    values = row_divergence(student, student.detach() + 7.0, kind, beta)  # logits are equal up to a constant
    (gradient,) = torch.autograd.grad(values.sum(), student)
    assert values.abs().max() < 1e-5
    assert gradient.abs().max() < 1e-6


@pytest.mark.parametrize(("kind", "beta"), KINDS)
def test_the_result_does_not_depend_on_how_many_rows_are_taken_at_once(kind, beta, monkeypatch):
    student, teacher = logits_pair()
    whole = row_divergence(student, teacher, kind, beta)
    monkeypatch.setattr("soloist.toolchain.distill.divergence._CPU_ROWS", 5)
    assert torch.equal(row_divergence(student, teacher, kind, beta), whole)


def test_near_its_ends_jsd_is_a_share_of_the_kls():
    student, teacher = logits_pair()
    forward, reverse = (row_divergence(student, teacher, kind) for kind in ("forward", "reverse"))
    assert torch.allclose(row_divergence(student, teacher, "jsd", 1e-7) / 1e-7, forward, rtol=1e-3)
    assert torch.allclose(row_divergence(student, teacher, "jsd", 1 - 1e-7) / 1e-7, reverse, rtol=1e-3)


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="trl is not installed")
@pytest.mark.parametrize(("kind", "beta"), [("forward", 0), ("reverse", 1), ("jsd", 0.5), ("jsd", 0.2)])
def test_values_are_those_of_trl(kind, beta):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl.experimental.gkd import GKDTrainer
    student, teacher = logits_pair()
    theirs = GKDTrainer.generalized_jsd_loss(student, teacher, beta=beta, reduction="none").sum(-1)
    assert torch.allclose(row_divergence(student, teacher, kind, beta or 0.5), theirs, rtol=1e-6)


def test_rounded_logits_keep_a_gradient_of_their_own_dtype():
    student, teacher = logits_pair(dtype=torch.bfloat16)
    values = row_divergence(student, teacher, "jsd", 0.3)
    (gradient,) = torch.autograd.grad(values.sum(), student)
    assert (values.dtype, gradient.dtype) == (torch.float32, torch.bfloat16)
    np.testing.assert_allclose(values.detach().numpy(), by_formula(student, teacher, "jsd", 0.3), rtol=1e-4)


def test_consuming_writes_the_gradient_where_the_teachers_logits_were():
    student, teacher = logits_pair()
    kept = teacher.clone()
    row_divergence(student, teacher, "forward")
    assert torch.equal(teacher, kept)
    row_divergence(student, teacher, "forward", consume=True)
    wanted = torch.softmax(student.detach(), -1) - torch.softmax(kept, -1)
    assert torch.allclose(teacher, wanted, atol=1e-12)


def test_rows_without_weight_get_exactly_no_gradient():
    student, teacher = logits_pair()
    weights = torch.ones(len(student), dtype=torch.float64)
    weights[::2] = 0.0
    (gradient,) = torch.autograd.grad((row_divergence(student, teacher, "reverse") * weights).sum(), student)
    assert torch.equal(gradient[::2], torch.zeros_like(gradient[::2]))
    assert gradient[1::2].abs().min() > 0


def test_cross_entropy_of_rows_is_torchs():
    student, _ = logits_pair()
    labels = torch.randint(0, student.shape[1], (len(student),))
    weights = torch.rand(len(student), dtype=torch.float64)
    found = row_cross_entropy(student, labels)
    wanted = torch.nn.functional.cross_entropy(student, labels, reduction="none")
    assert torch.allclose(found, wanted, rtol=1e-12)
    (got,) = torch.autograd.grad((found * weights).sum(), student)
    (expected,) = torch.autograd.grad((wanted * weights).sum(), student)
    assert torch.allclose(got, expected, atol=1e-12)


def test_entropy():
    assert row_entropy(torch.zeros(3, 8)).tolist() == pytest.approx([np.log(8)] * 3)
    assert row_entropy(torch.tensor([[100.0, 0.0]])).item() == pytest.approx(0, abs=1e-6)
    _, teacher = logits_pair()
    p = softmax(teacher.numpy())
    np.testing.assert_allclose(row_entropy(teacher).numpy(), -(p * np.log(p)).sum(-1), rtol=1e-10)


def test_no_rows_are_no_loss():
    student = torch.zeros(0, 5, requires_grad=True)
    assert row_divergence(student, torch.zeros(0, 5)).sum().item() == 0
    assert row_cross_entropy(student, torch.zeros(0, dtype=torch.long)).sum().item() == 0


def test_logits_of_another_vocabulary_and_empty_mixtures_are_refused():
    with pytest.raises(UsageError, match=r"student's logits are \(2, 5\), the teacher's \(2, 6\)"):
        row_divergence(torch.zeros(2, 5), torch.zeros(2, 6))
    for beta in (0.0, 1.0, -1.0):
        with pytest.raises(UsageError, match="is no mixture"):
            row_divergence(torch.zeros(2, 5), torch.zeros(2, 5), "jsd", beta)


# ---------------------------------------------------------------- of a student and its teacher


@pytest.fixture
def pair(tiny_base, conversations):
    """A student and a teacher with other weights, in fp64, and a batch."""
    students = []
    for noise in (0.0, 0.05):
        model, tokenizer = load_base(tiny_base)
        torch.manual_seed(5)
        for value in model.parameters():
            value.data += noise * torch.randn_like(value)
        students.append(Student(model.double(), tokenizer, torch.device("cpu")))
    students[1].model.eval().requires_grad_(False)
    return (*students, pack(as_groups(conversations)))


def gradients(student, rows):
    student.backward(rows.sum())
    found = {name: value.grad.clone() for name, value in student.named_parameters()}
    student.model.zero_grad(set_to_none=True)
    return found


def both_ways(student, function, monkeypatch):
    """Rows and gradients from whole logits, and from hidden states."""
    found = []
    for chunks in (False, True):
        monkeypatch.setattr(module, "in_chunks", lambda _, chunks=chunks: chunks)
        rows = function()
        found.append((rows.detach(), gradients(student, rows)))
    return found


def assert_same(one, other):
    assert torch.allclose(one[0], other[0], rtol=1e-6, atol=1e-9)
    assert one[1].keys() == other[1].keys()
    for name, value in one[1].items():
        assert torch.allclose(value, other[1][name], rtol=1e-5, atol=1e-8 + 1e-6 * float(value.abs().max())), name


@pytest.mark.parametrize(("kind", "beta"), KINDS[:3])
@pytest.mark.parametrize("weighted", [False, True])
def test_from_hidden_states_come_the_same_rows_and_gradients(pair, kind, beta, weighted, monkeypatch):
    student, teacher, batch = pair
    weights = torch.linspace(0, 2, batch.targets) if weighted else None
    made = []
    whole = teacher.logits
    teacher.logits = lambda batch: made.append(whole(batch)) or made[-1]
    one, other = both_ways(student, lambda: divergences(student, teacher, batch, kind, beta, weights), monkeypatch)
    assert_same(one, other)
    vocabulary, width = student.embedding.weight.shape
    assert [each.shape[1] for each in made] == [vocabulary, width]  # the second time nobody made logits


def test_from_hidden_states_comes_the_same_cross_entropy(pair, monkeypatch):
    student, _, batch = pair
    weights = (batch.labels % 3).double()
    assert_same(*both_ways(student, lambda: cross_entropies(student, batch, weights), monkeypatch))


def test_a_model_that_caps_its_logits_is_read_for_its_logits(pair, monkeypatch):
    student, teacher, batch = pair
    for each in (student, teacher):
        inner = each.model.forward

        def capped(*inputs, inner=inner, **named):
            output = inner(*inputs, **named)
            output.logits = 3 * torch.tanh(output.logits / 3)
            return output

        each.model.forward = capped
    assert head_of(student, batch) is None
    assert head_of(student, batch) is None  # it does not take another pass to know
    assert torch.equal(student.logits(batch), student.logits(batch).clamp(-3, 3))  # the head works as before
    assert_same(*both_ways(student, lambda: divergences(student, teacher, batch, "jsd"), monkeypatch))


def test_a_teacher_that_caps_its_logits_may_teach_a_student_that_does_not(pair, monkeypatch):
    student, teacher, batch = pair
    teacher.model.get_output_embeddings().register_forward_hook(lambda _module, _inputs, logits: logits.clamp(-1, 1))
    assert head_of(student, batch) is not None
    assert head_of(teacher, batch) is None
    assert_same(*both_ways(student, lambda: divergences(student, teacher, batch, "forward"), monkeypatch))


def test_logits_changed_in_place_are_noticed(pair):
    student, _, batch = pair
    inner = student.model.forward

    def scaled(*inputs, **named):
        output = inner(*inputs, **named)
        with torch.no_grad():
            output.logits.mul_(2)
        return output

    student.model.forward = scaled
    assert head_of(student, batch) is None


def test_with_lora_the_head_is_frozen_and_the_rows_are_the_same(pair, monkeypatch):
    pytest.importorskip("peft")
    student, teacher, batch = pair
    student.add_lora(4, 8)
    student.model.double()
    for name, value in student.named_parameters():
        if "lora_B" in name:
            value.data += 0.1 * torch.randn_like(value)  # zero at first
    assert head_of(student, batch) is not None
    assert_same(*both_ways(student, lambda: divergences(student, teacher, batch, "reverse"), monkeypatch))


def test_a_cpu_makes_logits_once(pair):
    assert not module.in_chunks(pair[0])

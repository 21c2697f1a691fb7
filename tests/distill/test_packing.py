"""A packed batch computes what one conversation after another computes, exactly."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from soloist.kernels.errors import ArtifactError, UsageError  # noqa: E402
from soloist.toolchain.distill import packing  # noqa: E402
from soloist.toolchain.distill.data import Group  # noqa: E402
from soloist.toolchain.distill.methods.attempts import answered_attempts  # noqa: E402
from soloist.toolchain.distill.model import load_base  # noqa: E402
from soloist.toolchain.distill.objective import CrossEntropy, summed_cross_entropy  # noqa: E402
from soloist.toolchain.distill.packing import pack  # noqa: E402
from soloist.toolchain.distill.train import parts  # noqa: E402
from soloist.toolchain.distill.work import Setup  # noqa: E402
from soloist.toolchain.traces.graph import graph_of  # noqa: E402


@pytest.fixture(params=["written out", "torch"])
def attention(request, monkeypatch):
    """Both ways to attend: two products, and torch's own kernel."""
    monkeypatch.setattr(packing, "_SHORT", 256 if request.param == "written out" else 0)


def reference_loss(base, examples, dtype):
    """Full logits of each conversation on its own by the unchanged model, and its gradients."""
    model = load_base(base)[0].to(dtype)
    total = torch.zeros((), dtype=dtype)
    for example in examples:
        logits = model(torch.tensor([example.ids])).logits[0]
        chosen = torch.tensor(example.trained)[1:]
        labels = torch.tensor(example.ids)[1:]
        total = total + torch.nn.functional.cross_entropy(logits[:-1][chosen], labels[chosen], reduction="sum")
    total.backward()
    return total.item(), {name: value.grad for name, value in model.named_parameters()}


def summed(student, examples, *, share=True):
    """The loss as a sum: nothing to divide by."""
    return CrossEntropy().terms(student, pack(examples, share=share), {"tokens": 1.0})["lm"]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-5)])
@pytest.mark.parametrize("share", [True, False])
def test_packed_loss_and_gradients_equal_one_by_one(
    tiny_base, conversations, attention, dtype, tolerance, share, student_of
):
    want, gradients = reference_loss(tiny_base, conversations, dtype)
    student = student_of(tiny_base, dtype)
    loss = summed(student, conversations, share=share)
    student.backward(loss)
    # the model's own norms compute in fp32 whatever the dtype, so float64 is exact only up to their rounding
    assert loss.item() == pytest.approx(want, rel=tolerance / 10)
    for name, value in student.named_parameters():
        worst = (value.grad - gradients[name]).abs().max() / gradients[name].abs().max()
        assert worst < tolerance, name


def test_an_architecture_that_packs_wrongly_is_refused(tiny_base, monkeypatch, student_of):
    student = student_of(tiny_base)
    student.verify_packing(512)
    whole = packing._short_attention
    monkeypatch.setattr(packing, "_short_attention", lambda q, k, v, scale: whole(q, k, v, 2 * scale))
    with pytest.raises(ArtifactError, match="LlamaForCausalLM: packed batches differ"):
        student.verify_packing(512)
    student.model.config.sliding_window = 64
    with pytest.raises(UsageError, match="attention window of 64"):
        student.verify_packing(512)


def test_parts_add_up_to_the_whole(tiny_base, conversations, student_of):
    student = student_of(tiny_base, torch.float64)
    whole = summed(student, conversations).item()
    split = sum(summed(student, conversations[start : start + 5]).item() for start in (0, 5, 10))
    assert split == pytest.approx(whole, rel=1e-12)


def test_shared_beginnings_are_computed_once(conversations):
    batch, apart = pack(conversations), pack(conversations, share=False)
    assert apart.ids.numel() == sum(len(e.ids) - 1 for e in conversations)
    distinct = set()
    for example in conversations:
        distinct |= {example.ids[:place] for place in range(1, len(example.ids))}
    assert batch.ids.numel() == len(distinct) < apart.ids.numel()
    assert batch.tokens == apart.tokens == sum(len(e.ids) for e in conversations)
    assert batch.targets == sum(e.targets for e in conversations)


def test_a_whole_recorded_graph_equals_its_attempts_one_by_one(
    tiny_base, tokenizer, attention, student_of, recorded_runs
):
    run = max(recorded_runs, key=lambda run: len(graph_of(run).nodes))
    attempts = [attempt.example for attempt in answered_attempts(run, Setup(tokenizer, lambda _: True, max_length=512))]
    batch = pack([Group(tuple(attempts))])
    assert len(attempts) >= 6
    assert batch.ids.numel() < 0.7 * batch.tokens
    student, plain = student_of(tiny_base), load_base(tiny_base)[0]
    with torch.no_grad():
        packed = student.logits(batch)
        for owner, example in enumerate(attempts):
            alone = plain(torch.tensor([example.ids])).logits[0, :-1][torch.tensor(example.trained[1:])]
            assert (packed[batch.owners == owner] - alone).abs().max() < 1e-4 * alone.abs().max()
    want, gradients = reference_loss(tiny_base, attempts, torch.float32)
    loss = summed(student, [Group(tuple(attempts))])
    student.backward(loss)
    assert loss.item() == pytest.approx(want, rel=1e-4)
    for name, value in student.named_parameters():
        assert (value.grad - gradients[name]).abs().max() < 1e-4 * gradients[name].abs().max(), name


def test_conversations_do_not_see_each_other(tiny_base, conversations, student_of):
    student = student_of(tiny_base)
    alone = student.logits(pack(conversations[3:4]))
    batch = pack(conversations)
    together = student.logits(batch)[batch.owners == 3]
    assert torch.allclose(alone, together, atol=1e-5)


def test_cross_entropy_is_torchs(tiny_base):
    torch.manual_seed(0)
    logits = (torch.randn(37, 101, dtype=torch.float64) * 5).requires_grad_()
    labels = torch.randint(0, 101, (37,))
    loss = summed_cross_entropy(logits, labels)
    (got,) = torch.autograd.grad(loss * 3, logits)
    want = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    (expected,) = torch.autograd.grad(want * 3, logits)
    assert loss.item() == pytest.approx(want.item(), rel=1e-12)
    assert torch.allclose(got, expected, atol=1e-12)


def test_a_weight_scales_a_tokens_loss_and_gradient():
    torch.manual_seed(0)
    logits = torch.randn(5, 11, dtype=torch.float64, requires_grad=True)
    labels, weights = torch.arange(5), torch.tensor([1.0, 0.3, 0.0, 2.0, 1.0])
    (got,) = torch.autograd.grad(summed_cross_entropy(logits, labels, weights), logits)
    each = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    (expected,) = torch.autograd.grad((each * weights).sum(), logits)
    assert torch.allclose(got, expected, atol=1e-7)


def test_groups_stay_together_and_keep_their_facts(conversations):
    groups = [Group(tuple(conversations[:3]), {"label": 1}), Group((conversations[3],), {"label": 2})]
    batch = pack(groups)
    assert batch.groups == (range(3), range(3, 4))
    assert [facts["label"] for facts in batch.facts] == [1, 2]
    assert batch.lengths.tolist() == [len(e.ids) - 1 for e in conversations[:4]]
    assert batch.weights is None
    assert {len(part) for part in parts(groups, 1)} == {1}

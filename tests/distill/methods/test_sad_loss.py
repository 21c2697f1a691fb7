"""SAD's two terms against the paper's formulas, their gradients, the curriculum, the whole stage."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from soloist.kernels.errors import UsageError  # noqa: E402
from soloist.toolchain.distill.data import Group, as_groups, examples_of  # noqa: E402
from soloist.toolchain.distill.methods.sad import (  # noqa: E402
    ACT,
    REASON,
    Options,
    SpanLoss,
    difficulties,
    react_messages,
    select,
    spanned,
)
from soloist.toolchain.distill.model import load_base  # noqa: E402
from soloist.toolchain.distill.packing import pack  # noqa: E402
from soloist.toolchain.distill.stage import DistillConfig, distill, recheck  # noqa: E402
from soloist.toolchain.distill.teacher import load_teacher  # noqa: E402
from soloist.toolchain.distill.train import TrainConfig, plan  # noqa: E402
from soloist.toolchain.distill.work import Setup  # noqa: E402
from soloist.toolchain.student.artifact import read_card  # noqa: E402

# ---------------------------------------------------------------- loss


@pytest.fixture
def groups(tokenizer, episode_of):
    return as_groups(spanned(react_messages(episode_of(n, thoughts=1 + n % 3)), tokenizer, f"e{n}") for n in range(4))


def own_logits(base, example):
    """Every position's logits by the unchanged model, in numpy."""
    with torch.no_grad():
        return load_base(base)[0].double()(torch.tensor([example.ids])).logits[0].numpy()


def log_softmax(rows):
    shifted = rows - rows.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def by_hand(base, teacher, groups, reduction):
    """The formulas of the paper over whole conversations, in numpy."""
    sums, tokens, examples = {"reason": 0.0, "act": 0.0}, {"reason": 0, "act": 0}, 0
    for example in examples_of(groups):
        examples += 1
        log_q = log_softmax(own_logits(base, example))
        log_p = log_softmax(own_logits(teacher, example)) if teacher else None
        for name, kind in (("reason", REASON), ("act", ACT)):
            for t in (t for t, span in enumerate(example.spans) if span == kind):
                p = np.exp(log_p[t - 1]) if teacher else None
                sums[name] += (p * (log_p[t - 1] - log_q[t - 1])).sum() if teacher else -log_q[t - 1, example.ids[t]]
                tokens[name] += 1
    return {name: sums[name] / (tokens[name] if reduction == "mean" else examples) for name in sums}


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("taught", [True, False])
def test_both_terms_are_the_papers(tiny_base, teacher_base, groups, reduction, taught, student_of):
    student = student_of(tiny_base, torch.float64)
    teacher = load_teacher(teacher_base, student, 512) if taught else None
    loss = SpanLoss(Options(reduction=reduction, reason_weight=0.5, act_weight=2.0), teacher)
    terms = loss.terms(student, pack(groups), loss.counts(groups))
    expected = by_hand(tiny_base, teacher_base if taught else None, groups, reduction)
    # the model's own norms compute in fp32 whatever the dtype
    assert terms["reason"].item() == pytest.approx(0.5 * expected["reason"], rel=1e-5)
    assert terms["act"].item() == pytest.approx(2.0 * expected["act"], rel=1e-5)


def gradients(student, loss, pieces, counts):
    for piece in pieces:
        student.backward(torch.stack(list(loss.terms(student, pack(piece), counts).values())).sum())
    found = {name: value.grad.clone() for name, value in student.named_parameters()}
    student.model.zero_grad(set_to_none=True)
    return found


def test_splitting_a_step_changes_no_gradient(tiny_base, teacher_base, groups, student_of):
    student = student_of(tiny_base, torch.float64)
    loss = SpanLoss(Options(), load_teacher(teacher_base, student, 512))
    counts = loss.counts(groups)
    whole = gradients(student, loss, [groups], counts)
    split = gradients(student, loss, [groups[:1], groups[1:3], groups[3:]], counts)
    for name, value in whole.items():
        assert torch.allclose(value, split[name], rtol=1e-5, atol=1e-6 * float(value.abs().max())), name


def test_without_reasoning_weight_no_gradient_comes_from_reasoning(tiny_base, groups, student_of):
    student = student_of(tiny_base, torch.float64)
    loss = SpanLoss(Options(reason_weight=0.0))
    captured = []
    whole = student.logits

    def watched(batch):
        logits = whole(batch)
        logits.register_hook(captured.append)
        return logits

    student.logits = watched
    batch = pack(groups)
    student.backward(sum(loss.terms(student, batch, loss.counts(groups)).values()))
    (gradient,) = captured
    assert torch.equal(gradient[batch.spans == REASON], torch.zeros_like(gradient[batch.spans == REASON]))
    assert gradient[batch.spans == ACT].abs().sum(-1).min() > 0
    assert loss.terms(student, batch, loss.counts(groups))["reason"].item() == 0


def test_a_step_without_reasoning_has_no_reasoning_term(tiny_base, tokenizer, run_of, student_of):
    groups = select([run_of(n) for n in range(3)], Setup(tokenizer, recheck, max_length=512, options=Options())).groups
    student = student_of(tiny_base, torch.float64)
    loss = SpanLoss(Options())
    terms = loss.terms(student, pack(groups), loss.counts(groups))
    assert terms["reason"].item() == 0
    assert terms["act"].item() > 0


def test_a_student_that_is_its_teacher_has_nothing_to_learn(tiny_base, groups, student_of):
    student = student_of(tiny_base, torch.float64)
    loss = SpanLoss(Options(), load_teacher(tiny_base, student, 512))
    terms = loss.terms(student, pack(groups), loss.counts(groups))
    assert sum(terms.values()).item() == pytest.approx(0, abs=1e-10)
    found = gradients(student, loss, [groups], loss.counts(groups))
    assert max(float(value.abs().max()) for value in found.values()) < 1e-6


def test_the_teacher_is_not_trained(tiny_base, teacher_base, groups, student_of):
    student = student_of(tiny_base, torch.float64)
    teacher = load_teacher(teacher_base, student, 512)
    gradients(student, SpanLoss(Options(), teacher), [groups], SpanLoss(Options()).counts(groups))
    assert all(value.grad is None and not value.requires_grad for value in teacher.model.parameters())
    assert next(teacher.model.parameters()).dtype == torch.float64
    assert not teacher.model.training


# ---------------------------------------------------------------- curriculum


def test_difficulty_is_tokens_and_the_teachers_entropy(tiny_base, teacher_base, groups, student_of):
    student = student_of(tiny_base, torch.float64)
    teacher = load_teacher(teacher_base, student, 512)
    plain = difficulties(groups, Options(alpha=2, beta=3), None, 2048)
    for group, found in zip(groups, plain, strict=True):
        spans = group.examples[0].spans
        assert found == 2 * spans.count(REASON) + 3 * spans.count(ACT)
    taught = difficulties(groups, Options(alpha=0, beta=0, gamma=1.0), teacher, 64)
    for group, found in zip(groups, taught, strict=True):
        (example,) = group.examples
        log_p = log_softmax(own_logits(teacher_base, example))
        entropy = -(np.exp(log_p) * log_p).sum(-1)
        assert found == pytest.approx(np.mean([entropy[t - 1] for t, s in enumerate(example.spans) if s]), abs=1e-3)


def test_entropy_without_a_teacher_is_refused(groups):
    with pytest.raises(UsageError, match="give `teacher` too"):
        difficulties(groups, Options(gamma=0.5), None, 2048)


def test_a_given_order_is_kept_in_every_epoch():
    steps = plan(5, TrainConfig(order="given", epochs=2, batch_size=2))
    assert steps == [[0, 1], [2, 3], [4], [0, 1], [2, 3], [4]]
    assert plan(50, TrainConfig(batch_size=50))[0] != list(range(50))


# ---------------------------------------------------------------- the stage


@pytest.fixture
def traces(episode_of, traces_of):
    return traces_of([episode_of(n, thoughts=1 + (5 * n) % 4) for n in range(1, 7)])


def config_of(**options):
    train = TrainConfig(batch_size=2, learning_rate=3e-3, precision="fp32", device="cpu", part_tokens=4096)
    return DistillConfig(method="sad", options=options, train=train)


def test_a_student_is_trained_from_easy_to_hard_with_hard_labels(tiny_base, traces, tmp_path):
    made = distill(config_of(), traces, tiny_base, tmp_path / "student")
    card = read_card(made.path)
    assert (card.method, card.notes["hard_label"], card.tools) == ("sad", True, ("finish", "search"))
    assert card.data.notes["reason_tokens"] > 0
    steps = [json.loads(line) for line in (made.path / "train.jsonl").read_text().splitlines()]
    trained = [step["trained_tokens"] for step in steps]
    assert trained == sorted(trained)
    assert trained[0] < trained[-1]
    assert {"loss_reason", "loss_act"} <= set(steps[0])
    stamp = (made.path / "model.safetensors").stat().st_mtime_ns
    assert distill(config_of(), traces, tiny_base, tmp_path / "student").digest == made.digest
    assert (made.path / "model.safetensors").stat().st_mtime_ns == stamp


@pytest.mark.parametrize("weights", [{"reason_weight": 0, "act_weight": 0}, {"act_weight": 0}])
def test_weights_that_leave_nothing_to_learn_are_refused(tiny_base, tmp_path, run_of, weights, traces_of):
    traces = traces_of([run_of(number) for number in range(3)])  # without prefixes: nothing but acting
    with pytest.raises(UsageError, match="nothing would be learned"):
        distill(config_of(**weights), traces, tiny_base, tmp_path / "student")


def test_a_teacher_is_part_of_what_is_done(tiny_base, teacher_base, traces, tmp_path):
    made = distill(config_of(teacher=str(teacher_base)), traces, tiny_base, tmp_path / "student")
    card = read_card(made.path)
    assert card.notes["hard_label"] is False
    assert card.options["teacher"] == teacher_base.name
    again = distill(config_of(teacher=str(tiny_base)), traces, tiny_base, tmp_path / "student")
    assert again.digest != made.digest


def test_a_teacher_of_another_vocabulary_is_refused_by_name(tiny_base, tokenizer, tmp_path, groups, student_of):
    model, _ = load_base(tiny_base)
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["another"])
    model.resize_token_embeddings(len(other), mean_resizing=False)
    model.save_pretrained(tmp_path / "more")
    other.save_pretrained(tmp_path / "more")
    student = student_of(tiny_base, torch.float64)
    with pytest.raises(UsageError, match=r"teacher more: its vocabulary \(259 tokens, 259 .*student's \(258 tokens"):
        load_teacher(tmp_path / "more", student, 512)


def test_a_group_of_several_conversations_counts_all_of_them(groups):
    together = Group(tuple(examples_of(groups)))
    assert SpanLoss(Options()).counts([together]) == SpanLoss(Options()).counts(groups)
    assert SpanLoss(Options(reduction="sum")).counts([together]) == {"reason": 4.0, "act": 4.0}

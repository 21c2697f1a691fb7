"""GKD: the loss from its formula, on-policy steps, exact resume, foreign vocabularies."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from soloist.kernels.errors import UsageError  # noqa: E402
from soloist.toolchain.distill.data import as_groups  # noqa: E402
from soloist.toolchain.distill.methods.gkd import Distillation, Options, on_policy, turn_starts  # noqa: E402
from soloist.toolchain.distill.model import load_base  # noqa: E402
from soloist.toolchain.distill.objective import CrossEntropy, Refreshing  # noqa: E402
from soloist.toolchain.distill.packing import ATTENTION, pack  # noqa: E402
from soloist.toolchain.distill.sampling import sample  # noqa: E402
from soloist.toolchain.distill.stage import DistillConfig, distill, recheck  # noqa: E402
from soloist.toolchain.distill.teacher import load_teacher, vocabulary_digest  # noqa: E402
from soloist.toolchain.distill.train import TrainConfig, Trainer  # noqa: E402
from soloist.toolchain.distill.work import Setup  # noqa: E402
from soloist.toolchain.student.artifact import StudentFacts, read_card  # noqa: E402


def loss_of(student, teacher_base, **options):
    setup = Setup(student.tokenizer, recheck, max_length=512, seed=3, options=Options(**options))
    return Distillation(setup.options, load_teacher(teacher_base, student, 512), setup)


def probabilities(base, example):
    """At every trained position, by the unchanged model."""
    with torch.no_grad():
        logits = load_base(base)[0].double()(torch.tensor([example.ids])).logits[0].numpy()
    rows = logits[[t - 1 for t, trained in enumerate(example.trained) if trained]]
    shifted = np.exp(rows - rows.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def kl(p, q):
    return float((p * np.log(p / q)).sum())


@pytest.mark.parametrize("kind", ["forward", "reverse", "jsd"])
def test_the_loss_is_the_papers(tiny_base, teacher_base, conversations, kind, student_of):
    student = student_of(tiny_base, torch.float64)
    loss = loss_of(student, teacher_base, divergence=kind, beta=0.3)
    total, tokens = 0.0, 0
    for example in conversations[:4]:
        p, q = probabilities(teacher_base, example), probabilities(tiny_base, example)
        mixed = 0.3 * p + 0.7 * q
        total += {"forward": kl(p, q), "reverse": kl(q, p), "jsd": 0.3 * kl(p, mixed) + 0.7 * kl(q, mixed)}[kind]
        tokens += len(p)
    groups = as_groups(conversations[:4])
    found = loss.terms(student, pack(groups), loss.counts(groups))["divergence"]
    # the model's own norms compute in fp32 whatever the dtype
    assert found.item() == pytest.approx(total / tokens, rel=1e-5)


def gradients(student, loss, pieces, counts):
    for piece in pieces:
        student.backward(loss.terms(student, pack(piece), counts)["divergence"])
    found = {name: value.grad.clone() for name, value in student.named_parameters()}
    student.model.zero_grad(set_to_none=True)
    return found


def test_splitting_a_step_changes_no_gradient(tiny_base, teacher_base, conversations, student_of):
    student = student_of(tiny_base, torch.float64)
    loss = loss_of(student, teacher_base)
    groups = as_groups(conversations)
    counts = loss.counts(groups)
    whole, split = (gradients(student, loss, cut, counts) for cut in ([groups], [groups[:5], groups[5:]]))
    for name, value in whole.items():
        assert torch.allclose(value, split[name], rtol=1e-5, atol=1e-6 * float(value.abs().max())), name
    assert all(value.grad is None for value in loss.teacher.model.parameters())


@pytest.mark.parametrize("kind", ["forward", "reverse", "jsd"])
def test_a_student_that_is_its_teacher_has_nothing_to_learn(tiny_base, conversations, kind, student_of):
    student = student_of(tiny_base, torch.float64)
    loss = loss_of(student, tiny_base, divergence=kind)
    groups = as_groups(conversations)
    assert loss.terms(student, pack(groups), loss.counts(groups))["divergence"].item() == pytest.approx(0, abs=1e-10)
    found = gradients(student, loss, [groups], loss.counts(groups))
    assert max(float(value.abs().max()) for value in found.values()) < 1e-6


# ---------------------------------------------------------------- on-policy


def test_the_share_of_on_policy_steps_is_lmbda():
    drawn = [on_policy(0.3, 0, step) for step in range(2000)]
    assert sum(drawn) / 2000 == pytest.approx(0.3, abs=0.03)
    assert not any(on_policy(0.0, 0, step) for step in range(100))
    assert all(on_policy(1.0, 0, step) for step in range(100))
    assert drawn != [on_policy(0.3, 1, step) for step in range(2000)]


@pytest.mark.parametrize("lora", [False, True])
def test_samples_are_the_students_own_words(tiny_base, conversations, lora, student_of):
    student = student_of(tiny_base)
    if lora:
        pytest.importorskip("peft")
        student.add_lora(4, 8)
    prompts = [example.ids[: turn_starts(example)[0]] for example in conversations[:5]]
    made = sample(student, prompts, max_new_tokens=9, temperature=0)
    for prompt, words in zip(prompts, made, strict=True):
        assert 1 <= len(words) <= 9
        trained = (*[False] * len(prompt), *[True] * len(words))
        example = replace(conversations[0], ids=(*prompt, *words), trained=trained)
        with torch.no_grad():
            likeliest = student.logits(pack([example])).argmax(-1).tolist()
        assert likeliest == words  # the packed model trains on what the native one says
    assert student.model.config._attn_implementation == ATTENTION
    assert student.model.training


@pytest.mark.parametrize("habit", [{"repetition_penalty": 5.0}, {"top_k": 1}, {"min_p": 0.5}, {"temperature": 0.1}])
def test_a_base_models_habits_of_sampling_are_not_the_students(tiny_base, conversations, habit, student_of):
    student = student_of(tiny_base)
    prompts = [example.ids[: turn_starts(example)[0]] for example in conversations[:3]]

    def said():
        torch.manual_seed(0)
        return sample(student, prompts, max_new_tokens=12)

    plain = said()
    for name, value in habit.items():  # as in the generation_config.json of a published model
        setattr(student.model.generation_config, name, value)
    assert said() == plain


def test_a_completion_ends_with_the_end_token(tiny_base, conversations, student_of):
    student = student_of(tiny_base)
    head = student.model.get_output_embeddings()
    bias = torch.zeros(head.out_features)
    bias[student.tokenizer.eos_token_id] = 1e4
    head.register_forward_hook(lambda _module, _inputs, logits: logits + bias)
    made = sample(student, [conversations[0].ids[:5], conversations[1].ids[:9]], max_new_tokens=4)
    assert made == [[student.tokenizer.eos_token_id]] * 2


def test_an_on_policy_step_keeps_what_came_before_one_turn(tiny_base, teacher_base, conversations, student_of):
    student = student_of(tiny_base)
    loss = loss_of(student, teacher_base, lmbda=1.0, max_new_tokens=6)
    assert isinstance(loss, Refreshing)
    assert not isinstance(CrossEntropy(), Refreshing)
    groups = as_groups(conversations)
    starts = set()
    for step in range(3):
        torch.manual_seed(step)
        fresh = loss.refresh(student, groups, step)
        assert len(fresh) == len(groups)
        for (new,), (old,) in zip((g.examples for g in fresh), (g.examples for g in groups), strict=True):
            start = new.trained.index(True)
            assert start in turn_starts(old)
            assert new.ids[:start] == old.ids[:start]
            assert all(new.trained[start:])
            assert 1 <= new.targets <= 6
            assert new.question_id == old.question_id
            starts.add(turn_starts(old).index(start))
    assert starts == {0, 1}
    torch.manual_seed(2)
    assert loss.refresh(student, groups, 2) == fresh
    torch.manual_seed(3)
    assert loss.refresh(student, groups, 2) != fresh


def test_an_off_policy_step_is_the_traces(tiny_base, teacher_base, conversations, student_of):
    student = student_of(tiny_base)
    groups = as_groups(conversations)
    assert loss_of(student, teacher_base, lmbda=0.0).refresh(student, groups, 0) is groups


def test_samples_stay_within_the_longest_conversation(tiny_base, teacher_base, conversations, student_of):
    student = student_of(tiny_base)
    loss = loss_of(student, teacher_base, lmbda=1.0, max_new_tokens=500)
    loss.max_length = max(len(example.ids) for example in conversations) + 5
    fresh = loss.refresh(student, as_groups(conversations), 0)
    assert max(len(group.examples[0].ids) for group in fresh) == loss.max_length
    assert max(group.examples[0].targets for group in fresh) > 20  # each has its own room


class Stop(Exception):
    pass


def test_a_resumed_run_samples_what_the_uninterrupted_one_did(tiny_base, teacher_base, conversations, tmp_path):
    config = TrainConfig(
        epochs=2, batch_size=4, learning_rate=3e-3, precision="fp32", device="cpu", checkpoint_seconds=1e-9, seed=3
    )

    def trainer():
        made = Trainer(tiny_base, config)
        made.optimize(loss_of(made.student, teacher_base, lmbda=0.5, max_new_tokens=8))
        return made

    def stop(record):
        if record["step"] == 3:
            raise Stop

    def without_times(trained):
        return [{k: v for k, v in step.items() if k != "seconds"} for step in trained.steps]

    assert {on_policy(0.5, 3, step) for step in range(3, 6)} == {True, False}
    expected = trainer().fit(conversations, tmp_path / "whole")
    with pytest.raises(Stop):
        trainer().fit(conversations, tmp_path / "cut", on_step=stop)
    again = trainer().fit(conversations, tmp_path / "cut")
    assert again.resumed_at == 3
    assert without_times(again) == without_times(expected)


# ---------------------------------------------------------------- vocabularies


def test_a_teacher_of_the_same_size_but_other_tokens_is_refused(tiny_base, tokenizer, tmp_path, student_of):
    student = student_of(tiny_base, torch.float64)
    core = json.loads(tokenizer.backend_tokenizer.to_str())
    vocab = core["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    other = copy.deepcopy(tokenizer)
    other._tokenizer = type(tokenizer.backend_tokenizer).from_str(json.dumps(core))
    load_base(tiny_base)[0].save_pretrained(tmp_path / "swapped")
    other.save_pretrained(tmp_path / "swapped")
    assert vocabulary_digest(other) != vocabulary_digest(tokenizer)
    with pytest.raises(UsageError, match=r"teacher swapped: .*they first differ at token \d+: 'b', 'a'"):
        load_teacher(tmp_path / "swapped", student, 512)


def test_a_teacher_padded_to_more_logits_is_refused(tiny_base, tokenizer, tmp_path, student_of):
    student = student_of(tiny_base, torch.float64)
    model, _ = load_base(tiny_base)
    model.resize_token_embeddings(len(tokenizer) + 6, mean_resizing=False)
    model.save_pretrained(tmp_path / "wide")
    tokenizer.save_pretrained(tmp_path / "wide")
    with pytest.raises(UsageError, match=r"\(258 tokens, 264 logits, .*\(258 tokens, 258 logits"):
        load_teacher(tmp_path / "wide", student, 512)


# ---------------------------------------------------------------- the stage


@pytest.fixture
def traces(tmp_path, run_of, record_runs):
    runs = [run_of(number, calls=1 + number % 2) for number in range(6)]
    return record_runs(runs, tmp_path / "t")


def config_of(**options):
    train = TrainConfig(batch_size=3, learning_rate=3e-3, precision="fp32", device="cpu")
    return DistillConfig(method="gkd", options=options, train=train)


def test_a_student_is_made_and_made_once(tiny_base, teacher_base, traces, tmp_path):
    config = config_of(teacher=str(teacher_base), lmbda=1.0, max_new_tokens=8)
    made = distill(config, traces, tiny_base, tmp_path / "student")
    card = read_card(made.path)
    assert (card.method, card.notes["on_policy_steps"]) == ("gkd", 2)
    assert card.options["teacher"] == "teacher"
    assert made.read(StudentFacts).training.steps == 2
    assert json.loads((made.path / "config.json").read_text())["eos_token_id"] is not None
    stamp = (made.path / "model.safetensors").stat().st_mtime_ns
    assert distill(config, traces, tiny_base, tmp_path / "student").digest == made.digest
    assert (made.path / "model.safetensors").stat().st_mtime_ns == stamp


def test_without_a_teacher_there_is_nothing_to_learn_from(tiny_base, traces, tmp_path):
    with pytest.raises(UsageError, match="give `--set teacher=PATH`"):
        distill(config_of(), traces, tiny_base, tmp_path / "student")


def test_a_beta_without_a_mixture_is_refused():
    with pytest.raises(UsageError, match="beta: Input should be greater than 0"):
        config_of(beta=0).settled()

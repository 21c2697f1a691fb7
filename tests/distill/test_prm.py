"""The process reward model: its loss against the paper's, which weights get a gradient, scores, the head on disk."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from soloist.kernels.errors import ArtifactError  # noqa: E402
from soloist.toolchain.distill.packing import pack  # noqa: E402
from soloist.toolchain.distill.prm import (  # noqa: E402
    Binary,
    Pairwise,
    RewardHead,
    RewardModel,
    compared,
    pairwise_loss,
    rated_group,
    train_last_block_only,
)
from soloist.toolchain.distill.steps import step_ends  # noqa: E402


def papers_loss(rewards, positives, negatives, tau):
    score = {index: np.exp(1 / (1 + np.exp(-rewards[index])) / tau) for index in (*positives, *negatives)}
    return -sum(np.log(score[t] / (score[t] + sum(score[j] for j in negatives))) for t in positives)


def against(labels, places):
    from soloist.toolchain.distill.prm import _against

    return _against(torch.tensor(labels, dtype=torch.float64), torch.tensor(places))


def test_the_pairwise_loss_is_the_papers():
    rewards = [0.3, -1.2, 2.0, 0.7]
    labels, places = [1.0, 0.0, 1.0, 0.0], [0, 0, 0, 0]
    got = pairwise_loss(
        torch.tensor(rewards, dtype=torch.float64),
        torch.tensor(labels, dtype=torch.float64),
        against(labels, places),
        0.1,
    )
    assert got.item() == pytest.approx(papers_loss(rewards, [0, 2], [1, 3], 0.1), rel=1e-9)


def test_a_good_step_meets_the_bad_ones_at_its_place_or_else_all_of_them():
    labels, places = [1.0, 1.0, 0.0, 0.0], [0, 1, 0, 2]
    assert against(labels, places)[:2].tolist() == [[0, 0, 1, 0], [0, 0, 1, 1]]
    assert against([1.0, 0.25], [0, 0])[0].tolist() == [0, 0.75]


def test_the_pairwise_loss_falls_as_good_steps_rise_and_ignores_a_constant_score():
    labels = torch.tensor([1.0, 0.0, 0.0])
    pairs = against(labels.tolist(), [0, 0, 0])
    rising = [pairwise_loss(torch.tensor([r, 0.0, 0.0]), labels, pairs, 0.1).item() for r in (-2, -1, 0, 1, 2)]
    assert rising == sorted(rising, reverse=True)
    assert rising[2] == pytest.approx(np.log(3))
    flat = [pairwise_loss(torch.full((3,), r), labels, pairs, 0.1).item() for r in (-3.0, 0.5)]
    assert flat == pytest.approx([np.log(3)] * 2)
    assert pairwise_loss(torch.randn(2), torch.ones(2), against([1, 1], [0, 1]), 0.1).item() == 0.0  # nothing bad


@pytest.fixture
def rated(tokenizer, example_of):
    """Two questions: a right and a wrong attempt each, sharing the first line of the second."""
    groups = []
    for number in (1, 2):
        pair = [example_of(f"{number} + 1\n#### 2"), example_of(f"{number} + {number}\nso\n#### 9")]
        ends = [step_ends(e.ids, e.trained, tokenizer) for e in pair]
        groups.append(rated_group(pair, ends, [[1.0, 1.0], [0.25, 0.0, 0.0]], tokenizer.eos_token_id))
    return groups


def test_a_rated_group_reads_step_ends_only_and_shared_steps_once(tokenizer, example_of):
    pair = [example_of("a\n#### 2"), example_of("a\n#### 9")]
    ends = [step_ends(e.ids, e.trained, tokenizer) for e in pair]
    group = rated_group(pair, ends, [[1.0, 1.0], [0.5, 0.0]], tokenizer.eos_token_id)
    assert group.facts == {"labels": [0.75, 1.0, 0.0], "places": [0, 1, 1]}
    batch = pack([group])
    read = [tokenizer.decode([batch.ids[0, row].item()]) for row in batch.rows.tolist()]
    assert read == ["\n", "<|im_end|>", "<|im_end|>"]
    assert batch.owners.tolist() == [0, 0, 1]
    assert compared(group) == 1.75


def objective_of(student, kind=Pairwise):
    torch.manual_seed(5)
    head = RewardHead(student.width)
    return kind(head)


def gradients(student, objective, batches, counts):
    for value in [*student.model.parameters(), *objective.head.parameters()]:
        value.grad = None
    for batch in batches:
        student.backward(objective.terms(student, pack(batch), counts)["prm"])
    named = [*student.model.named_parameters(), *objective.parameters]
    return {name: value.grad for name, value in named}


@pytest.mark.parametrize("kind", [Pairwise, Binary])
def test_all_weights_get_a_gradient_in_stage_two_and_a_split_changes_none(tiny_base, rated, kind, student_of):
    student = student_of(tiny_base)
    objective = objective_of(student, kind)
    counts = objective.counts(rated)
    whole = {k: v.clone() for k, v in gradients(student, objective, [rated], counts).items()}
    split = gradients(student, objective, [rated[:1], rated[1:]], counts)
    for name, value in whole.items():
        if kind is Pairwise and name == "head.bias":
            continue  # a constant hardly matters to a comparison
        assert value.abs().max() > 0, name
        assert (value - split[name]).abs().max() < 1e-4 * value.abs().max() + 1e-9, name


def test_only_the_last_block_and_the_head_get_a_gradient_in_stage_one(tiny_base, rated, student_of):
    student = student_of(tiny_base)
    train_last_block_only(student)
    objective = objective_of(student)
    found = gradients(student, objective, [rated], objective.counts(rated))
    for name, value in found.items():
        wanted = ".layers.1." in name or name.startswith("head.")
        assert (value is not None and bool(value.abs().max() > 0)) == wanted, name


def test_binary_is_cross_entropy_of_the_labels(tiny_base, rated, student_of):
    student = student_of(tiny_base)
    objective = objective_of(student, Binary)
    loss = objective.terms(student, pack(rated), objective.counts(rated))["prm"].item()
    model = RewardModel(student, objective.head, 2048)
    probabilities, known = [], []
    for group in rated:
        stops = [[i - 1 for i, t in enumerate(e.trained) if t] for e in group.examples]
        probabilities += itertools.chain(*model.scores(group.examples, stops))
        known += group.facts["labels"]
    labels, p = np.array(known), np.array(probabilities)
    assert loss == pytest.approx(-(labels * np.log(p) + (1 - labels) * np.log(1 - p)).mean(), rel=1e-4)


def test_scores_come_back_in_order_and_a_solution_without_steps_has_none(tiny_base, tokenizer, example_of, student_of):
    student = student_of(tiny_base)
    model = RewardModel(student, objective_of(student).head, part_tokens=64)
    made = [example_of("a\nb\n#### 2"), example_of("longer than the others\n#### 3"), example_of("c")]
    ends = [step_ends(e.ids, e.trained, tokenizer) for e in made]
    found = model.scores([*made, made[0]], [*ends, []])
    assert [len(row) for row in found] == [3, 2, 1, 0]
    for at, (example, stops) in enumerate(zip(made, ends, strict=True)):
        assert model.scores([example], [stops])[0] == pytest.approx(found[at], abs=1e-5)
    assert all(0 < value < 1 for value in itertools.chain(*found))


def test_a_head_survives_the_disk_and_a_damaged_one_is_refused(tmp_path):
    head = RewardHead(8)
    head.write(tmp_path)
    assert torch.equal(RewardHead.read(tmp_path).weight, head.weight)
    (tmp_path / "head.safetensors").write_bytes(b"no")
    with pytest.raises(ArtifactError, match=r"head\.safetensors: not a reward head"):
        RewardHead.read(tmp_path)

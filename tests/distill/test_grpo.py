"""Practice by GRPO: what a judge makes of rewards, and the advantages that lie on the tokens."""

from __future__ import annotations

import itertools

import pytest

torch = pytest.importorskip("torch")
from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from soloist.toolchain.distill.grpo import GrpoConfig, Judge, like_lengths, unpadded  # noqa: E402
from soloist.toolchain.distill.model import load_base  # noqa: E402
from soloist.toolchain.distill.rollouts import Rollout  # noqa: E402
from soloist.toolchain.tasks.base import Question  # noqa: E402

QUESTION = Question(id="q", question="Go", gold="14", scorer="number")


class Fixed:
    """Stands for a reward model: gives each step what it is told."""

    def __init__(self, tokenizer, scores):
        self.student = type("S", (), {"tokenizer": tokenizer})
        self.given = scores

    def scores(self, examples, ends):
        assert [len(stops) for stops in ends] == [len(row) for row in self.given]
        return self.given


def judged(tokenizer, variant):
    ids = [tokenizer(text)["input_ids"] for text in ("ab\ncd<|im_end|>", "x<|im_end|>")]
    made = [Rollout(row, [True] * len(row), answer) for row, answer in zip(ids, ("14", "13"), strict=True)]
    judge = Judge(Fixed(tokenizer, [[0.9, 0.3], [0.6]]), GrpoConfig(generations=2, tau=1e-4), variant)
    judge.judge([[1, 2, 3]] * 2, made, [QUESTION] * 2)
    return judge


def test_rewards_are_the_worst_step_and_the_answer(tokenizer):
    judge = judged(tokenizer, "paper")
    assert judge.step_reward() == pytest.approx([0.3, 0.6])
    assert judge.answer_reward() == [1.0, 0.0]
    assert judge.advantages(6).tolist() == [[pytest.approx(0.5**0.5)], [pytest.approx(-(0.5**0.5))]]


def test_released_advantages_lie_on_the_tokens_of_each_step(tokenizer):
    found = judged(tokenizer, "released").advantages(6)
    # rewards 2s - 1: (0.8, -0.4) and (0.2); 3 tokens each; answers +1 and -1
    last = -0.4 - 3 * 0.2 / 2 + 1
    assert found[0].tolist() == pytest.approx([-3 * 0.2 / 2 + last] * 3 + [last] * 3, abs=1e-6)
    assert found[1].tolist() == pytest.approx([0.2 + 2 * 0.4 / 6 - 1] * 2 + [0] * 4, abs=1e-6)


def test_rows_of_like_length_go_together():
    # longest first; 200 takes 195 (5 wasted) but not 100 (105), 100 takes nobody (12 would waste 88), 12 takes 10
    assert like_lengths([10, 200, 12, 195, 100], 8) == [[1, 3], [4], [2, 0]]
    assert like_lengths([10, 200, 12, 195, 100], 1) == [[1], [3], [4], [2], [0]]


@given(st.lists(st.integers(1, 300), min_size=1, max_size=40), st.integers(1, 9))
def test_every_row_is_read_once_and_little_is_wasted(lengths, most):
    groups = like_lengths(lengths, most)
    assert sorted(itertools.chain(*groups)) == list(range(len(lengths)))
    assert max(map(len, groups)) <= most
    for group in groups:
        assert sum(lengths[group[0]] - lengths[index] for index in group) <= 64


@pytest.mark.parametrize("most", [2, 8])
def test_leaving_the_padding_out_changes_neither_numbers_nor_gradients(tiny_base, most):
    model = load_base(tiny_base)[0]
    torch.manual_seed(0)
    prompts, answers = [5, 3, 9, 5, 4], [4, 150, 7, 2, 90]
    width, keep = max(prompts) + max(answers), max(answers)
    ids, mask = torch.zeros(5, width, dtype=torch.long), torch.zeros(5, width, dtype=torch.long)
    for row, (before, after) in enumerate(zip(prompts, answers, strict=True)):
        begin = max(prompts)
        mask[row, begin - before : begin + after] = 1
        ids[row, begin - before : begin + after] = torch.randint(3, 60, (before + after,))
    seen = []

    def read(ids, mask, keep):
        seen.append(ids.numel())
        logits = model(input_ids=ids, attention_mask=mask).logits.log_softmax(-1)
        logps = logits[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
        return logps[:, -keep:], -(logits.exp() * logits).sum(-1)[:, :-1][:, -keep:], None

    said = mask[:, -keep:]
    whole = [part * said for part in read(ids, mask, keep)[:2]]
    weights = torch.randn(5, keep)
    (whole[0] * weights).sum().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    padded = seen.pop()
    *parts, none = unpadded(read, ids, mask, keep, most)
    assert none is None
    for part, wanted in zip(parts, whole, strict=True):
        assert part.shape == (5, keep)
        torch.testing.assert_close(part * said, wanted, atol=1e-5, rtol=1e-5)
    (parts[0] * said * weights).sum().backward()
    for parameter, wanted in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, wanted, atol=1e-4, rtol=1e-4)
    assert sum(prompts) + sum(answers) <= sum(seen) < padded / 2

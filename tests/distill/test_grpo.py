"""Practice by GRPO: what a judge makes of rewards, and the advantages that lie on the tokens."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from soloist.toolchain.distill.grpo import GrpoConfig, Judge
from soloist.toolchain.distill.rollouts import Rollout
from soloist.toolchain.tasks.base import Question

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

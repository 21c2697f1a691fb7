"""Credit of sampled solutions: step rewards to one reward, rewards of a group to advantages. Pure functions.

    min form     credit_t = softmax(-r / tau)_t r_t        sums to about min(r) for a small tau
    z-score      A_i = (R_i - mean_G) / std_G              0 where all rewards of a group are equal
    released     min-form credit minus a baseline of the other samples, per token (see `released`)

A sum of step rewards grows by adding empty steps; the least of them does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_SAME = 1e-5  # far above rounding in fp32, far below what a step or an answer is worth


def min_form(rewards: Sequence[float], tau: float = 0.1) -> list[float]:
    """softmax(-r / tau)_t r_t: nearly all credit lies on the worst step."""
    values = np.asarray(rewards, dtype=np.float64)
    if not values.size:
        return []
    weights = np.exp(-(values - values.min()) / tau)
    credit: list[float] = (weights / weights.sum() * values).tolist()
    return credit


def softmin(rewards: Sequence[float], tau: float = 0.1) -> float:
    """The reward of a whole solution: the sum of its min-form credit; 0 for a solution without steps."""
    return float(sum(min_form(rewards, tau)))


def z_scores(rewards: Sequence[float]) -> list[float]:
    """Group-relative advantages, by the group's own standard deviation (n - 1 below); zeros where that is 0.

    Rewards closer than `_SAME` count as equal: one solution scored in two batches differs by rounding, and divided
    by its own size that would be an advantage like any other.
    """
    values = np.asarray(rewards, dtype=np.float64)
    centered = values - values.mean()
    if values.size < 2 or np.ptp(values) < _SAME:
        return [0.0] * values.size
    scores: list[float] = (centered / values.std(ddof=1)).tolist()
    return scores


def leave_one_out(rewards: Sequence[float]) -> list[float]:
    """R_i minus the mean of the others; zeros for a group of one."""
    if len(rewards) < 2:
        return [0.0] * len(rewards)
    total = sum(rewards)
    return [reward - (total - reward) / (len(rewards) - 1) for reward in rewards]


@dataclass(frozen=True)
class Solution:
    """A sampled solution: the reward and the number of tokens of each step, and whether its answer is right."""

    rewards: tuple[float, ...]
    tokens: tuple[int, ...]
    solved: bool


def released(group: Sequence[Solution], *, tau: float = 0.1, coefficient: float = 1.0) -> list[list[float]]:
    """The advantage of every step's tokens, as AgentArk's published code has it (taken over from PURE).

    A step earns its min-form credit minus (mean credit per token of the other samples) x (its tokens); the
    last one also `coefficient` times (solved - 1) minus the others' mean of that. A token's advantage is what
    its step and the later ones earn.
    """
    credits = [min_form(solution.rewards, tau) for solution in group]
    answers = leave_one_out([float(solution.solved) - 1.0 for solution in group])
    total_credit = sum(map(sum, credits))
    total_tokens = sum(sum(solution.tokens) for solution in group)
    advantages = []
    for solution, credit, answer in zip(group, credits, answers, strict=True):
        others = total_tokens - sum(solution.tokens)
        baseline = (total_credit - sum(credit)) / others if others else 0.0
        earned = np.asarray(credit) - baseline * np.asarray(solution.tokens)
        if len(earned):
            earned[-1] += coefficient * answer
        advantages.append(np.cumsum(earned[::-1])[::-1].tolist())
    return advantages

"""Credit on toy groups, by hand and in float64 numpy."""

from __future__ import annotations

import numpy as np
import pytest

from soloist.toolchain.distill.credit import Solution, leave_one_out, min_form, released, softmin, z_scores


def test_min_form_is_the_formula():
    rewards = [0.9, 0.2, 0.5]
    weights = np.exp(-np.array(rewards) / 0.1)
    assert min_form(rewards, 0.1) == pytest.approx((weights / weights.sum() * rewards).tolist(), rel=1e-12)


def test_min_form_sums_to_the_least_reward_as_tau_falls():
    rewards = [0.9, 0.2, 0.5]
    gaps = [abs(softmin(rewards, tau) - 0.2) for tau in (1.0, 0.3, 0.1, 0.03, 0.001)]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 1e-12
    assert min_form(rewards, 1e-3) == pytest.approx([0, 0.2, 0], abs=1e-12)
    assert softmin(rewards, 1e9) == pytest.approx(np.mean(rewards))  # and to the mean as it grows


def test_an_empty_solution_earns_nothing_and_extreme_rewards_do_not_overflow():
    assert min_form([]) == []
    assert softmin([]) == 0.0
    assert softmin([-1e6, 1e6], 1e-3) == pytest.approx(-1e6)


def test_a_further_good_step_does_not_raise_the_reward_of_a_bad_one():
    assert softmin([0.1, 0.9]) <= softmin([0.1]) * 1.01
    assert softmin([0.1] * 2) == pytest.approx(softmin([0.1]))


def test_z_scores_of_a_toy_group():
    assert z_scores([1, 0, 0, 1]) == pytest.approx([0.75**0.5, -(0.75**0.5), -(0.75**0.5), 0.75**0.5])
    got = z_scores([0.3, 1.7, 0.9])
    assert np.mean(got) == pytest.approx(0, abs=1e-12)
    assert np.std(got, ddof=1) == pytest.approx(1)


@pytest.mark.parametrize("rewards", [[0.4, 0.4, 0.4], [0.1 + 0.2, 0.3], [0.7, 0.7 + 1e-7, 0.7 - 1e-7], [1.0]])
def test_a_group_of_equals_has_no_advantage_and_no_nan(rewards):
    assert z_scores(rewards) == [0.0] * len(rewards)


def test_leave_one_out_of_a_toy_group():
    assert leave_one_out([3, 0, 0]) == [3, -1.5, -1.5]
    assert leave_one_out([2]) == [0.0]
    assert sum(leave_one_out([0.3, 1.7, 0.9])) == pytest.approx(0)


def test_released_credit_of_a_toy_group():
    """Two solutions; tau so small that all credit lies on the worst step."""
    group = [Solution((0.8, -0.4), (5, 3), True), Solution((0.2,), (4,), False)]
    first, second = released(group, tau=1e-4)
    # min form: (0, -0.4) and (0.2,); credit per token of the other: 0.2 / 4 and -0.4 / 8
    # answers: 0 and -1, minus the other's: +1 and -1
    assert first == pytest.approx([(0 - 5 * 0.05) + (-0.4 - 3 * 0.05 + 1), -0.4 - 3 * 0.05 + 1])
    assert second == pytest.approx([0.2 + 4 * 0.05 - 1])


def test_released_credit_without_steps_or_answers():
    group = [Solution((), (), False), Solution((0.5,), (2,), True)]
    assert released(group, coefficient=0.0) == [[], [0.5]]

"""Known answers: Newcombe 1998 (both papers), the classic order-statistic ranks, hand-counted binomials."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from soloist.toolchain.core.statistics import (
    Interval,
    average_ranks,
    central,
    mcnemar,
    mean_interval,
    median_range,
    newcombe,
    paired_difference,
    percentile,
    percentile_interval,
    smallest_sample,
    spearman,
    wilson,
)


# Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3.
@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_matches_published_table(correct, n, low, high):
    interval = wilson(correct, n)
    assert interval.value == correct / n
    assert (round(interval.low, 4), round(interval.high, 4)) == (low, high)


def test_wilson_touches_the_border_exactly():
    assert wilson(0, 7).low == 0.0
    assert wilson(7, 7).high == 1.0


@pytest.mark.parametrize(("correct", "n"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_no_share(correct, n):
    with pytest.raises(ValueError, match="no share"):
        wilson(correct, n)


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_its_estimate_and_mirrors(case):
    correct, n = case
    one, other = wilson(correct, n), wilson(n - correct, n)
    assert 0 <= one.low <= one.value <= one.high <= 1
    assert math.isclose(one.low, 1 - other.high, abs_tol=1e-12)


# Newcombe, Statistics in Medicine 17 (1998) 2635-2650, method 10; and the airway data of Bentur et al.
@pytest.mark.parametrize(
    ("cells", "difference", "low", "high"),
    [((36, 12, 2, 0), 0.2, 0.0569, 0.3404), ((1, 1, 7, 12), -6 / 21, -0.5069, -0.0256)],
)
def test_newcombe_matches_published_examples(cells, difference, low, high):
    interval = newcombe(*cells)
    assert math.isclose(interval.value, difference)
    assert (round(interval.low, 4), round(interval.high, 4)) == (low, high)


@given(st.tuples(*[st.integers(0, 60)] * 4).filter(lambda c: sum(c) > 0))
def test_newcombe_mirrors_when_the_systems_swap(cells):
    both, first, second, neither = cells
    there, back = newcombe(both, first, second, neither), newcombe(both, second, first, neither)
    assert -1 <= there.low <= there.value <= there.high <= 1
    assert math.isclose(there.low, -back.high, abs_tol=1e-12)


def test_newcombe_is_narrower_when_answers_go_together():
    together, apart = newcombe(80, 10, 5, 5), newcombe(75, 15, 10, 0)
    assert together.high - together.low < apart.high - apart.low


def test_mcnemar_counts_the_tail_by_hand():
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(1, 7) == 2 * (1 + 8) / 2**8
    assert mcnemar(12, 2) == 2 * (1 + 14 + 91) / 2**14
    assert mcnemar(5, 5) == 1.0


def test_paired_difference_counts_the_table():
    first = [True, True, True, False, False]
    second = [True, False, False, True, False]
    paired = paired_difference(first, second)
    assert (paired.both, paired.only_first, paired.only_second, paired.neither) == (1, 2, 1, 1)
    assert math.isclose(paired.difference.value, 0.2)
    assert paired.p_value == 1.0
    assert paired.agreement == 0.4


@pytest.mark.parametrize(("first", "second"), [([], []), ([True], [True, False])])
def test_paired_difference_refuses_unpaired(first, second):
    with pytest.raises(ValueError, match="paired"):
        paired_difference(first, second)


@pytest.mark.parametrize(("q", "n"), [(0.5, 6), (0.9, 36), (0.95, 72), (0.99, 368)])
def test_smallest_sample_is_where_the_interval_begins(q, n):
    assert smallest_sample(q) == n
    assert percentile_interval(range(n - 1), q) is None
    interval = percentile_interval(range(n), q)
    assert interval is not None
    assert interval.high == n - 1


def test_percentile_interval_uses_the_classic_ranks():
    # Median of 100: ranks 40 and 61, in every table of the sign test.
    interval = percentile_interval(list(range(100, 0, -1)), 0.5)
    assert (interval.value, interval.low, interval.high) == (50.5, 40.0, 61.0)


@pytest.mark.parametrize(("n", "q"), [(40, 0.5), (50, 0.9), (100, 0.95), (400, 0.95)])
def test_percentile_interval_covers_and_no_narrower_one_does(n, q):
    def at_most(k):
        return sum(math.comb(n, i) * q**i * (1 - q) ** (n - i) for i in range(k + 1))

    interval = percentile_interval(list(range(1, n + 1)), q)
    low, high = int(interval.low), int(interval.high)
    assert at_most(low - 1) <= 0.025 < at_most(low)
    assert 1 - at_most(high - 1) <= 0.025 < 1 - at_most(high - 2)


def test_percentile_is_linear_between_order_statistics():
    assert percentile([4.0, 1.0, 2.0, 3.0], 0.5) == 2.5
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)


def test_an_interval_in_points():
    assert Interval(0.12345, -0.5, 1 / 3).points() == (12.35, -50.0, 33.33)
    assert Interval(0.12345, -0.5, 1 / 3).points(0) == (12, -50, 33)


def test_rounds_are_told_by_median_and_range():
    assert median_range([3.04, 1.0, 2.0], 1) == {"median": 2.0, "low": 1.0, "high": 3.0, "n": 3}


def test_the_central_interval_of_draws():
    assert central(range(1001)) == (25, 975)


def test_average_ranks_share_the_mean_of_ties():
    assert average_ranks(np.array([10.0, 30.0, 10.0, 20.0, 30.0, 30.0])).tolist() == [1.5, 5, 1.5, 3, 5, 5]
    many = np.repeat([3.0, 1.0, 2.0], 40)  # more than are compared pair by pair
    assert average_ranks(many).tolist() == [100.5] * 40 + [20.5] * 40 + [60.5] * 40


def test_spearman_by_hand():
    # ranks 1 2 3 4 and 2 1 4 3: 1 - 6 * 4 / (4 * 15)
    assert spearman(np.array([1.0, 2, 3, 4]), np.array([20.0, 10, 400, 30])) == pytest.approx(1 - 24 / 60)
    assert spearman(np.array([1.0, 2]), np.array([3.0, 3])) is None


def test_the_interval_of_a_mean_covers_it_and_agrees_with_the_normal_one():
    values = list(np.random.default_rng(1).normal(5.0, 2.0, 400))
    interval = mean_interval(values)
    assert interval.value == pytest.approx(float(np.mean(values)))
    assert interval.low < interval.value < interval.high
    half = 1.96 * float(np.std(values)) / 20
    assert interval.high - interval.value == pytest.approx(half, rel=0.15)
    assert interval.value - interval.low == pytest.approx(half, rel=0.15)
    assert mean_interval(values) == interval, "the same at every call"
    assert mean_interval([3.0]).low == mean_interval([3.0]).high == 3.0

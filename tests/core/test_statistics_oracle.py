"""Our intervals, tests and ranks against scipy's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from soloist.toolchain.core.statistics import (
    average_ranks,
    mcnemar,
    percentile,
    percentile_interval,
    smallest_sample,
    spearman,
    wilson,
)

oracle = pytest.importorskip("scipy.stats", reason="scipy is not installed: pip install 'soloist[test]'")


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_scipys(case):
    correct, n = case
    ours, theirs = wilson(correct, n), oracle.binomtest(correct, n).proportion_ci(method="wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


@given(st.integers(0, 80), st.integers(0, 80))
def test_mcnemar_is_scipys_binomial_test(first, second):
    expected = oracle.binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar(first, second) == pytest.approx(expected, rel=1e-9)


@given(st.lists(st.integers(-50, 50), min_size=6, max_size=400), st.sampled_from([0.1, 0.5, 0.9, 0.95]))
def test_percentiles_and_their_intervals_are_scipys(values, q):
    assert percentile(values, q) == pytest.approx(float(oracle.mstats.mquantiles(values, [q], 1, 1)[0]))
    interval = percentile_interval(values, q)
    ranks = oracle.binom.ppf([0.025, 0.975], len(values), q)
    if interval is None:
        assert len(values) < smallest_sample(q)
    else:
        ordered = sorted(values)
        assert interval.low == ordered[int(ranks[0]) - 1]
        assert interval.high == ordered[int(ranks[1])]


numbers = st.lists(st.integers(0, 9), min_size=2, max_size=150)


@given(numbers)
def test_ranks_are_scipys(values):
    assert average_ranks(np.array(values, dtype=float)).tolist() == oracle.rankdata(values).tolist()


@given(st.integers(2, 100).flatmap(lambda n: st.tuples(*[st.lists(st.integers(0, 9), min_size=n, max_size=n)] * 2)))
def test_the_rank_correlation_is_scipys(pair):
    first, second = (np.array(values, dtype=float) for values in pair)
    ours = spearman(first, second)
    if len(set(first)) == 1 or len(set(second)) == 1:
        assert ours is None
    else:
        assert ours == pytest.approx(oracle.spearmanr(first, second).statistic, abs=1e-12)

"""Intervals and tests for small samples: what n questions can show, and no more.

    accuracy       Wilson score interval
    difference     paired: Newcombe's square-and-add interval, and McNemar's exact test
    percentile     order statistics: no shape assumed; refused where the sample is too small
    rank correlation, and the central 95 % of what was resampled

Closed forms instead of resampling wherever they exist: the same answers always give the same interval,
with no seed to report. scipy is the oracle of the tests and is not imported here: its ranks are the same numbers, 2 to
9 times slower at the sizes that come (15 to 70 values, a thousand times over), after an import of a second. Left out
on purpose: corrections for many comparisons, and any mean of latencies (a mean of a long-tailed sample answers no
question that a user has).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Z95 = 1.959963984540054  # 97.5 % quantile of the standard normal distribution
_DIGITS = 9  # values that differ by rounding errors only are ties
_EPSILON = 1e-12
_FEW = 64


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % interval."""

    value: float
    low: float
    high: float

    def points(self, digits: int = 2) -> tuple[float, float, float]:
        """Value, low and high in percentage points."""
        return round(100 * self.value, digits), round(100 * self.low, digits), round(100 * self.high, digits)


@dataclass(frozen=True)
class Paired:
    """Two systems on the same questions: `difference` = first - second, the 2x2 counts, exact p."""

    difference: Interval
    both: int
    only_first: int
    only_second: int
    neither: int
    p_value: float

    @property
    def agreement(self) -> float:
        """Share of questions on which both are right or both are wrong."""
        return (self.both + self.neither) / (self.both + self.neither + self.only_first + self.only_second)


def wilson(correct: int, n: int) -> Interval:
    """Share of `correct` in `n` with its Wilson score interval. n = 0 is refused: there is no share."""
    if not 0 <= correct <= n or n == 0:
        raise ValueError(f"no share of {correct} in {n}")
    share, spread = correct / n, Z95 * Z95 / n
    center = share + spread / 2
    half = math.sqrt(Z95 * Z95 * share * (1 - share) / n + spread * spread / 4)
    # The ends are exact at the borders; the formula misses them by a rounding error.
    low = 0.0 if correct == 0 else (center - half) / (1 + spread)
    high = 1.0 if correct == n else (center + half) / (1 + spread)
    return Interval(share, low, high)


def paired_difference(first: Sequence[bool], second: Sequence[bool]) -> Paired:
    """Accuracy of `first` minus that of `second` on the same questions in the same order.

    The interval is Newcombe's hybrid score interval for paired proportions (1998, method 10), whose
    correlation takes a continuity correction; the p-value is McNemar's exact one.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"paired answers needed, got {len(first)} and {len(second)}")
    pairs = list(zip(first, second, strict=True))
    both = sum(a and b for a, b in pairs)
    only_first = sum(a and not b for a, b in pairs)
    only_second = sum(b and not a for a, b in pairs)
    neither = len(pairs) - both - only_first - only_second
    interval = newcombe(both, only_first, only_second, neither)
    return Paired(interval, both, only_first, only_second, neither, mcnemar(only_first, only_second))


def newcombe(both: int, only_first: int, only_second: int, neither: int) -> Interval:
    """Newcombe's interval of a paired difference, from the 2x2 counts."""
    n = both + only_first + only_second + neither
    one, two = wilson(both + only_first, n), wilson(both + only_second, n)
    phi = _correlation(both, only_first, only_second, neither)
    difference = (only_first - only_second) / n

    def side(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a * a - 2 * phi * a * b + b * b))

    below = side(one.value - one.low, two.high - two.value)
    above = side(one.high - one.value, two.value - two.low)
    return Interval(difference, max(-1.0, difference - below), min(1.0, difference + above))


def _correlation(a: int, b: int, c: int, d: int) -> float:
    margins = (a + b) * (c + d) * (a + c) * (b + d)
    if margins == 0:
        return 0.0
    product = float(a * d - b * c)
    if product > 0:
        product = max(0.0, product - (a + b + c + d) / 2)
    return product / math.sqrt(margins)


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided exact p that the questions only one of two systems solves fall evenly on both."""
    n, low = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(n, k) for k in range(low + 1))
    return min(1.0, 2 * tail / (1 << n))


def percentile(values: Sequence[float], q: float) -> float:
    """The q-th quantile (0 < q < 1), linear between order statistics."""
    if not values:
        raise ValueError("no values")
    return float(np.quantile(np.asarray(values, dtype=np.float64), q))


def median_range(values: Sequence[float], digits: int) -> dict[str, float]:
    """`median`, `low` and `high` of rounds of a measurement, rounded, and how many: `n`."""
    low, middle, high = (round(value, digits) for value in (min(values), percentile(values, 0.5), max(values)))
    return {"median": middle, "low": low, "high": high, "n": len(values)}


def smallest_sample(q: float) -> int:
    """The least n with a two-sided 95 % order-statistic interval of quantile q (0.9: 36, 0.95: 72, 0.99: 368)."""
    return math.ceil(math.log(0.025) / math.log(max(q, 1 - q)))


def percentile_interval(values: Sequence[float], q: float) -> Interval | None:
    """Quantile q with a distribution-free 95 % interval; None below `smallest_sample(q)` values."""
    n = len(values)
    if n < smallest_sample(q):
        return None
    cumulative = _binomial_cdf(n, q)
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    # 1-based ranks: at most 2.5 % chance that the quantile lies below rank `low`, and above rank `high`.
    low = int(np.searchsorted(cumulative, 0.025, side="right"))
    high = int(np.searchsorted(cumulative, 0.975, side="left")) + 1
    return Interval(percentile(values, q), float(ordered[low - 1]), float(ordered[high - 1]))


def _binomial_cdf(n: int, q: float) -> Array:
    logs = [
        math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * math.log(q) + (n - k) * math.log1p(-q)
        for k in range(n + 1)
    ]
    return np.cumsum(np.exp(np.asarray(logs, dtype=np.float64)))


def mean_interval(values: Sequence[float], resamples: int = 2000, seed: int = 0) -> Interval:
    """The mean of `values` with its 95 % bootstrap percentile interval (Efron), the same at every call."""
    array = np.asarray(values, dtype=np.float64)
    if not len(array):
        raise ValueError("the mean of no values")
    draws = np.random.default_rng(seed).integers(0, len(array), (resamples, len(array)))
    low, high = central(array[draws].mean(axis=1))
    return Interval(float(array.mean()), low, high)


def central(draws: Sequence[float] | Array) -> tuple[float, float]:
    """The 2.5 % and 97.5 % quantiles of resampled values: a bootstrap's percentile interval."""
    low, high = np.quantile(np.asarray(draws, dtype=np.float64), [0.025, 0.975])
    return float(low), float(high)


def average_ranks(values: Array) -> Array:
    """Ranks from 1; equal values share the mean of theirs."""
    if len(values) <= _FEW:  # all comparisons at once: twice as fast as sorting so few
        below, same = values[:, None] > values, values[:, None] == values
        few: Array = below.sum(axis=1) + (same.sum(axis=1) + 1) / 2
        return few
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean: Array = last - (counts - 1) / 2
    return mean[inverse]


def unit_ranks(values: Array) -> Array | None:
    """Ranks about their mean, of length one, so that products are rank correlations; None where all are equal."""
    if not len(values):
        return None
    ranks = average_ranks(np.round(values, _DIGITS))
    ranks = ranks - ranks.mean()
    length = float(np.sqrt(ranks @ ranks))
    return ranks / length if length > _EPSILON else None


def spearman(first: Array, second: Array) -> float | None:
    """Rank correlation; None where a side is constant."""
    one, two = unit_ranks(first), unit_ranks(second)
    if one is None or two is None:
        return None
    return float(np.clip(one @ two, -1, 1))

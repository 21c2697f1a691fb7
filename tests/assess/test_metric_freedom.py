"""Metric Freedom against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from soloist.toolchain.assess import metric_freedom as mf
from soloist.toolchain.assess.metric_freedom import Table, mantel, metric_freedom, warnings
from soloist.toolchain.core.statistics import spearman


def table(pairs, scores, name="q"):
    """Distances given pair by pair: 01, 02, 03, .., 12, 13, .."""
    n = len(scores)
    square = np.zeros((n, n))
    i, j = np.triu_indices(n, 1)
    square[i, j] = square[j, i] = pairs
    return Table(name, square, np.asarray(scores, dtype=float))


def differences(scores):
    scores = np.asarray(scores, dtype=float)
    i, j = np.triu_indices(len(scores), 1)
    return np.abs(scores[i] - scores[j])


def free(tables):
    return metric_freedom(tables, "output", "verdict")


def test_distances_that_order_as_the_scores_do_give_f_0():
    scores = [0, 1, 3, 7]  # all six differences differ, so no renaming but none keeps their order
    freedom = free([table(differences(scores) ** 3 / 400, scores)])
    assert freedom.value == pytest.approx(0, abs=1e-12)
    assert freedom.p == pytest.approx(1 / 24)
    assert freedom.exact
    assert freedom.questions[0].permutations == 24


def test_distances_in_reverse_give_f_2():
    scores = [0, 1, 3, 7]
    assert free([table(8 - differences(scores), scores)]).value == pytest.approx(2)


def test_a_constructed_zero_correlation_gives_f_1():
    # pairs 01 and 23 tie in score; their distances have ranks 1 and 6, the mean rank of all pairs
    assert free([table([1, 2, 3, 4, 5, 6], [0, 0, 1, 1])]).value == pytest.approx(1)


def test_r_and_p_with_ties_by_hand():
    # ranks of distances 1 3 4 5 6 2, of score differences 1.5 4.5 4.5 4.5 4.5 1.5: r = 12 / sqrt(17.5 * 12)
    one = mantel(table([0.1, 0.3, 0.4, 0.5, 0.6, 0.2], [0, 0, 1, 1]))
    assert one.r == pytest.approx(12 / math.sqrt(210))
    # 24 orders fall into three ways to pair four runs, eight orders each; only the observed one reaches r
    assert one.p == pytest.approx(8 / 24)


@pytest.mark.parametrize(
    ("pairs", "scores", "why"),
    [
        ([1, 2, 3, 4, 5, 6], [1, 1, 1, 1], "every run has the score 1"),
        ([0] * 6, [0, 1, 0, 1], "all runs say the same"),
        ([0.5] * 6, [0, 1, 0, 1], "all pairs of runs are equally far apart"),
        ([1], [0, 1], "2 runs, at least 3 are needed"),
    ],
)
def test_constant_sides_leave_f_undefined_and_say_why(pairs, scores, why):
    freedom = free([table(pairs, scores)])
    assert (freedom.value, freedom.p, freedom.low, freedom.high, freedom.exact) == (None, None, None, None, False)
    assert freedom.questions[0].why == why
    assert freedom.defined == 0
    assert any(why in line for line in warnings(freedom))


def test_rounding_errors_are_ties():
    noisy = [0.1 + 0.2, 0.3, 0.3, 0.3, 0.3, 0.3]
    assert mantel(table(noisy, [0, 1, 0, 1])).r is None


@given(
    st.lists(st.integers(0, 5), min_size=10, max_size=10),
    st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=5, max_size=5),
    st.permutations(range(5)),
)
def test_renaming_runs_changes_nothing(pairs, scores, order):
    first = table(pairs, scores)
    second = Table("q", first.distances[np.ix_(order, order)], first.scores[list(order)])
    one, two = mantel(first), mantel(second)
    assert (one.r is None) == (two.r is None)
    if one.r is not None:
        assert two.r == pytest.approx(one.r)
        assert two.p == pytest.approx(one.p)
        assert 1 / 120 <= one.p <= 1


def test_p_is_uniform_where_nothing_is_there():
    rng = np.random.default_rng(1)
    ps = np.array([mantel(table(rng.random(15), rng.random(6))).p for _ in range(400)])
    grid = np.linspace(0.05, 0.95, 19)
    reached = np.array([(ps <= level).mean() for level in grid])
    assert np.max(np.abs(reached - grid)) < 1.63 / math.sqrt(len(ps)), "Kolmogorov's 1 % bound"


def test_p_is_small_where_something_is_there_and_sampling_agrees_with_counting(monkeypatch):
    rng = np.random.default_rng(2)
    scores = rng.random(7)
    one = table(differences(scores) + 0.25 * rng.random(21), scores)
    exact = mantel(one)
    monkeypatch.setattr(mf, "EXACT_UP_TO", 4)
    sampled = mantel(one, draws=4000)
    assert exact.exact
    assert not sampled.exact
    assert len(exact.null) == 5040
    assert exact.p < 0.05
    assert sampled.r == exact.r
    assert sampled.p == pytest.approx(exact.p, abs=0.01)
    assert sampled.p > 0


def test_above_eight_runs_orders_are_sampled():
    scores = list(range(9))
    freedom = free([table(differences(scores), scores)])
    assert freedom.value == pytest.approx(0, abs=1e-12)
    assert not freedom.exact
    assert freedom.questions[0].permutations == mf.DRAWS + 1
    assert freedom.p <= 0.001


def test_a_set_takes_the_mean_r_of_its_defined_questions():
    scores = [0, 1, 3, 7]
    one, none = table(differences(scores), scores, "one"), table([1, 2, 3, 4, 5, 6], [0, 0, 1, 1], "none")
    constant = table([1, 2, 3, 4, 5, 6], [1, 1, 1, 1], "constant")
    freedom = free([one, none, constant])
    assert freedom.value == pytest.approx(0.5)
    assert freedom.defined == 2
    assert not freedom.exact
    assert [question.question for question in freedom.questions] == ["one", "none", "constant"]
    both = mantel(one).null[:, None] + mantel(none).null[None, :]  # every order of one with every order of the other
    assert freedom.p == pytest.approx(np.mean(both >= 1 - 1e-9), abs=0.01)


def test_one_defined_question_has_an_exact_p_in_a_set():
    scores = [0, 1, 3, 7]
    freedom = free([table(differences(scores), scores), table([1, 2, 3, 4, 5, 6], [0, 0, 0, 0])])
    assert freedom.exact
    assert freedom.p == pytest.approx(1 / 24)


def test_two_questions_together_show_more_than_one():
    scores = [0, 1, 3, 7]
    one = table(differences(scores), scores)
    assert free([one, one]).p < free([one]).p


def test_the_interval_holds_the_value_and_narrows_with_questions():
    rng = np.random.default_rng(3)

    def made(count):
        tables = []
        for _ in range(count):
            scores = rng.random(6)
            tables.append(table(differences(scores) + 0.4 * rng.random(15), scores))
        return free(tables)

    few, many = made(3), made(24)
    assert few.low <= few.value <= few.high
    assert many.low <= many.value <= many.high
    assert many.high - many.low < few.high - few.low


def test_no_interval_where_resamples_are_mostly_constant():
    # one run of six is wrong on one of six questions: most resamples never see it, or see nothing else
    pairs = [1.0] * 5 + [0.0] * 10
    quiet = [table(pairs, [1] * 6, f"q{i}") for i in range(5)]
    freedom = free([*quiet, table(pairs, [0, 1, 1, 1, 1, 1])])
    assert freedom.value == pytest.approx(0, abs=1e-9)
    assert (freedom.low, freedom.high) == (None, None)


def simulated(rng):
    """Six runs that say a point of the plane; the score follows one of its coordinates more or less."""
    outputs, follows = rng.normal(size=(6, 2)), rng.uniform(0.4, 1)
    scores = follows * outputs[:, 0] + np.sqrt(1 - follows**2) * rng.normal(size=6)
    return Table("q", np.linalg.norm(outputs[:, None] - outputs[None], axis=-1), scores)


def test_the_interval_is_wide_enough():
    rng = np.random.default_rng(4)
    i, j = np.triu_indices(6, 1)
    many = (simulated(rng) for _ in range(1500))
    true = 1 - np.mean([spearman(one.distances[i, j], differences(one.scores)) for one in many])
    spans = [mf.bootstrap([simulated(rng) for _ in range(6)], seed=n, resamples=50) for n in range(40)]
    assert sum(low <= true <= high for low, high in spans) >= 37, "95 % of 40 is 38"
    assert np.mean([high - low for low, high in spans]) < 1.2, "F lies in 0..2: an interval of all of it holds anything"


def test_resamples_that_all_agree_are_no_interval():
    rigid = table([1.0, 1, 1, 0, 0, 0], [0, 1, 1, 1])  # the one that is wrong says something else
    freedom = free([rigid] * 6)
    assert freedom.value == pytest.approx(0, abs=1e-9)
    assert freedom.p < 0.01
    assert (freedom.low, freedom.high) == (None, None)


def test_warnings_name_few_runs_ties_and_constant_scores():
    freedom = free([table([1, 2, 3, 4, 5, 6], [0, 0, 1, 1]), table(range(15), [1] * 6)])
    text = " | ".join(warnings(freedom))
    assert "1 of 2 questions have fewer than 6 runs (down to 4)" in text
    assert "undefined on 1 of 2 questions: every run has the score 1" in text
    # two of six pairs and all of fifteen tie
    assert freedom.tied == pytest.approx(17 / 21)
    assert "81% of the pairs of runs tie" in text
    clean = free([table(differences([0, 1, 3, 7, 15, 31]), [0, 1, 3, 7, 15, 31])])
    assert warnings(clean) == []

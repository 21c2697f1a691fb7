"""Distances between sequences and texts, worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soloist.toolchain.traces.distance import edit_distance, tokens


@pytest.mark.parametrize(
    ("first", "second", "distance"),
    [
        ("kitten", "sitting", 3 / 7),
        ("", "", 0),
        ("", "abc", 1),
        ("abc", "abc", 0),
        ("ab", "cd", 1),
        ("ab", "xaby", 0.5),
    ],
)
def test_edit_distance_over_the_longer_length(first, second, distance):
    assert edit_distance(first, second) == pytest.approx(distance)


@given(*[st.lists(st.integers(0, 3), max_size=6)] * 3)
def test_edits_are_a_distance(a, b, c):
    assert edit_distance(a, b) == edit_distance(b, a) and (edit_distance(a, b) == 0) == (a == b)
    unnormalized = [edit_distance(x, y) * max(len(x), len(y)) for x, y in ((a, c), (a, b), (b, c))]
    assert unnormalized[0] <= unnormalized[1] + unnormalized[2] + 1e-9


def test_tokens_are_words_numbers_and_signs():
    assert tokens("Solve(3.5*x = -12)") == ("solve", "(", "3.5", "*", "x", "=", "-", "12", ")")

"""Votes: answers that say the same count together."""

from __future__ import annotations

import pytest

from soloist.toolchain.teams.voting import fold_answer, majority


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("5", "5.0", True),
        ("1/2", "0.5", True),
        (".5", "1/2", True),
        ("1,000", "1000", True),
        ("$5", "5", True),
        ("-1,234.50", "-1234.5", True),
        ("5%", "5", True),
        ("5 .", "5", True),
        (r"\frac{1}{2}", "0.5", True),
        ("Monday", " monday.", True),
        ("Mon", "Tue", False),
        ("5", "6", False),
        ("-5", "5", False),
        ("12:30", "08:30", False),
        ("12:30", "30", False),
        ("2022-10-28", "28", False),
        ("x=5", "5", False),
        ("ab5", "5", False),
        ("1, 2, 3", "1, 3, 2", False),
        ("3 km", "3 m", False),
        ("2 < 5", "5 < 2", False),
    ],
)
def test_answers_that_say_the_same_fold_to_the_same(one, other, same):
    assert (fold_answer(one) == fold_answer(other)) is same


@pytest.mark.parametrize(
    ("answers", "winner", "share"),
    [
        (["5", "6", "5.0"], "5", 2 / 3),
        (["6", "5"], "6", 1 / 2),
        ([None, "5", None, ""], "5", 1 / 4),
        ([None, ""], None, 0.0),
        ([], None, 0.0),
    ],
)
def test_majority_and_its_share_of_all_voters(answers, winner, share):
    assert majority(answers) == (winner, pytest.approx(share))

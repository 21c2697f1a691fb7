"""Attempts as conversations, what is right, and the distance between two."""

from __future__ import annotations

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from soloist.toolchain.distill.methods.attempts import answered_attempts, distance, firsts, lasts, right_attempts  # noqa: E402
from soloist.toolchain.distill.stage import recheck  # noqa: E402
from soloist.toolchain.distill.work import Setup  # noqa: E402
from soloist.toolchain.traces.graph import graph_of  # noqa: E402


@pytest.fixture
def setup(tokenizer):
    return Setup(tokenizer, recheck)


def pair(debate_of, setup, one, other):
    return answered_attempts(debate_of([[one, other]]), setup)


def test_equal_attempts_are_no_distance_apart_whatever_the_answers_form(debate_of, setup):
    one, other = pair(debate_of, setup, "5 + 7 makes 12", "5 + 7 makes 12.0")
    assert one.text != other.text
    assert distance(one, other) == distance(one, one) == 0


def test_distance_is_half_operations_half_words(debate_of, setup):
    one, other = pair(debate_of, setup, ("add(5+7) = 12",), ("mul(3+4) = 12",))
    # operations: 1 of 1 differs. Words: `add ( 5 + 7 )` against `mul ( 3 + 4 )`, 3 of 6 differ
    assert distance(one, other) == pytest.approx((1 + 3 / 6) / 2)
    assert distance(one, other) == distance(other, one)


def test_in_plain_text_the_signs_between_numbers_are_the_operations(debate_of, setup):
    one, other = pair(debate_of, setup, "5 + 7 makes 12", "20 - 8 makes 12")
    assert (one.operations, other.operations) == (("+",), ("-",))
    plain, wordy = pair(debate_of, setup, "well-known: 12", "I guess 12")
    assert plain.operations == wordy.operations == ()
    # `well - known : ANSWER` against `i guess ANSWER`: 4 edits over 5 words, and nothing else to count
    assert distance(plain, wordy) == pytest.approx(4 / 5)


def test_right_attempts_pass_the_same_tests_as_a_runs_answer(debate_of, setup):
    run = debate_of(
        [
            [("add(5+7) = 12",), ("add(5+7) = 13",), ("add(4+7) = 12",)],
            [("add(5+7) ! no", "add(6+6) = 12"), "6 + 6 = 12", "6 + 5 = 12"],
        ]
    )
    found = right_attempts(run, setup)
    assert [(a.node.agent, a.node.attempt, a.corrective) for a in found] == [("a", 0, False), ("b", 1, True)]
    assert [a.node.agent for a in firsts(found)] == ["a"]
    assert [(n.agent, n.attempt) for n in lasts(graph_of(run))] == [("a", 1), ("b", 1), ("c", 1)]


def test_reasons_are_given_where_nothing_is_right(debate_of, setup):
    assert right_attempts(debate_of([["I say 13", "I say 14"]]), setup) == "no correct attempt"
    assert right_attempts(debate_of([["I say 12", "I say 12"]], graded=False), setup) == "attempts are not graded"
    assert right_attempts(debate_of([["I say 13", "6 + 5 = 12"]]), setup) == "a worked step does not re-check"
    assert right_attempts(debate_of([[None, None]]), setup) == "no attempt of an answering agent"
    short = replace(setup, max_length=16)
    assert right_attempts(debate_of([["I say 12", "I say 13"]]), short) == "longer than 16 tokens"
    assert (
        answered_attempts(debate_of([[("add(5+7) ! no",), ("add(5+7) ! no",)]]), setup)
        == "an attempt without an answer"
    )


def test_an_answered_attempt_may_be_wrong(debate_of, setup):
    found = answered_attempts(debate_of([[("add(5+7) = 13",), ("add(5+7) ! no",), "I say 12"]]), setup)
    assert [a.node.answer for a in found] == ["13", "12"]

"""Plan, solve, criticize, revise."""

from __future__ import annotations

import pytest

from soloist.kernels.errors import UsageError

ROLES = ["planner", "solver", "critic"]


def test_approved_draft_is_the_answer(play, edges):
    run, engine = play("planner-solver-critic", ROLES, ["Add them.", "#### 5", "approved, well done"])
    assert (run.answer, run.verdict, run.path) == ("5", "correct", (0, 1))
    assert [turn.role for turn in run.turns] == ROLES
    assert edges(run, "influence") == [(0, 1), (1, 2)]
    assert edges(run, "agrees") == [(1, 2)]
    assert "Plan:\nAdd them." in engine.asks[1].messages[-1]["content"]
    assert "#### 5" in engine.asks[2].messages[-1]["content"]


def test_criticized_draft_is_revised(play, edges):
    replies = ["Add them.", "#### 6", "2 + 3 is not 6", "#### 5", "APPROVED"]
    run, engine = play("planner-solver-critic", ROLES, replies, options={"revisions": 2})
    assert (run.answer, run.verdict, run.path) == ("5", "correct", (0, 3))
    assert [turn.verdict for turn in run.turns if turn.role == "solver"] == ["wrong", "correct"]
    assert edges(run, "disputes") == [(1, 2)]
    assert edges(run, "corrects") == [(2, 3)]
    assert edges(run, "continuity") == [(1, 3)]
    assert edges(run, "agrees") == [(3, 4)]
    assert [turn.round for turn in run.turns] == [0, 0, 1, 1, 2]
    revision = [(m["role"], m["content"]) for m in engine.asks[3].messages]
    assert revision[1] == ("assistant", "#### 6")
    assert "2 + 3 is not 6" in revision[2][1]


def test_revisions_are_bounded_and_the_last_draft_stands(play, edges):
    replies = ["Add them.", "#### 6", "No.", "#### 6", "No again.", "#### 7"]
    run, _ = play("planner-solver-critic", ROLES, replies, options={"revisions": 2})
    assert (run.answer, run.verdict) == ("7", "wrong")
    assert edges(run, "corrects") == [(4, 5)]


@pytest.mark.parametrize(
    "reply", ["This is not approved: 2 + 3 is 5.", "NOT APPROVED", "I disapproved of step 2.", "It isn't approved."]
)
def test_refusal_that_names_the_word_is_no_approval(play, edges, reply):
    run, _ = play("planner-solver-critic", ROLES, ["Add.", "#### 6", reply, "#### 5"])
    assert edges(run, "disputes") == [(1, 2)]
    assert run.answer == "5"


@pytest.mark.parametrize("roles", [["planner", "solver"], [*ROLES, "critic"]])
def test_each_role_is_needed_once(play, roles):
    with pytest.raises(UsageError, match="exactly one agent of role 'critic' is needed"):
        play("planner-solver-critic", roles, [])

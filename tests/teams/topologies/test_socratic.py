"""Two models as one: what each of them is shown, and which answer is the last."""

from __future__ import annotations

import pytest

from soloist.kernels.errors import UsageError
from soloist.toolchain.tasks.base import Question
from soloist.toolchain.teams.topologies.socratic import dialogue, posed, sub_questions

TOOLS = ["soloist.toolchain.desk.tools:desk_tools"]
LEGS = Question(id="q", question="How many legs have a dog and a chicken? Double it.", gold="12", scorer="number")
ACTING = {"name": "solver", "role": "solver", "model": "solver", "tools": ["solve", "calc", "legs"]}
PLAN = "How many legs do they have?\n\n  And twice that?\nIs it a lot?"


def shown(ask):
    return [(message["role"], message["content"]) for message in ask.messages]


def test_the_solver_never_sees_what_comes_later(play):
    run, engine = play("socratic", ["decomposer", "solver"], [PLAN, "They have 6.", "It is 12.", "#### 12"])
    assert (run.answer, run.path) == ("12", (0, 1, 2, 3))
    asks = [shown(ask) for ask in engine.asks]
    assert asks[0] == [("user", "What is 2 + 3?")]
    asked = ["How many legs do they have?", "And twice that?", "Is it a lot?"]
    said = ["They have 6.", "It is 12."]
    first = ("user", f"What is 2 + 3?\n{asked[0]}")
    assert asks[1] == [first]
    assert asks[2] == [first, ("assistant", said[0]), ("user", asked[1])]
    assert asks[3] == [*asks[2], ("assistant", said[1]), ("user", asked[2])]


def test_calls_are_answered_by_tools_and_results_are_built_on(play, edges):
    replies = ["Which animals go to legs?\nAnd then?", "legs(1 dog, 1 chicken)", "calc(6 * 2)"]
    run, engine = play("socratic", ["decomposer", ACTING], replies, question=LEGS, tools=TOOLS)
    assert (run.answer, run.verdict) == ("12", "correct")
    assert [use.result for use in run.trajectory] == ["6", "12"]
    assert shown(engine.asks[2])[1:] == [("assistant", "legs(1 dog, 1 chicken)"), ("tool", "6"), ("user", "And then?")]
    assert engine.asks[0].grammar is None
    assert "then" not in engine.asks[1].grammar
    assert edges(run, "influence") == [(0, 1)]
    assert edges(run, "continuity") == [(1, 2)]
    assert [ask.model for ask in engine.asks] == [None, "solver", "solver"]


def test_a_bad_call_ends_without_an_answer(play):
    run, _ = play("socratic", ["decomposer", ACTING], ["One?\nTwo?", "legs(1 unicorn)"], question=LEGS, tools=TOOLS)
    assert run.answer is None
    assert run.trajectory[0].error


@pytest.mark.parametrize("plan", ["", "  \n", "What is 2 + 3?"])
def test_one_step_is_the_question_itself(play, plan):
    run, engine = play("socratic", ["decomposer", "solver"], [plan, "#### 5"])
    assert run.verdict == "correct"
    assert shown(engine.asks[1]) == [("user", "What is 2 + 3?")]


def test_more_steps_than_allowed_give_no_answer(play):
    run, _ = play("socratic", ["decomposer", "solver"], ["a?\nb?\nc?", "1", "5"], options={"max_steps": 2})
    assert run.answer is None
    assert len(run.turns) == 3


def test_both_roles_are_needed(play):
    with pytest.raises(UsageError, match="exactly one agent of role 'solver'"):
        play("socratic", ["decomposer"], [])


def test_the_form_of_the_conversation():
    assert sub_questions(PLAN)[1] == "And twice that?"
    assert posed(" x ", "x") == "x"
    said = [
        [{"role": "assistant", "content": "1"}, {"role": "tool", "content": "2"}],
        [{"role": "assistant", "content": "3"}],
    ]
    roles = [(m["role"], m["content"]) for m in dialogue("x", ["a", "b"], said)]
    assert roles == [("user", "x\na"), ("assistant", "1"), ("tool", "2"), ("user", "b"), ("assistant", "3")]

"""One agent, with and without tools."""

from __future__ import annotations

import pytest

from soloist.toolchain.tasks.base import Question

TOOLS = ["soloist.toolchain.desk.tools:desk_tools"]
READER = {"name": "solo", "role": "solver", "prompt": "Write the call.", "tools": ["solve", "calc", "legs"]}
LEGS = Question(id="q", question="How many legs have a dog and a chicken? Double it.", gold="12", scorer="number")


@pytest.mark.parametrize(
    ("reply", "answer", "verdict"),
    [
        ("2 + 3 = 5\n#### 5", "5", "correct"),
        ("The answer is 6.", "6", "wrong"),
        ("I had five apples.\n5", "5", "correct"),
        ("", None, "absent"),
        ("   \n", None, "absent"),
    ],
)
def test_free_text_is_extracted_and_graded(play, reply, answer, verdict):
    run, _ = play("solo", ["solver"], [reply])
    assert (run.answer, run.verdict) == (answer, verdict)
    assert len(run.turns) == 1
    assert run.path == (0,)
    assert run.turns[0].answer == answer


def test_question_without_gold_stays_ungraded(play):
    run, _ = play("solo", ["solver"], ["5"], question=Question(id="q", question="?", gold=None))
    assert run.verdict == "unknown"


def test_agent_is_shown_its_prompt_demonstrations_and_question(play):
    agent = {
        "name": "solo",
        "role": "solver",
        "prompt": "Be brief.",
        "sampling": {"max_tokens": 9, "seed": 4},
        "demonstrations": [{"question": "1 + 1?", "reply": "2"}],
    }
    run, engine = play("solo", [agent], ["5"], seed=100)
    shown = [(m["role"], m["content"]) for m in engine.asks[0].messages]
    assert shown == [
        ("system", "Be brief."),
        ("user", "1 + 1?"),
        ("assistant", "2"),
        ("user", "What is 2 + 3?"),
    ]
    assert [(m.role, m.content) for m in run.turns[0].messages] == shown
    assert engine.asks[0].sampling.max_tokens == 9
    assert engine.asks[0].sampling.seed == 104
    assert run.seed == 100
    assert (run.turns[0].model, run.tokens_out) == ("queue", 1)
    assert run.tokens_in > 5


def test_two_calls_use_the_first_result(play, edges):
    replies = ["legs(1 dog, 1 chicken) then", "calc(6 * 2)"]
    run, engine = play("solo", [READER], replies, question=LEGS, tools=TOOLS)
    assert (run.answer, run.verdict, run.path) == ("12", "correct", (0, 1))
    assert [(use.name, use.result) for use in run.trajectory] == [("legs", "6"), ("calc", "12")]
    assert run.trajectory[0].steps[-1] == "4 + 2 = 6"
    assert edges(run, "continuity") == [(0, 1)]
    second = [(m["role"], m["content"]) for m in engine.asks[1].messages]
    assert second[-2:] == [("assistant", "legs(1 dog, 1 chicken) then"), ("tool", "6")]
    assert engine.asks[0].grammar is not None
    assert "legs(" in engine.asks[0].grammar


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        ("I would add the legs.", "not a call"),
        ("fly(1)", "no tool 'fly'"),
        ("legs(2 unicorns)", "no animal 'unicorns'"),
        ("legs(dog)", "not a count and an animal"),
        ("solve(x = x + 1)", "no number solves it"),
        ("solve(1 | 2)", "expected 1 values"),
    ],
)
def test_bad_call_is_recorded_and_leaves_no_answer(play, reply, error):
    run, _ = play("solo", [READER], [reply], question=LEGS, tools=TOOLS)
    (use,) = run.turns[0].tools
    assert error in use.error
    assert use.result is None
    assert use.call == reply
    assert (run.answer, run.verdict) == (None, "absent")


def test_bad_second_call_leaves_no_answer(play):
    run, _ = play("solo", [READER], ["legs(1 dog) then", "legs(1 dragon) then"], question=LEGS, tools=TOOLS)
    assert (run.answer, run.verdict) == (None, "absent")
    assert [use.result is None for use in run.trajectory] == [False, True]


def test_calls_are_bounded(play):
    calls = ["legs(1 dog) then"] * 2
    run, engine = play("solo", [READER], calls, question=LEGS, tools=TOOLS, options={"max_calls": 2, "grammar": False})
    assert len(run.turns) == 2
    assert engine.asks[0].grammar is None

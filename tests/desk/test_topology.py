"""The desk: routing, proposals under copied grammars, disagreement, the critic's bookkeeping, the scribe."""

from __future__ import annotations

import pytest

from soloist.kernels.errors import UsageError
from soloist.toolchain.tasks.base import Question

pytest.importorskip("reasoning_gym", reason="the desk's demonstrations come from reasoning-gym")

EQUATION = Question(id="e", question="Solve for x: 3*x + 4 = 19", gold="5", task="equations", scorer="number")
CHAIN = Question(
    id="c", question="First solve 2*y = 8. Then add 7 to it.", gold="11", task="equation-then", scorer="number"
)
TOOLS = ("soloist.toolchain.desk.tools:desk_tools",)
READER = {"role": "reader", "demonstrations": {"count": 2, "seed": 1}}
AGENTS = [
    {"name": "router", "role": "router"},
    {"name": "ann", **READER},
    {"name": "ben", **READER},
    {"name": "cay", **READER},
    {"name": "critic", "role": "critic"},
    {"name": "scribe", "role": "scribe"},
]
OPTIONS = {
    "routing": "prompt",
    "router_demonstrations": 1,
    "families": ["equations", "equation-then", "gcd"],
}


@pytest.fixture
def desk(play):
    def run(question, replies, **options):
        return play(
            "soloist.toolchain.desk:topology",
            AGENTS,
            replies,
            options=OPTIONS | options,
            question=question,
            tools=TOOLS,
        )

    return run


def test_agreement_goes_straight_to_the_critic_and_the_scribe(desk, edges):
    call = "solve(3*x + 4 = 19)"
    run, engine = desk(EQUATION, ["equations", call, call, call, "x = 15 / 3 = 5\n#### 5"])
    assert [len(batch) for batch in engine.batches] == [1, 3, 1]
    assert (run.answer, run.verdict, [use.call for use in run.trajectory]) == ("5", "correct", [call])
    roles = [turn.role for turn in run.turns]
    assert roles == ["router", "reader", "reader", "reader", "critic", "scribe"]
    assert edges(run, "disputes") == []
    assert (4, 5) in edges(run, "agrees")
    assert run.turns[4].model is None
    assert run.turns[4].tokens_in == 0


def test_a_reader_may_only_copy_numbers_of_the_question(desk):
    call = "solve(3*x + 4 = 19)"
    _, engine = desk(EQUATION, ["equations", call, call, call, "#### 5"])
    grammar = engine.batches[1][0].grammar
    assert '("3" | "4" | "19")' in grammar
    assert "[0-9]+" not in grammar


def test_readers_who_differ_see_each_other_and_the_majority_holds(desk, edges):
    right, wrong = "solve(3*x + 4 = 19)", "solve(3*x - 4 = 19)"
    first, second = [right, wrong, right], [right, right, right]
    run, engine = desk(EQUATION, ["equations", *first, *second, "#### 5"])
    assert (run.answer, run.verdict) == ("5", "correct")
    asked = engine.batches[2][1].messages[-1]["content"]
    assert f"{right} gives 5" in asked
    assert wrong not in asked
    assert edges(run, "corrects") == [(1, 5), (3, 5)]
    assert (1, 2) in edges(run, "disputes")
    assert (1, 3) in edges(run, "agrees")


def test_a_dropped_number_outweighs_two_votes(desk):
    question = Question(id="g", question="gcd of 12, 18 and 27?", gold="3", task="gcd", scorer="number")
    short, whole = "gcd(12, 18)", "gcd(12, 18, 27)"
    run, _ = desk(question, ["gcd", short, whole, short, short, whole, short, "#### 3"], escalations=0)
    assert run.answer == "3"


def test_a_number_used_twice_was_made_up_and_other_specialists_are_asked(desk):
    call = "solve(3*x + 4 = 19)"
    chain = ["solve(3*x + 4 = 19) then"] * 3 + ["calc(5 + 4)"] * 3
    run, engine = desk(EQUATION, ["equation-then", *chain, "equations", call, call, call, "#### 5"])
    assert (run.answer, run.verdict) == ("5", "correct")
    routers = [turn for turn in run.turns if turn.role == "router"]
    assert [turn.text for turn in routers] == ["equation-then", "equations"]
    assert (
        '"equation-then"' not in [ask for ask in engine.asks if ask.grammar and "equations" in ask.grammar][1].grammar
    )


def test_a_second_call_is_read_with_the_first_result(desk):
    replies = ["equation-then", *["solve(2*y = 8) then"] * 3, *["calc(4 + 7)"] * 3, "#### 11"]
    run, engine = desk(CHAIN, replies)
    assert (run.answer, run.verdict) == ("11", "correct")
    assert [use.call for use in run.trajectory] == ["solve(2*y = 8) then", "calc(4 + 7)"]
    assert engine.batches[2][0].messages[-1]["content"].endswith("\nResult: 4")
    assert '"4"' in engine.batches[2][0].grammar


def test_calls_that_cannot_be_computed_leave_no_answer(desk):
    bad = ["gcd()"] * 3
    run, _ = desk(EQUATION, ["gcd", *bad], rounds=1, escalations=0)
    assert (run.answer, run.verdict) == (None, "absent")


def test_a_desk_of_one_field_does_not_ask_for_another(desk):
    call = "solve(3*x + 4 = 17)"  # made up: the question says 19
    run, _ = desk(EQUATION, ["equations", *[call] * 3, "#### 5"], families=["equations"], rounds=1)
    assert [turn.role for turn in run.turns].count("router") == 1
    assert run.verdict == "wrong"


def test_a_wrong_solution_of_the_scribe_is_disputed(desk, edges):
    call = "solve(3*x + 4 = 19)"
    run, _ = desk(EQUATION, ["equations", call, call, call, "3 + 4 = 8\n#### 5"])
    assert (4, 5) in edges(run, "disputes")
    assert run.answer == "5"


def test_an_engine_without_hidden_states_needs_another_routing(desk):
    with pytest.raises(UsageError, match="routing: prompt"):
        desk(EQUATION, [], routing="hidden-state")

"""The desk: routing, proposals under copied grammars, disagreement, the critic's bookkeeping, the scribe."""

from __future__ import annotations

import numpy as np
import pytest

from soloist.kernels.errors import UsageError
from soloist.toolchain.desk import questions as desk_task
from soloist.toolchain.desk.specialties import Discriminant, Specialties, load_specialties
from soloist.toolchain.tasks.base import Question
from soloist.toolchain.teams.config import load_team

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


def test_the_discriminant_ignores_directions_in_which_a_field_varies_anyway():
    rng = np.random.default_rng(0)
    noise = [4.0, 0.1, 0.1]  # the first coordinate is loud and says nothing
    states = {
        name: (np.array([0, *at]) + noise * rng.normal(size=(40, 3))).astype(np.float32)
        for name, at in {"a": (1, 0), "b": (0, 1)}.items()
    }
    told = Discriminant(states)
    assert told.ranked(np.array([9.0, 0.7, 0.2], np.float32)) == ["a", "b"]
    assert told.ranked(np.array([-9.0, 0.2, 0.7], np.float32)) == ["b", "a"]


def test_the_discriminant_of_one_demonstration_a_field_is_the_nearest_mean():
    told = Discriminant({"a": np.array([[1.0, 0.0]], np.float32), "b": np.array([[0.0, 1.0]], np.float32)})
    assert told.ranked(np.array([0.6, 0.5], np.float32)) == ["a", "b"]


def test_a_discriminant_is_made_once_for_each_model():
    known = Specialties(desk_task, desk_task.toolbox(), ("gcd", "lcm"))
    seen = []

    def embed(text, scale):
        seen.append(scale)
        return np.array([scale * ("divi" in text), len(text)], np.float32)

    one = known.discriminant(lambda text: embed(text, 1), 2, model="one")
    assert known.discriminant(lambda text: embed(text, 1), 2, model="one") is one
    assert seen == [1] * 4
    other = known.discriminant(lambda text: embed(text, 5), 2, model="other")
    assert other is not one
    assert seen == [1] * 4 + [5] * 4


def test_kinds_are_fields_of_their_own_and_only_the_last_step_shows_them():
    known = load_specialties(families=("sorting", "equation-then", "gcd"))
    assert known.names == (
        "sorting:ascending",
        "sorting:descending",
        "equation-then:times",
        "equation-then:plus",
        "equation-then:minus",
        "gcd",
    )
    reader = load_team("desk").agents[1]
    last = known.demonstrations(reader, "equation-then:plus", 1)
    assert all(" + " in message["content"] for message in last if message["role"] == "assistant")
    assert known.demonstrations(reader, "equation-then:plus", 0) == known.demonstrations(
        reader, "equation-then:times", 0
    )


def test_the_shipped_desk_names_families_and_agents_that_exist():
    config = load_team("desk")
    names = load_specialties(families=tuple(config.options["families"])).names
    assert (len(config.options["families"]), len(names)) == (15, 20), "README says so"
    two_calls = [name for name in names if len(load_specialties().tools(name)) == 2]
    assert len(two_calls) >= 2
    assert len([agent for agent in config.agents if agent.role == "reader"]) >= 3

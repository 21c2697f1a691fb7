"""The desk's graph says what the desk's tools compute, and is found by what the desk's questions say."""

from __future__ import annotations

import pytest

from soloist.toolchain.desk import questions as desk
from soloist.toolchain.desk import tools_world as world
from soloist.toolchain.desk.graph import desk_graph
from soloist.toolchain.desk.tools_world import HAS_LEGS, IS
from soloist.toolchain.knowledge.annotate import used_facts
from soloist.toolchain.knowledge.retrieve import triples_for
from soloist.toolchain.knowledge.triples import Triple
from soloist.toolchain.tools.arithmetic import evaluate_text
from soloist.toolchain.tools.base import Toolbox
from soloist.toolchain.tools.calls import render_call


@pytest.fixture(scope="module")
def graph():
    return desk_graph()


@pytest.fixture(scope="module")
def tools():
    return desk.toolbox()


def test_examples(graph):
    assert Triple("spider", "has legs", "8") in graph
    assert Triple("Kilometres", "is", "1000 m") in graph
    assert Triple("week", "is", "7 day") in graph
    assert Triple("foot", "is", "12 in") in graph
    assert graph.against(Triple("spiders", "has legs", "6")) == Triple("spider", "has legs", "8")


def test_every_fact_is_what_the_tool_computes(graph, tools):
    assert len([t for t in graph if t.relation == HAS_LEGS]) == len(world.LEGS)
    for triple in graph:
        if triple.relation == HAS_LEGS:
            assert tools["legs"].run({"animals": [f"1 {triple.head}"]}).value == triple.tail
            continue
        assert triple.relation == IS
        ratio, unit = triple.tail.split()
        value = tools["convert"].run({"value": 1, "from": triple.head, "to": unit}).value
        assert evaluate_text(value) == evaluate_text(ratio) > 1


def test_every_pair_of_units_is_a_fact(graph):
    pairs = sum(len(units) * (len(units) - 1) // 2 for units in world.UNITS.values())
    assert len([t for t in graph if t.relation == IS]) == pairs


def test_every_alias_means_the_same_to_the_tools(graph, tools):
    for name, *others in graph.aliases.groups:
        for other in others:
            if name in world.LEGS and other == f"{name}s":
                assert tools["legs"].run({"animals": [f"1 {other}"]}).value == str(world.LEGS[name])
            elif other in world.UNIT_WORDS:
                assert world.UNIT_WORDS[other] == name


@pytest.mark.parametrize("family", ["legs", "legs-then", "units", "unit-then"])
def test_questions_are_given_the_facts_their_answers_need(graph, use, tools, family):
    wordings = [case for case in desk.unseen_cases() if case.question.task == family]
    for case in [*desk.cases(family, "held-out", 20), *wordings]:
        call = case.calls[0]
        needed = list(used_facts(use(render_call(call.name, call.arguments, tools)), tools))
        given = triples_for(case.question.question, graph, hops=0)
        assert needed or call.arguments.get("from") == call.arguments.get("to")
        assert all(any(graph.aliases.key(fact) == graph.aliases.key(t) for t in given) for fact in needed), (
            case.question
        )


def test_questions_about_numbers_are_given_nothing(graph):
    families = ["equations", "products", "expressions", "fractions", "gcd", "primes", "percentages", "sums"]
    for case in desk.mixed_cases("held-out", 80, families=families):
        assert triples_for(case.question.question, graph, hops=0) == (), case.question.question


def test_working_states_the_facts_that_its_tool_looked_up(use, tools):
    assert list(used_facts(use("calc(2 * 3)"), tools)) == []
    assert list(used_facts(use("legs(2 spiders, 1 dog)"), tools)) == [
        Triple("spider", HAS_LEGS, "8"),
        Triple("dog", HAS_LEGS, "4"),
    ]
    assert list(used_facts(use("convert(5000 | meters | kilometers)"), tools)) == [Triple("km", IS, "1000 m")]
    assert list(used_facts(use("convert(5000 | liters | l)"), tools)) == []
    assert list(used_facts(use("legs(2 spiders)"), Toolbox())) == []

"""The facts of a question: those it names, hop by hop; never anything the graph does not hold."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soloist.toolchain.knowledge.graph import KnowledgeGraph
from soloist.toolchain.knowledge.retrieve import entities_in, facts_text, triples_for
from soloist.toolchain.knowledge.triples import Aliases, Triple, parse_triples

WORDS = ["ant", "bee", "cat", "dog", "eel", "8", "1000 m"]
TRIPLES = st.builds(Triple, st.sampled_from(WORDS), st.sampled_from(["eats", "is"]), st.sampled_from(WORDS))


def said(question, graph, **options):
    return [str(triple) for triple in triples_for(question, graph, **options)]


@pytest.mark.parametrize("question", ["How many legs has a spider?", "SPIDERS!", "5 spiders' legs"])
def test_by_name(toy, question):
    assert said(question, toy) == ["(spider, has legs, 8)"]


def test_by_alias(toy):
    assert said("How many meters are 3 kilometers?", toy) == ["(km, is, 1000 m)"]


def test_numbers_are_no_names(toy):
    assert said("What is 8 plus 1000?", toy) == []
    assert not entities_in("8 and 1000 m", toy)
    assert said("Write 1000 m in kilometers.", toy) == ["(km, is, 1000 m)"]


def test_a_quantity_names_its_unit():
    graph = KnowledgeGraph([Triple("km", "is", "1000 m"), Triple("m", "is", "100 cm")], Aliases([("cm", "centimeter")]))
    assert said("Write 1000 m as 100 cm.", graph, hops=0) == ["(m, is, 100 cm)"]


def test_hops(toy):
    question = "Where is Paris, Texas?"
    assert said(question, toy, hops=0) == [], "its only fact leads to a place that is not named"
    assert said(question, toy) == ['("Paris, Texas", lies in, Texas)']
    assert said(question, toy, hops=2) == ['("Paris, Texas", lies in, Texas)', "(Texas, lies in, United States)"]
    assert said("Does Texas lie in the USA?", toy, hops=0) == ["(Texas, lies in, United States)"]


def test_what_ties_two_names_together_stands_for_both():
    units = [Triple("km", "is", "1000 m"), Triple("km", "is", "100000 cm"), Triple("m", "is", "100 cm")]
    graph = KnowledgeGraph(units, Aliases([("cm", "centimeter")]))
    assert said("How many m are 5 km? Write 7 m.", graph, hops=0) == ["(km, is, 1000 m)"]
    assert said("How many m are 5 km? Write 7 m.", graph) == ["(km, is, 1000 m)"]


def test_a_letter_counts_where_a_fact_ties_it_to_a_name():
    graph = KnowledgeGraph([Triple("g", "is", "1000 mg"), Triple("mg", "measures", "mass")])
    assert "g" in entities_in("Express 9700 mg in g.", graph)
    assert not entities_in("Solve for g: 3*g = 9", graph)


@settings(deadline=None)
@given(
    st.lists(TRIPLES, max_size=12),
    st.lists(st.sampled_from([*WORDS, "how", "in"]), max_size=6),
    st.integers(0, 5),
    st.integers(0, 3),
)
def test_what_is_given_is_known_near_and_bounded(triples, question, limit, hops):
    graph, text = KnowledgeGraph(triples), " ".join(question)
    found = triples_for(text, graph, limit, hops=hops)
    assert len(found) <= limit
    assert len(set(found)) == len(found)
    assert all(triple in graph for triple in found)
    if hops < 2:
        assert all(set(triple.parts) & set(question) for triple in found)
    if hops == 0:
        assert all({triple.head, triple.tail} - {"8", "1000 m"} <= set(question) for triple in found)
    assert found == triples_for(text, KnowledgeGraph(triples), limit, hops=hops)


@settings(deadline=None)
@given(st.lists(TRIPLES, max_size=4, unique=True))
def test_facts_are_written_so_that_they_can_be_read(triples):
    assert list(parse_triples(facts_text(triples)).triples) == triples
    assert bool(facts_text(triples)) == bool(triples)

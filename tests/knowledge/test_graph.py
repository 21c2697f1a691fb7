"""The graph: what it knows, what it contradicts, what a text names."""

from __future__ import annotations

import random
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soloist.kernels.errors import DataError, MissingExtraError
from soloist.toolchain.knowledge.files import load_graph
from soloist.toolchain.knowledge.graph import FORMATS, KnowledgeGraph
from soloist.toolchain.knowledge.triples import Aliases, Triple

NAMES = st.sampled_from(["ant", "bee", "cat", "dog, hot", "e|f", 'g "h"', "1000 m", "8"])


def test_a_fact_is_kept_once_whatever_its_words(toy):
    assert not toy.add(Triple("The Kilometer", "is", "1000 m"))
    assert len(toy) == 5
    assert toy.add(Triple("kilometer", "is", "1000000 mm"))
    assert len(toy) == 6


def test_exact_and_by_alias(toy):
    assert toy.find(Triple("KM", "is", "1000 m")) == (Triple("km", "is", "1000 m"), "exact")
    assert toy.find(Triple("kilometer", "is", "1000 m")) == (Triple("km", "is", "1000 m"), "alias")
    assert toy.find(Triple("km", "is", "100 m")) is None
    assert Triple("Texas", "lies in", "usa") in toy
    assert Triple("USA", "lies in", "Texas") not in toy


def test_only_single_valued_relations_contradict(toy):
    assert toy.against(Triple("Spider", "has legs", "6")) == Triple("spider", "has legs", "8")
    assert toy.against(Triple("spider", "has legs", "8.0")) is None
    assert toy.against(Triple("crab", "has legs", "9")) is None, "nothing is known of crabs"
    assert toy.against(Triple("Texas", "lies in", "Mexico")) is None, "a thing may lie in many"


def test_names_in_prose_are_whole_names(toy):
    toy.add(Triple("in", "is", "2.54 cm"))
    assert list(toy.mentioned("Is Paris, Texas in the USA?", prose=True)) == ["paris, texas", "united states"]
    assert list(toy.mentioned("Spiders walk 3 kilometers", prose=True)) == ["spider", "km"]
    assert "spider" not in toy.mentioned("a spidery thing", prose=True)
    assert list(toy.mentioned("Paris, Texas")) == ["paris, texas", "texas"]
    assert list(toy.mentioned("12 in")) == ["in"]
    assert not toy.mentioned("12 in", prose=True)


def test_a_letter_is_a_name_after_a_number():
    graph = KnowledgeGraph([Triple("g", "is", "1000 mg")])
    assert graph.mentioned("5 g of it") == {"g": 1}
    assert not graph.mentioned("solve 5*g = 10 for g")


def test_short_names_keep_their_case_in_prose(toy):
    toy.add(Triple("mm", "is", "0.1 cm"))
    assert not toy.mentioned("Written as HH:MM, tell us.", prose=True)
    assert list(toy.mentioned("5 MM of the US in mm", prose=True)) == ["mm", "united states"]


def test_an_empty_graph_verifies_nothing():
    with pytest.raises(DataError, match=r"the knowledge graph is empty.*soloist knowledge build"):
        KnowledgeGraph().require_facts()


def test_networkx_is_given_nodes_up_to_aliases_and_facts_with_their_sources(toy):
    pytest.importorskip("networkx")
    toy.add(Triple("kilometer", "is", "1000000 mm"), "a table")
    made = toy.network()
    assert made.number_of_edges() == len(toy) == 6
    assert sorted(made.successors("km")) == ["1000 m", "1000000 mm"]
    assert made.edges["km", "1000000 mm", "is"] == {
        "triple": Triple("kilometer", "is", "1000000 mm"),
        "source": "a table",
    }


def test_without_networkx_only_its_own_view_is_missing_and_names_the_extra(monkeypatch, toy):
    monkeypatch.setitem(sys.modules, "networkx", None)
    plain = KnowledgeGraph(toy, toy.aliases, toy.single_valued)
    assert plain.against(Triple("spider", "has legs", "6")) == Triple("spider", "has legs", "8")
    with pytest.raises(MissingExtraError, match=r"networkx.*soloist\[train\]"):
        plain.network()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.builds(Triple, NAMES, NAMES, NAMES), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_digest_and_files_do_not_depend_on_order(tmp_path_factory, triples, dice):
    graph = KnowledgeGraph(triples, Aliases([("ant", "emmet")]), ["has"])
    mixed = random.Random(dice.random()).sample(triples, len(triples))
    assert KnowledgeGraph(mixed, Aliases([("ant", "emmet")]), ["has"]).digest == graph.digest
    path = tmp_path_factory.mktemp("g") / "graph.json"
    graph.save(path)
    again = load_graph(path)
    assert again.digest == graph.digest
    assert list(again) == list(graph)


def test_digest_changes_with_every_part(toy):
    facts = list(toy)
    others = [
        KnowledgeGraph(facts[1:], toy.aliases, ["has legs"]),
        KnowledgeGraph(facts, Aliases(), ["has legs"]),
        KnowledgeGraph(facts, toy.aliases),
    ]
    assert len({graph.digest for graph in (toy, *others)}) == 4


@pytest.mark.parametrize("suffix", FORMATS)
def test_plain_facts_survive_every_format(tmp_path, suffix, toy):
    plain, path = KnowledgeGraph(toy), tmp_path / f"facts{suffix}"
    plain.save(path)
    assert list(load_graph(path)) == list(plain)
    assert load_graph(path).digest == plain.digest


def test_sources_are_kept(tmp_path):
    graph = KnowledgeGraph()
    graph.add(Triple("a", "is", "b"), "book, passage 3")
    graph.save(tmp_path / "g.json")
    assert load_graph(tmp_path / "g.json").records()[0]["source"] == "book, passage 3"


@pytest.mark.parametrize("name", ["g.tsv", "g.jsonl", "g.txt"])
def test_a_format_that_would_lose_something_is_refused(tmp_path, toy, name):
    with pytest.raises(DataError, match="json"):
        toy.save(tmp_path / name)
    assert not list(tmp_path.iterdir())

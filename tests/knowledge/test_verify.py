"""Verdicts: by the graph, by a verifier that says exactly one sentence, and the rates of both."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soloist.kernels.errors import DataError
from soloist.toolchain.knowledge.graph import KnowledgeGraph
from soloist.toolchain.knowledge.triples import Triple
from soloist.toolchain.knowledge.verify import LOYAL, Judgment, Rates, is_loyal, judge, rates

TRUE, ALIAS = Triple("spider", "has legs", "8"), Triple("kilometer", "is", "1000 m")
FALSE, UNKNOWN = Triple("spider", "has legs", "6"), Triple("crab", "has legs", "10")


def test_the_false_triple_is_found(toy):
    found = judge([TRUE, ALIAS, FALSE, UNKNOWN], toy)
    assert [(j.verdict, j.how) for j in found] == [
        ("verified", "exact"),
        ("verified", "alias"),
        ("contradicted", "none"),
        ("unverified", "none"),
    ]
    assert found[2].reason == "the graph says (spider, has legs, 8)"
    assert rates(found) == Rates(2, 1, 1)
    assert (rates(found).verification_rate, rates(found).unsupported_rate) == (0.5, 0.5)


def test_only_what_the_graph_does_not_know_is_asked(toy):
    asked = []

    def ask(triples):
        asked.extend(triples)
        return [LOYAL] * len(triples)

    found = judge([TRUE, FALSE, UNKNOWN], toy, ask)
    assert asked == [UNKNOWN]
    assert [j.how for j in found] == ["exact", "none", "agent"]
    assert found[2].verified
    assert judge([TRUE], toy, lambda triples: pytest.fail("asked for nothing")) == judge([TRUE], toy)


@pytest.mark.parametrize(
    ("reply", "loyal"),
    [
        ("This is a loyal fact.", True),
        ("  This is a loyal fact.\n", True),
        ("This is a loyal fact", False),
        ("this is a loyal fact.", False),
        ("This is not a loyal fact.", False),
        ('I cannot say "This is a loyal fact."', False),
        ("This is a loyal fact. Or is it?", False),
        ("Yes.", False),
        ("", False),
    ],
)
def test_the_sentence_and_only_it(toy, reply, loyal):
    (found,) = judge([UNKNOWN], toy, lambda triples: [reply])
    assert is_loyal(reply) is loyal
    assert found.verified is loyal
    assert found.how == "agent"


def test_a_verifier_that_answers_too_little_is_our_fault(toy):
    with pytest.raises(ValueError, match="zip"):
        judge([UNKNOWN, Triple("a", "is", "b")], toy, lambda triples: [LOYAL])


def test_an_empty_graph_is_a_clear_error():
    with pytest.raises(DataError, match="the knowledge graph is empty"):
        judge([TRUE], KnowledgeGraph())


@settings(deadline=None)
@given(st.lists(st.sampled_from(["verified", "unverified", "contradicted"]), max_size=20))
def test_rates_are_shares_that_add_up(verdicts):
    found = rates(Judgment(TRUE, verdict) for verdict in verdicts)
    assert found.triples == len(verdicts)
    if verdicts:
        assert found.verification_rate == verdicts.count("verified") / len(verdicts)
        assert found.verification_rate + found.unsupported_rate == pytest.approx(1)
    else:
        assert found.verification_rate is None
        assert found.as_facts()["unsupported_triple_rate"] is None

"""The triples of a run: calls computed again, working looked up, texts read; forged records are caught."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soloist.kernels.errors import DataError
from soloist.toolchain.desk.graph import desk_graph
from soloist.toolchain.knowledge.annotate import annotated
from soloist.toolchain.knowledge.graph import KnowledgeGraph
from soloist.toolchain.knowledge.retrieve import triples_for
from soloist.toolchain.knowledge.triples import Triple
from soloist.toolchain.knowledge.verify import LOYAL
from soloist.toolchain.tools.base import Result, Tool, Toolbox
from soloist.toolchain.traces.schema import ToolUse

SUM = Triple("2 spiders, 1 dog", "legs", "20")


@pytest.fixture(scope="module")
def graph():
    return desk_graph()


def test_a_call_with_its_result_is_a_triple_and_so_is_its_working(graph, called, use):
    found = annotated(called(use("legs(2 spiders, 1 dog) then"), use("calc(20 / 2)")), graph)
    assert found.triples == (
        SUM,
        Triple("20 / 2", "calc", "10"),
        Triple("spider", "has legs", "8"),
        Triple("dog", "has legs", "4"),
    )
    assert found.verified == found.triples
    assert found.unverified == ()
    assert found.clean
    assert [j.how for j in found.judgments] == ["tool", "tool", "exact", "exact"]
    assert found.rates.verification_rate == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"result": "22"}, "computed again it is 20"),
        ({"arguments": {"animals": ["3 spiders"]}}, "is not the one its arguments make"),
        ({"steps": ("spider: 2 * 8 = 17",)}, "a worked step does not re-check"),
        ({"call": "in words", "arguments": {"animals": ["2 dragons"]}}, "cannot be computed again: legs: no animal"),
    ],
)
def test_a_forged_call_is_contradicted(graph, called, use, changes, reason):
    found = annotated(called(use("legs(2 spiders, 1 dog)", **changes)), graph)
    (bad,) = [j for j in found.judgments if j.how == "tool"]
    assert bad.verdict == "contradicted"
    assert reason in bad.reason
    assert bad.triple in found.unverified
    assert bad.triple not in found.verified
    assert not found.clean


def test_a_forged_fact_in_the_working_is_contradicted(graph, called, use):
    found = annotated(called(use("legs(2 spiders, 1 dog)", steps=("spider: 2 * 6 = 12", "dog: 1 * 4 = 4"))), graph)
    assert found.verdicts[Triple("spider", "has legs", "6")] == "contradicted"
    assert found.verdicts[Triple("dog", "has legs", "4")] == "verified"


def test_a_tools_own_check_is_heard(graph, called, use):
    broken = Tool(
        "calc",
        "",
        {"type": "object", "properties": {"expression": {"type": "string"}}},
        lambda expression: 7,
        lambda arguments, value: False,
    )
    found = annotated(called(use("calc(3 + 4)")), graph, tools=Toolbox.of([broken]))
    assert found.judgments[0].reason == "the tool's own check refuses 7"


def test_only_tools_at_hand_are_run_again(graph, called, use):
    found = annotated(called(use("calc(3 + 4)")), graph, tools=Toolbox())
    assert found.verdicts == {Triple("3 + 4", "calc", "7"): "unverified"}
    assert found.judgments[0].reason == "no tool 'calc' at hand to compute it again"


def test_a_failed_call_states_nothing(graph, called, use):
    assert annotated(called(use("calc(3 + 4)", result=None, error="no")), graph).judgments == ()


def test_written_triples_are_looked_up(toy, told):
    found = annotated(told("Facts:\n(Spider, has legs, 8)\n(spider, has legs, 6)\n(crab, has legs, 10)"), toy)
    assert [j.verdict for j in found.judgments] == ["verified", "contradicted", "unverified"]
    assert found.unverified == (Triple("spider", "has legs", "6"), Triple("crab", "has legs", "10"))


def test_an_extractor_reads_prose_and_an_agent_judges(toy, told):
    crab = Triple("crab", "has legs", "10")
    run = told("Crabs have ten legs.")
    assert annotated(run, toy).judgments == ()
    assert annotated(run, toy).clean
    assert annotated(run, toy, extractor=lambda text: [crab]).unverified == (crab,)
    assert annotated(run, toy, extractor=lambda text: [crab], ask=lambda open_: [LOYAL]).verified == (crab,)


def test_the_runs_own_verifier_is_heard_unless_the_graph_contradicts(toy, told):
    text = "(crab, has legs, 10)\n(eel, has legs, 2)\n(spider, has legs, 6)"
    verifier = [("(crab, has legs, 10)", LOYAL), ("(eel, has legs, 2)", "No."), ("(spider, has legs, 6)", LOYAL)]
    found = annotated(told(text, verifier=verifier), toy)
    assert [j.verdict for j in found.judgments] == ["verified", "unverified", "contradicted"]


def test_an_empty_graph_is_a_clear_error(called, use):
    with pytest.raises(DataError, match="the knowledge graph is empty"):
        annotated(called(use("calc(3 + 4)")), KnowledgeGraph())


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["spider", "ant", "km", "crab"]),
            st.sampled_from(["has legs", "is"]),
            st.sampled_from(["6", "8", "1000 m"]),
        ),
        min_size=1,
        max_size=6,
        unique=True,
    )
)
def test_unverified_triples_are_never_among_those_given(facts):
    from soloist.toolchain.tasks.base import Question
    from soloist.toolchain.traces.schema import Run, Turn

    graph = KnowledgeGraph(
        [Triple("spider", "has legs", "8"), Triple("ant", "has legs", "6"), Triple("km", "is", "1000 m")]
    )
    text = "\n".join(str(Triple(*fact)) for fact in facts)
    turn = Turn(id=0, agent="m", role="master", text=text, model="queue")
    run = Run(question=Question(id="q", question=text, gold=None), team="toy", turns=(turn,), path=(0,))
    found = annotated(run, graph)
    assert set(found.verified) | set(found.unverified) == set(found.triples) == {Triple(*fact) for fact in facts}
    given_ = triples_for(run.question.question, graph, hops=2)
    assert not set(found.unverified) & {*given_, *found.verified}
    assert set(found.verified) <= set(given_), "what is verified and named in the question is given"


def test_a_tool_of_the_users_own_says_which_facts_its_working_states(toy, called):
    def legs_of(animal):
        return Result("8", (f"{animal}: 8",))

    def facts(steps):
        for step in steps:
            animal, _, legs = step.partition(": ")
            yield animal, "has legs", legs

    schema = {"type": "object", "properties": {"animal": {"type": "string"}}}
    own = Toolbox.of([Tool("legs_of", "Legs of an animal.", schema, legs_of, facts=facts)])
    record = ToolUse(
        name="legs_of", arguments={"animal": "spider"}, call="legs_of(spider)", result="8", steps=("spider: 8",)
    )
    run = called(record)
    assert annotated(run, toy, tools=own).verdicts == {
        Triple("spider", "legs_of", "8"): "verified",
        Triple("spider", "has legs", "8"): "verified",
    }
    assert annotated(run, toy).verdicts == {Triple("spider", "legs_of", "8"): "unverified"}

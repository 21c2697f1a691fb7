"""The interaction graph of a run: attempts, links, corrections."""

from __future__ import annotations

from soloist.toolchain.tasks.base import Question
from soloist.toolchain.traces.graph import Link, graph_of
from soloist.toolchain.traces.schema import Edge, Run, ToolUse, Turn

QUESTION = Question(id="q", question="How much is 2 + 2?", gold="4", split="train", scorer="number")


def said(number, agent, role, round, answer=None, verdict="unknown", **more):
    return Turn(id=number, agent=agent, role=role, round=round, text=f"it is {answer}", answer=answer,
                verdict=verdict, model="m", **more)  # fmt: skip


def debate(**more):
    turns = (
        said(0, "router", "router", 0),
        said(1, "a", "reader", 0, "4", "correct"),
        said(2, "b", "reader", 0, "5", "wrong"),
        said(3, "a", "reader", 1, "4", "correct"),
        said(4, "b", "reader", 1, "4", "correct"),
        said(5, "scribe", "scribe", 0, "4", "correct"),
    )
    edges = [Edge(source=s, target=t, kind=k) for s, t, k in (
        (0, 1, "influence"), (0, 2, "influence"), (1, 3, "continuity"), (2, 3, "influence"), (2, 4, "continuity"),
        (1, 4, "influence"), (1, 2, "disputes"),
    )]  # fmt: skip
    return Run(question=QUESTION, team="t", turns=turns, edges=tuple(edges), path=(3,), answer="4", verdict="correct",
               **more)  # fmt: skip


def test_peers_are_nodes_and_others_are_not():
    graph = graph_of(debate())
    assert [(n.agent, n.attempt, n.verdict) for n in graph.nodes] == [
        ("a", 0, "correct"), ("b", 0, "wrong"), ("a", 1, "correct"), ("b", 1, "correct"),
    ]  # fmt: skip
    assert graph.links == (
        Link(0, 2, "continuity"), Link(0, 3, "influence"), Link(1, 2, "influence"), Link(1, 3, "continuity"),
    )  # fmt: skip
    assert [graph.corrective(i) for i in range(4)] == [False, False, False, True]
    assert (graph.agents, graph.attempts) == (("a", "b"), 2)


def test_several_calls_of_one_try_are_one_node():
    use = ToolUse(name="add", arguments={}, call="add(2 | 2)", result="4")
    turns = (
        said(0, "a", "reader", 0, "4", "wrong", tools=(use,)),
        said(1, "a", "reader", 0, "8", "correct", tools=(use,)),
        said(2, "b", "reader", 0, "3", "wrong"),
        said(3, "a", "reader", 0, "8", "correct", tools=(use,)),  # asked anew, by another way: a second try
    )
    run = Run(question=QUESTION, team="t", turns=turns, edges=(Edge(source=0, target=1, kind="continuity"),))
    nodes = graph_of(run).nodes
    assert [(n.agent, n.attempt, len(n.uses), n.verdict) for n in nodes] == [
        ("a", 0, 2, "correct"), ("b", 0, 0, "wrong"), ("a", 1, 1, "correct"),
    ]  # fmt: skip


def test_a_call_that_failed_is_a_wrong_try():
    broken = ToolUse(name="add", arguments={}, call="add(", error="not a call")
    run = Run(question=QUESTION, team="t", turns=(said(0, "a", "solver", 0, tools=(broken,)),))
    assert [node.verdict for node in graph_of(run).nodes] == ["wrong"]


def test_where_every_role_has_one_agent_all_who_answered_are_nodes():
    turns = (said(0, "planner", "planner", 0), said(1, "solver", "solver", 0, "4"), said(2, "critic", "critic", 0, "5"))
    assert [n.agent for n in graph_of(Run(question=QUESTION, team="t", turns=turns)).nodes] == ["solver", "critic"]
    assert graph_of(Run(question=QUESTION, team="t")).nodes == ()


def test_readers_whose_calls_failed_are_peers_still():
    broken = ToolUse(name="add", arguments={}, call="add(", error="not a call")
    turns = (
        said(0, "a", "reader", 0, "4", "correct"),
        said(1, "b", "reader", 0, tools=(broken,)),
        said(2, "scribe", "scribe", 0, "4", "correct"),
    )
    run = Run(question=QUESTION, team="t", turns=turns)
    assert [(n.agent, n.verdict) for n in graph_of(run).nodes] == [("a", "correct"), ("b", "wrong")]

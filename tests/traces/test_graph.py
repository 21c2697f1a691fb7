"""The interaction graph of a run: attempts, links, corrections."""

from __future__ import annotations

from soloist.toolchain.tasks.base import Question
from soloist.toolchain.traces.graph import Link, graph_of
from soloist.toolchain.traces.schema import Edge, Run, ToolUse, Turn

QUESTION = Question(id="q", question="How much is 2 + 2?", gold="4", split="train", scorer="number")


def said(number, agent, role, round, answer=None, verdict="unknown", **more):
    return Turn(
        id=number,
        agent=agent,
        role=role,
        round=round,
        text=f"it is {answer}",
        answer=answer,
        verdict=verdict,
        model="m",
        **more,
    )


def debate(**more):
    turns = (
        said(0, "router", "router", 0),
        said(1, "a", "reader", 0, "4", "correct"),
        said(2, "b", "reader", 0, "5", "wrong"),
        said(3, "a", "reader", 1, "4", "correct"),
        said(4, "b", "reader", 1, "4", "correct"),
        said(5, "scribe", "scribe", 0, "4", "correct"),
    )
    edges = [
        Edge(source=s, target=t, kind=k)
        for s, t, k in (
            (0, 1, "influence"),
            (0, 2, "influence"),
            (1, 3, "continuity"),
            (2, 3, "influence"),
            (2, 4, "continuity"),
            (1, 4, "influence"),
            (1, 2, "disputes"),
        )
    ]
    return Run(
        question=QUESTION, team="t", turns=turns, edges=tuple(edges), path=(3,), answer="4", verdict="correct", **more
    )


def test_peers_are_nodes_and_others_are_not():
    graph = graph_of(debate())
    assert [(n.agent, n.attempt, n.verdict) for n in graph.nodes] == [
        ("a", 0, "correct"),
        ("b", 0, "wrong"),
        ("a", 1, "correct"),
        ("b", 1, "correct"),
    ]
    assert graph.links == (
        Link(0, 2, "continuity"),
        Link(0, 3, "influence"),
        Link(1, 2, "influence"),
        Link(1, 3, "continuity"),
    )
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
        ("a", 0, 2, "correct"),
        ("b", 0, 0, "wrong"),
        ("a", 1, 1, "correct"),
    ]


def test_a_call_that_failed_is_a_wrong_try():
    broken = ToolUse(name="add", arguments={}, call="add(", error="not a call")
    run = Run(question=QUESTION, team="t", turns=(said(0, "a", "solver", 0, tools=(broken,)),))
    assert [node.verdict for node in graph_of(run).nodes] == ["wrong"]


def test_a_peer_that_gave_no_answer_is_an_ungraded_node_and_counts_as_a_try():
    turns = (
        said(0, "a", "solver", 0, "4", "correct"),
        said(1, "b", "solver", 0),
        said(2, "a", "solver", 1, "4", "correct"),
        said(3, "b", "solver", 1, "4", "correct"),
    )
    edges = [Edge(source=s, target=t, kind=k) for s, t, k in ((1, 3, "continuity"), (1, 2, "influence"))]
    graph = graph_of(Run(question=QUESTION, team="t", turns=turns, edges=tuple(edges)))
    assert [(n.agent, n.attempt, n.verdict) for n in graph.nodes] == [
        ("a", 0, "correct"),
        ("b", 0, "unknown"),
        ("a", 1, "correct"),
        ("b", 1, "correct"),
    ]
    assert graph.links == (Link(1, 2, "influence"), Link(1, 3, "continuity"))
    assert not any(graph.corrective(i) for i in range(4))  # not graded is not wrong


def test_agents_who_speak_in_turn_are_linked_within_a_round():
    turns = (
        said(0, "a", "solver", 0, "5", "wrong"),
        said(1, "b", "solver", 0, "4", "correct"),
        said(2, "a", "solver", 1, "4", "correct"),
        said(3, "b", "solver", 1, "4", "correct"),
    )
    edges = [
        Edge(source=s, target=t, kind=k)
        for s, t, k in (
            (0, 2, "continuity"),
            (1, 3, "continuity"),
            (1, 2, "influence"),
            (2, 3, "influence"),
        )
    ]
    graph = graph_of(Run(question=QUESTION, team="t", turns=turns, edges=tuple(edges)))
    assert [(link.source, link.target) for link in graph.links] == [(0, 2), (1, 2), (1, 3), (2, 3)]
    assert graph.links[-1] == Link(2, 3, "influence")
    assert ([node.attempt for node in graph.nodes], graph.attempts) == ([0, 0, 1, 1], 2)


def test_a_judge_is_no_peer_though_only_one_debater_answered():
    turns = (
        said(0, "a", "debater", 0, "4", "correct"),
        said(1, "b", "debater", 0),
        said(2, "judge", "judge", 1, "4", "correct"),
    )
    assert [node.agent for node in graph_of(Run(question=QUESTION, team="t", turns=turns)).nodes] == ["a", "b"]


def test_of_two_roles_with_as_many_agents_the_first_to_speak_are_the_peers():
    turns = tuple(said(i, f"{role}-{i}", role, 0, "4", "correct") for i, role in enumerate(["x", "y", "y", "x"]))
    assert [node.agent for node in graph_of(Run(question=QUESTION, team="t", turns=turns)).nodes] == ["x-0", "x-3"]


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

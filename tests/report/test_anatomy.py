import re

import pytest

from soloist.toolchain.report.anatomy import columns, graph, section
from soloist.toolchain.report.stage import choose_anatomy
from soloist.toolchain.tasks.base import Question
from soloist.toolchain.traces.schema import Edge, Run, Turn


def chain(*turns, edges=(), **more):
    """A run of silent turns: (agent, round)."""
    return Run(
        question=Question(id="q", question="?", gold="1"),
        team="t",
        turns=tuple(Turn(id=i, agent=a, role=a, round=r) for i, (a, r) in enumerate(turns)),
        edges=tuple(Edge(source=a, target=b, kind=kind) for a, b, kind in edges),
        **more,
    )


def test_rounds_run_from_left_to_right(report):
    run = report.details.anatomy
    found = columns(run)
    assert all(found[a.id] < found[b.id] for a in run.turns for b in run.turns if a.round < b.round)
    assert "round 2" in graph(run, "g")


def test_rounds_that_start_again_are_drawn_as_steps():
    run = chain(("router", 0), ("a", 0), ("router", 1), ("a", 0), edges=[(0, 1, "influence"), (2, 3, "influence")])
    assert columns(run) == [0, 1, 1, 2]
    assert "step 3" in graph(run, "g")
    assert "round" not in graph(run, "g")


def test_turns_that_feed_each_other_stand_apart():
    run = chain(("planner", 0), ("solver", 0), ("critic", 0), edges=[(0, 1, "influence"), (1, 2, "influence")])
    assert columns(run) == [0, 1, 2]


def test_peers_who_disagree_share_a_column_and_their_judge_does_not():
    run = Run(
        question=Question(id="q", question="?", gold="1"),
        team="t",
        turns=tuple(Turn(id=i, agent=f"a{i}", role=role) for i, role in enumerate(["reader", "reader", "critic"])),
        edges=(Edge(source=0, target=1, kind="disputes"), Edge(source=1, target=2, kind="agrees")),
    )
    assert columns(run) == [0, 0, 1]


def test_two_turns_of_one_agent_never_share_a_place():
    assert columns(chain(("a", 0), ("b", 0), ("a", 0))) == [0, 0, 1]


def test_every_turn_and_edge_is_drawn(report):
    run = report.details.anatomy
    drawn = graph(run, "g")
    assert len(re.findall(r'class="turn v-', drawn)) == len(run.turns)
    assert len(re.findall(r'class="edge e-', drawn)) == len(run.edges)
    for kind in {edge.kind for edge in run.edges}:
        count = sum(edge.kind == kind for edge in run.edges)
        assert len(re.findall(f'class="edge e-{kind}', drawn)) == count
    for agent in {turn.agent for turn in run.turns}:
        assert agent in drawn


def test_transcript_says_what_the_graph_shows(report):
    said = section(report.details.anatomy)
    assert "corrected by 3 (reader-b)" in said
    assert "disagrees with 2 (reader-a)" in said
    assert "7 * 8 = 56" in said
    assert "no model call" in said


def test_long_texts_are_cut_with_the_rest_counted(report):
    run = report.details.anatomy
    turns = (run.turns[0].model_copy(update={"text": "x" * 5000}), *run.turns[1:])
    assert "1,000 characters more" in section(run.model_copy(update={"turns": turns}))


def test_anatomy_of_a_run_without_answer_is_drawn():
    assert "the team says" in section(chain(("a", 0), verdict="absent"))


def test_the_debate_with_most_disagreement_is_chosen(report):
    debate = report.details.anatomy
    plain = chain(("a", 0), verdict="correct")
    wrong = debate.model_copy(update={"verdict": "wrong"})
    assert choose_anatomy([plain, wrong, debate]) == debate
    assert choose_anatomy([wrong, plain]) == plain
    assert choose_anatomy([chain()]) is None


@pytest.mark.parametrize("text", ["a\u0000b", "\u202e", "\x1b[31m"])
def test_odd_characters_do_not_break_the_drawing(text):
    run = chain((f"agent{text}", 0))
    assert "\x00" not in section(run)
    assert "\x1b" not in section(run)

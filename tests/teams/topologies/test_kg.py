"""KG-MASD live: extractors, master, verifier, distiller, over a graph."""

from __future__ import annotations

import pytest

from soloist.kernels.errors import DataError, UsageError
from soloist.toolchain.desk.graph import desk_graph
from soloist.toolchain.knowledge.annotate import annotated
from soloist.toolchain.knowledge.prompts import PROMPTS
from soloist.toolchain.tasks.base import Question

ROLES = ["entity-extractor", "relation-extractor", "master", "verifier", "distiller"]
LOYAL = "This is a loyal fact."
LEGS = Question(id="q", question="How many legs have 2 spiders?", gold="16", scorer="number")
DESK = {"graph": "desk"}


def test_what_the_graph_knows_is_not_asked(play, edges):
    replies = ["spider", "has legs", "(spiders, has legs, 8)", "2 * 8 = 16\n#### 16"]
    run, engine = play("kg", ROLES, replies, options=DESK, question=LEGS)
    assert (run.answer, run.verdict, run.path) == ("16", "correct", (2, 4))
    assert [turn.role for turn in run.turns] == [
        "entity-extractor",
        "relation-extractor",
        "master",
        "verifier",
        "distiller",
    ]
    assert run.turns[3].model is None
    assert "verified (in the graph as (spider, has legs, 8))" in run.turns[3].text
    assert edges(run, "influence") == [(0, 2), (1, 2), (3, 4)]
    assert edges(run, "agrees") == [(2, 3)]
    asked = engine.asks[-1].messages
    assert asked[0]["content"] == PROMPTS["distiller"]
    assert asked[-1]["content"].startswith(
        "Facts:\n(spider, has legs, 8)\n(spiders, has legs, 8)\n\nQuestion: How many"
    )
    assert [len(batch) for batch in engine.batches] == [2, 1, 1], "the extractors work side by side"


def test_refused_triples_go_back_and_only_verified_ones_reach_the_distiller(play, edges):
    replies = [
        "spider",
        "spins",
        "(spider, has legs, 6)\n(spider, spins, silk)",
        LOYAL,
        "(spider, has legs, 8)\n(spider, spins, silk)",
        "#### 16",
    ]
    run, engine = play("kg", ROLES, replies, options=DESK, question=LEGS)
    assert run.answer == "16"
    assert [turn.role for turn in run.turns] == [
        *ROLES[:4],
        "verifier",
        "master",
        "verifier",
        "distiller",
    ]
    retry = engine.asks[4].messages[-1]["content"]
    assert "(spider, has legs, 6): the graph says (spider, has legs, 8)" in retry
    assert "(spider, spins, silk)" in retry
    told = engine.asks[-1].messages[-1]["content"]
    assert "(spider, has legs, 6)" not in told
    assert "(spider, spins, silk)" in told
    assert edges(run, "disputes") == [(2, 4)]
    assert edges(run, "agrees") == [(5, 6)]
    assert edges(run, "continuity") == [(2, 5)]
    assert (4, 5) in edges(run, "influence")
    assert [turn.round for turn in run.turns] == [0, 0, 0, 0, 0, 1, 1, 1]
    found = annotated(run, desk_graph())
    assert found.clean
    assert {j.how for j in found.judgments} == {"exact", "agent"}


@pytest.mark.parametrize("t_max", [1, 3])
def test_t_max_is_honoured_with_a_verifier_that_always_says_no(play, t_max):
    replies = ["spider", "spins", *["(spider, spins, gold)", "No."] * t_max]
    run, engine = play("kg", ROLES, replies, options={**DESK, "t_max": t_max}, question=LEGS)
    assert (run.answer, run.verdict, run.error) == (None, "absent", None)
    assert not any(turn.role == "distiller" for turn in run.turns)
    assert len(engine.asks) == 2 + 2 * t_max
    assert not annotated(run, desk_graph()).clean


def test_a_master_that_writes_no_triple_ends_too(play):
    run, _ = play("kg", ROLES, ["", "", "I refuse.", "I refuse.", "I refuse."], options=DESK, question=LEGS)
    assert run.answer is None
    assert [turn.text for turn in run.turns if turn.role == "verifier"] == ["no triple to verify"] * 3


def test_own_graph_from_a_file_is_read_again_when_it_changes(play, tmp_path):
    path = tmp_path / "facts.tsv"
    path.write_text("spider\tspins\tsilk\n")
    replies = ["spider", "spins", "(spider, spins, silk)", "#### 16"]
    run, engine = play("kg", ROLES, replies, options={"graph": str(path)}, question=LEGS)
    assert run.answer == "16"
    assert "Facts:\n(spider, spins, silk)\n\n" in engine.asks[-1].messages[-1]["content"]
    path.write_text("")
    with pytest.raises(DataError, match="the knowledge graph is empty"):
        play("kg", ROLES, [], options={"graph": str(path)}, question=LEGS)


def test_agents_of_the_users_keep_their_prompts(play):
    agents = [{"name": role, "role": role, "prompt": f"I am {role}."} for role in ROLES]
    _, engine = play("kg", agents, ["", "", "(spider, has legs, 8)", "#### 16"], options=DESK, question=LEGS)
    assert [ask.messages[0]["content"] for ask in engine.asks] == [f"I am {r}." for r in ROLES if r != "verifier"]


def test_missing_roles_and_graphs_are_named(play):
    with pytest.raises(UsageError, match="team 'team': exactly one agent of role 'verifier' is needed, not 0"):
        play("kg", [role for role in ROLES if role != "verifier"], [], options=DESK)
    with pytest.raises(UsageError, match=r"options.graph: Field required"):
        play("kg", ROLES, [])

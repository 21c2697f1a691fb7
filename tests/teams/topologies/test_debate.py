"""Debate: rounds, who agrees with whom, who was corrected by whom, and how it ends."""

from __future__ import annotations

import pytest

from soloist.kernels.errors import UsageError


def test_consensus_stops_the_debate(play, edges):
    run, engine = play("debate", ["debater"] * 3, ["#### 5", "#### 5.0", "The answer is 5."], options={"rounds": 3})
    assert [len(batch) for batch in engine.batches] == [3]
    assert (run.answer, run.verdict, run.path) == ("5", "correct", (0,))
    assert edges(run, "agrees") == [(0, 1), (0, 2), (1, 2)]
    assert len(run.edges) == 3


def test_consensus_need_not_stop_the_debate(play):
    options = {"rounds": 2, "stop_on_consensus": False}
    run, _ = play("debate", ["debater"] * 2, ["#### 5"] * 4, options=options)
    assert [turn.round for turn in run.turns] == [0, 0, 1, 1]


def test_silence_is_no_consensus_to_stop_a_better_answer(play):
    run, _ = play("debate", ["debater"] * 2, ["", "#### 5", "#### 5", "#### 5"], options={"rounds": 2})
    assert len(run.turns) == 4
    assert run.answer == "5"


def test_debaters_see_each_other_and_corrections_become_edges(play, edges):
    first = ["#### 5", "2 + 3 is 6\n#### 6", "#### 5"]
    second = ["#### 5", "I was wrong\n#### 5", "#### 5"]
    run, engine = play("debate", ["debater"] * 3, first + second, options={"rounds": 2})
    assert (run.answer, run.verdict) == ("5", "correct")
    assert run.path == (3,)
    assert [turn.verdict for turn in run.turns] == ["correct", "wrong", *["correct"] * 4]
    assert edges(run, "corrects") == [(0, 4), (2, 4)]
    assert edges(run, "continuity") == [(0, 3), (1, 4), (2, 5)]
    assert sorted(edges(run, "influence")) == [(0, 4), (0, 5), (1, 3), (1, 5), (2, 3), (2, 4)]
    assert [edge for edge in edges(run, "disputes") if edge[1] < 3] == [(0, 1), (1, 2)]
    assert all(edge.source < edge.target for edge in run.edges)

    asked = engine.batches[1][1].messages
    assert [m["role"] for m in asked] == ["user", "assistant", "user"]
    assert asked[1]["content"] == first[1]
    assert first[0] in asked[2]["content"]
    assert first[1] not in asked[2]["content"]


def test_majority_decides_a_debate_that_ends_in_disagreement(play):
    run, _ = play("debate", ["debater"] * 3, ["#### 6", "#### 5", "#### 5"], options={"rounds": 1})
    assert (run.answer, run.path) == ("5", (1,))


def test_judge_reads_the_last_round_and_decides(play, edges):
    replies = ["#### 6", "#### 7", "Neither.\n#### 5"]
    run, engine = play("debate", ["debater", "debater", "judge"], replies, options={"rounds": 1, "end": "judge"})
    assert (run.answer, run.verdict, run.path) == ("5", "correct", (2,))
    assert run.turns[2].role == "judge"
    assert edges(run, "influence") == [(0, 2), (1, 2)]
    asked = engine.asks[2].messages[-1]["content"]
    assert "What is 2 + 3?" in asked
    assert "#### 6" in asked
    assert "#### 7" in asked


@pytest.mark.parametrize(
    ("roles", "options", "message"),
    [
        (["debater"], {}, "a debate needs at least two agents of role 'debater'"),
        (["debater", "debater"], {"end": "judge"}, "end 'judge' needs an agent of role 'judge'"),
    ],
)
def test_team_that_cannot_debate_is_refused_before_anyone_is_asked(play, roles, options, message):
    with pytest.raises(UsageError, match=message):
        play("debate", roles, [], options=options)

"""The majority of several samples."""

from __future__ import annotations

import pytest

SAMPLER = {"name": "sampler", "role": "solver", "sampling": {"temperature": 0.8, "max_tokens": 16}}
TOOLS = ["soloist.toolchain.tools.desk:desk_tools"]


@pytest.mark.parametrize(
    ("replies", "answer", "verdict", "path"),
    [
        (["#### 6", "#### 5", "2 + 3\n#### 5.0", "#### 7", "#### 5"], "5", "correct", (1,)),
        (["#### 6", "#### 5"], "6", "wrong", (0,)),
        (["", "", "#### 5"], "5", "correct", (2,)),
        (["", ""], None, "absent", ()),
    ],
)
def test_majority_wins_and_the_first_to_say_it_is_the_path(play, replies, answer, verdict, path):
    run, _ = play("self-consistency", [SAMPLER], replies, options={"samples": len(replies)})
    assert (run.answer, run.verdict, run.path) == (answer, verdict, path)
    assert len(run.turns) == len(replies) and not run.edges


def test_samples_are_asked_in_batches_with_seeds_of_their_own(play):
    _, engine = play("self-consistency", [SAMPLER], ["#### 5"] * 5, options={"samples": 5, "batch": 2}, seed=7)
    assert [len(batch) for batch in engine.batches] == [2, 2, 1]
    assert len({ask.sampling.seed for ask in engine.asks}) == 5
    assert {ask.sampling.temperature for ask in engine.asks} == {0.8}
    assert len({tuple(m["content"] for m in ask.messages) for ask in engine.asks}) == 1


def test_token_budget_stops_the_asking(play):
    # each sample costs 5 words of question and 2 of reply
    options = {"samples": 9, "batch": 1, "max_tokens_total": 20}
    run, _ = play("self-consistency", [SAMPLER], ["#### 5"] * 3, options=options)
    assert run.tokens_in + run.tokens_out == 21 and len(run.calls) == 3


def test_samples_with_tools_advance_together(play):
    agent = SAMPLER | {"tools": ["legs", "calc"]}
    replies = ["legs(1 dog) then", "calc(2 * 3)", "nonsense", "calc(4 * 2)"]
    run, engine = play("self-consistency", [agent], replies, options={"samples": 3}, tools=TOOLS)
    assert [len(batch) for batch in engine.batches] == [3, 1]
    assert [turn.answer for turn in run.turns] == ["4", "6", None, "8"]
    assert run.answer == "8" and run.path == (0, 3)

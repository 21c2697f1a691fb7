"""The majority of several samples."""

from __future__ import annotations

import pytest

SAMPLER = {"name": "sampler", "role": "solver", "sampling": {"temperature": 0.8, "max_tokens": 16}}
TOOLS = ["soloist.toolchain.desk.tools:desk_tools"]


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
    assert len(run.turns) == len(replies)
    assert not run.edges


def test_samples_are_asked_in_batches_with_seeds_of_their_own(play):
    _, engine = play("self-consistency", [SAMPLER], ["#### 5"] * 5, options={"samples": 5, "batch": 2}, seed=7)
    assert [len(batch) for batch in engine.batches] == [2, 2, 1]
    assert len({ask.sampling.seed for ask in engine.asks}) == 5
    assert {ask.sampling.temperature for ask in engine.asks} == {0.8}
    assert len({tuple(m["content"] for m in ask.messages) for ask in engine.asks}) == 1


@pytest.mark.parametrize(
    ("budget", "batches"),
    [
        (70, [4, 4, 2]),  # all of it, the last batch smaller
        (69, [4, 4, 1]),
        (64, [4, 4, 1]),
        (60, [3, 4, 1]),  # three replies of 16 tokens are all that surely fit at first
        (8, [1]),
        (3, [1]),  # the first sample may pass the budget: without one there is no answer
        (10_000, [4, 4, 4]),
    ],
)
def test_batches_are_as_large_as_the_rest_of_the_budget(play, budget, batches):
    """Each sample costs 5 words of question and 2 of reply."""
    options = {"samples": 12, "batch": 4, "max_tokens_total": budget}
    run, engine = play("self-consistency", [SAMPLER], ["#### 5"] * sum(batches), options=options)
    assert [len(batch) for batch in engine.batches] == batches
    spent = run.tokens_in + run.tokens_out
    assert spent == 7 * sum(batches)
    assert spent <= budget or batches == [1]


def test_the_rest_of_the_budget_is_reckoned_by_the_mean_so_far(play):
    replies = ["one two three four\n#### 5", "#### 5", "#### 5"]  # 11, 7 and 7 words with the question
    options = {"samples": 9, "batch": 2, "max_tokens_total": 32}
    run, engine = play("self-consistency", [SAMPLER], replies, options=options)
    assert [len(batch) for batch in engine.batches] == [2, 1], (
        "14 are left, which is one more of 9 on average; then 7, which is none"
    )
    assert run.tokens_in + run.tokens_out == 25


def test_a_sample_that_costs_several_calls_is_reckoned_whole(play):
    agent = SAMPLER | {"tools": ["legs", "calc"]}
    replies = ["legs(1 dog) then", "calc(2 * 3)"]
    options = {"samples": 9, "batch": 1, "max_tokens_total": 40}
    first, _ = play("self-consistency", [agent], replies, options=options | {"samples": 1}, tools=TOOLS)
    cost = first.tokens_in + first.tokens_out
    assert len(first.calls) == 2
    run, _ = play(
        "self-consistency", [agent], replies * 2, options=options | {"max_tokens_total": 3 * cost - 1}, tools=TOOLS
    )
    assert len(run.calls) == 4
    assert run.tokens_in + run.tokens_out == 2 * cost


def test_an_engine_that_counts_nothing_is_asked_for_all_samples(play, monkeypatch, queue):
    from soloist.targets.base import Reply

    monkeypatch.setattr(queue, "ask", lambda self, asks: [self.replies.pop(0) for _ in asks])
    uncounted = Reply("#### 5", 0, 0, 0, 1e9, 1e9, 1e9, "stop")
    options = {"samples": 3, "batch": 2, "max_tokens_total": 40}
    run, _ = play("self-consistency", [SAMPLER], [uncounted] * 3, options=options)
    assert run.answer == "5"
    assert len(run.calls) == 3


def test_samples_with_tools_advance_together(play):
    agent = SAMPLER | {"tools": ["legs", "calc"]}
    replies = ["legs(1 dog) then", "calc(2 * 3)", "nonsense", "calc(4 * 2)"]
    run, engine = play("self-consistency", [agent], replies, options={"samples": 3}, tools=TOOLS)
    assert [len(batch) for batch in engine.batches] == [3, 1]
    assert [turn.answer for turn in run.turns] == ["4", "6", None, "8"]
    assert run.answer == "8"
    assert run.path == (0, 3)

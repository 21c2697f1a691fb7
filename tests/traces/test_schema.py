"""The trace schema: what a run may be, and what is counted on it."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from soloist.toolchain.tasks.base import Question
from soloist.toolchain.traces.schema import Edge, Run, ToolUse, Turn, critical_path

QUESTION = Question(id="q1", question="What is 2 + 3?", gold="5")


def turn(number, start=0.0, end=1.0, **fields):
    return Turn(id=number, agent=f"agent-{number}", role="reader", start=start, end=end, **fields)


def run(turns, edges=(), **fields):
    edges = tuple(Edge(source=s, target=t, kind=k) for s, t, k in edges)
    return Run(question=QUESTION, team="desk", turns=tuple(turns), edges=edges, **fields)


TWO = [turn(0), turn(1, 1, 2)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: run(TWO, [(1, 0, "influence")]), "edge 1->0 (influence) does not point forward in time"),
        (lambda: run(TWO, [(0, 0, "agrees")]), "edge 0->0 (agrees) does not point forward in time"),
        (lambda: run(TWO, [(0, 2, "tool")]), "edge 0->2 (tool) does not point forward in time"),
        (lambda: run(TWO, [(0, 1, "likes")]), "'continuity', 'influence'"),
        (lambda: run([turn(1), turn(0)]), "turn ids must be 0..1 in order"),
        (lambda: run(TWO, path=(1, 0)), "path [1, 0] does not name turns in order"),
        (lambda: run(TWO, path=(0, 2)), "path [0, 2] does not name turns in order"),
        (lambda: run([], schema_version=2), "schema 2: this Soloist reads schema 1"),
        (lambda: run([], verdict="right"), "'correct', 'wrong', 'unknown' or 'absent'"),
        (lambda: turn(0, 2.0, 1.0), "end 1.0 is before start 2.0"),
        (lambda: turn(0, tokens_out=3), "tokens on a turn that no model answered"),
        (lambda: turn(0, tokens_in=3), "tokens on a turn that no model answered"),
        (lambda: turn(0, model="m", tokens_in=3, tokens_cached=4), "tokens_cached 4 is more than tokens_in 3"),
        (lambda: turn(0, mood="good"), "mood"),
        (lambda: ToolUse(name="sum", arguments={}, call="sum()"), "exactly one of result and error"),
        (lambda: ToolUse(name="sum", arguments={}, call="", result="1", error="no"), "exactly one of result and error"),
    ],
)
def test_what_cannot_have_happened_is_refused(make, message):
    with pytest.raises(ValidationError) as caught:
        make()
    assert message in str(caught.value)


def test_tokens_and_calls_are_counted_on_answered_turns_only():
    answered = {"model": "m", "tokens_in": 100, "tokens_cached": 80, "tokens_out": 7}
    record = run([turn(0, **answered), turn(1), turn(2, **answered | {"first_token": 1.5})])
    assert [t.id for t in record.calls] == [0, 2]
    assert (record.tokens_in, record.tokens_cached, record.tokens_out) == (200, 160, 14)
    assert record.time_to_first_token == 1.5
    assert run([turn(0)]).time_to_first_token is None


def test_trajectory_is_the_tool_calls_along_the_path():
    uses = [ToolUse(name="sum", arguments={"a": n}, call=f"sum({n})", result=str(n)) for n in range(3)]
    record = run([turn(n, n, n + 1, tools=(uses[n],)) for n in range(3)], path=(0, 2))
    assert record.trajectory == (uses[0], uses[2])


@pytest.mark.parametrize(
    ("spans", "edges", "expected"),
    [
        ([], [], 0.0),
        ([(0, 2), (2, 5), (5, 6)], [(0, 1, "influence"), (1, 2, "continuity")], 6.0),
        # without edges nothing waited for anything: the longest turn alone
        ([(0, 2), (2, 5), (5, 6)], [], 3.0),
        # a pause between turns is nobody's work
        ([(0, 2), (12, 13)], [(0, 1, "influence")], 3.0),
        # a fork: router, two readers at once, critic; the slower reader counts
        (
            [(0, 1), (1, 4), (1, 3), (4, 5)],
            [(0, 1, "influence"), (0, 2, "influence"), (1, 3, "influence"), (2, 3, "influence")],
            5.0,
        ),
        # readers of one batch who agree did not wait for each other
        ([(0, 3), (0, 3), (0, 3)], [(0, 1, "agrees"), (0, 2, "agrees"), (1, 2, "disputes")], 3.0),
        # and what follows the batch waits for one of them, not for their sum
        ([(0, 3), (0, 3), (3, 4)], [(0, 1, "agrees"), (0, 2, "influence"), (1, 2, "influence")], 4.0),
        # edges in any order
        ([(0, 1), (1, 2), (2, 3)], [(1, 2, "influence"), (0, 1, "influence")], 3.0),
    ],
)
def test_critical_path_by_hand(spans, edges, expected):
    record = run([turn(n, *span) for n, span in enumerate(spans)], edges)
    assert record.critical_path == critical_path(record.turns, record.edges) == expected

"""A toy graph with what there is to know, and recorded runs that state it, rightly or wrongly."""

from __future__ import annotations

import pytest

from soloist.toolchain.knowledge.graph import KnowledgeGraph
from soloist.toolchain.knowledge.triples import Aliases, Triple
from soloist.toolchain.tasks.base import Question
from soloist.toolchain.traces.schema import ChatMessage, Run, ToolUse, Turn

FACTS = (
    Triple("spider", "has legs", "8"),
    Triple("ant", "has legs", "6"),
    Triple("Paris, Texas", "lies in", "Texas"),
    Triple("Texas", "lies in", "United States"),
    Triple("km", "is", "1000 m"),
)


@pytest.fixture
def toy():
    return KnowledgeGraph(FACTS, Aliases([("km", "kilometer"), ("United States", "USA", "US")]), ["has legs"])


@pytest.fixture
def told():
    """A run whose path is one text."""

    def make(text, *, verifier=()):
        turns = [Turn(id=0, agent="master", role="master", text=text, model="queue")]
        for asked, reply in verifier:
            shown = ChatMessage(role="user", content=f"Text:\nsome text\n\nTriple: {asked}")
            turns.append(Turn(id=len(turns), agent="v", role="verifier", messages=(shown,), text=reply, model="queue"))
        question = Question(id="q", question="How many legs has a spider?", gold="8")
        return Run(question=question, team="toy", turns=tuple(turns), path=(0,), answer="8", verdict="correct")

    return make


@pytest.fixture
def called():
    """A run whose path is tool calls."""

    def make(*uses):
        turns = tuple(
            Turn(id=i, agent="reader", role="reader", text=use.call, tools=(use,), model="queue", answer=use.result)
            for i, use in enumerate(uses)
        )
        question = Question(id="q", question="How many legs have 2 spiders and a dog?", gold="20")
        return Run(question=question, team="toy", turns=turns, path=tuple(range(len(uses))), answer=uses[-1].result)

    return make


@pytest.fixture
def use():
    """A call of a desk tool, recorded as a team records it; `changes` forge the record."""
    from soloist.toolchain.desk.tools import desk_tools
    from soloist.toolchain.tools.calls import parse_call, run_call

    def make(text, **changes):
        call = parse_call(text, desk_tools())
        result = run_call(call, desk_tools())
        record = ToolUse(
            name=call.name, arguments=dict(call.arguments), call=text, result=result.value, steps=result.steps
        )
        return record.model_copy(update=changes)

    return make

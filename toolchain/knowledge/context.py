"""The facts before a question: the same ones, in the same words, when a student is taught and when it is asked.

    Facts:
    (spider, has legs, 8)

    How many legs have 2 spiders?

A student that was taught so is asked so: its graph lies beside the model as `knowledge.json`, and who asks it
(`StudentEngine`) puts the facts in. A question that names nothing of the graph stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from soloist.targets.base import Message
from soloist.toolchain.knowledge.files import load_graph
from soloist.toolchain.knowledge.graph import KnowledgeGraph
from soloist.toolchain.knowledge.retrieve import facts_text, triples_for

FILE = "knowledge.json"


def with_facts(question: str, graph: KnowledgeGraph) -> str:
    """A question behind the graph's facts that belong to it."""
    facts = facts_text(triples_for(question, graph))
    return f"{facts}\n\n{question}" if facts else question


def informed(messages: Sequence[Message], graph: KnowledgeGraph) -> list[Message]:
    """A conversation whose first user message, the question, stands behind its facts."""
    first = next((index for index, message in enumerate(messages) if message["role"] == "user"), None)
    return [
        {"role": "user", "content": with_facts(message["content"], graph)} if index == first else message
        for index, message in enumerate(messages)
    ]


def graph_beside(model: Path) -> KnowledgeGraph | None:
    """The graph that lies beside a model (a file or a folder); None for a student taught without facts."""
    path = (model if model.is_dir() else model.parent) / FILE
    return load_graph(path) if path.is_file() else None

"""The facts before a question: the same ones, in the same words, in training and when the student is asked.

    Facts:
    (spider, has legs, 8)

    How many legs have 2 spiders?

A student trained with facts is prompted with facts: its graph lies beside the model as `knowledge.json`, and
`StudentEngine` puts them in. A question that names nothing of the graph stays as it is.
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
    shown = list(messages)
    for index, message in enumerate(messages):
        if message["role"] == "user":
            shown[index] = {"role": "user", "content": with_facts(message["content"], graph)}
            break
    return shown


def graph_beside(model: Path) -> KnowledgeGraph | None:
    """The graph that lies beside a model (a file or a folder); None for a student trained without facts."""
    path = (model if model.is_dir() else model.parent) / FILE
    return load_graph(path) if path.is_file() else None

"""The steps of all attempts at one question as a graph: where each lies, its label, and its edges.

step     a line of the student's own turns, so also a call: (first place, place after) among an attempt's tokens
label    right where some correct attempt begins with the same steps; wrong where its arithmetic or its call
         fails, and where an attempt that went wrong shares it with no correct one
edges    each step to the next of its attempt; the last step of an attempt to the first of those that saw it
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from soloist.toolchain.distill.data import Example
from soloist.toolchain.distill.graph_network import UNLABELED
from soloist.toolchain.distill.steps import step_ends
from soloist.toolchain.distill.work import Setup
from soloist.toolchain.traces.graph import Graph, Node

WRONG, CORRECT = 0, 1


@dataclass(frozen=True)
class SteppedAttempt:
    """An attempt as the solver's conversation, and where its steps lie: (first place, place after) each."""

    node: Node
    example: Example
    steps: tuple[tuple[int, int], ...]


def step_spans(example: Example, tokenizer: Any, length: int) -> tuple[tuple[int, int], ...]:
    """The places of each step that the student computes: the line's own tokens, the conversation's last excepted."""
    spans = []
    before = -1
    for end in step_ends(example.ids, example.trained, tokenizer):
        start = end
        while start - 1 > before and example.trained[start - 1]:
            start -= 1
        before, stop = end, min(end + 1, length - 1)
        if start < stop and end < length:
            spans.append((start, stop))
    return tuple(spans)


def step_labels(attempts: Sequence[SteppedAttempt], setup: Setup) -> list[int]:
    """Of every step, attempt by attempt: answer propagation, after re-checking."""
    reached = set()
    for attempt in attempts:
        if attempt.node.verdict == "correct":
            reached |= {attempt.example.ids[:stop] for _, stop in attempt.steps}
    labels = []
    for attempt in attempts:
        for number, (start, stop) in enumerate(attempt.steps):
            if not _holds(attempt, number, start, stop, setup):
                labels.append(WRONG)
            elif attempt.example.ids[:stop] in reached:
                labels.append(CORRECT)
            else:
                labels.append(WRONG if attempt.node.verdict == "wrong" else UNLABELED)
    return labels


def _holds(attempt: SteppedAttempt, number: int, start: int, stop: int, setup: Setup) -> bool:
    uses = attempt.node.uses
    if uses and setup.mode == "tools":
        use = uses[min(number, len(uses) - 1)]
        return use.error is None and setup.check_steps(use.steps)
    text = setup.tokenizer.decode(attempt.example.ids[start:stop], skip_special_tokens=True)
    return setup.check_steps([text])


def step_edges(graph: Graph, attempts: Sequence[SteppedAttempt]) -> list[list[int]]:
    """(source, target) between steps, counted through all attempts; every edge points forward in time."""
    edges: list[list[int]] = []
    first: list[int] = []
    count = 0
    for attempt in attempts:
        first.append(count)
        count += len(attempt.steps)
        edges += [[step, step + 1] for step in range(first[-1], count - 1)]
    for link in graph.links:
        if attempts[link.source].steps and attempts[link.target].steps:
            edges.append([first[link.source] + len(attempts[link.source].steps) - 1, first[link.target]])
    return sorted(edges)

"""The peers' attempts of a run as conversations, and how different two of them are.

    distance(a, b) = 1/2 edits(operations of a, of b) + 1/2 edits(words of a, of b)

Operations are the tools in the order of their calls; in a text without tools, the signs between numbers.
Words are those of the student's own turns, case folded, the answer masked: two attempts that differ only in how
they state the answer are 0 apart. Where neither has an operation, the words decide alone. Edits are counted
over the longer length, so a distance lies in 0..1.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from soloist.toolchain.distill.data import Example, encode, flaw, messages_of, own_texts
from soloist.toolchain.distill.work import Setup
from soloist.toolchain.traces.distance import edit_distance, tokens
from soloist.toolchain.traces.graph import Graph, Node, graph_of
from soloist.toolchain.traces.schema import Run

_SIGN = re.compile(r"(?<=[\d)%])\s*([-+*/×÷^−])\s*(?=[\d($-])")
_STATED = re.compile(r"^\s*####.*$", re.MULTILINE)


@dataclass(frozen=True)
class Attempt:
    """One peer's attempt at a question, as a conversation of the student's."""

    node: Node
    example: Example
    corrective: bool

    @cached_property
    def text(self) -> str:
        """The student's own turns, one below the other."""
        return "\n".join(own_texts(self.example.messages))

    @cached_property
    def operations(self) -> tuple[str, ...]:
        return tuple(use.name for use in self.node.uses) or tuple(_SIGN.findall(self.text))

    @cached_property
    def words(self) -> tuple[str, ...]:
        text = _STATED.sub("", self.text)
        if self.node.answer:
            text = re.sub(rf"(?<!\w){re.escape(self.node.answer)}(?!\w)", "ANSWER", text)
        return tokens(text)


def distance(one: Attempt, other: Attempt) -> float:
    """How differently two attempts came to their answers, 0..1."""
    words = edit_distance(one.words, other.words)
    if not one.operations and not other.operations:
        return words
    return (edit_distance(one.operations, other.operations) + words) / 2


def conversation_of(node: Node, run: Run, setup: Setup, shown: str = "") -> Example | str:
    """An attempt as a conversation, right or wrong, `shown` after the question; or why it cannot be one."""
    messages = messages_of(run.question.question.strip() + shown, node.uses, node.text, node.answer, setup.mode)
    if messages is None:
        return "nothing to learn from"
    example = encode(messages, setup.tokenizer, run.question.id)
    return example if len(example.ids) <= setup.max_length else f"longer than {setup.max_length} tokens"


def answered_attempts(run: Run, setup: Setup) -> list[Attempt] | str:
    """The attempts that gave an answer, right or wrong, in order; or why there is none."""

    def made(node: Node) -> Example | str:
        return "an attempt without an answer" if node.answer is None else conversation_of(node, run, setup)

    return _attempts(graph_of(run), made)


def right_attempts(run: Run, setup: Setup) -> list[Attempt] | str:
    """The right attempts that pass the same tests as a run's answer does, in order; or why there is none."""
    return _attempts(graph_of(run), lambda node: checked(node, run, setup))


def checked(node: Node, run: Run, setup: Setup, shown: str = "") -> Example | str:
    """A right attempt as a conversation, or why it must not be learned from."""
    if node.verdict != "correct":
        return "attempts are not graded" if node.verdict == "unknown" else "no correct attempt"
    reason = flaw(run.question, node.uses, node.text, setup.mode, setup.check_steps)
    return reason or conversation_of(node, run, setup, shown)


def other_kind(node: Node, graph: Graph, setup: Setup) -> str | None:
    """Why a student that calls tools cannot have made this attempt: it is in words, where others called tools."""
    words = setup.mode == "tools" and not node.uses and any(other.uses for other in graph.nodes)
    return "in words, where others called tools" if words else None


def _attempts(graph: Graph, made: Callable[[Node], Example | str]) -> list[Attempt] | str:
    """What is made of the nodes; where that is nothing, the reason that a right attempt failed for counts most."""
    attempts: list[Attempt] = []
    reasons: Counter[str] = Counter()
    for index, node in enumerate(graph.nodes):
        example = made(node)
        if isinstance(example, str):
            reasons[example] += 1
        else:
            attempts.append(Attempt(node, example, graph.corrective(index)))
    if attempts:
        return attempts
    for reason, _ in reasons.most_common():
        if reason != "no correct attempt":
            return reason
    return "no correct attempt" if reasons else "no attempt of an answering agent"


def lasts(graph: Graph) -> list[Node]:
    """Each agent's last attempt: what it stands by when the team is done."""
    return list({node.agent: node for node in graph.nodes}.values())


def firsts(attempts: Sequence[Attempt]) -> list[Attempt]:
    """The attempts made before anything was seen of anyone."""
    return [attempt for attempt in attempts if attempt.node.attempt == 0]

"""A run as the interaction graph that methods learn from: who said what, in which order, right or wrong.

    Node   one attempt of one agent: its turns (several where it called several tools), its answer
    edge   node i came before node j and j saw it: `continuity` (the same agent) or `influence` (another)

Only agents that tried to answer the question are nodes: routers, critics and scribes are not peers of those
who tried. A peer that spoke without an answer is a node that nobody graded; one that did not speak has no
node, and methods that need a full grid add the absent ones. Agents who speak in turn see what was said
before them in the same round, so a link may lie within a round.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from soloist.toolchain.traces.schema import Run, ToolUse, Turn, Verdict


@dataclass(frozen=True)
class Node:
    """The `attempt`-th try (from 0) of `agent` at the question, made of `turns` of the run, in order."""

    agent: str
    attempt: int
    turns: tuple[Turn, ...]

    @property
    def uses(self) -> tuple[ToolUse, ...]:
        return tuple(use for turn in self.turns for use in turn.tools)

    @property
    def text(self) -> str:
        return self.turns[-1].text

    @property
    def answer(self) -> str | None:
        return self.turns[-1].answer

    @property
    def verdict(self) -> Verdict:
        """A call that could not be computed is a wrong try, not an ungraded one."""
        last = self.turns[-1]
        failed = last.answer is None and any(use.error is not None for use in last.tools)
        return "wrong" if failed else last.verdict


@dataclass(frozen=True)
class Link:
    """`target` saw `source`; both are indices of nodes, source < target."""

    source: int
    target: int
    kind: Literal["continuity", "influence"]


@dataclass(frozen=True)
class Graph:
    """The peers' attempts in the order they ended, and who saw whom."""

    nodes: tuple[Node, ...]
    links: tuple[Link, ...]

    @property
    def agents(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(node.agent for node in self.nodes))

    @property
    def attempts(self) -> int:
        """The most attempts any agent made."""
        return max((node.attempt + 1 for node in self.nodes), default=0)

    def corrective(self, index: int) -> bool:
        """Whether this node is right and the same agent was wrong before: it changed its mind for the better."""
        node = self.nodes[index]
        earlier = [n for n in self.nodes if n.agent == node.agent and n.attempt < node.attempt]
        return node.verdict == "correct" and any(n.verdict == "wrong" for n in earlier)


def graph_of(run: Run) -> Graph:
    """The interaction graph of a run. A run in which nobody tried gives an empty one."""
    role = _peer_role(run)
    turns = [turn for turn in run.turns if turn.model is not None and (turn.role == role or role is None)]
    attempts: list[list[Turn]] = []
    continued = {(edge.source, edge.target) for edge in run.edges if edge.kind == "continuity"}
    open_at: dict[str, int] = {}
    for turn in turns:
        last = attempts[open_at[turn.agent]] if turn.agent in open_at else None
        if last is not None and last[-1].round == turn.round and (last[-1].id, turn.id) in continued:
            last.append(turn)
            continue
        open_at[turn.agent] = len(attempts)
        attempts.append([turn])
    if role is None:  # all who tried are peers, so who only spoke is none
        attempts = [tried for tried in attempts if _tried(tried[-1])]
    attempts.sort(key=lambda tried: tried[-1].id)
    count: Counter[str] = Counter()
    nodes = []
    for tried in attempts:
        nodes.append(Node(tried[0].agent, count[tried[0].agent], tuple(tried)))
        count[tried[0].agent] += 1
    return Graph(tuple(nodes), _links(run, nodes))


def _peer_role(run: Run) -> str | None:
    """The role that most agents have, of those in which somebody tried; None where each has one agent."""
    spoke = [turn for turn in run.turns if turn.model is not None]
    tried = {turn.role for turn in spoke if _tried(turn)}
    agents = dict.fromkeys((turn.agent, turn.role) for turn in spoke if turn.role in tried)
    most = Counter(role for _, role in agents).most_common(1)  # of equally many the role that spoke first
    return most[0][0] if most and most[0][1] > 1 else None


def _tried(turn: Turn) -> bool:
    return turn.answer is not None or bool(turn.tools)


def _links(run: Run, nodes: list[Node]) -> tuple[Link, ...]:
    at = {turn.id: index for index, node in enumerate(nodes) for turn in node.turns}
    links: dict[tuple[int, int], Link] = {}
    for edge in run.edges:
        if edge.kind not in ("continuity", "influence") or edge.source not in at or edge.target not in at:
            continue
        source, target = at[edge.source], at[edge.target]
        if source < target:
            same = nodes[source].agent == nodes[target].agent
            links[source, target] = Link(source, target, "continuity" if same else "influence")
    return tuple(links[key] for key in sorted(links))

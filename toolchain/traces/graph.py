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

from soloist.toolchain.traces.schema import Run, ToolUse, Turn, Verdict, uses_of


@dataclass(frozen=True)
class Node:
    """The `attempt`-th try (from 0) of `agent` at the question, made of `turns` of the run, in order."""

    agent: str
    attempt: int
    turns: tuple[Turn, ...]

    @property
    def uses(self) -> tuple[ToolUse, ...]:
        return uses_of(self.turns)

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
        if node.verdict != "correct":
            return False
        return any(n.agent == node.agent and n.attempt < node.attempt and n.verdict == "wrong" for n in self.nodes)


def graph_of(run: Run) -> Graph:
    """The interaction graph of a run. A run in which nobody tried gives an empty one."""
    role = _peer_role(run)
    continued = {(edge.source, edge.target) for edge in run.edges if edge.kind == "continuity"}
    attempts: list[list[Turn]] = []
    latest: dict[str, list[Turn]] = {}  # of each agent
    for turn in run.calls:
        if role is not None and turn.role != role:
            continue
        own = latest.get(turn.agent)
        if own and own[-1].round == turn.round and (own[-1].id, turn.id) in continued:
            own.append(turn)
        else:
            latest[turn.agent] = [turn]
            attempts.append(latest[turn.agent])
    attempts.sort(key=lambda turns: turns[-1].id)
    count: Counter[str] = Counter()
    nodes = []
    for turns in attempts:
        if role is None and not _tried(turns[-1]):
            continue  # all who tried are peers, so who only spoke is none
        agent = turns[0].agent
        nodes.append(Node(agent, count[agent], tuple(turns)))
        count[agent] += 1
    return Graph(tuple(nodes), _links(run, nodes))


def _peer_role(run: Run) -> str | None:
    """The role that most agents have, of those in which somebody tried; None where each has one agent."""
    agents: dict[str, set[str]] = {}  # of each role, the role that spoke first in front
    tried = set()
    for turn in run.calls:
        agents.setdefault(turn.role, set()).add(turn.agent)
        if _tried(turn):
            tried.add(turn.role)
    most = max((role for role in agents if role in tried), key=lambda role: len(agents[role]), default=None)
    return most if most is not None and len(agents[most]) > 1 else None


def _tried(turn: Turn) -> bool:
    return turn.answer is not None or bool(turn.tools)


def _links(run: Run, nodes: list[Node]) -> tuple[Link, ...]:
    at: dict[int, int] = {}
    for index, node in enumerate(nodes):
        at |= dict.fromkeys((turn.id for turn in node.turns), index)
    links: dict[tuple[int, int], Link] = {}
    for edge in run.edges:
        if edge.kind not in ("continuity", "influence") or edge.source not in at or edge.target not in at:
            continue
        source, target = at[edge.source], at[edge.target]
        if source < target:
            same = nodes[source].agent == nodes[target].agent
            links[source, target] = Link(source, target, "continuity" if same else "influence")
    return tuple(links[key] for key in sorted(links))

"""From a text to verified triples by agents: KG-MASD (2510.06240), the method's loop with its defects repaired.

    entity extractor ──┐
                       ├──► knowledge graph master ──► verifier ──► all verified: accepted
    relation extractor ┘            ▲                     │
                                    └── refused triples ──┘  with the reason; after T_max rounds the sample is dropped

Entities and relations both feed the master; the master sees what was refused and why; the loop ends. (The
released code picks one extractor at random and drops its output, empties the list of refused triples before
showing it, and loops without a bound.) T_max = 3 is our choice. The loop speaks through `Say`, so that it is
the same whether an engine answers directly (documents) or a session records every turn (a team).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from soloist.kernels.errors import UsageError
from soloist.targets.base import Sampling
from soloist.toolchain.knowledge.graph import KnowledgeGraph
from soloist.toolchain.knowledge.prompts import ASKED, PROMPTS, Role
from soloist.toolchain.knowledge.retrieve import triples_for
from soloist.toolchain.knowledge.triples import Triple, parse_triples
from soloist.toolchain.knowledge.verify import Judgment, judge
from soloist.toolchain.teams.config import AgentConfig
from soloist.toolchain.teams.engines.base import Ask, Engine
from soloist.toolchain.teams.session import messages_for

T_MAX = 3
EXTRACTORS: tuple[Role, ...] = ("entity-extractor", "relation-extractor")
_NOTHING = "no triple could be read in the reply; write one a line as (head, relation, tail)"


class Say(Protocol):
    """Lets agents speak: several texts for one role, answered together."""

    def __call__(self, asked: Sequence[tuple[Role, str]], round: int) -> Sequence[str]:
        """The replies, in the order of what was asked."""


Watch = Callable[[int, Sequence[Judgment]], None]  # told of every round's judgments


@dataclass(frozen=True)
class Extraction:
    """What came of a text. `triples` is empty if the sample was dropped; `judgments` are the last round's."""

    triples: tuple[Triple, ...]
    judgments: tuple[Judgment, ...]
    rounds: int

    @property
    def dropped(self) -> bool:
        return not self.triples


def extract_triples(
    text: str, say: Say, graph: KnowledgeGraph | None = None, *, t_max: int = T_MAX, watch: Watch | None = None
) -> Extraction:
    """Run the loop on one text. With a graph, triples are looked up before the verifier is asked.

    Raises:
        DataError: the graph is empty.
        UsageError: `t_max` is not positive.
    """
    if t_max < 1:
        raise UsageError(f"t_max must be at least 1, not {t_max}")
    known = triples_for(text, graph.require_facts()) if graph is not None else ()
    entities, relations = say([(role, text) for role in EXTRACTORS], 0)
    names = {line.strip(" -*•\t.") for line in f"{entities}\n{relations}".splitlines()} - {""}
    settled: dict[Triple, Judgment] = {}  # what was verified once is not asked again
    judgments: tuple[Judgment, ...] = ()
    fault = ""
    for number in range(t_max):
        (reply,) = say([("master", _task(text, entities, relations, known, judgments, fault))], number)
        triples = parse_triples(reply, known=names).triples
        ask = partial(_ask_verifier, text=text, say=say, graph=graph, round=number)
        judged = dict(settled)
        for judgment in judge([triple for triple in triples if triple not in settled], graph, ask):
            judged[judgment.triple] = judgment
            if judgment.verified:
                settled[judgment.triple] = judgment
        current = tuple(judged[triple] for triple in triples)
        if watch is not None:
            watch(number, current)
        if current and all(judgment.verified for judgment in current):
            return Extraction(triples, current, number + 1)
        fault = "" if current else _NOTHING
        judgments = current or judgments
    return Extraction((), judgments, t_max)


def _task(
    text: str, entities: str, relations: str, known: Sequence[Triple], judgments: Sequence[Judgment], fault: str
) -> str:
    """What the master is asked: on a retry with what was accepted, what was refused, and why."""
    blocks = [f"Text:\n{text}", f"Entities:\n{entities.strip()}", f"Relations:\n{relations.strip()}"]
    if known:
        blocks.append(f"Known facts:\n{_lines(known)}")
    accepted: list[Triple] = []
    refused: list[str] = []
    for judgment in judgments:
        if judgment.verified:
            accepted.append(judgment.triple)
        else:
            refused.append(f"{judgment.triple}: {judgment.reason}")
    if accepted:
        blocks.append(f"Accepted:\n{_lines(accepted)}")
    if refused:
        blocks.append(f"Refused, and why:\n{_lines(refused)}")
    if fault:
        blocks.append(f"Your last reply was refused: {fault}.")
    return "\n\n".join(blocks)


def _lines(items: Iterable[object]) -> str:
    return "\n".join(map(str, items))


def _ask_verifier(
    triples: Sequence[Triple], *, text: str, say: Say, graph: KnowledgeGraph | None, round: int
) -> Sequence[str]:
    """Ask the verifier about each triple, with the text and the facts nearest to it."""
    asked: list[tuple[Role, str]] = []
    for triple in triples:
        near = triples_for(" ".join(triple.parts), graph) if graph is not None else ()
        known = f"Known facts:\n{_lines(near)}\n\n" if near else ""
        asked.append(("verifier", f"{known}Text:\n{text}\n\n{ASKED}{triple}"))
    return say(asked, round)


def assign_roles(agents: Sequence[AgentConfig], roles: Sequence[Role], where: str) -> dict[Role, AgentConfig]:
    """The one agent of each role, with our prompt where it has none of its own. Raises UsageError naming all faults."""
    cast: dict[Role, AgentConfig] = {}
    faults = []
    for role in roles:
        own = [agent for agent in agents if agent.role == role]
        if len(own) != 1:
            faults.append(f"exactly one agent of role '{role}' is needed, not {len(own)}")
            continue
        cast[role] = own[0] if own[0].prompt else own[0].model_copy(update={"prompt": PROMPTS[role]})
    if faults:
        raise UsageError(f"{where}: {'; '.join(faults)}")
    return cast


def engine_say(engine: Engine, agents: Mapping[Role, AgentConfig]) -> Say:
    """Agents that answer straight through an engine, without a trace."""

    def say(asked: Sequence[tuple[Role, str]], round: int) -> Sequence[str]:
        asks = []
        for role, text in asked:
            own = agents[role].sampling
            sampling = Sampling(own.temperature, own.top_p, own.max_tokens, seed=own.seed + round)
            asks.append(Ask(messages_for(agents[role], text), sampling, model=agents[role].model))
        return [reply.text for reply in engine.ask(asks)]

    return say


class AgentExtractor:
    """An extractor of documents: the loop on each passage, and how it went."""

    def __init__(
        self,
        engine: Engine,
        agents: Sequence[AgentConfig] = (),
        *,
        graph: KnowledgeGraph | None = None,
        t_max: int = T_MAX,
    ) -> None:
        roles: tuple[Role, ...] = (*EXTRACTORS, "master", "verifier")
        agents = agents or [AgentConfig(name=role, role=role) for role in roles]
        self._say = engine_say(engine, assign_roles(agents, roles, "knowledge graph"))
        self._graph, self._t_max = graph, t_max
        self.passages = 0
        self.dropped = 0

    def __call__(self, text: str) -> tuple[Triple, ...]:
        extraction = extract_triples(text, self._say, self._graph, t_max=self._t_max)
        self.passages += 1
        self.dropped += extraction.dropped
        return extraction.triples

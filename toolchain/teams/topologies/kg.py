"""KG-MASD (2510.06240): facts are extracted, verified against a knowledge graph, and only then answered from.

    entity extractor ──┐
                       ├──► master ──► verifier ──► distiller: reasons from verified triples, answers
    relation extractor ┘       ▲          │ refused triples with the reason, `t_max` rounds at most
                               └──────────┘ then the question is given up: a run without an answer

The graph is looked up first; what it does not know is asked of the verifier agent, a call for each triple. A
lookup is a turn that no model answered. The graph's facts that belong to the question are given to the
master and to the distiller: they are verified already. The loop itself is `teams/extraction.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from pydantic import Field

from soloist.toolchain.core.config import Config
from soloist.toolchain.knowledge.files import find_graph
from soloist.toolchain.knowledge.graph import KnowledgeGraph
from soloist.toolchain.knowledge.prompts import Role
from soloist.toolchain.knowledge.retrieve import LIMIT, facts_text, triples_for
from soloist.toolchain.knowledge.verify import Judgment
from soloist.toolchain.tasks.base import extract
from soloist.toolchain.teams.config import AgentConfig
from soloist.toolchain.teams.extraction import EXTRACTORS, T_MAX, assign_roles, extract_triples
from soloist.toolchain.teams.session import Say, Session, messages_for
from soloist.toolchain.traces.schema import Run


class Options(Config):
    """`graph` is a triples file, or `desk`; `facts` bounds how many of its facts a question is given."""

    graph: str
    t_max: int = Field(default=T_MAX, ge=1)
    facts: int = Field(default=LIMIT, ge=0)


@lru_cache(maxsize=4)
def _loaded(name: str, changed: int) -> KnowledgeGraph:
    """`changed` is the file's time stamp: a graph that is edited between two teams is read again."""
    return find_graph(name)


def _graph(name: str) -> KnowledgeGraph:
    path = Path(name)
    return _loaded(name, path.stat().st_mtime_ns if path.is_file() else 0).require_facts()


def run(session: Session, options: Options) -> Run:
    roles: tuple[Role, ...] = (*EXTRACTORS, "master", "verifier", "distiller")
    agents = assign_roles(session.team.agents, roles, f"team '{session.team.name}'")
    graph = _graph(options.graph)
    question = session.question.question
    script = _Script(session, dict(agents))
    extraction = extract_triples(question, script.say, graph, t_max=options.t_max, watch=script.watch)
    master, check = script.last["master"], script.check
    if extraction.dropped:
        return session.finish(None, [master])
    given = dict.fromkeys([*triples_for(question, graph, options.facts), *extraction.triples])
    asked = f"{facts_text(given)}\n\nQuestion: {question}"
    (turn,) = session.say(
        [Say(agents["distiller"], messages_for(agents["distiller"], asked), round=extraction.rounds - 1, after=[check])]
    )
    answer = extract(session.turns[turn]["text"])
    session.answer(turn, answer)
    return session.finish(answer, [master, turn])


class _Script:
    """Lets the loop's agents speak through the session, each turn tied to those it builds on."""

    def __init__(self, session: Session, agents: dict[Role, AgentConfig]) -> None:
        self._session, self._agents = session, agents
        self._heard: list[int] = []  # the extractors
        self._asked: list[int] = []  # the verifier's turns of this round
        self.last: dict[Role, int] = {}
        self.check = -1  # the note that closes a round

    def say(self, asked: Sequence[tuple[Role, str]], round: int) -> Sequence[str]:
        says = []
        for role, text in asked:
            agent = self._agents[role]
            again = self.last.get(role) if role == "master" else None
            after = {"master": self._heard if again is None else [self.check], "verifier": [self.last.get("master", 0)]}
            says.append(
                Say(
                    agent,
                    messages_for(agent, text),
                    round=round,
                    after=after.get(role, []),
                    continues=again,
                    seed=round,
                )
            )
        turns = self._session.say(says)
        for (role, _), turn in zip(asked, turns, strict=True):
            self.last[role] = turn
            if role in EXTRACTORS:
                self._heard.append(turn)
            elif role == "verifier":
                self._asked.append(turn)
        return [self._session.turns[turn]["text"] for turn in turns]

    def watch(self, round: int, judgments: Sequence[Judgment]) -> None:
        """The round's verdicts as a turn of the verifier that no model answered."""
        lines = [f"{judgment.triple}: {judgment.verdict} ({judgment.reason})" for judgment in judgments]
        self.check = self._session.note(
            self._agents["verifier"], "\n".join(lines) or "no triple to verify", round=round
        )
        holds = bool(judgments) and all(judgment.verified for judgment in judgments)
        self._session.edge(self.last["master"], self.check, "agrees" if holds else "disputes")
        for turn in self._asked:
            self._session.edge(turn, self.check, "influence")
        self._asked = []

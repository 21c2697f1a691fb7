"""One team at work on one question: a topology speaks through this and a trace comes out.

The session is the only place where turns and edges are made, so that every topology records the same
way: messages in, tokens and times as the engine counted them, tools with their results, and verdicts
graded at the end.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from soloist.kernels.errors import UsageError
from soloist.targets.base import Message, Reply, Sampling
from soloist.toolchain.tasks.base import Question, score
from soloist.toolchain.teams.config import AgentConfig, TeamConfig
from soloist.toolchain.teams.engines.base import Ask, Embedder, Engine
from soloist.toolchain.tools.base import Toolbox, ToolError
from soloist.toolchain.tools.calls import parse_call, run_call
from soloist.toolchain.traces.schema import ChatMessage, Edge, EdgeKind, Run, ToolUse, Turn, Verdict


@dataclass(frozen=True)
class Say:
    """A call a topology wants made. `after` are the turns whose text this one builds on."""

    agent: AgentConfig
    messages: Sequence[Message]
    round: int = 0
    grammar: str | None = None
    after: Sequence[int] = ()
    continues: int | None = None
    max_tokens: int | None = None
    seed: int = 0


Spoken = tuple[int, str | None]  # a turn, and its answer folded so that equal answers are equal texts


@dataclass
class Session:
    """Records one run."""

    team: TeamConfig
    engine: Engine
    tools: Toolbox
    question: Question
    seed: int = 0
    began: float = field(default_factory=time.perf_counter)
    turns: list[dict[str, Any]] = field(default_factory=list)
    edges: dict[tuple[int, int, EdgeKind], None] = field(default_factory=dict)

    def agents(self, role: str) -> list[AgentConfig]:
        return [agent for agent in self.team.agents if agent.role == role]

    def agent(self, role: str) -> AgentConfig:
        """The only agent of a role. Raises UsageError where there is none, or are several."""
        agents = self.agents(role)
        if len(agents) != 1:
            raise UsageError(
                f"team '{self.team.name}': exactly one agent of role '{role}' is needed, not {len(agents)}"
            )
        return agents[0]

    def say(self, says: Sequence[Say]) -> list[int]:
        """Make independent calls together. Returns the ids of their turns."""
        asks = []
        for say in says:
            own = say.agent.sampling
            limit = say.max_tokens or own.max_tokens
            sampling = Sampling(own.temperature, own.top_p, limit, seed=own.seed + self.seed + say.seed)
            asks.append(Ask(say.messages, sampling, say.grammar, say.agent.model))
        return [self._add_reply(say, reply) for say, reply in zip(says, self.engine.ask(asks), strict=True)]

    def _add_reply(self, say: Say, reply: Reply) -> int:
        turn = self._add(
            agent=say.agent.name,
            role=say.agent.role,
            round=say.round,
            text=reply.text,
            messages=tuple(ChatMessage(**m) for m in say.messages),
            model=say.agent.model or self.engine.model,
            tokens_in=reply.tokens_in,
            tokens_cached=reply.tokens_cached,
            tokens_out=reply.tokens_out,
            start=reply.start - self.began,
            first_token=reply.first_token - self.began,
            end=reply.end - self.began,
            finish=reply.finish,
        )
        for source in say.after:
            self.edge(source, turn, "influence")
        if say.continues is not None:
            self.edge(say.continues, turn, "continuity")
        return turn

    def _add(self, **fields: Any) -> int:
        self.turns.append({"id": len(self.turns), **fields})
        return len(self.turns) - 1

    def embed(self, agent: AgentConfig, *, round: int = 0) -> tuple[int, npt.NDArray[np.float32]]:
        """The engine's hidden state of the question, as a turn of `agent`. Raises UsageError without such an engine."""
        if not isinstance(self.engine, Embedder):
            raise UsageError(
                f"the engine of team '{self.team.name}' gives no hidden states: set options.routing: prompt"
            )
        start = time.perf_counter() - self.began
        vector, tokens = self.engine.embed(self.question.question)
        now = time.perf_counter() - self.began
        turn = self._add(
            agent=agent.name,
            role=agent.role,
            round=round,
            model=agent.model or self.engine.model,
            messages=(ChatMessage(role="user", content=self.question.question),),
            tokens_in=tokens,
            start=start,
            first_token=now,
            end=now,
            finish="stop",
        )
        return turn, vector

    def note(self, agent: AgentConfig, text: str, *, round: int = 0, answer: str | None = None) -> int:
        """A turn that no model answered: a vote, a check by a tool."""
        now = time.perf_counter() - self.began
        return self._add(agent=agent.name, role=agent.role, round=round, text=text, answer=answer, start=now, end=now)

    def edge(self, source: int, target: int, kind: EdgeKind) -> None:
        self.edges[(source, target, kind)] = None

    def mark_agreement(self, spoken: Sequence[Spoken]) -> None:
        """Who agrees with whom, the earlier turn first."""
        for (one, first), (other, second) in itertools.combinations(spoken, 2):
            self.edge(min(one, other), max(one, other), "agrees" if first == second else "disputes")

    def mark_corrections(self, before: Sequence[Spoken], after: Sequence[Spoken]) -> None:
        """Who changed to another's answer of the round before was corrected by that other; speakers in one order."""
        for (old, was), (new, now) in zip(before, after, strict=True):
            if now is None or now == was:
                continue
            for other, answer in before:
                if other != old and answer == now:
                    self.edge(other, new, "corrects")

    def run_tool(self, turn: int, text: str) -> ToolUse:
        """Run the call written in `text`, record it on the turn. A bad call is recorded as its error."""
        began = time.perf_counter()
        name, arguments = "", {}
        try:
            call = parse_call(text, self.tools)
            name, arguments = call.name, dict(call.arguments)
            result = run_call(call, self.tools)
            outcome: dict[str, Any] = {"result": result.value, "steps": result.steps}
        except ToolError as error:
            outcome = {"error": str(error)}
        seconds = time.perf_counter() - began
        use = ToolUse(name=name, arguments=arguments, call=text.strip(), seconds=seconds, **outcome)
        record = self.turns[turn]
        record["tools"] = (*record.get("tools", ()), use)
        return use

    def answer(self, turn: int, answer: str | None) -> None:
        """Set what a turn answered."""
        self.turns[turn]["answer"] = answer

    def verdict(self, answer: str | None) -> Verdict:
        if answer is None:
            return "absent"
        if self.question.gold is None:
            return "unknown"
        return "correct" if score(answer, self.question) else "wrong"

    def finish(self, answer: str | None, path: Sequence[int] = (), *, error: str | None = None) -> Run:
        """Grade and close the run."""
        turns = []
        for fields in self.turns:
            verdict = self.verdict(fields["answer"]) if fields.get("answer") else "unknown"
            turns.append(Turn(**fields, verdict=verdict))
        edges = [Edge(source=source, target=target, kind=kind) for source, target, kind in self.edges]
        return Run(
            question=self.question,
            team=self.team.name,
            turns=tuple(turns),
            edges=tuple(edges),
            path=tuple(path),
            answer=answer,
            verdict=self.verdict(answer),
            wall=time.perf_counter() - self.began,
            seed=self.seed,
            error=error,
        )


def messages_for(agent: AgentConfig, user: str, *, history: Sequence[Message] = ()) -> list[Message]:
    """System prompt, the agent's own demonstrations as earlier turns, the user's message, then `history`."""
    messages: list[Message] = []
    if agent.prompt:
        messages.append({"role": "system", "content": agent.prompt})
    if isinstance(agent.demonstrations, tuple):
        for demonstration in agent.demonstrations:
            messages.append({"role": "user", "content": demonstration.question})
            messages.append({"role": "assistant", "content": demonstration.reply})
            for more in demonstration.then:
                messages.append({"role": "tool", "content": more.result})
                messages.append({"role": "assistant", "content": more.reply})
    return [*messages, {"role": "user", "content": user}, *history]

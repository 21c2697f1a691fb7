"""The tool loop, once for everybody: write a call, see its result, write the next, until a call is the last.

A lone agent, the samples of a vote and a distilled student act through `act`; attempts that do not depend on each
other advance together, in one batch per step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from soloist.targets.base import Message
from soloist.toolchain.teams.config import AgentConfig
from soloist.toolchain.teams.session import Say, Session
from soloist.toolchain.tools.calls import MORE
from soloist.toolchain.traces.schema import ToolUse


@dataclass
class Attempt:
    """One agent acting on one prompt. After `act`: its turns, tool uses and answer (None after a bad call)."""

    agent: AgentConfig
    messages: Sequence[Message]
    grammar: str | None = None
    seed: int = 0
    history: list[Message] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)
    uses: list[ToolUse] = field(default_factory=list)
    answer: str | None = None


def act(session: Session, attempts: Sequence[Attempt], *, max_calls: int = 4) -> None:
    """Let all attempts act to their end. Each turn's answer is what its tool returned."""
    active = list(attempts)
    for _ in range(max_calls):
        if not active:
            break
        turns = session.say([_next(attempt) for attempt in active])
        going = []
        for attempt, turn in zip(active, turns, strict=True):
            text = session.turns[turn]["text"]
            use = session.run_tool(turn, text)
            attempt.turns.append(turn)
            attempt.uses.append(use)
            attempt.answer = use.result
            session.answer(turn, use.result)
            if use.result is not None and text.rstrip().endswith(MORE):
                attempt.history.append({"role": "assistant", "content": text.strip()})
                attempt.history.append({"role": "tool", "content": use.result})
                going.append(attempt)
        active = going
    for attempt in active:  # its last call announces another, and no more are allowed: this is no answer
        attempt.answer = None


def _next(attempt: Attempt) -> Say:
    return Say(
        attempt.agent,
        [*attempt.messages, *attempt.history],
        grammar=attempt.grammar,
        continues=attempt.turns[-1] if attempt.turns else None,
        seed=attempt.seed,
    )

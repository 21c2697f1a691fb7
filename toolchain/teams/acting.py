"""The tool loop, once for everybody: write a call, see its result, write the next, until a call is the last.

A lone agent, the samples of a vote, the readers of the desk and a distilled student all act through
`act`; attempts that do not depend on each other advance together, in one batch per step.
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
    round: int = 0
    after: Sequence[int] = ()
    continues: int | None = None
    seed: int = 0
    turns: list[int] = field(default_factory=list)
    uses: list[ToolUse] = field(default_factory=list)
    answer: str | None = None

    @property
    def calls(self) -> str:
        """The calls as one text, to compare proposals with."""
        return "; ".join(use.call for use in self.uses)


def act(session: Session, attempts: Sequence[Attempt], *, max_calls: int = 4) -> None:
    """Let all attempts act to their end. Each turn's answer is what its tool returned."""
    history: list[list[Message]] = [[] for _ in attempts]
    active = list(range(len(attempts)))
    for _ in range(max_calls):
        if not active:
            break
        turns = session.say([_say(attempts[i], history[i]) for i in active])
        going = []
        for i, turn in zip(active, turns, strict=True):
            attempt = attempts[i]
            text = session.turns[turn]["text"]
            use = session.run_tool(turn, text)
            attempt.turns.append(turn)
            attempt.uses.append(use)
            attempt.answer = use.result
            session.answer(turn, use.result)
            if use.result is not None and text.rstrip().endswith(MORE):
                history[i] += [
                    {"role": "assistant", "content": text.strip()},
                    {"role": "tool", "content": use.result},
                ]
                going.append(i)
        active = going
    for i in active:  # said that more would follow when no more was allowed: an intermediate result is no answer
        attempts[i].answer = None


def _say(attempt: Attempt, history: Sequence[Message]) -> Say:
    first = not attempt.turns
    return Say(
        attempt.agent,
        [*attempt.messages, *history],
        round=attempt.round,
        grammar=attempt.grammar,
        after=attempt.after if first else (),
        continues=attempt.continues if first else attempt.turns[-1],
        seed=attempt.seed,
    )

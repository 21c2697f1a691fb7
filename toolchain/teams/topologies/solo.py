"""One agent. With tools it writes calls, sees their results, and the last result is its answer."""

from __future__ import annotations

from pydantic import Field

from soloist.toolchain.core.config import Config
from soloist.toolchain.tasks.base import extract
from soloist.toolchain.teams.acting import Attempt, act
from soloist.toolchain.teams.session import Say, Session, messages_for
from soloist.toolchain.tools.calls import grammar
from soloist.toolchain.traces.schema import Run


class Options(Config):
    """`max_calls` bounds the tool calls of one question; `grammar` keeps them well formed."""

    max_calls: int = Field(default=4, ge=1)
    grammar: bool = True


def run(session: Session, options: Options) -> Run:
    agent = session.team.agents[0]
    messages = messages_for(agent, session.question.question)
    if agent.tools:
        attempt = Attempt(agent, messages, grammar(session.tools, agent.tools) if options.grammar else None)
        act(session, [attempt], max_calls=options.max_calls)
        return session.finish(attempt.answer, attempt.turns)
    (turn,) = session.say([Say(agent, messages)])
    answer = extract(session.turns[turn]["text"])
    session.answer(turn, answer)
    return session.finish(answer, [turn])

"""One agent, one call. With tools, it writes calls, sees their results, and the last result is its answer."""

from __future__ import annotations

from soloist.targets.base import Message
from soloist.toolchain.config import Config
from soloist.toolchain.tasks.base import extract
from soloist.toolchain.teams.session import Say, Session, messages_for
from soloist.toolchain.tools.calls import MORE, grammar
from soloist.toolchain.traces.schema import Run


class Options(Config):
    """`max_calls` bounds the tool calls of one question; `grammar` keeps them well formed."""

    max_calls: int = 4
    grammar: bool = True


def run(session: Session, options: Options) -> Run:
    agent = session.team.agents[0]
    if not agent.tools:
        (turn,) = session.say([Say(agent, messages_for(agent, session.question.question))])
        answer = extract(session.turns[turn]["text"])
        session.answer(turn, answer)
        return session.finish(answer, [turn])
    rules = grammar(session.tools, agent.tools) if options.grammar else None
    history: list[Message] = []
    path: list[int] = []
    answer = None
    for _ in range(options.max_calls):
        messages = messages_for(agent, session.question.question, history=history)
        (turn,) = session.say([Say(agent, messages, grammar=rules, continues=path[-1] if path else None)])
        path.append(turn)
        text = session.turns[turn]["text"]
        use = session.run_tool(turn, text)
        answer = use.result
        session.answer(turn, answer)
        if use.result is None or not text.rstrip().endswith(MORE):
            break
        history += [{"role": "assistant", "content": text.strip()}, {"role": "tool", "content": use.result}]
    return session.finish(answer, path)

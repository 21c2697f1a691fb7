"""One agent asked `samples` times at a temperature; the majority answer (Wang et al., 2203.11171)."""

from __future__ import annotations

from pydantic import Field

from soloist.toolchain.config import Config
from soloist.toolchain.tasks.base import extract
from soloist.toolchain.teams.session import Say, Session, messages_for
from soloist.toolchain.teams.voting import fold_answer, majority
from soloist.toolchain.traces.schema import Run


class Options(Config):
    """`samples` independent answers; `max_tokens_total`, if set, stops asking when the budget is spent."""

    samples: int = Field(default=5, ge=1)
    max_tokens_total: int | None = None


def run(session: Session, options: Options) -> Run:
    agent = session.team.agents[0]
    messages = messages_for(agent, session.question.question)
    turns: list[int] = []
    spent = 0
    while len(turns) < options.samples:
        left = options.samples - len(turns)
        batch = left if options.max_tokens_total is None else min(left, 4)
        new = session.say([Say(agent, messages, seed=1000 * (len(turns) + i)) for i in range(batch)])
        turns += new
        spent += sum(session.turns[t]["tokens_in"] + session.turns[t]["tokens_out"] for t in new)
        if options.max_tokens_total is not None and spent >= options.max_tokens_total:
            break
    answers = [extract(session.turns[turn]["text"]) for turn in turns]
    for turn, given in zip(turns, answers, strict=True):
        session.answer(turn, given)
    answer, _ = majority(answers)
    path = [t for t, a in zip(turns, answers, strict=True) if answer and a and fold_answer(a) == fold_answer(answer)]
    return session.finish(answer, path[:1])

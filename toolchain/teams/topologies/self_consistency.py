"""One agent asked several times at a temperature; the majority answer (Wang et al., 2203.11171)."""

from __future__ import annotations

from pydantic import Field

from soloist.toolchain.core.config import Config
from soloist.toolchain.tasks.base import extract
from soloist.toolchain.teams.acting import Attempt, act
from soloist.toolchain.teams.session import Say, Session, messages_for
from soloist.toolchain.teams.voting import fold_answer, majority
from soloist.toolchain.tools.calls import grammar
from soloist.toolchain.traces.schema import Run


class Options(Config):
    """At most `samples` answers, `batch` at a time. `max_tokens_total` is a budget: beyond the first sample
    nothing is asked for that it is not expected to hold, going by what the samples so far have cost."""

    samples: int = Field(default=5, ge=1)
    max_tokens_total: int | None = Field(default=None, ge=1)
    batch: int = Field(default=4, ge=1)


def run(session: Session, options: Options) -> Run:
    agent = session.team.agents[0]
    messages = messages_for(agent, session.question.question)
    rules = grammar(session.tools, agent.tools) if agent.tools else None
    paths: list[list[int]] = []
    answers: list[str | None] = []
    while size := _next_batch(session, options, len(paths)):
        seeds = range(1000 * len(paths), 1000 * (len(paths) + size), 1000)
        if agent.tools:
            attempts = [Attempt(agent, messages, rules, seed=seed) for seed in seeds]
            act(session, attempts)
            for attempt in attempts:
                paths.append(attempt.turns)
                answers.append(attempt.answer)
        else:
            for turn in session.say([Say(agent, messages, seed=seed) for seed in seeds]):
                session.answer(turn, extract(session.turns[turn]["text"]))
                paths.append([turn])
                answers.append(session.turns[turn]["answer"])
    answer, _ = majority(answers)
    if answer is None:
        return session.finish(None)
    winner = next(
        path for path, own in zip(paths, answers, strict=True) if own and fold_answer(own) == fold_answer(answer)
    )
    return session.finish(answer, winner)


def _next_batch(session: Session, options: Options, asked: int) -> int:
    """How many samples to ask for next; 0 ends it."""
    size = min(options.batch, options.samples - asked)
    if options.max_tokens_total is None:
        return size
    if not asked:  # all that is known yet is how long a reply may be
        return max(1, min(size, options.max_tokens_total // session.team.agents[0].sampling.max_tokens))
    spent = sum(turn.get("tokens_in", 0) + turn.get("tokens_out", 0) for turn in session.turns)
    left = max(0, options.max_tokens_total - spent)
    return min(size, left * asked // spent) if spent else size

"""A planner plans, a solver solves, a critic reads the solution, the solver revises until the critic is content."""

from __future__ import annotations

import re

from pydantic import Field

from soloist.targets.base import Message
from soloist.toolchain.core.config import Config
from soloist.toolchain.tasks.base import extract
from soloist.toolchain.teams.session import Say, Session, messages_for
from soloist.toolchain.teams.voting import fold_answer
from soloist.toolchain.traces.schema import Run


class Options(Config):
    """`revisions` bounds the rounds of criticism; the critic says `approve_word` when content."""

    revisions: int = Field(default=1, ge=0)
    approve_word: str = "APPROVED"


def run(session: Session, options: Options) -> Run:
    planner, solver, critic = session.agent("planner"), session.agent("solver"), session.agent("critic")
    question = session.question.question
    (plan,) = session.say([Say(planner, messages_for(planner, question))])
    task = f"{question}\n\nPlan:\n{session.turns[plan]['text']}"
    (draft,) = session.say([Say(solver, messages_for(solver, task), after=[plan])])
    history: list[Message] = []
    session.answer(draft, extract(session.turns[draft]["text"]))
    for number in range(1, options.revisions + 1):
        text = session.turns[draft]["text"]
        asked = f"{question}\n\nProposed solution:\n{text}"
        (review,) = session.say([Say(critic, messages_for(critic, asked), round=number, after=[draft])])
        verdict = session.turns[review]["text"]
        approved = approves(verdict, options.approve_word)
        session.edge(draft, review, "agrees" if approved else "disputes")
        if approved:
            break
        history += [{"role": "assistant", "content": text}, {"role": "user", "content": f"A critic says:\n{verdict}"}]
        messages = messages_for(solver, task, history=history)
        (new,) = session.say([Say(solver, messages, round=number, after=[review], continues=draft)])
        answer, old = extract(session.turns[new]["text"]), session.turns[draft].get("answer")
        session.answer(new, answer)
        if answer and old and fold_answer(answer) != fold_answer(old):
            session.edge(review, new, "corrects")
        draft = new
    return session.finish(session.turns[draft].get("answer"), [plan, draft])


def approves(verdict: str, word: str) -> bool:
    """Whether a critic says the word, and not that it does not."""
    approval = rf"(?<!\w){re.escape(word)}(?!\w)"
    refusal = rf"(?:\b(?:not|no|never|cannot|without)\b|n['’]t\b)[^.!?;\n]*{approval}"
    return bool(re.search(approval, verdict, re.IGNORECASE)) and not re.search(refusal, verdict, re.IGNORECASE)

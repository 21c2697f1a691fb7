"""Debate (Du et al., 2305.14325): every agent answers, then reads the others and answers again.

Ends by majority vote, or by a judge (an agent of role `judge`) who reads the last round.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from soloist.kernels.errors import UsageError
from soloist.targets.base import Message
from soloist.toolchain.core.config import Config
from soloist.toolchain.tasks.base import extract
from soloist.toolchain.teams.session import Say, Session, messages_for
from soloist.toolchain.teams.voting import fold_answer, majority
from soloist.toolchain.traces.schema import Run


class Options(Config):
    """`rounds` counts the first answers as round 1."""

    rounds: int = Field(default=2, ge=1)
    end: Literal["majority", "judge"] = "majority"
    stop_on_consensus: bool = True


def run(session: Session, options: Options) -> Run:
    debaters = session.agents("debater")
    if len(debaters) < 2:
        raise UsageError(f"team '{session.team.name}': a debate needs at least two agents of role 'debater'")
    if options.end == "judge" and not session.agents("judge"):
        raise UsageError(f"team '{session.team.name}': end 'judge' needs an agent of role 'judge'")
    question = session.question.question
    histories: list[list[Message]] = [[] for _ in debaters]
    turns = session.say([Say(agent, messages_for(agent, question)) for agent in debaters])
    answers = _grade(session, turns)
    for number in range(1, options.rounds):
        if options.stop_on_consensus and len({fold_answer(a) if a else None for a in answers}) == 1:
            break
        says = []
        for i, agent in enumerate(debaters):
            others = [turn for j, turn in enumerate(turns) if j != i]
            histories[i] += [
                {"role": "assistant", "content": session.turns[turns[i]]["text"]},
                {"role": "user", "content": _others_text(session, others)},
            ]
            messages = messages_for(agent, question, history=histories[i])
            says.append(Say(agent, messages, round=number, after=others, continues=turns[i]))
        before, before_answers = turns, answers
        turns = session.say(says)
        answers = _grade(session, turns)
        _mark_changes(session, before, before_answers, turns, answers)
    return _close(session, options, turns, answers)


def _grade(session: Session, turns: Sequence[int]) -> list[str | None]:
    """Extract answers and mark who agrees with whom, earlier speaker first."""
    answers = [extract(session.turns[turn]["text"]) for turn in turns]
    for turn, answer in zip(turns, answers, strict=True):
        session.answer(turn, answer)
    for i, first in enumerate(answers):
        for j in range(i + 1, len(answers)):
            second = answers[j]
            if first and second:
                same = fold_answer(first) == fold_answer(second)
                session.edge(turns[i], turns[j], "agrees" if same else "disputes")
    return answers


def _others_text(session: Session, turns: Sequence[int]) -> str:
    quoted = "\n\n".join(f"Another agent answered:\n{session.turns[turn]['text']}" for turn in turns)
    return (
        f"{quoted}\n\nUsing these answers as advice, check your own and answer the question again. "
        "End with a line '#### ' followed by the answer alone."
    )


def _mark_changes(
    session: Session, old: Sequence[int], was: Sequence[str | None], new: Sequence[int], now: Sequence[str | None]
) -> None:
    """Who changed to another's answer was corrected by that other."""
    for i, turn in enumerate(new):
        mine, then = now[i], was[i]
        if mine is None or (then is not None and fold_answer(mine) == fold_answer(then)):
            continue
        for j, answer in enumerate(was):
            if j != i and answer is not None and fold_answer(answer) == fold_answer(mine):
                session.edge(old[j], turn, "corrects")


def _close(session: Session, options: Options, turns: Sequence[int], answers: Sequence[str | None]) -> Run:
    if options.end == "judge":
        judge = session.agents("judge")[0]
        text = f"{session.question.question}\n\n{_others_text(session, turns)}"
        (turn,) = session.say(
            [Say(judge, messages_for(judge, text), round=session.turns[turns[0]]["round"] + 1, after=turns)]
        )
        answer = extract(session.turns[turn]["text"])
        session.answer(turn, answer)
        return session.finish(answer, [turn])
    answer, _ = majority(answers)
    path = [t for t, a in zip(turns, answers, strict=True) if a and answer and fold_answer(a) == fold_answer(answer)]
    return session.finish(answer, path[:1])

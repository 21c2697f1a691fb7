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
from soloist.toolchain.teams.session import Say, Session, Spoken, messages_for
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
    spoken = _grade(session, session.say([Say(agent, messages_for(agent, question)) for agent in debaters]))
    for number in range(1, options.rounds):
        if options.stop_on_consensus and len({answer for _, answer in spoken}) == 1:
            break
        says = []
        for agent, history, (own, _) in zip(debaters, histories, spoken, strict=True):
            others = [turn for turn, _ in spoken if turn != own]
            history += [
                {"role": "assistant", "content": session.turns[own]["text"]},
                {"role": "user", "content": _others_text(session, others)},
            ]
            messages = messages_for(agent, question, history=history)
            says.append(Say(agent, messages, round=number, after=others, continues=own))
        before, spoken = spoken, _grade(session, session.say(says))
        session.mark_corrections(before, spoken)
    return _close(session, options, spoken)


def _grade(session: Session, turns: Sequence[int]) -> list[Spoken]:
    """Extract the answers of a round and mark who agrees with whom."""
    spoken: list[Spoken] = []
    for turn in turns:
        answer = extract(session.turns[turn]["text"])
        session.answer(turn, answer)
        spoken.append((turn, fold_answer(answer) if answer else None))
    session.mark_agreement([one for one in spoken if one[1] is not None])
    return spoken


def _others_text(session: Session, turns: Sequence[int]) -> str:
    quoted = "\n\n".join(f"Another agent answered:\n{session.turns[turn]['text']}" for turn in turns)
    return (
        f"{quoted}\n\nUsing these answers as advice, check your own and answer the question again. "
        "End with a line '#### ' followed by the answer alone."
    )


def _close(session: Session, options: Options, spoken: Sequence[Spoken]) -> Run:
    turns = [turn for turn, _ in spoken]
    if options.end == "judge":
        judge = session.agents("judge")[0]
        text = f"{session.question.question}\n\n{_others_text(session, turns)}"
        number = session.turns[turns[0]]["round"] + 1
        (turn,) = session.say([Say(judge, messages_for(judge, text), round=number, after=turns)])
        answer = extract(session.turns[turn]["text"])
        session.answer(turn, answer)
        return session.finish(answer, [turn])
    answer, _ = majority([session.turns[turn]["answer"] for turn in turns])
    if answer is None:
        return session.finish(None)
    winner = next(turn for turn, folded in spoken if folded == fold_answer(answer))
    return session.finish(answer, [winner])

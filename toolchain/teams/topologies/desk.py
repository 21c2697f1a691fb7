"""The desk: a team of small readers around exact tools.

    router ──► specialists of one family: several readers, each with demonstrations of its own
                  │ each proposes tool calls under a grammar; exact tools compute
                  ├─ all agree ───────────────► critic
                  └─ they differ ──► each sees the others' calls and results and answers again ──► critic
    critic: checks every distinct proposal by another way (substitution, re-computation, are the numbers
            of the call the numbers of the question), then counts votes; if nothing holds, the router's
            next choice of specialists is asked
    scribe: writes the solution from the worked steps

Agents of role router, reader, critic and scribe; every one of them is a model except the critic, whose
other way is a tool's own check.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import Field

from soloist.kernels.errors import UsageError
from soloist.targets.base import Message
from soloist.toolchain.config import Config
from soloist.toolchain.tasks.base import extract
from soloist.toolchain.teams.acting import Attempt, act
from soloist.toolchain.teams.config import AgentConfig
from soloist.toolchain.teams.session import Say, Session, messages_for
from soloist.toolchain.teams.specialties import Specialties, load_specialties
from soloist.toolchain.teams.voting import fold_answer
from soloist.toolchain.tools.arithmetic import check_steps
from soloist.toolchain.tools.base import ToolError
from soloist.toolchain.tools.calls import grammar
from soloist.toolchain.traces.schema import Run

_DIGITS = re.compile(r"\d+")


class Options(Config):
    """`specialties` names the task whose families are the specialists' fields."""

    specialties: str = "desk"
    router_demonstrations: int = Field(default=2, ge=1)
    rounds: int = Field(default=2, ge=1)
    escalations: int = Field(default=1, ge=0)
    max_calls: int = Field(default=3, ge=1)


@dataclass
class Judged:
    """A distinct proposal after the critic has looked at it."""

    attempt: Attempt
    votes: int
    holds: bool
    coverage: float

    @property
    def rank(self) -> tuple[bool, int, float]:
        return (self.holds, self.votes, self.coverage)


def run(session: Session, options: Options) -> Run:
    specialties = load_specialties(options.specialties)
    router, critic, scribe = (_only(session, role) for role in ("router", "critic", "scribe"))
    routed, family = _route(session, router, specialties, options, refused=())
    refused: list[str] = []
    best: Judged | None = None
    for _ in range(options.escalations + 1):
        attempts = _read(session, specialties, family, options, routed)
        judged, check = _criticize(session, critic, attempts)
        if judged is not None and (best is None or judged.rank > best.rank):
            best = judged
        if best is not None and best.holds:
            break
        refused.append(family)
        if len(refused) > options.escalations:
            break
        routed, family = _route(session, router, specialties, options, refused=refused)
        session.edge(check, routed, "disputes")
    if best is None or best.attempt.answer is None:
        return session.finish(None)
    _write(session, scribe, best.attempt, check)
    return session.finish(best.attempt.answer, best.attempt.turns)


def _only(session: Session, role: str) -> AgentConfig:
    agents = session.agents(role)
    if len(agents) != 1:
        raise UsageError(f"team '{session.team.name}': exactly one agent of role '{role}' is needed, not {len(agents)}")
    return agents[0]


def _route(
    session: Session, router: AgentConfig, specialties: Specialties, options: Options, refused: Sequence[str]
) -> tuple[int, str]:
    """Ask the router for the family, among those not yet refused."""
    labels = [name for name in specialties.names if name not in refused]
    rules = "root ::= " + " | ".join(f'"{name}"' for name in labels) + "\n"
    shown = specialties.routing(options.router_demonstrations)
    messages: list[Message] = [{"role": "system", "content": router.prompt}] if router.prompt else []
    messages += [*shown, {"role": "user", "content": session.question.question}]
    (turn,) = session.say([Say(router, messages, round=len(refused), grammar=rules)])
    return turn, session.turns[turn]["text"].strip()


def _read(session: Session, specialties: Specialties, family: str, options: Options, routed: int) -> list[Attempt]:
    """The readers of a family propose; those who differ see each other's work and propose again."""
    readers = session.agents("reader")
    rules = grammar(session.tools, specialties.tools(family))
    attempts = [
        Attempt(reader, [*_prompt(reader, specialties, family), _user(session)], rules, after=[routed])
        for reader in readers
    ]
    act(session, attempts, max_calls=options.max_calls)
    for number in range(1, options.rounds):
        _mark(session, attempts)
        if len({_key(attempt) for attempt in attempts}) == 1:
            break
        before = attempts
        attempts = [
            Attempt(
                old.agent,
                [*_prompt(old.agent, specialties, family), _user(session, _others(before, old))],
                rules,
                round=number,
                after=[other.turns[-1] for other in before if other is not old],
                continues=old.turns[-1],
            )
            for old in before
        ]
        act(session, attempts, max_calls=options.max_calls)
        _mark_changes(session, before, attempts)
        attempts = [*before, *attempts]
    return attempts


def _prompt(reader: AgentConfig, specialties: Specialties, family: str) -> list[Message]:
    system: list[Message] = [{"role": "system", "content": reader.prompt}] if reader.prompt else []
    return [*system, *specialties.demonstrations(reader, family)]


def _user(session: Session, others: str = "") -> Message:
    return {"role": "user", "content": session.question.question + others}


def _others(attempts: Sequence[Attempt], mine: Attempt) -> str:
    lines = [f"{other.calls} gives {other.answer}" for other in attempts if other is not mine and other.answer]
    return "\n(Others wrote: " + " / ".join(dict.fromkeys(lines)) + ")" if lines else ""


def _key(attempt: Attempt) -> str | None:
    return fold_answer(attempt.answer) if attempt.answer else None


def _mark(session: Session, attempts: Sequence[Attempt]) -> None:
    """Who agrees with whom, earlier speaker first."""
    for i, first in enumerate(attempts):
        for second in attempts[i + 1 :]:
            low, high = sorted((first.turns[-1], second.turns[-1]))
            session.edge(low, high, "agrees" if _key(first) == _key(second) else "disputes")


def _mark_changes(session: Session, before: Sequence[Attempt], after: Sequence[Attempt]) -> None:
    """Who changed to another's answer was corrected by that other."""
    for old, new in zip(before, after, strict=True):
        if _key(new) is None or _key(new) == _key(old):
            continue
        for other in before:
            if other is not old and _key(other) == _key(new):
                session.edge(other.turns[-1], new.turns[-1], "corrects")


def _criticize(session: Session, critic: AgentConfig, attempts: Sequence[Attempt]) -> tuple[Judged | None, int]:
    """Check each distinct proposal by another way, then rank by check, votes and coverage."""
    distinct: dict[str, Judged] = {}
    for attempt in attempts:
        key = _key(attempt)
        if key is None:
            continue
        if key in distinct:
            distinct[key].votes += 1
            continue
        holds, coverage = _check(session, attempt)
        distinct[key] = Judged(attempt, 1, holds, coverage)
    ranked = sorted(distinct.values(), key=lambda judged: judged.rank, reverse=True)
    best = ranked[0] if ranked else None
    lines = [
        f"{judged.attempt.calls} gives {judged.attempt.answer}: {'holds' if judged.holds else 'does not hold'}, "
        f"{judged.votes} of {len(attempts)} votes, {judged.coverage:.0%} of the question's numbers used"
        for judged in ranked
    ]
    check = session.note(
        critic, "\n".join(lines) or "no proposal could be computed",
        round=max(session.turns[a.turns[-1]]["round"] for a in attempts),
        answer=best.attempt.answer if best else None,
    )  # fmt: skip
    for attempt in attempts:
        same = best is not None and best.holds and _key(attempt) == _key(best.attempt)
        session.edge(attempt.turns[-1], check, "agrees" if same else "disputes")
    return best, check


def _check(session: Session, attempt: Attempt) -> tuple[bool, float]:
    """Does every result stand another way, and do the calls' numbers come from the question or an earlier result?"""
    known = set(_DIGITS.findall(session.question.question))
    asked, used = set(known), set()
    holds = True
    for use in attempt.uses:
        if use.result is None:
            return False, 0.0
        numbers = set(_DIGITS.findall(use.call))
        used |= numbers
        holds &= {n.lstrip("0") for n in numbers} <= {n.lstrip("0") for n in known} | {""}
        try:
            check = session.tools[use.name].check
        except ToolError:
            return False, 0.0
        holds &= check is None or check(use.arguments, use.result)
        known |= set(_DIGITS.findall(use.result))
    return holds, len(asked & used) / len(asked) if asked else 1.0


def _write(session: Session, scribe: AgentConfig, attempt: Attempt, check: int) -> None:
    """The scribe writes the solution out; what it wrote is kept with a verdict of its own."""
    steps = [step for use in attempt.uses for step in use.steps] or [use.call for use in attempt.uses]
    notes = "\n".join([*steps, f"Result: {attempt.answer}"])
    asked = f"{session.question.question}\n\nNotes:\n{notes}"
    (turn,) = session.say([Say(scribe, messages_for(scribe, asked), after=[check])])
    text = session.turns[turn]["text"]
    answer = extract(text)
    session.answer(turn, answer)
    right = answer is not None and fold_answer(answer) == fold_answer(attempt.answer or "") and check_steps(text)
    session.edge(check, turn, "agrees" if right else "disputes")

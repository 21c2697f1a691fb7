"""The desk: a team of small readers around exact tools.

    router ──► specialists of one field: several readers, each with demonstrations of its own
                  │ each proposes a tool call under a grammar that only lets it copy numbers from the
                  │ question; an exact tool computes; a second call is read with the first's result
                  ├─ all agree ───────────────► critic
                  └─ they differ ──► each sees the others' calls and results and answers again ──► critic
    critic: checks every distinct proposal by another way (substitution, re-computation, which numbers of
            the question were used), then counts votes; if nothing holds or numbers are left over, the
            router's next choice of specialists is asked
    scribe: writes the solution from the worked steps

Agents of role router, reader, critic and scribe; without a critic (and so without a scribe) the first reader's answer
stands: what a debate adds is measured against that. Every one of them is a model except the critic, whose
other way is a tool's own check.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field

from soloist.kernels.errors import ArtifactError
from soloist.targets.base import Message
from soloist.targets.from_gguf import find_base
from soloist.toolchain.core.config import Config
from soloist.toolchain.desk.specialties import QUESTIONS, Specialties, asked, load_specialties
from soloist.toolchain.student.artifact import base_digest
from soloist.toolchain.tasks.base import extract
from soloist.toolchain.teams.config import AgentConfig, EngineConfig, GgufEngineConfig
from soloist.toolchain.teams.engines.base import Embedder
from soloist.toolchain.teams.session import Say, Session, Spoken, messages_for
from soloist.toolchain.teams.voting import fold_answer
from soloist.toolchain.tools.arithmetic import check_steps
from soloist.toolchain.tools.calls import copied, grammar, numbers_in
from soloist.toolchain.traces.schema import Run, ToolUse

_DIGITS = re.compile(r"\d+")
_LATER_VOTE = 0.25  # who has seen the others no longer votes on his own: such votes break ties


class Options(Config):
    """`specialties` names the module whose families are the specialists' fields; `families` keeps to some of them.

    `routing`: "hidden-state" tells fields apart by the router's hidden states of `router_demonstrations`
    questions of each; "prompt" shows them to the router and lets it write a field's name (other engines).
    """

    specialties: str = QUESTIONS
    families: tuple[str, ...] = ()
    routing: Literal["hidden-state", "prompt"] = "hidden-state"
    router_demonstrations: int = Field(default=12, ge=1)
    rounds: int = Field(default=2, ge=1)
    escalations: int = Field(default=1, ge=0)


@dataclass
class Proposal:
    """One reader's calls, their turns, and the answer they give (None after a call that failed).

    `earlier` is what the same reader proposed in the round before.
    """

    reader: AgentConfig
    earlier: Proposal | None = None
    turns: list[int] = field(default_factory=list)
    uses: list[ToolUse] = field(default_factory=list)

    @property
    def answer(self) -> str | None:
        return self.uses[-1].result if self.uses else None

    @property
    def key(self) -> str | None:
        return fold_answer(self.answer) if self.answer else None

    @property
    def calls(self) -> str:
        return "; ".join(use.call for use in self.uses)

    @property
    def results(self) -> list[str]:
        return [use.result for use in self.uses if use.result is not None]


@dataclass
class Judged:
    """A distinct proposal after the critic has looked at it."""

    proposal: Proposal
    votes: float
    holds: bool
    coverage: float

    @property
    def rank(self) -> tuple[bool, float]:
        """A reader who dropped a number of the question is outweighed by one who used it."""
        return (self.holds, self.votes + 6 * self.coverage)


def run(session: Session, options: Options) -> Run:
    specialties = load_specialties(options.specialties, options.families)
    router = session.agent("router")
    routed, field = _route(session, router, specialties, options, refused=())
    if not session.agents("critic"):
        (first, *_) = _read(session, specialties, field, options, routed)
        return session.finish(first.answer, first.turns if first.answer is not None else ())
    critic, scribe = session.agent("critic"), session.agent("scribe")
    refused: list[str] = []
    best: Judged | None = None
    for _ in range(options.escalations + 1):
        proposals = _read(session, specialties, field, options, routed)
        judged, check = _criticize(session, critic, proposals)
        if judged is not None and (best is None or judged.rank > best.rank):
            best = judged
        if best is not None and best.holds and best.coverage == 1:
            break
        refused.append(field)
        if len(refused) > options.escalations or len(refused) == len(specialties.names):
            break
        routed, field = _route(session, router, specialties, options, refused=refused)
        session.edge(check, routed, "disputes")
    if best is None or best.proposal.answer is None:
        return session.finish(None)
    _write(session, scribe, best.proposal, check)
    return session.finish(best.proposal.answer, best.proposal.turns)


@cache
def _digest(engine: EngineConfig) -> str | None:
    """What the weights of an engine in this process are, and how they are run; None for any other engine."""
    if not isinstance(engine, GgufEngineConfig):
        return None
    path = Path(engine.model)
    with contextlib.suppress(ArtifactError, OSError):
        return f"{base_digest(path if path.is_file() else find_base(engine.model))} {engine.weights}"
    return None


def _route(
    session: Session, router: AgentConfig, specialties: Specialties, options: Options, refused: Sequence[str]
) -> tuple[int, str]:
    """Ask the router for the field, among those not yet refused."""
    if options.routing == "hidden-state":
        turn, vector = session.embed(router, round=len(refused))
        assert isinstance(session.engine, Embedder)
        embed = session.engine.embed
        fields = specialties.discriminant(
            lambda text: embed(text)[0],
            options.router_demonstrations,
            model=session.team.engine.model_dump_json(),
            digest=_digest(session.team.engine),
        )
        chosen = next(name for name in fields.ranked(vector) if name not in refused)
        session.turns[turn]["text"] = chosen
        return turn, chosen
    labels = [name for name in specialties.names if name not in refused]
    rules = "root ::= " + " | ".join(f'"{name}"' for name in labels) + "\n"
    shown = specialties.routing(options.router_demonstrations)
    messages: list[Message] = [{"role": "system", "content": router.prompt}] if router.prompt else []
    messages += [*shown, {"role": "user", "content": session.question.question}]
    (turn,) = session.say([Say(router, messages, round=len(refused), grammar=rules)])
    return turn, session.turns[turn]["text"].strip()


def _read(session: Session, specialties: Specialties, field: str, options: Options, routed: int) -> list[Proposal]:
    """The readers of a field propose; those who differ see each other's work and propose again."""
    proposals = [Proposal(reader) for reader in session.agents("reader")]
    _propose(session, specialties, field, proposals, 0, [routed])
    everything = proposals
    for number in range(1, options.rounds):
        before = _spoken(proposals)
        session.mark_agreement(before)
        if len({answer for _, answer in before}) == 1:
            break
        proposals = [Proposal(proposal.reader, proposal) for proposal in proposals]
        _propose(session, specialties, field, proposals, number, [turn for turn, _ in before])
        session.mark_corrections(before, _spoken(proposals))
        everything = [*everything, *proposals]
    return everything


def _spoken(proposals: Sequence[Proposal]) -> list[Spoken]:
    return [(proposal.turns[-1], proposal.key) for proposal in proposals]


def _propose(
    session: Session,
    specialties: Specialties,
    field: str,
    proposals: Sequence[Proposal],
    number: int,
    after: Sequence[int],
) -> None:
    """One round: every reader writes the field's calls, all readers together, one call after the other."""
    tools = specialties.tools(field)
    question = session.question.question
    for step, tool in enumerate(tools):
        rules = grammar(session.tools, [tool], more=step + 1 < len(tools))
        going = [proposal for proposal in proposals if len(proposal.results) == step]
        says = []
        for proposal in going:
            system: list[Message] = []
            if proposal.reader.prompt:
                system.append({"role": "system", "content": proposal.reader.prompt})
            shown = specialties.demonstrations(proposal.reader, field, step)
            text = asked(question, proposal.results) + _others(proposals, proposal, step)
            own = proposal if step else proposal.earlier
            continues = own.turns[-1] if own else None
            says.append(
                Say(
                    proposal.reader,
                    [*system, *shown, {"role": "user", "content": text}],
                    round=number,
                    grammar=copied(rules, " ".join([question, *proposal.results])),
                    after=[] if step else [turn for turn in after if turn != continues],
                    continues=continues,
                )
            )
        for proposal, turn in zip(going, session.say(says), strict=True):
            use = session.run_tool(turn, session.turns[turn]["text"])
            session.answer(turn, use.result)
            proposal.turns.append(turn)
            proposal.uses.append(use)


def _others(proposals: Sequence[Proposal], mine: Proposal, step: int) -> str:
    """What the other readers wrote at this step in the round before, each different call once."""
    lines = []
    for proposal in proposals:
        earlier = proposal.earlier
        if proposal is mine or earlier is None or len(earlier.uses) <= step:
            continue
        use = earlier.uses[step]
        line = f"{use.call} gives {use.result}"
        if use.result is not None and line not in lines:
            lines.append(line)
    return "\n(Others wrote: " + " / ".join(lines) + ")" if lines else ""


def _criticize(session: Session, critic: AgentConfig, proposals: Sequence[Proposal]) -> tuple[Judged | None, int]:
    """Check each distinct proposal by another way, then rank by check, votes and coverage."""
    distinct: dict[str, Judged] = {}
    for proposal in proposals:
        if proposal.key is None:
            continue
        if proposal.key not in distinct:
            holds, coverage = _check(session, proposal)
            distinct[proposal.key] = Judged(proposal, 0, holds, coverage)
        distinct[proposal.key].votes += 1 if _round(session, proposal) == 0 else _LATER_VOTE
    ranked = sorted(distinct.values(), key=lambda judged: judged.rank, reverse=True)
    best = ranked[0] if ranked else None
    lines = []
    for judged in ranked:
        verdict = "holds" if judged.holds else "does not hold"
        lines.append(
            f"{judged.proposal.calls} gives {judged.proposal.answer}: {verdict}, {judged.votes:g} votes, "
            f"{judged.coverage:.0%} of the question's numbers used"
        )
    check = session.note(
        critic,
        "\n".join(lines) or "no proposal could be computed",
        round=max(_round(session, proposal) for proposal in proposals),
        answer=best.proposal.answer if best else None,
    )
    for proposal in proposals:
        same = best is not None and best.holds and proposal.key == best.proposal.key
        session.edge(proposal.turns[-1], check, "agrees" if same else "disputes")
    return best, check


def _round(session: Session, proposal: Proposal) -> int:
    return int(session.turns[proposal.turns[-1]]["round"])


def _check(session: Session, proposal: Proposal) -> tuple[bool, float]:
    """Does every result stand another way, and which share of the question's numbers do the calls use?

    A call that uses a number more often than the question says it (an earlier result may be used freely)
    does not hold: it was made up.
    """
    given = Counter(map(_bare, _DIGITS.findall(session.question.question))) or Counter(
        numbers_in(session.question.question)
    )
    used: Counter[str] = Counter()
    known: set[str] = set()
    for use in proposal.uses:
        if use.result is None or use.name not in session.tools.tools:
            return False, 0.0
        used.update(number for number in map(_bare, _DIGITS.findall(use.call)) if number not in known)
        check = session.tools[use.name].check
        if check is not None and not check(use.arguments, use.result):
            return False, 0.0
        known |= set(map(_bare, _DIGITS.findall(use.result)))
    coverage = len(set(given) & set(used)) / len(given) if given else 1.0
    return not used - given, coverage


def _bare(number: str) -> str:
    return number.lstrip("0") or "0"


def _write(session: Session, scribe: AgentConfig, proposal: Proposal, check: int) -> None:
    """The scribe writes the solution out; what it wrote is kept with a verdict of its own."""
    steps: list[str] = []
    for use in proposal.uses:
        steps += use.steps
    worked = steps or [use.call for use in proposal.uses]
    notes = "\n".join([*worked, f"Result: {proposal.answer}"])
    task = f"{session.question.question}\n\nNotes:\n{notes}"
    (turn,) = session.say([Say(scribe, messages_for(scribe, task), after=[check])])
    text = session.turns[turn]["text"]
    answer = extract(text)
    session.answer(turn, answer)
    right = answer is not None and fold_answer(answer) == fold_answer(proposal.answer or "") and check_steps(text)
    session.edge(check, turn, "agrees" if right else "disputes")

"""From measurements to a report: every average, interval and comparison is taken here, once.

The headline student is the file that was recommended on other questions than these (`bench/recommend.py`). Where no
such questions were asked it is the compiled file (or else the torch student) with the highest held-out accuracy, the
faster one on a tie; that choice looks at the test questions, so the caveats say so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from soloist.kernels.errors import DataError
from soloist.toolchain.bench.cost import HostedPrice, LocalPrice, Spend, break_even
from soloist.toolchain.bench.recommend import Recommendation
from soloist.toolchain.bench.records import Answered, Kind, Measurement
from soloist.toolchain.core.lineage import refuse_trained
from soloist.toolchain.core.statistics import (
    Interval,
    Paired,
    mean_interval,
    paired_difference,
    percentile,
    percentile_interval,
    wilson,
)
from soloist.toolchain.report.caveats import caveats
from soloist.toolchain.report.context import Context
from soloist.toolchain.report.schema import (
    Details,
    Difference,
    Extra,
    Family,
    Latency,
    OneOff,
    Report,
    Role,
    Share,
    System,
)
from soloist.toolchain.traces.schema import Run, Turn

HOSTED = HostedPrice()
SIXTEEN_BITS = "student-gguf-f16"
ORDER: tuple[Kind, ...] = ("team", "undebated", "self-consistency", "tool-agent", "base", "student", "artifact")


def build_report(
    measurements: Sequence[Measurement],
    *,
    task: str,
    commit: str | None,
    device: Mapping[str, Any],
    versions: Mapping[str, str],
    price: LocalPrice,
    spend: Spend | None = None,
    context: Context | None = None,
    anatomy: Run | None = None,
) -> Report:
    """The report of these measurements.

    Raises:
        DataError: they cannot be compared, or a student was trained on the benchmark it is measured on.
    """
    context = context or Context()
    _check(measurements)
    if any(m.kind in ("student", "artifact") for m in measurements):
        refuse_trained(context.lineage, (run.question.benchmark for run in context.runs))
    ordered = sorted(measurements, key=lambda m: (m.split, ORDER.index(m.kind)))
    teams = {m.split: m for m in ordered if m.kind == "team"}
    pairs = {(m.split, m.system_id): _against(m, teams.get(m.split)) for m in ordered}
    systems = tuple(_system(m, pairs[m.split, m.system_id], price) for m in ordered)
    headline = choose_headline(systems, context.recommended)
    team = next((s for s in systems if s.kind == "team" and s.split == "held-out"), None)
    paid = break_even(spend, _per_question(team), _per_question(headline), _saved(ordered, headline, price))
    details = Details(
        headline=headline.id if headline else None,
        command=context.command,
        created=context.created,
        seeds=dict(context.seeds),
        method=tuple(context.method),
        prices=(price.describe(), *context.prices),
        one_off_usd=OneOff(**vars(spend)) if spend else None,
        break_even_reason=paid.reason,
        break_even_interval=(paid.low, paid.high) if paid.low is not None else None,
        hosted_price=HOSTED.describe(),
        caveats=tuple(caveats(ordered, systems, context)),
        extras=tuple(_extra(m, pairs[m.split, m.system_id], price, _against_16_bits(m, ordered)) for m in ordered),
        families=tuple(_families(ordered)),
        roles=tuple(_roles(context.runs or ([anatomy] if anatomy else []))),
        training=tuple(context.training),
        parity=tuple(context.parity),
        anatomy=anatomy,
        assessment=context.assessment,
        recommended=context.recommended,
        stages=tuple(context.stages),
    )
    return Report(
        commit=commit,
        device=dict(device),
        versions=dict(versions),
        task=task,
        systems=systems,
        break_even_questions=paid.questions,
        details=details,
    )


def choose_headline(systems: Sequence[System], recommended: Recommendation | None = None) -> System | None:
    """The student the first sentence speaks of: the file that was recommended, else the most accurate one."""
    held = [s for s in systems if s.split == "held-out"]
    if recommended is not None:
        return next((s for s in held if s.id == recommended.system), None)
    students = [s for s in held if s.kind == "artifact"] or [s for s in held if s.kind == "student"]
    return min(students, key=lambda s: (-s.accuracy.value, s.latency_s.p50), default=None)


def _per_question(system: System | None) -> float | None:
    return None if system is None or system.usd_per_1k is None else system.usd_per_1k / 1000


def _check(measurements: Sequence[Measurement]) -> None:
    if not measurements:
        raise DataError("no measurements: nothing to report; run the measurement first")
    seen: set[tuple[str, str]] = set()
    for one in measurements:
        key = (one.system_id, one.split)
        if key in seen:
            raise DataError(f"system '{one.system_id}' is measured twice on {one.split}; keep one of the two")
        seen.add(key)
        ids = [answer.question_id for answer in one.answers]
        if len(set(ids)) != len(ids):
            raise DataError(f"system '{one.system_id}' answers a question of {one.split} twice; measure it again")
    for split in ("held-out", "unseen-wording"):
        teams = [m.system_id for m in measurements if m.kind == "team" and m.split == split]
        if len(teams) > 1:
            raise DataError(f"{len(teams)} teams on {split} ({', '.join(teams)}); a report compares with one")


def _against(one: Measurement, team: Measurement | None) -> Paired | None:
    if team is None or one is team:
        return None
    theirs = {answer.question_id: answer.correct for answer in team.answers}
    # Who is slow answers a part of the questions; two systems are compared on those that both answered.
    shared = [answer for answer in one.answers if answer.question_id in theirs]
    if not shared:
        raise DataError(
            f"system '{one.system_id}' and team '{team.system_id}' answered no question of {one.split} in common; "
            "measure both on the same ones"
        )
    ours = [answer.correct for answer in shared]
    return paired_difference(ours, [theirs[answer.question_id] for answer in shared])


def _system(one: Measurement, pair: Paired | None, price: LocalPrice) -> System:
    answers, seconds = one.answers, [answer.seconds for answer in one.answers]
    share = wilson(one.correct, len(answers))
    first = [answer.ttft for answer in answers if answer.ttft is not None]
    return System(
        id=one.system_id,
        split=one.split,
        kind=one.kind,
        format=one.format,
        size_mb=one.size_mb,
        n=len(answers),
        correct=one.correct,
        accuracy=Share(value=share.value, low=share.low, high=share.high),
        vs_team=_difference(pair) if pair else None,
        latency_s=Latency(p50=percentile(seconds, 0.5), p95=percentile(seconds, 0.95)),
        ttft_s=percentile(first, 0.5) if first else None,
        calls=fmean(answer.calls for answer in answers),
        tokens_in=fmean(answer.tokens_in for answer in answers),
        tokens_out=fmean(answer.tokens_out for answer in answers),
        peak_mb=one.peak_mb,
        usd_per_1k=_usd_per_1k(one.where, answers, price),
        label=one.label,
    )


def _difference(pair: Paired) -> Difference:
    return Difference(difference=pair.difference.value, low=pair.difference.low, high=pair.difference.high)


def _hosted(one: Measurement) -> float | None:
    """Dollars per 1,000 questions for its tokens at a hosted model; None for one that is hosted already."""
    if one.where == "api":
        return None
    read, written = (fmean(tokens) for tokens in zip(*((a.tokens_in, a.tokens_out) for a in one.answers), strict=True))
    return 1000 * HOSTED.usd(read, written)


def _usd_per_1k(where: str, answers: Sequence[Answered], price: LocalPrice) -> float | None:
    if where == "api":
        known = [answer.usd for answer in answers if answer.usd is not None]
        return 1000 * fmean(known) if len(known) == len(answers) else None
    busy = price.usd(sum(answer.seconds for answer in answers))
    return None if busy is None else 1000 * busy / len(answers)


def _saved(measurements: Sequence[Measurement], headline: System | None, price: LocalPrice) -> Interval | None:
    """Dollars that a question saves, team minus student, paired over the held-out questions that both answered."""
    held_out = [one for one in measurements if one.split == "held-out"]
    team = next((one for one in held_out if one.kind == "team"), None)
    student = next((one for one in held_out if headline is not None and one.system_id == headline.id), None)
    if team is None or student is None:
        return None
    theirs = {answer.question_id: _usd(team, answer, price) for answer in team.answers}
    saved = []
    for answer in student.answers:
        paid, own = theirs.get(answer.question_id), _usd(student, answer, price)
        if paid is not None and own is not None:
            saved.append(paid - own)
    return mean_interval(saved) if saved else None


def _usd(one: Measurement, answer: Answered, price: LocalPrice) -> float | None:
    return answer.usd if one.where == "api" else price.usd(answer.seconds)


def _against_16_bits(one: Measurement, measurements: Sequence[Measurement]) -> Paired | None:
    """A compiled file against the 16-bit one of the same student, on the questions that both answered."""
    if one.kind != "artifact" or one.system_id == SIXTEEN_BITS:
        return None
    for other in measurements:
        if other.system_id == SIXTEEN_BITS and other.split == one.split:
            reference = {answer.question_id: answer.correct for answer in other.answers}
            shared = [answer for answer in one.answers if answer.question_id in reference]
            ours = [answer.correct for answer in shared]
            return paired_difference(ours, [reference[answer.question_id] for answer in shared]) if shared else None
    return None


def _extra(one: Measurement, pair: Paired | None, price: LocalPrice, kept: Paired | None) -> Extra:
    seconds = [answer.seconds for answer in one.answers]
    middle, tail = percentile_interval(seconds, 0.5), percentile_interval(seconds, 0.95)
    critical = [answer.critical_path for answer in one.answers if answer.critical_path is not None]
    joules = price.joules(sum(seconds)) if one.where == "local" else None
    return Extra(
        system=one.system_id,
        split=one.split,
        latencies=tuple(round(value, 4) for value in sorted(seconds)),
        p50_interval=(middle.low, middle.high) if middle else None,
        p95_interval=(tail.low, tail.high) if tail else None,
        critical_path_s=percentile(critical, 0.5) if critical else None,
        tokens_cached=fmean(answer.tokens_cached for answer in one.answers),
        errors=sum(answer.error is not None for answer in one.answers),
        joules_per_question=None if joules is None else joules / len(seconds),
        p_value=pair.p_value if pair else None,
        kept=pair.both if pair else None,
        gained=pair.only_first if pair else None,
        lost=pair.only_second if pair else None,
        neither=pair.neither if pair else None,
        vs_16_bits=_difference(kept) if kept else None,
        hosted_usd_per_1k=_hosted(one),
    )


def _families(measurements: Sequence[Measurement]) -> list[Family]:
    families = []
    for one in measurements:
        for task in sorted({answer.task for answer in one.answers}):
            own = [answer.correct for answer in one.answers if answer.task == task]
            families.append(Family(system=one.system_id, split=one.split, task=task, n=len(own), correct=sum(own)))
    return families


def _roles(runs: Sequence[Run]) -> list[Role]:
    turns: dict[str, list[Turn]] = {}
    for run in runs:
        for turn in run.calls:
            turns.setdefault(turn.role, []).append(turn)
    roles = []
    for role, own in turns.items():
        roles.append(
            Role(
                role=role,
                calls=len(own),
                tokens_in=sum(turn.tokens_in for turn in own),
                tokens_cached=sum(turn.tokens_cached for turn in own),
                tokens_out=sum(turn.tokens_out for turn in own),
                seconds=sum(turn.end - turn.start for turn in own),
            )
        )
    return roles

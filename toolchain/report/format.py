"""Numbers and findings as people read them: one place for rounding, names and the opening sentence.

The sentence says what the interval allows and no more: better and worse only where the 95 % interval of
the paired difference leaves zero out, else "within chance". It is as plain when the student loses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from soloist.toolchain.bench.records import TestSplit
from soloist.toolchain.report.schema import Difference, Report, System

SPLITS: Mapping[TestSplit, str] = {
    "held-out": "held-out questions: known wordings, new numbers",
    "unseen-wording": "unseen wordings: phrased as nowhere in training",
}
_LONGEST = 4000
_KINDS = {
    "team": "Team",
    "undebated": "Team without debate",
    "base": "Base model",
    "tool-agent": "Tool agent",
    "self-consistency": "Self-consistency",
    "student": "Student in torch",
    "artifact": "Student",
}


def percent(share: float) -> str:
    """A share as whole percent; never rounds to 0% or 100% what is not."""
    value = round(100 * share)
    if (value == 0 and share > 0) or (value == 100 and share < 1):
        return f"{100 * share:.1f}%"
    return f"{value}%"


def points(difference: float) -> str:
    """A difference of shares in signed points."""
    value = round(100 * difference)
    return "0" if value == 0 else f"{'+' if value > 0 else '−'}{abs(value)}"


def span(pair: Difference) -> str:
    """The difference with its interval."""
    return f"{points(pair.difference)} points ({points(pair.low)} to {points(pair.high)})"


def significant(value: float, digits: int = 2) -> str:
    """A number with that many significant digits, thousands separated, never in scientific form."""
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits}g}")
    text = f"{rounded:,.12f}".rstrip("0").rstrip(".")
    return f"{rounded:,.0f}" if abs(rounded) >= 10 ** (digits - 1) else text


def seconds(value: float | None) -> str:
    """A duration in the unit people would use, two digits always."""
    if value is None:
        return "n/a"
    if value < 0.0995:
        return f"{significant(1000 * value)} ms"
    if value < 119.5:
        return f"{value:.{2 if value < 0.995 else 1 if value < 9.95 else 0}f} s"
    return f"{significant(value / 60)} min" if value < 7200 else f"{significant(value / 3600)} h"


def tick_seconds(value: float) -> str:
    """A round duration on an axis, as short as it can be."""
    return f"{significant(1000 * value)} ms" if value < 0.1 else f"{significant(value)} s"


def usd(value: float | None) -> str:
    """Dollars, n/a when unknown."""
    if value is None:
        return "n/a"
    return f"${value:,.2f}" if value >= 0.0995 else f"${significant(value)}"


def number(value: float | None, digits: int = 3) -> str:
    """A plain number, n/a when absent."""
    return "n/a" if value is None else significant(value, digits)


def count(value: float) -> str:
    """A whole number, thousands separated."""
    return f"{value:,.0f}"


def cut(text: str) -> str:
    """A text that a model or tool wrote, at most 4,000 characters of it, the rest counted."""
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} … ({len(text) - _LONGEST:,} characters more)"


def times(ratio: float) -> str:
    """A ratio of at least one: 1.4×, 9.1×, 12×."""
    return f"{ratio:.1f}×" if ratio < 9.95 else f"{ratio:,.0f}×"


def names(systems: Sequence[System]) -> dict[str, str]:
    """A short name per system id, told apart by the id where two would be the same."""
    short = {s.id: (s.format if s.kind == "artifact" and s.format else _KINDS[s.kind]) for s in systems}
    taken = list(short.values())
    return {key: name if taken.count(name) == 1 else f"{name} · {key}" for key, name in short.items()}


@dataclass(frozen=True)
class Finding:
    """The opening sentence, what stands under it, and how it went on the held-out questions."""

    sentence: str
    rest: tuple[str, ...]
    outcome: str  # better, worse, within chance, none


def outcome(pair: Difference | None) -> str:
    """What the interval of a difference allows to say."""
    if pair is None:
        return "none"
    if pair.low > 0:
        return "better"
    return "worse" if pair.high < 0 else "within chance"


def _pace(student: System, team: System) -> tuple[str, bool]:
    ratio = team.latency_s.p50 / student.latency_s.p50 if student.latency_s.p50 > 0 else float("inf")
    if ratio == float("inf"):
        return "too fast to time", True
    if ratio >= 1.05:
        return f"{times(ratio)} faster", True
    return (f"{times(1 / ratio)} slower", False) if ratio <= 1 / 1.05 else ("equally fast", True)


def find(report: Report) -> Finding:
    """What the report says first."""
    headline = report.details.headline if report.details else None
    student = report.find(headline, "held-out") if headline else None
    team = report.team("held-out")
    if student is None:
        first = report.systems[0]
        answers = f"{first.id} answers {percent(first.accuracy.value)} of the {first.split} questions"
        return Finding(f"No student was measured on held-out questions; {answers}.", (), "none")
    have = percent(student.accuracy.value)
    if team is None or student.vs_team is None:
        alone = f"The student answers {have} of the held-out questions; no team was measured to compare it with."
        return Finding(alone, _rest(report, student, None), "none")
    result, (pace, good) = outcome(student.vs_team), _pace(student, team)
    start = f"The student answers {have} of the held-out questions against the team's {percent(team.accuracy.value)}"
    if result == "worse":
        ending = f", worse than the team{' although' if good else ' and'} {pace}."
    elif result == "better":
        ending = f", better than the team {'and' if good else 'but'} {pace}."
    else:
        ending = f", a difference within chance, and is {pace}."
    return Finding(start + ending, _rest(report, student, team), result)


def _rest(report: Report, student: System, team: System | None) -> tuple[str, ...]:
    what = student.format or student.id
    size = f", {number(student.size_mb)} MB" if student.size_mb is not None else ""
    lines = [f"It is the file {what}{size}: {seconds(student.latency_s.p50)} per question at the median"]
    if team is not None and student.vs_team is not None:
        lines[0] += f" against {seconds(team.latency_s.p50)}."
        lines.append(f"Paired difference to the team: {span(student.vs_team)}, 95% interval, n = {student.n}.")
        labels = {student.label, team.label} - {"measured"}
        if labels:
            lines.append(f"Not all of this was measured in this run: {' and '.join(sorted(labels))}.")
    else:
        lines[0] += "."
    unseen = report.find(student.id, "unseen-wording")
    if unseen is not None:
        baseline = report.team("unseen-wording")
        text = f"On wordings it never saw it answers {percent(unseen.accuracy.value)}"
        if baseline is not None and unseen.vs_team is not None:
            text += f" against the team's {percent(baseline.accuracy.value)}: {outcome(unseen.vs_team)}"
            text += f", {span(unseen.vs_team)}"
        lines.append(text + ".")
    lines.append(pays(report))
    return tuple(lines)


def pays(report: Report) -> str:
    """The break-even in words."""
    if report.break_even_questions is not None:
        interval = report.details.break_even_interval if report.details else None
        span = ""
        if interval is not None:
            span = f" (95% interval {interval[0]:,} to {'never' if interval[1] is None else f'{interval[1]:,}'})"
        return f"It has paid for itself after {report.break_even_questions:,} questions{span}."
    reason = report.details.break_even_reason if report.details else ""
    return f"Break-even: {reason or 'not known'}."

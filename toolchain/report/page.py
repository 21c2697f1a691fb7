"""report.html: one file, no script, no request, readable offline on a phone, in light, dark and print.

Opens with the answer in a sentence and its picture; every later section is evidence for it. The words and tables stand
in `page.html.j2`, where every value is escaped; here is what they are filled with. Left out: interaction. What matters
is visible without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files

from markupsafe import Markup

from soloist.toolchain.assess.result import kept, sentence
from soloist.toolchain.bench.records import TestSplit
from soloist.toolchain.report import anatomy, charts
from soloist.toolchain.report.format import find, names, number, pays, percent, seconds, usd
from soloist.toolchain.report.schema import Details, Report, System
from soloist.toolchain.report.template import render_template

_SPLITS: tuple[TestSplit, ...] = ("held-out", "unseen-wording")
_KINDS = ("k-head", "k-team", "k-student", "k-file", "k-baseline")


def render(report: Report) -> str:
    """The page of a report."""
    details = report.details or Details()
    splits = [report.of(split) for split in _SPLITS if report.of(split)]
    short, kinds = names(report.systems), _kinds(report.systems, details.headline)
    pictures, numbers = charts.accuracy_charts(splits, short, details.headline)
    tokens = [role.tokens_in + role.tokens_out for role in details.roles]
    loss = speed = None
    if len(details.training) > 1:
        loss = charts.training_chart(details.training, "loss")
        speed = charts.speed_chart(details.training, "speed")
    page = render_template(
        "page.html.j2",
        report=report,
        details=details,
        finding=find(report),
        style=Markup(files("soloist.toolchain.report").joinpath("page.css").read_text(encoding="utf-8")),  # noqa: S704
        tiles=_tiles(report, details.headline),
        splits=splits,
        short=short,
        kinds=kinds,
        extras={(extra.system, extra.split): extra for extra in details.extras},
        pictures=pictures,
        numbers=numbers,
        curves=_latency_curves(splits, details, short, kinds),
        debate=anatomy.section(details.anatomy) if details.anatomy is not None and details.anatomy.turns else "",
        most=max(tokens, default=0),
        total=sum(tokens),
        loss=loss,
        speed=speed,
        spending=_spending(report, details),
        sentence=sentence,
        kept=kept,
        pays=pays,
    )
    return str(page).strip() + "\n"


def _kinds(systems: Sequence[System], headline: str | None) -> dict[str, str]:
    """The classes of each system's curve: its kind, and its dash among those of one kind."""
    kinds: dict[str, str] = {}
    seen = dict.fromkeys(_KINDS, 0)
    for system in systems:
        if system.id not in kinds:
            kind = charts.kind_class(system, headline)
            kinds[system.id] = f"{kind} d{seen[kind]}"
            seen[kind] += 1
    return kinds


def _tiles(report: Report, headline: str | None) -> list[tuple[str, str, str]]:
    """Name, the student's value and the team's, of what stands in large type."""
    student = report.find(headline, "held-out") if headline else None
    if student is None:
        return []
    team = report.team("held-out")
    values: tuple[tuple[str, Callable[[System], str]], ...] = (
        ("Accuracy", lambda system: percent(system.accuracy.value)),
        ("Median latency", lambda system: seconds(system.latency_s.p50)),
        ("Peak memory", lambda system: "n/a" if system.peak_mb is None else f"{number(system.peak_mb)} MB"),
        ("Per 1,000 questions", lambda system: usd(system.usd_per_1k)),
    )
    tiles = []
    for name, of in values:
        tiles.append((name, of(student), f"team {of(team)}" if team else "no team measured"))
    return tiles


def _latency_curves(
    splits: Sequence[Sequence[System]], details: Details, short: Mapping[str, str], kinds: Mapping[str, str]
) -> list[tuple[Sequence[System], Markup]]:
    curves = []
    for systems in splits:
        split = systems[0].split
        extras = [extra for extra in details.extras if extra.split == split and extra.latencies]
        if extras:
            curves.append((systems, charts.ecdf_chart(extras, short, kinds, f"ecdf-{split}")))
    return curves


def _spending(report: Report, details: Details) -> Markup | None:
    """Dollars over questions, where all prices are known and the student ever pays."""
    student = report.find(details.headline, "held-out") if details.headline else None
    team = report.team("held-out")
    even = report.break_even_questions
    if not (even and details.one_off_usd and student and team and student.usd_per_1k and team.usd_per_1k):
        return None
    return charts.spend_chart(details.one_off_usd, team.usd_per_1k / 1000, student.usd_per_1k / 1000, even, "spend")

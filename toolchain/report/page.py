"""report.html: one file, no script, no request, readable offline on a phone, in light, dark and print.

Opens with the answer in a sentence and its picture; every later section is evidence for it. A content
security policy forbids scripts and loads, so text that a model wrote could do nothing even if an escape
were missed. Left out: interaction. What matters is visible without it.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files

from soloist.toolchain.bench.records import TestSplit
from soloist.toolchain.report import advice, anatomy, charts, tables
from soloist.toolchain.report.format import SPLITS, find, names, number, pays, percent, seconds, usd
from soloist.toolchain.report.schema import Details, Report, System
from soloist.toolchain.report.svg import esc

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_TABS: tuple[TestSplit, ...] = ("held-out", "unseen-wording")


def render(report: Report) -> str:
    """The page of a report."""
    style = files("soloist.toolchain.report").joinpath("page.css").read_text(encoding="utf-8")
    sections = [(key, title, body) for key, title, body in _sections(report) if body]
    nav = "".join(f'<li><a href="#{key}">{key.capitalize()}</a></li>' for key, _, _ in sections)
    main = "".join(
        f'<section id="{key}" aria-labelledby="h-{key}"><h2 id="h-{key}">{title}</h2>{body}</section>'
        for key, title, body in sections
    )
    finding = find(report)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{esc(_POLICY)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><meta name="generator" content="Soloist">'
        f'<meta name="description" content="{esc(finding.sentence)}">'
        f"<title>Soloist report · {esc(report.task)}</title><style>{style}</style></head><body>"
        f'<header class="top"><p class="brand">Soloist report <span>{esc(report.task)}</span></p>'
        f"<h1>{esc(_unbroken(finding.sentence))}</h1>{_tiles(report)}"
        f'<p class="lead">{esc(" ".join(finding.rest))}</p>'
        f'<nav aria-label="Sections"><ul>{nav}</ul></nav></header><main>{main}</main>'
        f"<footer><p>Made by Soloist {esc(report.versions.get('soloist', ''))} from "
        f"{esc(report.commit or 'an unknown commit')}. The numbers stand in <code>report.json</code> beside this "
        "page.</p></footer></body></html>\n"
    )


def _sections(report: Report) -> list[tuple[str, str, str]]:
    details = report.details or Details()
    return [
        ("picture", "Accuracy against latency", _picture(report)),
        ("results", "Results", _by_split(report, tables.results)),
        ("paired", "Question by question", _by_split(report, tables.paired)),
        ("families", "By family of questions", _by_split(report, tables.families)),
        ("latency", "How long questions take", _latency(report)),
        ("anatomy", "Anatomy of the team", _anatomy(report)),
        ("assessment", "Was distilling advised?", advice.section(details.assessment)),
        ("training", "Training of the student", _training(details)),
        ("files", "Do the compiled files match the student?", tables.parity(report)),
        ("cost", "Cost and break-even", _cost(report, details)),
        ("method", "Method and machine", _method(report, details)),
        ("caveats", "Caveats", _list(details.caveats)),
    ]


def _unbroken(text: str) -> str:
    """Compounds that must not break at their hyphen in large type."""
    return text.replace("held-out", "held\N{NON-BREAKING HYPHEN}out")


def _by_split(report: Report, make: Callable[[Report, TestSplit], str]) -> str:
    return "".join(make(report, split) for split in _TABS if report.of(split))


def _tiles(report: Report) -> str:
    student = report.find(report.details.headline, "held-out") if report.details and report.details.headline else None
    if student is None:
        return ""
    team = next((s for s in report.of("held-out") if s.kind == "team"), None)

    def against(value: str) -> str:
        return f"team {value}" if team else "no team measured"

    tiles = [
        ("Accuracy", percent(student.accuracy.value), against(percent(team.accuracy.value) if team else "")),
        ("Median latency", seconds(student.latency_s.p50), against(seconds(team.latency_s.p50) if team else "")),
        ("Peak memory", _mb(student.peak_mb), against(_mb(team.peak_mb) if team else "")),
        ("Per 1,000 questions", usd(student.usd_per_1k), against(usd(team.usd_per_1k) if team else "")),
    ]
    cells = "".join(f"<div><dt>{a}</dt><dd>{esc(b)}<small>{esc(c)}</small></dd></div>" for a, b, c in tiles)
    return f'<dl class="tiles">{cells}</dl>'


def _mb(value: float | None) -> str:
    return "n/a" if value is None else f"{number(value)} MB"


def _picture(report: Report) -> str:
    headline = report.details.headline if report.details else None
    domain, short = charts.latency_domain(report.systems), names(report.of("held-out") or report.systems)
    panels = []
    for split in _TABS:
        systems = report.of(split)
        if systems:
            labels = short if all(s.id in short for s in systems) else names(systems)
            chart = charts.accuracy_chart(systems, labels, headline, domain, f"picture-{split}")
            panels.append(f"<figure><figcaption>{_caption(split, systems[0])}</figcaption>{chart}</figure>")
    note = "Up and left is better. Bars are 95% intervals; the filled point is the file named above."
    return f'<div class="panels">{"".join(panels)}</div><p class="note">{note}</p>'


def _caption(split: TestSplit, system: System) -> str:
    title, _, rest = SPLITS[split].partition(":")
    return f"<b>{title[0].upper()}{title[1:]}</b><br>{rest.strip()}, n = {system.n}"


def _latency(report: Report) -> str:
    headline = report.details.headline if report.details else None
    short, kinds = names(report.systems), {}
    seen = dict.fromkeys(("k-head", "k-team", "k-student", "k-file", "k-rival"), 0)
    for system in report.systems:
        if system.id not in kinds:
            kind = charts.kind_class(system, headline)
            kinds[system.id] = f"{kind} d{seen[kind]}"
            seen[kind] += 1
    panels = ""
    for split in _TABS:
        extras = [e for e in (report.details.extras if report.details else ()) if e.split == split and e.latencies]
        if extras:
            chart = charts.ecdf_chart(extras, short, kinds, f"ecdf-{split}")
            panels += f"<figure><figcaption>{_caption(split, report.of(split)[0])}</figcaption>{chart}</figure>"
    if not panels:
        return ""
    keys = "".join(
        '<li><svg viewBox="0 0 34 10" width="34" height="10" aria-hidden="true">'
        f'<path d="M0 5H34" class="curve {kind}"/></svg>{esc(short[key])}</li>'
        for key, kind in kinds.items()
    )
    return (
        "<p>Share of the questions answered within a time. Left is faster; a long flat end is a long wait.</p>"
        f'<div class="panels">{panels}</div><ul class="legend">{keys}</ul>'
    )


def _anatomy(report: Report) -> str:
    run, roles = report.details.anatomy if report.details else None, tables.roles(report)
    return (anatomy.section(run) if run is not None and run.turns else "") + (
        f"<h3>Tokens by role</h3>{roles}" if roles else ""
    )


def _training(details: Details) -> str:
    if len(details.training) < 2:
        return ""
    drawn = [("Loss", charts.training_chart(details.training, "loss"))]
    speed = charts.speed_chart(details.training, "speed")
    if speed is not None:
        drawn.append(("Tokens per second", speed))
    figures = "".join(f"<figure><figcaption><b>{title}</b></figcaption>{chart}</figure>" for title, chart in drawn)
    return f'<div class="panels">{figures}</div><p class="note">Thin: every step. Bold: running mean.</p>'


def _cost(report: Report, details: Details) -> str:
    student = report.find(details.headline, "held-out") if details.headline else None
    team = next((s for s in report.of("held-out") if s.kind == "team"), None)
    drawn, even = "", report.break_even_questions
    if even and details.one_off_usd and student and team and student.usd_per_1k and team.usd_per_1k:
        chart = charts.spend_chart(
            details.one_off_usd, team.usd_per_1k / 1000, student.usd_per_1k / 1000, even, "spend"
        )
        drawn = f"<figure><figcaption><b>Dollars spent in all</b></figcaption>{chart}</figure>"
    return (
        f"<p><b>{esc(pays(report))}</b> {esc(details.break_even_reason)}.</p>"
        '<p class="formula">break-even = (recording + training + evaluation) ÷ (team − student, per question)</p>'
        '<p class="formula">local cost = price per hour × busy seconds ÷ 3,600 ÷ concurrency '
        "+ watts × busy hours ÷ 1,000 × price per kWh</p>"
        f'<div class="panels"><div>{tables.money(report)}</div>{drawn}</div>'
        f"<h3>Prices</h3>{_list(details.prices)}"
    )


def _method(report: Report, details: Details) -> str:
    facts = [
        ("Command", details.command),
        ("Made", details.created),
        ("Commit", report.commit or "unknown"),
        ("Machine", ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in report.device.items() if value)),
        ("Seeds", ", ".join(f"{key} {value}" for key, value in details.seeds.items())),
        ("Versions", ", ".join(f"{key} {value}" for key, value in report.versions.items())),
        (
            "Intervals",
            "Wilson for accuracies, Newcombe's paired interval for differences, order statistics for "
            "percentiles; all 95%. A dash under a percentile means the sample allows no interval.",
        ),
    ]
    listed = "".join(f"<dt>{esc(name)}</dt><dd>{esc(value)}</dd>" for name, value in facts if value)
    return _list(details.method) + f'<dl class="facts-list">{listed}</dl>'


def _list(lines: tuple[str, ...]) -> str:
    return f"<ul>{''.join(f'<li>{esc(line)}</li>' for line in lines)}</ul>" if lines else ""

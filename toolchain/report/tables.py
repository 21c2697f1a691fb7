"""The tables of the page: results, families, parity, roles, cost. Each scrolls in its own box."""

from __future__ import annotations

from soloist.toolchain.bench.records import TestSplit
from soloist.toolchain.report.format import SPLITS, names, number, percent, points, seconds, usd
from soloist.toolchain.report.schema import Extra, Report, System
from soloist.toolchain.report.svg import esc, table

_VERDICTS = {
    "pass": '<span class="ok">✓ passed</span>',
    "fail": '<span class="bad">✗ failed</span>',
    "not run": '<span class="plain">– not run here</span>',
    "none": '<span class="bad">– no verdict</span>',
}


def _between(pair: tuple[float, float] | None) -> str:
    return "" if pair is None else f"<small>{esc(seconds(pair[0]))} – {esc(seconds(pair[1]))}</small>"


def _tag(system: System) -> str:
    return "" if system.label == "measured" else f' <span class="tag">{esc(system.label)}</span>'


def results(report: Report, split: TestSplit) -> str:
    """Every system on one set of questions."""
    systems, headline = report.of(split), report.details.headline if report.details else None
    extras = {e.system: e for e in report.details.extras if e.split == split} if report.details else {}
    short = names(systems)
    head = (
        "System",
        "Accuracy",
        "Against team",
        "Median",
        "95th pct.",
        "First token",
        "Calls",
        "Tokens in",
        "Tokens out",
        "Peak MB",
        "$ per 1,000",
    )
    rows = [_result(system, extras.get(system.id), short[system.id]) for system in systems]
    kinds = ["strong" if s.id == headline else "team" if s.kind == "team" else "" for s in systems]
    return table(head, rows, f"Results on {SPLITS[split]}, n = {systems[0].n}", kinds)


def _result(system: System, extra: Extra | None, name: str) -> list[str]:
    low, high = percent(system.accuracy.low), percent(system.accuracy.high)
    against = "–"
    if system.vs_team is not None:
        found = system.vs_team
        against = f"{points(found.difference)}<small>{points(found.low)} to {points(found.high)}</small>"
    cached = f"<small>{extra.tokens_cached:,.0f} cached</small>" if extra and extra.tokens_cached else ""
    path = f"<small>critical path {seconds(extra.critical_path_s)}</small>" if extra and extra.critical_path_s else ""
    size = f" · {number(system.size_mb)} MB" if system.size_mb is not None else ""
    return [
        f"{esc(name)}{_tag(system)}<small>{esc(system.id)}{size}</small>",
        f"<b>{percent(system.accuracy.value)}</b><small>{low} – {high}</small>",
        against,
        esc(seconds(system.latency_s.p50)) + _between(extra.p50_interval if extra else None) + path,
        esc(seconds(system.latency_s.p95)) + _between(extra.p95_interval if extra else None),
        esc(seconds(system.ttft_s)),
        f"{system.calls:.1f}",
        f"{system.tokens_in:,.0f}{cached}",
        f"{system.tokens_out:,.0f}",
        number(system.peak_mb),
        esc(usd(system.usd_per_1k)),
    ]


def paired(report: Report, split: TestSplit) -> str:
    """Question by question against the team: kept, gained, lost."""
    extras = [e for e in (report.details.extras if report.details else ()) if e.split == split and e.kept is not None]
    if not extras:
        return ""
    short = names(report.of(split))
    head = ("System", "Both right", "Only it", "Only the team", "Neither", "McNemar exact p", "Errors")
    rows = [
        [esc(short[e.system]), str(e.kept), str(e.gained), str(e.lost), str(e.neither), _p(e.p_value), str(e.errors)]
        for e in extras
    ]
    return table(head, rows, f"Question by question against the team, {split}")


def _p(value: float | None) -> str:
    if value is None:
        return "n/a"
    return "&lt; 0.001" if value < 0.001 else f"{value:.{3 if value < 0.01 else 2}f}"


def families(report: Report, split: TestSplit) -> str:
    """Accuracy per family of questions, as a heat table: the number stands in every cell."""
    found = [f for f in (report.details.families if report.details else ()) if f.split == split]
    systems, tasks = report.of(split), sorted({f.task for f in found})
    if len(tasks) < 2:
        return ""
    cell = {(f.system, f.task): f for f in found}
    short, rows = names(systems), []
    for task in tasks:
        row = [esc(task.replace("_", " ") or "no family")]
        for system in systems:
            one = cell.get((system.id, task))
            if one is None:
                row.append('<td class="heat">–</td>')
                continue
            share = one.correct / one.n
            row.append(f'<td class="heat" style="--v:{share:.2f}">{percent(share)}</td>')
        sizes = {one.n for (_, name), one in cell.items() if name == task}
        row.append("–".join(str(n) for n in sorted({min(sizes), max(sizes)})))
        rows.append(row)
    head = ["Family", *(esc(short[s.id]) for s in systems), "n"]
    return table(head, rows, f"Accuracy by family, {SPLITS[split]}")


def parity(report: Report) -> str:
    """Every compiled file against the torch student."""
    found = report.details.parity if report.details else ()
    head = ("File", "Format", "Size", "KL", "Same top-1", "Tolerance", "Verdict")
    rows = []
    for p in found:
        of = "<small>of its graph</small>" if p.verdict == "not run" else ""
        said = "; ".join(filter(None, (p.note, "" if p.measured else "not measured")))
        rows.append(
            [
                f"<code>{esc(p.file)}</code>",
                esc(p.format),
                f"{number(p.size_mb)} MB",
                "n/a" if p.kl is None else number(p.kl, 2) + of,
                "n/a" if p.top1 is None else f"{100 * p.top1:.1f}%{of}",
                esc(p.tolerance),
                _VERDICTS[p.verdict] + (f"<small>{esc(said)}</small>" if said else ""),
            ]
        )
    return table(head, rows, "Compiled files compared with the student in torch") if rows else ""


def roles(report: Report) -> str:
    """Tokens per role of the team, with a bar: cached, read, written."""
    found = report.details.roles if report.details else ()
    most = max((r.tokens_in + r.tokens_out for r in found), default=0)
    total = sum(r.tokens_in + r.tokens_out for r in found)
    if not most:
        return ""
    rows = []
    for role in found:
        fresh = role.tokens_in - role.tokens_cached
        bar = "".join(
            f'<i class="{kind}" style="width:{100 * value / most:.2f}%"></i>'
            for kind, value in (("cached", role.tokens_cached), ("fresh", fresh), ("out", role.tokens_out))
        )
        share = percent((role.tokens_in + role.tokens_out) / total)
        rows.append(
            [
                esc(role.role),
                f'<td class="bar"><span>{bar}</span></td>',
                share,
                number(role.calls),
                f"{role.tokens_cached:,}",
                f"{fresh:,}",
                f"{role.tokens_out:,}",
                esc(seconds(role.seconds)),
            ]
        )
    key = '<span class="key"><i class="cached"></i>cached <i class="fresh"></i>read <i class="out"></i>written</span>'
    head = ("Role", key, "Share", "Calls", "Cached", "Read", "Written", "Time")
    return table(head, rows, "Tokens by role of the team")


def money(report: Report) -> str:
    """What was spent once and what a question costs."""
    once = report.details.one_off_usd if report.details else None
    extras = {(e.system, e.split): e for e in report.details.extras} if report.details else {}
    systems = report.of("held-out") or report.systems
    short, rows = names(systems), []
    for system in systems:
        extra = extras.get((system.id, system.split))
        joules = extra.joules_per_question if extra else None
        rows.append(
            [
                esc(short[system.id]),
                esc(usd(system.usd_per_1k)),
                "unavailable" if joules is None else f"{number(joules)} J",
            ]
        )
    result = table(("System", "$ per 1,000 questions", "Energy per question"), rows, "Cost of running")
    if once is not None:
        spent = [[name.capitalize(), esc(usd(value))] for name, value in once]
        result += table(("Spent once", "$"), spent, "One-off cost of the student")
    return result

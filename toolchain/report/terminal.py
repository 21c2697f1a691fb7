"""The report in a terminal: the sentence, one table per set of questions, the caveats.

Narrow on purpose: what decides stands here, the rest on the page.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from soloist.toolchain.assess.result import sentence
from soloist.toolchain.bench.records import TestSplit
from soloist.toolchain.report.format import SPLITS, find, names, number, percent, points, seconds, usd
from soloist.toolchain.report.schema import Report, System

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_HEAD = ("system", "accuracy", "95%", "v. team", "p50", "p95", "calls", "tokens", "MB", "peak MB", "$/1k")
_SPARED = ("peak MB", "tokens", "calls", "$/1k", "p95", "95%", "MB")  # in a narrow terminal, the first first


def row(system: System, name: str) -> list[str]:
    """The cells of one system; the same in the terminal and in Markdown."""
    against = "–" if system.vs_team is None else points(system.vs_team.difference)
    if system.vs_team is not None:
        against += f" ({points(system.vs_team.low)} to {points(system.vs_team.high)})"
    return [
        name if system.label == "measured" else f"{name} ({system.label})",
        percent(system.accuracy.value),
        f"{percent(system.accuracy.low)}–{percent(system.accuracy.high)}",
        against,
        seconds(system.latency_s.p50),
        seconds(system.latency_s.p95),
        f"{system.calls:.1f}",
        f"{system.tokens_in + system.tokens_out:,.0f}",
        number(system.size_mb),
        number(system.peak_mb),
        usd(system.usd_per_1k),
    ]


def _fitting(rows: list[list[str]], width: int) -> list[int]:
    """Which columns fit, at their full width: rich would cut all of them, the names to nothing."""
    wide = {head: max(len(head), *(len(cells[i]) for cells in rows)) + 2 for i, head in enumerate(_HEAD)}
    for head in _SPARED:
        if sum(wide.values()) + 2 <= width:
            break
        del wide[head]
    return [i for i, head in enumerate(_HEAD) if head in wide]


def _table(report: Report, split: TestSplit, width: int) -> RenderableType:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    systems, short = report.of(split), names(report.of(split))
    headline = report.details.headline if report.details else None
    table = Table(title=f"{SPLITS[split]}, n = {report.asked(split)}", title_justify="left", box=box.SIMPLE_HEAD)
    rows = [row(system, short[system.id]) for system in systems]
    shown = _fitting(rows, width)
    for i in shown:
        table.add_column(_HEAD[i], justify="left" if i == 0 else "right", no_wrap=i > 0, min_width=0 if i else 12)
    for system, cells in zip(systems, rows, strict=True):
        style = "bold cyan" if system.id == headline else "bold" if system.kind == "team" else ""
        # Text, not str: names come from the user's files and may hold what rich would read as markup.
        table.add_row(*(Text(cells[i]) for i in shown), style=style)
    return table


def show(report: Report, console: Console) -> None:
    """Print the report."""
    from rich.text import Text

    finding = find(report)
    color = {"better": "green", "worse": "red"}.get(finding.outcome, "")
    console.print()
    console.print(Text(finding.sentence, style=f"bold {color}".strip()))
    console.print(Text(" ".join(finding.rest)))
    splits: tuple[TestSplit, ...] = ("held-out", "unseen-wording")
    for split in splits:
        if report.of(split):
            console.print()
            console.print(_table(report, split, console.width))
    if report.details and report.details.assessment:
        console.print(Text(f"Assessment: {sentence(report.details.assessment)}"))
    for caveat in report.details.caveats if report.details else ():
        console.print(Text(f"! {caveat}", style="yellow"))


def markdown(report: Report) -> str:
    """The same as Markdown, for a README or a pull request."""
    finding = find(report)
    lines = [f"**{_plain(finding.sentence)}**", "", _plain(" ".join(finding.rest)), ""]
    splits: tuple[TestSplit, ...] = ("held-out", "unseen-wording")
    for split in splits:
        systems, short = report.of(split), names(report.of(split))
        if not systems:
            continue
        lines += [f"{SPLITS[split][0].upper()}{SPLITS[split][1:]}, n = {report.asked(split)}:", ""]
        lines += [f"| {' | '.join(_HEAD)} |", "|---|" + "---:|" * (len(_HEAD) - 1)]
        lines += [f"| {' | '.join(_plain(cell) for cell in row(s, short[s.id]))} |" for s in systems]
        lines.append("")
    if report.details and report.details.assessment:
        lines += [f"Assessment: {_plain(sentence(report.details.assessment))}", ""]
    lines += [f"- {_plain(caveat)}" for caveat in (report.details.caveats if report.details else ())]
    facts = ", ".join(f"{key} {value}" for key, value in report.device.items() if value is not None)
    lines += ["", f"Machine: {_plain(facts)}. Commit: {_plain(report.commit or 'unknown')}."]
    return "\n".join(lines).strip() + "\n"


def _plain(text: str) -> str:
    """Text that Markdown takes as text: one line, nothing that opens a tag, a link, emphasis or a cell."""
    line = " ".join(text.split())
    for character in "\\`*_[]|":
        line = line.replace(character, "\\" + character)
    return line.replace("<", "&lt;")

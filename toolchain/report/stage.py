"""Writes the three forms of a report: report.json, report.html, report.md.

Each file is written whole or not at all, and report.json last: programs that wait for it find the page
that belongs to it beside it.
"""

from __future__ import annotations

from pathlib import Path

from soloist.toolchain.core.files import write_atomic
from soloist.toolchain.report.page import render
from soloist.toolchain.report.schema import Details, Report
from soloist.toolchain.report.terminal import markdown
from soloist.toolchain.traces.schema import Run


def write_report(report: Report, run_for_anatomy: Run | None, out_dir: Path) -> Path:
    """Write the report into `out_dir` and return the path of the page.

    `run_for_anatomy` is the debate to draw; None keeps the one the report has.
    """
    if run_for_anatomy is not None:
        details = (report.details or Details()).model_copy(update={"anatomy": run_for_anatomy})
        report = report.model_copy(update={"details": details})
    page = out_dir / "report.html"
    write_atomic(page, render(report))
    write_atomic(out_dir / "report.md", markdown(report))
    write_atomic(out_dir / "report.json", report.to_json())
    return page


def choose_anatomy(runs: list[Run]) -> Run | None:
    """The run worth drawing: right in the end, with the most disagreement on the way, then the shortest."""

    def worth(run: Run) -> tuple[bool, int, int]:
        spoken = sum(edge.kind in ("disputes", "corrects") for edge in run.edges)
        return run.verdict == "correct", min(spoken, 4), -len(run.turns)

    return max((run for run in runs if run.turns), key=worth, default=None)

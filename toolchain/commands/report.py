"""`soloist report`: write the page again from report.json."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(short_help="Write the report page of a measurement again.")
@click.argument("folder", type=click.Path(path_type=Path), default=Path("runs/desk"))
def command(folder: Path) -> None:
    """Read FOLDER/report.json, write the page and the Markdown again, and show the table."""
    from rich.console import Console

    from soloist.toolchain.report import terminal
    from soloist.toolchain.report.schema import read_report
    from soloist.toolchain.report.stage import write_report

    report = read_report(folder / "report.json")
    page = write_report(report, None, folder)
    terminal.show(report, Console())
    click.echo(f"\nReport: {page.resolve()}", err=True)

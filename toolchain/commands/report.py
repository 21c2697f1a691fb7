"""`soloist report`: a report from the artifact of a measurement, or its page again from report.json."""

from __future__ import annotations

import sys
from pathlib import Path

import click


@click.command(short_help="Make the report of a measurement, or write its page again.")
@click.argument("folder", type=click.Path(path_type=Path), default=Path("runs/desk"))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder of the report  [default: the one around]")
@click.option("--api-price", help="Dollars per million tokens of a hosted model: IN,OUT  [default: genai-prices]")
@click.option("--usd-per-hour", type=float, help="Price of this machine  [default: assumed for its kind]")
@click.option("--watts", type=float, help="Power of this machine while busy, above idle.")
@click.option("--usd-per-kwh", type=float, help="Price of energy.")
def command(
    folder: Path,
    output: Path | None,
    api_price: str | None,
    usd_per_hour: float | None,
    watts: float | None,
    usd_per_kwh: float | None,
) -> None:
    """FOLDER is what `soloist bench` left, or a folder with a report.json, whose page is then written again."""
    from rich.console import Console

    from soloist.toolchain.commands._options import local_price, token_price
    from soloist.toolchain.core.artifact import MANIFEST, Artifact
    from soloist.toolchain.report import terminal
    from soloist.toolchain.report.schema import read_report
    from soloist.toolchain.report.stage import ReportOptions, assemble, write_report

    if (folder / MANIFEST).is_file():
        out = output or folder.resolve().parent
        options = ReportOptions(
            price=local_price(usd_per_hour, watts, usd_per_kwh),
            usd_per_million=token_price(api_price),
            command=" ".join(["soloist", *sys.argv[1:]]),
            assessments=out,
        )
        report = assemble(Artifact.open(folder, stage="bench"), options)
    else:
        out = output or folder
        report = read_report(folder / "report.json")
    page = write_report(report, None, out)
    terminal.show(report, Console())
    click.echo(f"\nReport: {page.resolve()}", err=True)

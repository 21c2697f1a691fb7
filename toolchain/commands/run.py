"""`soloist run`: the whole way, from a team to a report."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click


@click.command(short_help="The main job: team, student, compiled files, comparison, report.")
@click.argument("team", required=False)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder of the job  [default: runs/TEAM]")
@click.option("--quick", is_flag=True, help="The whole way on 25 questions, with a student of 300 traces: minutes.")
@click.option("--count", type=click.IntRange(min=1), help="Held-out questions of the desk  [default: 100]")
@click.option("--unseen", type=click.IntRange(0, 90), help="Its questions in unseen wordings  [default: 90]")
@click.option("--fresh", is_flag=True, help="Record the desk anew instead of using the recording that ships with it.")
@click.option("--record", type=click.IntRange(min=1), help="Questions to record with --fresh  [default: 1120]")
@click.option("--traces", type=click.Path(path_type=Path), help="Start from these, recorded or imported before.")
@click.option("--train", type=click.Path(path_type=Path), help="Your team: questions to record it on, JSON lines.")
@click.option("--test", type=click.Path(path_type=Path), help="Your team: held-out questions, JSON lines.")
@click.option("-m", "--base", default="smollm2-135m", show_default=True, help="Model the student starts from.")
@click.option("--mode", type=click.Choice(["tools", "cot"]), help="[default: tools where the traces call any]")
@click.option("--method", default="sft", show_default=True, help="How to distill, see `soloist methods`.")
@click.option("--set", "chosen", multiple=True, metavar="KEY=VALUE", help="An option of the method; repeatable.")
@click.option("--assess", is_flag=True, help="First ask whether distilling is likely to help: 6 runs of 6 questions.")
@click.option("--epochs", type=click.IntRange(min=1), help="[default: to read about 1,000 trajectories, at most 3]")
@click.option("--formats", default="", help="Comma-separated, as of `soloist export`  [default: five of GGUF and ONNX]")
@click.option("--api-price", help="Dollars per million tokens of a hosted model: IN,OUT  [default: genai-prices]")
@click.option("--usd-per-hour", type=float, help="Price of this machine  [default: assumed for its kind]")
@click.option("--watts", type=float, help="Power of this machine while busy, above idle.")
@click.option("--usd-per-kwh", type=float, help="Price of energy.")
@click.option("--seed", default=42, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print report.json instead of the table.")
@click.option("--open/--no-open", "show", default=None, help="Open the page  [default: on a terminal with a screen]")
def command(team: str | None, output: Path | None, as_json: bool, show: bool | None, **options: object) -> None:
    """Record TEAM (default: the embedded desk) at work, distill it into one student, quantize and compile the student,
    measure all of them side by side, and write the report.

    The same command goes on where it was killed, and does nothing twice.
    """
    from soloist.toolchain.commands._run import make_job
    from soloist.toolchain.core.events import EventLog
    from soloist.toolchain.core.progress import Bars
    from soloist.toolchain.pipeline.run import run
    from soloist.toolchain.report import terminal

    job = make_job(team, output, options, command=" ".join(["soloist", *sys.argv[1:]]))
    with Bars() as bars, EventLog(job.out / "events.jsonl", (bars,)) as events:
        report = run(job, events)
    if as_json:
        click.echo(json.dumps(json.loads(report.to_json())))
    else:
        from rich.console import Console

        terminal.show(report, Console())
    page = (job.out / "report.html").resolve()
    click.echo(f"\nReport: {page}", err=True)
    if show or (show is None and sys.stdout.isatty()):
        click.launch(str(page))

"""`soloist plan`: which width each part of a student gets, for a device and a budget."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

if TYPE_CHECKING:
    from soloist.toolchain.core.artifact import Artifact

_SHOWN = 12


@click.command(short_help="Choose the bits of every part of a student for a budget, measured on its own task.")
@click.argument("student", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
@click.option("--max-mb", type=float, help="Megabytes of the file.")
@click.option("--device", "place", help="Of `soloist devices`, for --max-ms-per-token.")
@click.option("--max-ms-per-token", type=float, help="Predicted for that device.")
@click.option(
    "--max-accuracy-drop",
    "--min-accuracy-drop",
    "max_accuracy_drop",
    type=float,
    help="Points of accuracy that may be lost on --questions.",
)
@click.option("--questions", type=click.Path(path_type=Path), help="JSON lines, none of them held out for a report.")
@click.option(
    "--target",
    type=click.Choice(["gguf", "onnx"]),
    default="gguf",
    show_default=True,
    help="Whose containers count: ONNX has none for 5 bits.",
)
@click.option("--widths", default="4,5,8", show_default=True, help="Of 4, 5, 6, 8.")
@click.option(
    "--group",
    "--group-size",
    "--block-size",
    "group",
    type=click.Choice(["32", "64", "128"]),
    default="32",
    show_default=True,
    help="Columns that share a scale.",
)
@click.option("--method", type=click.Choice(["rtn", "mse", "awq", "gptq"]), default="gptq", show_default=True)
@click.option("--traces", type=click.Path(path_type=Path), help="Measure on these, not on those it learned from.")
@click.option(
    "--measured",
    type=click.Path(path_type=Path),
    help="Another plan of this student, for another budget: its measurements are taken.",
)
@click.option("--samples", type=click.IntRange(min=1), default=64, show_default=True, help="To calibrate on.")
@click.option("--probes", type=click.IntRange(min=1), default=32, show_default=True, help="Others, to measure on.")
@click.option("--seed", default=42, show_default=True)
@click.option("--run-on", default="auto", show_default=True, help="cpu, cuda, or what there is.")
@click.option("--kernels", type=click.Choice(["auto", "triton", "reference"]), default="auto", show_default=True)
def command(
    student: Path,
    output: Path,
    max_mb: float | None,
    place: str | None,
    max_ms_per_token: float | None,
    max_accuracy_drop: float | None,
    questions: Path | None,
    target: str,
    widths: str,
    group: str,
    method: str,
    traces: Path | None,
    measured: Path | None,
    samples: int,
    probes: int,
    seed: int,
    run_on: str,
    kernels: Literal["auto", "triton", "reference"],
) -> None:
    """Plan the quantization of the artifact STUDENT. `soloist quantize --plan` follows the plan."""
    from soloist.kernels.errors import UsageError
    from soloist.targets.base import require

    require("torch", "train")  # what follows imports it
    from soloist.toolchain.core.artifact import Artifact
    from soloist.toolchain.core.config import validated
    from soloist.toolchain.core.events import EventLog
    from soloist.toolchain.core.progress import Bars
    from soloist.toolchain.quantize.planner import PlanConfig, make_plan
    from soloist.toolchain.student.student import open_float
    from soloist.toolchain.traces.recording import open_traces

    if (questions is None) != (max_accuracy_drop is None):
        raise UsageError("--max-accuracy-drop and --questions go together: points lost on those questions")
    if not all(width.strip().isdigit() for width in widths.split(",")):
        raise UsageError(f"--widths: '{widths}' is no list such as 4,5,8")
    told = {
        "target": target,
        "max_mb": max_mb,
        "device": place,
        "max_ms_per_token": max_ms_per_token,
        "max_accuracy_drop": max_accuracy_drop,
        "widths": [int(width) for width in widths.split(",")],
        "group": int(group),
        "method": method,
        "samples": samples,
        "probes": probes,
        "seed": seed,
    }
    config = validated(PlanConfig, told, "plan")
    parent = open_float(student)
    ask = None
    if questions is not None:
        from soloist.toolchain.quantize.accuracy import asker
        from soloist.toolchain.tasks.files import load_questions

        ask = asker(parent, load_questions(questions).questions, output)
    with Bars() as bars, EventLog(output.parent / "events.jsonl", (bars,)) as events:
        made = make_plan(
            config,
            parent,
            output,
            traces=open_traces(traces) if traces else None,
            ask=ask,
            measured=Artifact.open(measured, stage="plan") if measured else None,
            device=run_on,
            kernels=kernels,
            events=events,
        )
    _show(made)


def _show(made: Artifact) -> None:
    import json

    from soloist.toolchain.commands._output import number, print_table
    from soloist.toolchain.quantize.planner import SENSITIVITY

    facts = made.facts
    record = json.loads((made.path / SENSITIVITY).read_text(encoding="utf-8"))
    rows = [
        (
            step["unit"],
            f"{step['instead_of']} -> {step['bits']}",
            f"{step['bytes'] / 1e3:.0f}",
            f"{step['saved']:.2e}",
            f"{step['saved'] / (step['bytes'] / 1e6):.2e}",
        )
        for step in record["bought"]
    ]
    header = ("unit", "bits", number("KB"), number("KL saved"), number("KL saved per MB"))
    if rows:
        click.echo("bought, best value first:")
        print_table(header, rows[:_SHOWN])
        if len(rows) > _SHOWN:
            click.echo(f"and {len(rows) - _SHOWN} more in {made.path / SENSITIVITY}")
    if record["next"]:
        click.echo("\nthe next bytes would go to:")
        following = record["next"][:3]
        print_table(
            header,
            [
                (
                    step["unit"],
                    f"{step['instead_of']} -> {step['bits']}",
                    f"{step['bytes'] / 1e3:.0f}",
                    f"{step['saved']:.2e}",
                    f"{step['saved'] / (step['bytes'] / 1e6):.2e}",
                )
                for step in following
            ],
        )
    click.echo(
        f"\n{made.path}: {facts['size_mb']:.1f} MB as {facts['target']} (predicted), mean KL "
        f"{facts['damage_measured']:.4f} measured, {facts['damage_predicted']:.4f} the sum of its parts"
    )
    if "ms_per_token_predicted" in facts:
        click.echo(f"{facts['ms_per_token_predicted']:.2f} ms per token on {facts['device']} (predicted)")
    if "accuracy" in facts:
        lost = facts["accuracy"]
        low, high = lost["interval_points"]
        click.echo(f"loses {lost['drop_points']:.1f} points ({low:.1f} to {high:.1f}) on {lost['questions']} questions")

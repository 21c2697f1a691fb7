"""`soloist plan`: which bits each part of a student gets, for a device and a budget."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

if TYPE_CHECKING:
    from soloist.toolchain.core.artifact import Artifact
    from soloist.toolchain.quantize.search import Step

_SHOWN, _FOLLOWING = 12, 3


@click.command(short_help="Choose the bits of every part of a student for a budget, measured on its own task.")
@click.argument("student", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
@click.option("--max-mb", type=float, help="Megabytes of the file.")
@click.option("--device", help="Of `soloist devices`, for --max-ms-per-token.")
@click.option("--max-ms-per-token", type=float, help="Predicted for that device.")
@click.option("--max-accuracy-drop", type=float, help="Points of accuracy that may be lost on --questions.")
@click.option("--questions", type=click.Path(path_type=Path), help="JSON lines, none of them held out for a report.")
@click.option(
    "--target",
    type=click.Choice(["gguf", "onnx"]),
    default="gguf",
    show_default=True,
    help="Whose containers count: ONNX has none for 5 bits.",
)
@click.option("--bits", default="4,5,8", show_default=True, help="To choose from, of 4, 5, 6, 8.")
@click.option(
    "--group",
    type=click.Choice(["32", "64", "128"]),
    default="32",
    show_default=True,
    help="Columns that share a scale.",
)
@click.option("--rounding", type=click.Choice(["rtn", "mse", "awq", "gptq"]), default="gptq", show_default=True)
@click.option("--traces", type=click.Path(path_type=Path), help="Measure on these, not on those it learned from.")
@click.option(
    "--measured",
    type=click.Path(path_type=Path),
    help="Another plan of this student, for another budget: its measurements are taken.",
)
@click.option("--samples", type=click.IntRange(min=1), default=64, show_default=True, help="To calibrate on.")
@click.option(
    "--eval-samples", type=click.IntRange(min=1), default=32, show_default=True, help="Others, to measure on."
)
@click.option("--seed", default=42, show_default=True)
@click.option("--torch-device", default="auto", show_default=True, help="cpu, cuda, or what there is.")
@click.option("--kernels", type=click.Choice(["auto", "triton", "reference"]), default="auto", show_default=True)
def command(
    student: Path,
    output: Path,
    questions: Path | None,
    bits: str,
    traces: Path | None,
    measured: Path | None,
    torch_device: str,
    kernels: Literal["auto", "triton", "reference"],
    **settings: Any,
) -> None:
    """Plan the quantization of the artifact STUDENT. `soloist quantize --plan` follows the plan."""
    from soloist.kernels.errors import UsageError
    from soloist.targets.base import require

    require("torch", "train")  # what follows imports it
    from soloist.toolchain.core.artifact import Artifact
    from soloist.toolchain.core.config import validated
    from soloist.toolchain.core.events import EventLog
    from soloist.toolchain.core.progress import Bars
    from soloist.toolchain.quantize.budgets import PlanConfig
    from soloist.toolchain.quantize.planner import make_plan
    from soloist.toolchain.student.student import open_float
    from soloist.toolchain.traces.recording import open_traces

    if (questions is None) != (settings["max_accuracy_drop"] is None):
        raise UsageError("--max-accuracy-drop and --questions go together: points lost on those questions")
    if not all(one.strip().isdigit() for one in bits.split(",")):
        raise UsageError(f"--bits: '{bits}' is no list such as 4,5,8")
    settings["bits"] = [int(one) for one in bits.split(",")]
    settings["group"] = int(settings["group"])
    config = validated(PlanConfig, settings, "plan")
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
            device=torch_device,
            kernels=kernels,
            events=events,
        )
    _show(made)


def _show(made: Artifact) -> None:
    from soloist.toolchain.quantize.planner import SENSITIVITY, PlanFacts, read_sensitivity

    facts, sensitivity = made.read(PlanFacts), read_sensitivity(made)
    if sensitivity.bought:
        click.echo("bought, best value first:")
        _print_steps(sensitivity.bought[:_SHOWN])
    if len(sensitivity.bought) > _SHOWN:
        click.echo(f"and {len(sensitivity.bought) - _SHOWN} more in {made.path / SENSITIVITY}")
    if sensitivity.next:
        click.echo("\nthe next bytes would go to:")
        _print_steps(sensitivity.next[:_FOLLOWING])
    click.echo(
        f"\n{made.path}: {facts.size_mb:.1f} MB as {facts.target} (predicted), mean KL {facts.kl_measured:.4f} "
        f"measured, {facts.kl_predicted:.4f} the sum of its parts"
    )
    if facts.ms_per_token_predicted is not None:
        click.echo(f"{facts.ms_per_token_predicted:.2f} ms per token on {facts.device} (predicted)")
    if facts.accuracy is not None:
        low, high = facts.accuracy.interval_points
        click.echo(
            f"loses {facts.accuracy.drop_points:.1f} points ({low:.1f} to {high:.1f}) on "
            f"{facts.accuracy.questions} questions"
        )


def _print_steps(steps: Sequence[Step]) -> None:
    from soloist.toolchain.commands._output import number, print_table

    rows = []
    for step in steps:
        bits = f"{step.instead_of} -> {step.bits}"
        rows.append((step.unit, bits, f"{step.bytes / 1e3:.0f}", f"{step.saved:.2e}", f"{step.per_megabyte:.2e}"))
    print_table(("unit", "bits", number("KB"), number("KL saved"), number("KL saved per MB")), rows)

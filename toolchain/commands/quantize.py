"""`soloist quantize`: a student's weights to integers and scales, once for all formats."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click
from click.core import ParameterSource


@click.command(short_help="Turn a student's weights into integers of 4 to 8 bits, once for all formats.")
@click.argument("student", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
@click.option(
    "--bits", type=click.Choice(["4", "5", "6", "8"]), default="4", show_default=True, help="Of the linear layers."
)
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
@click.option(
    "--embedding-bits",
    type=click.Choice(["4", "5", "6", "8"]),
    default="8",
    show_default=True,
    help="Embedding and head.",
)
@click.option(
    "--plan",
    "plan_file",
    type=click.Path(path_type=Path),
    help="Bits and method of each matrix instead: a file, or what `soloist plan` made.",
)
@click.option("--zeros", is_flag=True, help="Zero points; GGUF and TensorRT cannot take such a student.")
@click.option("--traces", type=click.Path(path_type=Path), help="Calibrate on these, not on those it learned from.")
@click.option("--samples", type=click.IntRange(min=1), default=64, show_default=True, help="Conversations for that.")
@click.option(
    "--order",
    type=click.Choice(["natural", "activation"]),
    default="natural",
    show_default=True,
    help="Of the columns, for gptq.",
)
@click.option("--refine", is_flag=True, help="Train on through the rounding (quantization-aware distillation).")
@click.option("--refine-tokens", type=click.IntRange(min=1), default=60_000, show_default=True, help="To read for it.")
@click.option("--seed", default=42, show_default=True)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, or what there is.")
@click.option("--kernels", type=click.Choice(["auto", "triton", "reference"]), default="auto", show_default=True)
def command(
    student: Path,
    output: Path,
    bits: str,
    group: str,
    method: str,
    embedding_bits: str,
    zeros: bool,
    plan_file: Path | None,
    traces: Path | None,
    samples: int,
    order: str,
    refine: bool,
    refine_tokens: int,
    seed: int,
    device: str,
    kernels: Literal["auto", "triton", "reference"],
) -> None:
    """Quantize the artifact STUDENT. Formats written from the result (`soloist export`) carry the same integers."""
    from soloist.kernels.errors import UsageError
    from soloist.targets.base import require

    require("torch", "train")  # what follows imports it
    from soloist.toolchain.core.config import validated
    from soloist.toolchain.core.events import EventLog
    from soloist.toolchain.core.progress import Bars
    from soloist.toolchain.quantize.plan import CALIBRATED, read_plan
    from soloist.toolchain.quantize.stage import QuantizeConfig, quantize
    from soloist.toolchain.student.student import open_float
    from soloist.toolchain.traces.recording import open_traces

    told: dict[str, object] = {"samples": samples, "order": order, "seed": seed}
    widths = {
        "bits": int(bits),
        "group": int(group),
        "method": method,
        "embedding_bits": int(embedding_bits),
        "zeros": zeros,
    }
    if plan_file is None:
        told |= widths
    else:
        source = click.get_current_context().get_parameter_source
        told |= {name: value for name, value in widths.items() if source(name) == ParameterSource.COMMANDLINE}
        told["plan"] = read_plan(plan_file)
    if refine:
        told["refine"] = {"spend": refine_tokens, "seed": seed}
    config = validated(QuantizeConfig, told, "quantize")
    if traces is not None and not config.reads:
        raise UsageError(f"--traces: nothing here calibrates; use method {' or '.join(CALIBRATED)}")
    parent = open_float(student)
    with Bars() as bars, EventLog(output.parent / "events.jsonl", (bars,)) as events:
        made = quantize(
            config,
            parent,
            output,
            traces=open_traces(traces) if traces else None,
            device=device,
            kernels=kernels,
            events=events,
        )
    for part, facts in made.facts.get("parts", {"": made.facts}).items():
        click.echo(
            f"{output / part}: {facts['matrices']} matrices, {facts['size_mb']:.1f} MB, mean error "
            f"{facts['error_mean']:.2%} of a matrix's norm"
        )
        if "refine" in facts:
            told_of = facts["refine"]
            click.echo(
                f"refined: KL {told_of['divergence_before']:.4f} -> {told_of['divergence_after']:.4f} on "
                f"{told_of['held_back']} conversations held back"
            )

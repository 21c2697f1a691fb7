"""`soloist quantize`: a student's weights to integers and scales, once for all formats."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
from click.core import ParameterSource

if TYPE_CHECKING:
    from soloist.toolchain.quantize.stage import ModelFacts, QuantizeConfig


@click.command(short_help="Turn a student's weights into integers of 4 to 8 bits, once for all formats.")
@click.argument("student", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
@click.option(
    "--bits", type=click.Choice(["4", "5", "6", "8"]), default="4", show_default=True, help="Of the linear layers."
)
@click.option(
    "--group",
    type=click.Choice(["32", "64", "128"]),
    default="32",
    show_default=True,
    help="Columns that share a scale.",
)
@click.option("--rounding", type=click.Choice(["rtn", "mse", "awq", "gptq"]), default="gptq", show_default=True)
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
    help="Bits and rounding of each matrix instead: a file, or what `soloist plan` made.",
)
@click.option("--asymmetric", is_flag=True, help="Zero points; GGUF and TensorRT cannot take such a student.")
@click.option("--traces", type=click.Path(path_type=Path), help="Calibrate on these, not on those it learned from.")
@click.option("--samples", type=click.IntRange(min=1), default=64, show_default=True, help="Conversations for that.")
@click.option("--act-order", is_flag=True, help="GPTQ takes columns by falling activation, not from left to right.")
@click.option("--qat", is_flag=True, help="Train on through the rounding (quantization-aware distillation).")
@click.option("--qat-tokens", type=click.IntRange(min=1), default=60_000, show_default=True, help="To read for it.")
@click.option("--seed", default=42, show_default=True)
@click.option("--torch-device", default="auto", show_default=True, help="cpu, cuda, or what there is.")
@click.option("--kernels", type=click.Choice(["auto", "triton", "reference"]), default="auto", show_default=True)
def command(
    student: Path,
    output: Path,
    plan_file: Path | None,
    traces: Path | None,
    qat: bool,
    qat_tokens: int,
    torch_device: str,
    kernels: Literal["auto", "triton", "reference"],
    **settings: Any,
) -> None:
    """Quantize the artifact STUDENT. Formats written from the result (`soloist export`) carry the same integers."""
    from soloist.kernels.errors import UsageError
    from soloist.targets.base import require

    require("torch", "train")  # what follows imports it
    from soloist.toolchain.core.events import EventLog
    from soloist.toolchain.core.progress import Bars
    from soloist.toolchain.quantize.plan import CALIBRATED
    from soloist.toolchain.quantize.stage import QuantizeFacts, quantize
    from soloist.toolchain.student.student import open_float
    from soloist.toolchain.traces.recording import open_traces

    if qat:
        settings["qat"] = {"max_train_tokens": qat_tokens, "seed": settings["seed"]}
    config = _config(settings, plan_file)
    if traces is not None and not config.reads:
        raise UsageError(f"--traces: nothing here calibrates; use rounding {' or '.join(CALIBRATED)}")
    with Bars() as bars, EventLog(output.parent / "events.jsonl", (bars,)) as events:
        made = quantize(
            config,
            open_float(student),
            output,
            traces=open_traces(traces) if traces else None,
            device=torch_device,
            kernels=kernels,
            events=events,
        )
    for part, facts in made.read(QuantizeFacts).models.items():
        _show(output / part, facts)


def _config(settings: dict[str, Any], plan_file: Path | None) -> QuantizeConfig:
    """The config; beside a plan, an option that a plan decides counts only where it was given."""
    from soloist.toolchain.core.config import validated
    from soloist.toolchain.quantize.plan import read_plan
    from soloist.toolchain.quantize.stage import PLANNED, QuantizeConfig

    for name in ("bits", "group", "embedding_bits"):
        settings[name] = int(settings[name])
    if plan_file is not None:
        source = click.get_current_context().get_parameter_source
        for name in PLANNED:
            if source(name) != ParameterSource.COMMANDLINE:
                del settings[name]
        settings["plan"] = read_plan(plan_file)
    return validated(QuantizeConfig, settings, "quantize")


def _show(folder: Path, facts: ModelFacts) -> None:
    click.echo(
        f"{folder}: {facts.matrices} matrices, {facts.size_mb:.1f} MB, mean error {facts.mean_error:.2%} of a "
        "matrix's norm"
    )
    if facts.qat is not None:
        click.echo(
            f"trained on through the rounding: KL {facts.qat.kl_before:.4f} -> {facts.qat.kl_after:.4f} on "
            f"{facts.qat.held_back} conversations held back"
        )

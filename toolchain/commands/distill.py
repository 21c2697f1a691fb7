"""`soloist distill`: traces to a student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

_TRAINING = ("tuning", "epochs", "max_train_tokens", "learning_rate", "seed")


@click.command(short_help="Train one student on recorded traces.")
@click.argument("traces", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder of the student.")
@click.option("-m", "--base", default="smollm2-135m", show_default=True, help="GGUF file, Hugging Face folder or name.")
@click.option("--mode", type=click.Choice(["tools", "cot"]), help="[default: tools where the traces call any]")
@click.option("--method", default="sft", show_default=True, help="See `soloist methods`.")
@click.option("--variant", type=click.Choice(["paper", "released"]), default="paper", show_default=True)
@click.option("--set", "chosen", multiple=True, metavar="KEY=VALUE", help="An option of the method; repeatable.")
@click.option("--tuning", type=click.Choice(["full", "lora"]), help="[default: the method's, else full]")
@click.option("--epochs", type=click.IntRange(min=1), help="[default: the method's, else 1]")
@click.option("--learning-rate", type=click.FloatRange(min=0, min_open=True), help="[default: the method's]")
@click.option("--limit", type=click.IntRange(min=1), help="Use only the first traces.")
@click.option("--max-target-tokens", type=click.IntRange(min=1), help="Trained tokens to take from the traces.")
@click.option("--max-train-tokens", type=click.IntRange(min=1), help="Tokens to read in all, whatever the epochs.")
@click.option("--seed", default=42, show_default=True)
def command(traces: Path, output: Path, base: str, chosen: tuple[str, ...], **settings: Any) -> None:
    """Train a student on the artifact TRACES (made by `soloist record` or `import`). Goes on where it was killed."""
    from soloist.kernels.errors import UsageError
    from soloist.targets.base import require
    from soloist.targets.from_gguf import find_base

    require("torch", "train")  # what follows imports it
    from soloist.toolchain.commands._options import method_options
    from soloist.toolchain.core.config import validated
    from soloist.toolchain.core.events import EventLog
    from soloist.toolchain.core.progress import Bars
    from soloist.toolchain.distill.distributed import follows, leave
    from soloist.toolchain.distill.stage import DistillConfig, distill
    from soloist.toolchain.student.artifact import StudentFacts
    from soloist.toolchain.traces.recording import calls_tools, open_traces

    if settings["epochs"] and settings["max_train_tokens"]:
        raise UsageError("--epochs and --max-train-tokens both say how much is read: give one of them")
    training = {name: settings.pop(name) for name in _TRAINING}
    settings["train"] = {name: value for name, value in training.items() if value is not None}  # else the method's own
    settings["options"] = method_options(chosen)
    mode = settings.pop("mode")
    config = validated(DistillConfig, {**settings, "mode": mode or "tools"}, "distill")
    source = Path(base) if Path(base).exists() else find_base(base)
    recorded = open_traces(traces)
    if mode is None and not calls_tools(recorded):
        config = config.model_copy(update={"mode": "cot"})
    if follows():  # one of several processes: the first shows, logs and writes for all of them
        distill(config, recorded, source, output)
        leave()
        return
    with Bars() as bars, EventLog(output.parent / "events.jsonl", (bars,)) as events:
        student = distill(config, recorded, source, output, events=events)
    leave()
    kept = student.read(StudentFacts).data.kept
    click.echo(f"{output}: student {student.digest}, {kept} trajectories learned")

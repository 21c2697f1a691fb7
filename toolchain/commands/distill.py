"""`soloist distill`: traces to a student."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(short_help="Train one student on recorded traces.")
@click.argument("traces", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder of the student.")
@click.option("-m", "--base", default="smollm2-135m", show_default=True, help="GGUF file, Hugging Face folder or name.")
@click.option("--mode", type=click.Choice(["acts", "internalise"]), default="acts", show_default=True)
@click.option("--method", default="sft", show_default=True)
@click.option("--tuning", type=click.Choice(["full", "lora"]), default="full", show_default=True)
@click.option("--epochs", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--learning-rate", type=click.FloatRange(min=0, min_open=True), help="[default: the method's]")
@click.option("--limit", type=click.IntRange(min=1), help="Use only the first traces.")
@click.option("--seed", default=42, show_default=True)
def command(
    traces: Path, output: Path, base: str, mode: str, method: str, tuning: str, epochs: int,
    learning_rate: float | None, limit: int | None, seed: int,
) -> None:  # fmt: skip
    """Train a student on the artifact TRACES (a folder made by `soloist teach`). Goes on where it was killed."""
    from soloist.targets.from_gguf import find_base
    from soloist.toolchain.artifact import Artifact
    from soloist.toolchain.distill.stage import DistillConfig, distill
    from soloist.toolchain.events import EventLog
    from soloist.toolchain.progress import Bars

    train = {"method": method, "tuning": tuning, "epochs": epochs, "seed": seed}
    if learning_rate is not None:
        train["learning_rate"] = learning_rate
    config = DistillConfig.model_validate({"mode": mode, "train": train, "limit": limit})
    source = Path(base) if Path(base).exists() else find_base(base)
    with Bars() as bars, EventLog(output.parent / "events.jsonl", (bars,)) as events:
        student = distill(config, Artifact.open(traces, stage="teach"), source, output, events=events)
    click.echo(f"{output}: student {student.digest}, {student.facts['data']['kept']} trajectories learned")

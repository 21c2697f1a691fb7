"""`soloist bench`: one student file on questions of one's own."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(short_help="Measure systems side by side on held-out questions.")
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--questions", type=click.Path(path_type=Path), required=True, help="Held-out questions, JSON lines.")
@click.option("--tools", multiple=True, help="Entry point of tools, module:attribute; may be given again.")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("runs/bench"), show_default=True)
@click.option("--seed", default=42, show_default=True)
@click.option("--force", is_flag=True, help="Open exported files without a passing verdict; they are marked for ever.")
def command(
    models: tuple[Path, ...], questions: Path, tools: tuple[str, ...], output: Path, seed: int, force: bool
) -> None:
    """Ask all MODELS (GGUF files, ONNX folders, Hugging Face folders) the same questions in turns."""
    from soloist.toolchain.bench.measure import MEASUREMENTS, measure
    from soloist.toolchain.bench.records import load_measurements
    from soloist.toolchain.bench.systems import System, student_team
    from soloist.toolchain.core.events import EventLog
    from soloist.toolchain.core.lineage import artifact_around, lineage_of, refuse_trained
    from soloist.toolchain.core.progress import Bars
    from soloist.toolchain.core.statistics import percentile, wilson
    from soloist.toolchain.tasks.files import load_questions
    from soloist.toolchain.tools.files import load_tools
    from soloist.toolchain.verify.verdict import admit

    asked = [q.model_copy(update={"split": "held-out"}) for q in load_questions(questions).questions]
    made = [artifact for model in models if (artifact := artifact_around(model)) is not None]
    refuse_trained(lineage_of(made), (question.benchmark for question in asked))
    for model in models:
        if said := admit(model, force=force, command="bench"):
            click.echo(said, err=True)
    names = list(load_tools(tools).tools)
    systems = [
        System(
            id=f"{i}-{model.stem}",
            kind="artifact",
            format=model.suffix or "folder",
            team=student_team(model, names, tools),
        )
        for i, model in enumerate(models)
    ]
    with Bars() as bars, EventLog(output.parent / "events.jsonl", (bars,)) as events:
        measured = measure(systems, asked, asked[:1], output, seed=seed, events=events)
    for one in load_measurements(measured.path / MEASUREMENTS):
        share = wilson(one.correct, len(one.answers))
        seconds = percentile([answer.seconds for answer in one.answers], 0.5)
        click.echo(
            f"{one.system_id:32} {share.value:6.1%} ({share.low:.1%} to {share.high:.1%})  "
            f"p50 {seconds:.3f} s  {one.peak_mb or 0:.0f} MB"
        )

"""`soloist bench`: students and their files on the same questions, beside their team if it is named."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from soloist.toolchain.bench.systems import System
    from soloist.toolchain.core.artifact import Artifact


@click.command(short_help="Measure systems side by side on held-out questions.")
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--questions", type=click.Path(path_type=Path), help="Held-out questions, JSON lines  [the desk: its own]"
)
@click.option("--team", help="The team to compare with, a file or the name of one that ships; it is asked live.")
@click.option(
    "--count", type=click.IntRange(min=1), default=100, show_default=True, help="Of the desk's own questions."
)
@click.option("--unseen", type=click.IntRange(0, 90), default=90, show_default=True, help="In unseen wordings.")
@click.option("--choose-on", type=click.Path(path_type=Path), help="Questions to recommend a file on, JSON lines.")
@click.option("--tools", multiple=True, help="Entry point of tools, where the student's do not ship with Soloist.")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("runs/bench"), show_default=True)
@click.option("--seed", default=42, show_default=True)
@click.option("--force", is_flag=True, help="Open exported files without a passing verdict; they are marked for ever.")
def command(
    models: tuple[Path, ...],
    questions: Path | None,
    team: str | None,
    count: int,
    unseen: int,
    choose_on: Path | None,
    tools: tuple[str, ...],
    output: Path,
    seed: int,
    force: bool,
) -> None:
    """Ask all MODELS the same questions in turns: GGUF files, ONNX folders, students, and folders of `soloist export`,
    of which every format counts that has passed. `soloist report OUTPUT` makes the report."""
    from soloist.toolchain.bench.measure import MEASUREMENTS, measure
    from soloist.toolchain.bench.records import load_measurements
    from soloist.toolchain.bench.systems import compared_systems
    from soloist.toolchain.commands._bench import Named, task_of
    from soloist.toolchain.core.events import EventLog
    from soloist.toolchain.core.lineage import lineage_of, refuse_trained
    from soloist.toolchain.core.progress import Bars
    from soloist.toolchain.core.statistics import percentile, wilson

    named = Named.of(models, tools, force=force)
    task = task_of(team, questions, count, unseen, named, choose_on)
    refuse_trained(lineage_of(named.artifacts), (question.benchmark for question in task.test))
    systems: list[System] = list(named.systems)
    if named.student is not None:
        systems += compared_systems(
            task.team,
            named.student,
            named.exports,
            named.traces,
            examples=task.examples,
            undebated=task.undebated,
            warmup=len(task.warmup),
            team_shares=task.team_shares,
            entries=tools,
        )
    parents: list[Artifact] = named.artifacts
    with Bars() as bars, EventLog(output.parent / "events.jsonl", (bars,)) as events:
        measured = measure(
            systems,
            task.asked,
            task.warmup,
            output,
            parents=parents,
            notes=task.notes,
            seed=seed,
            events=events,
        )
    for one in load_measurements(measured.path / MEASUREMENTS):
        share = wilson(one.correct, len(one.answers))
        seconds = percentile([answer.seconds for answer in one.answers], 0.5)
        peak = "" if one.peak_mb is None else f"  {one.peak_mb:.0f} MB"
        click.echo(
            f"{one.system_id:28} {one.split:18} {share.value:6.1%} ({share.low:.1%} to {share.high:.1%})  "
            f"p50 {seconds:.3f} s{peak}"
        )

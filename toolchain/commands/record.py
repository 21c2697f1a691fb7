"""`soloist record`: record a team."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(short_help="Record a team at work: questions to traces.")
@click.argument("team", default="desk")
@click.option(
    "--questions", "file", type=click.Path(path_type=Path), help="JSON lines  [default for the desk: its own]"
)
@click.option("--count", type=click.IntRange(min=1), help="Of the desk's own questions  [default: 1120]")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder  [default: runs/TEAM/traces]")
@click.option(
    "--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Copies of the team side by side."
)
@click.option("-t", "--threads", type=click.IntRange(min=1), help="Threads of each copy's engine.")
@click.option("--seed", default=42, show_default=True)
def command(
    team: str, file: Path | None, count: int | None, output: Path | None, jobs: int, threads: int | None, seed: int
) -> None:
    """Put questions to TEAM and keep every run as a trace. Goes on where it was killed."""
    from soloist.kernels.errors import UsageError
    from soloist.toolchain.core.events import EventLog
    from soloist.toolchain.core.progress import Bars
    from soloist.toolchain.desk.job import DESK_TRAIN, desk_train
    from soloist.toolchain.record.team import record
    from soloist.toolchain.tasks.files import load_questions
    from soloist.toolchain.teams.config import load_team
    from soloist.toolchain.traces.recording import TraceFacts

    config = load_team(team)
    if threads is not None:
        if config.engine.kind != "gguf":
            raise UsageError(f"--threads: team '{config.name}' asks an endpoint, whose threads are its own")
        config = config.model_copy(update={"engine": config.engine.model_copy(update={"threads": threads})})
    out = output or Path("runs") / config.name / "traces"
    if file is not None:
        if count is not None:
            raise UsageError("--count is for the desk's own questions; of a file all are recorded")
        questions = list(load_questions(file, split="train").questions)
    elif team == "desk":
        questions = desk_train(config, count or DESK_TRAIN)
    else:
        raise UsageError("a team of your own needs questions: --questions FILE.jsonl")
    with Bars() as bars, EventLog(out.parent / "events.jsonl", (bars,)) as events:
        artifact = record(config, questions, out, seed=seed, jobs=jobs, events=events)
    facts = artifact.read(TraceFacts)
    click.echo(f"{out}: {facts.runs} runs, {facts.correct} correct, {facts.seconds:.0f} s of work")

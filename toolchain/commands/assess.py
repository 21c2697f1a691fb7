"""`soloist assess`: before any training, is distilling this team likely to help?"""

from __future__ import annotations

from pathlib import Path

import click
from click.core import ParameterSource

_OF_RUNS = ("count", "runs", "temperature", "approaches")  # options of runs that are made, not read


@click.command(short_help="Say before training whether distilling a team is likely to help.")
@click.argument("sources", nargs=-1, metavar="[TEAM | TRACES...]")
@click.option(
    "--questions", "file", type=click.Path(path_type=Path), help="JSON lines  [default for the desk: its own]"
)
@click.option("--count", type=click.IntRange(min=1), default=6, show_default=True, help="Questions to ask.")
@click.option("--runs", type=click.IntRange(min=3), default=6, show_default=True, help="Runs of each question.")
@click.option("--temperature", type=click.FloatRange(0, 2, min_open=True), default=0.7, show_default=True)
@click.option("--approach", "approaches", multiple=True, help="Hint for a run's prompts; given again, one per run.")
@click.option("--rule", type=click.Choice(["v3", "v1"]), default="v3", show_default=True, help="Published version.")
@click.option("--score", type=click.Choice(["verdict", "turns"]), default="verdict", show_default=True)
@click.option("--distance", type=click.Choice(["auto", "edit", "embedding"]), default="auto", show_default=True)
@click.option("--examples", type=click.IntRange(min=0), default=1, show_default=True, help="Per family, in the card.")
@click.option("--known", multiple=True, type=click.Path(path_type=Path), help="More traces, for the card alone.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder  [default: runs/TEAM/assess]")
@click.option("--seed", default=42, show_default=True)
def command(
    sources: tuple[str, ...],
    file: Path | None,
    count: int,
    known: tuple[Path, ...],
    output: Path | None,
    **options: object,
) -> None:
    """Run TEAM (default: the desk) several times per question, or read recorded runs from TRACES, and print how
    free its score is of its output (Metric Freedom), what that advises, and what to keep. Never blocks anything.
    """
    from soloist.kernels.errors import UsageError
    from soloist.toolchain.assess.result import ASSESSMENT, kept, read_assessment, sentence
    from soloist.toolchain.assess.stage import AssessConfig, assess
    from soloist.toolchain.core.events import EventLog
    from soloist.toolchain.core.progress import Bars
    from soloist.toolchain.desk.job import questions_for
    from soloist.toolchain.teams.config import load_team

    config = AssessConfig.model_validate(options)
    recordings = [Path(name) for name in sources if Path(name).exists() and Path(name).suffix not in (".yaml", ".yml")]
    if recordings and (len(recordings) < len(sources) or file is not None):
        raise UsageError("give one team, or recorded traces: recordings are not asked questions")
    source = click.get_current_context().get_parameter_source
    given = [name for name in _OF_RUNS if source(name) is ParameterSource.COMMANDLINE]
    if recordings and given:
        raise UsageError(f"{', '.join(given)}: for a team that is run; recordings are as they are")
    if len(sources) > 1 and not recordings:
        raise UsageError(f"one team at a time, got {', '.join(sources)}")
    name = sources[0] if sources else "desk"
    team = None if recordings else load_team(name)
    out = output or Path("runs") / (team.name if team else Path(name).name.partition(".")[0]) / "assess"
    with Bars() as bars, EventLog(out.parent / "events.jsonl", (bars,)) as events:
        questions = questions_for(team, file, count) if team else []
        made = assess(config, team, out, questions=questions, recordings=recordings, known=known, events=events)
    assessment = read_assessment(made.path / ASSESSMENT)
    click.echo(sentence(assessment))
    click.echo(kept(assessment.advice))
    for reason in assessment.advice.reasons:
        click.echo(reason)
    for warning in assessment.warnings:
        click.echo(f"! {warning}")
    click.echo(f"\nSkill card: {made.path / 'skill_card.md'}", err=True)

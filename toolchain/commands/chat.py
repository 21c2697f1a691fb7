"""`soloist chat`: talk to a student."""

from __future__ import annotations

import sys
from pathlib import Path

import click


@click.command(short_help="Talk to a student in the terminal.")
@click.argument("student", type=click.Path(path_type=Path))
@click.option("--tools", multiple=True, help="Entry point of tools  [default: those named by its job]")
@click.option("--force", is_flag=True, help="Open an exported file without a passing verdict; it is marked for ever.")
@click.option(
    "--provider",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="What computes an ONNX student.",
)
@click.argument("question", nargs=-1)
def command(student: Path, tools: tuple[str, ...], force: bool, provider: str, question: tuple[str, ...]) -> None:
    """Answer QUESTION, or read questions from the terminal. STUDENT is a GGUF file, an ONNX folder, a Hugging
    Face folder, a quantized one, or a folder of a job (its smallest GGUF is taken)."""
    from soloist.toolchain.student.find import find_model
    from soloist.toolchain.tasks.base import Question
    from soloist.toolchain.teams.config import StudentEngineConfig
    from soloist.toolchain.teams.engines.pair import open_student
    from soloist.toolchain.teams.team import Team
    from soloist.toolchain.verify.verdict import check_openable

    model = find_model(student, tools)
    if note := check_openable(model.path, force=force, command="chat"):
        click.echo(note, err=True)
    team = model.team
    assert isinstance(team.engine, StudentEngineConfig)
    asked_of = team.engine.model_copy(update={"provider": provider})
    engine = open_student(asked_of, on_text=lambda text: click.echo(text, nl=False))
    if note := getattr(engine, "note", ""):
        click.echo(note, err=True)
    with Team(team, engine=engine) as opened:
        asked = [" ".join(question)] if question else iter(_ask, None)
        for text in asked:
            run = opened.answer(Question(id="chat", question=str(text), gold=None))
            for use in run.trajectory:
                click.echo(f"\n  {use.call} = {use.result if use.result is not None else use.error}", nl=False)
            click.echo(f"\n{run.answer or 'no answer'}")


def _ask() -> str | None:
    if sys.stdin.isatty():
        click.echo("> ", nl=False, err=True)
    line = sys.stdin.readline()
    return line.strip() or None

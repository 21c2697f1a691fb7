"""`soloist chat`: talk to a student."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

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
    from soloist.toolchain.bench.systems import student_team
    from soloist.toolchain.tasks.base import Question
    from soloist.toolchain.teams.config import StudentEngineConfig
    from soloist.toolchain.teams.engines.pair import open_student
    from soloist.toolchain.teams.team import Team
    from soloist.toolchain.verify.verdict import admit

    path = _model(student)
    if said := admit(path, force=force, command="chat"):
        click.echo(said, err=True)
    entries, names = _tools(path, tools)
    team = student_team(path, names, entries)
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


def _model(path: Path) -> Path:
    """The model itself: `path`, or the smallest GGUF below it (of a student of two models, their folder)."""
    from soloist.targets.open import parts

    if path.is_dir() and not any((path / name).is_file() for name in ("config.json", "genai_config.json")):
        if parts(path):
            return path
        found = sorted(path.rglob("*.gguf"), key=lambda file: file.stat().st_size)
        folder = found[0].parent.parent if found else path
        return folder if found and parts(folder) else found[0] if found else path
    return path


def _tools(path: Path, entries: tuple[str, ...]) -> tuple[tuple[str, ...], list[str]]:
    """Entry points of the tools and the names of those the student knows."""
    from soloist.kernels.errors import ArtifactError
    from soloist.toolchain.tools.files import load_tools

    named = None if entries else _tools_file(path)
    if named is None:
        return entries, list(load_tools(entries).tools)
    try:
        known: dict[str, Any] = json.loads(named.read_text(encoding="utf-8"))
        return tuple(known["entries"]), [tool["function"]["name"] for tool in known["tools"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{named}: not a list of tools of ours ({error}); name them with --tools") from error


def _tools_file(path: Path) -> Path | None:
    """The list of tools beside the model; for a torch student that of the files compiled from it, in the same job."""
    from soloist.kernels.errors import UsageError
    from soloist.toolchain.student.artifact import CARD, read_card

    folder = path if path.is_dir() else path.parent
    beside = folder / "tools.json"
    if beside.is_file() or not (folder / CARD).is_file():
        return beside if beside.is_file() else None
    tools = read_card(folder).called_tools
    found = _compiled_tools(folder) if tools else None
    if tools and found is None:
        raise UsageError(
            f"{folder}: this student calls tools ({', '.join(tools)}), and no file compiled from it lies in the folder "
            "beside it to say where they are: name them with --tools MODULE:NAME"
        )
    return found


def _compiled_tools(student: Path) -> Path | None:
    """The list of tools in the neighboring folder that was compiled from this very student."""
    from soloist.kernels.errors import ArtifactError
    from soloist.toolchain.core.artifact import MANIFEST, Artifact

    with contextlib.suppress(ArtifactError):
        made = Artifact.open(student, verify=False)
        origins = {made.digest}
        if made.manifest["stage"] == "quantize":  # the files may be of the student it was made from
            origins.add(made.manifest["parents"][0]["digest"])
        for manifest in sorted(student.resolve().parent.glob(f"*/{MANIFEST}")):
            with contextlib.suppress(ArtifactError):  # another stage, damaged, or of another program
                compiled = Artifact.open(manifest.parent, stage="export", verify=False)
                if origins & {parent["digest"] for parent in compiled.manifest["parents"]}:
                    return next(compiled.path.glob("*/tools.json"), None)
    return None

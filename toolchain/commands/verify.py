"""`soloist verify`: the files of an export, or one compiled file, against the student they came from."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from soloist.toolchain.verify.process import Allowed, Prompts
    from soloist.toolchain.verify.verdict import Verdict


@click.command(short_help="Compare compiled files with the student they came from.")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--format", "formats", multiple=True, help="Only this; may be given again. Of a lone file: what it is.")
@click.option("--student", type=click.Path(path_type=Path), help="Of a lone file: folder of the torch student.")
@click.option("--prompts", type=click.Path(path_type=Path), help="Questions to compare on  [default: of its traces]")
@click.option("--questions", type=click.Path(path_type=Path), help="Held-out questions to count right answers of.")
@click.option("--max-accuracy-drop", type=float, help="Points that may be lost on --questions  [default: the format's]")
@click.option("--tools", multiple=True, help="Entry point of tools  [default: those beside the files]")
@click.option("--seconds", default=900.0, show_default=True, help="Time that a file may take to be observed.")
@click.option("--memory-mb", type=int, help="Memory that it may take  [default: by its size]")
def command(
    artifact: Path,
    formats: tuple[str, ...],
    student: Path | None,
    prompts: Path | None,
    questions: Path | None,
    max_accuracy_drop: float | None,
    tools: tuple[str, ...],
    seconds: float,
    memory_mb: int | None,
) -> None:
    """Open every format of ARTIFACT in its own runtime, under limits of time and memory, and compare it with its
    student: chat template, tokens, KL, top-1, and with --questions the task's accuracy. The verdict is written beside
    the files. ARTIFACT may be a lone file with --student and --format; then nothing is written."""
    from soloist.kernels.errors import GateError, UsageError
    from soloist.toolchain.commands._options import PROMPTS
    from soloist.toolchain.tasks.files import load_questions
    from soloist.toolchain.verify.process import Allowed, prompts_of
    from soloist.toolchain.verify.stage import verify_export

    asked = load_questions(questions).questions if questions else ()
    if prompts is None and not asked and student is not None:
        raise UsageError("nothing to compare a lone file on: give --prompts FILE, questions as JSON lines")
    compared = prompts_of(asked[:PROMPTS]) if asked and prompts is None else _compared(artifact, prompts)
    allowed = Allowed(seconds, memory_mb)
    failed = []
    with tempfile.TemporaryDirectory() as scratch:
        if student is not None:
            if len(formats) != 1 or asked:
                raise UsageError("a lone file takes one --format, and accuracy is of the files of an export")
            _lone(artifact, student, formats[0], compared, Path(scratch), allowed)
            return
        verdicts = verify_export(
            artifact,
            compared,
            Path(scratch),
            formats,
            questions=asked,
            points=max_accuracy_drop,
            entries=tools,
            allowed=allowed,
        )
        for format, latest in verdicts:
            click.echo(f"{format:18} {latest.verdict.verdict:8} {_numbers(latest.verdict)}")
            for note in filter(None, (latest.note, latest.verdict.note)):
                click.echo(f"{'':18} {note}")
            if latest.verdict.verdict == "fail":
                failed.append(format)
    if failed:
        raise GateError(f"{artifact}: no passing verdict on {', '.join(failed)}")


def _compared(artifact: Path, prompts: Path | None) -> Prompts:
    from soloist.kernels.errors import UsageError
    from soloist.toolchain.commands._options import PROMPTS, prompts_for
    from soloist.toolchain.core.artifact import MANIFEST, Artifact
    from soloist.toolchain.student.student import open_student, parent_of
    from soloist.toolchain.tasks.files import load_questions
    from soloist.toolchain.verify.process import prompts_of
    from soloist.toolchain.verify.verdict import EXPORT

    if prompts is not None:
        return prompts_of(load_questions(prompts).questions[:PROMPTS])
    if artifact.exists() and not (artifact / MANIFEST).is_file():
        raise UsageError(
            f"{artifact}: nothing to compare on: give --prompts or --questions, and of a lone file --student"
        )
    export = Artifact.open(artifact, stage=EXPORT, verify=False)
    return prompts_for(open_student(parent_of(export)), None)


def _lone(file: Path, student: Path, format: str, prompts: Prompts, scratch: Path, allowed: Allowed) -> None:
    from soloist.kernels.errors import GateError, UsageError
    from soloist.targets.open import parts
    from soloist.targets.tolerances import tolerance_of
    from soloist.toolchain.verify.fidelity import judge_models

    models = parts(student) or {"": student}
    files = parts(file) or {"": file}
    if files.keys() != models.keys():
        raise UsageError(
            f"{student} and {file}: a student of two models is compared with a folder of two, and no other"
        )
    verdict = judge_models(models, files, prompts, scratch, tolerance_of(format), allowed)
    if verdict.verdict != "pass":
        raise GateError(f"{file}: {verdict.reason}")
    click.echo(f"{file}: passes. {_numbers(verdict)}")


def _numbers(verdict: Verdict) -> str:
    if verdict.drift is None:
        return ""
    text = f"KL {verdict.drift.kl_mean:.4f}, same top-1 {verdict.drift.top1:.1%}"
    if accuracy := verdict.accuracy:
        text += (
            f", {accuracy.file} of {accuracy.questions} right ({accuracy.points:+.1f} points, "
            f"{accuracy.low:+.1f} to {accuracy.high:+.1f})"
        )
    return text

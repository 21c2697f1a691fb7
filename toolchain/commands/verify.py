"""`soloist verify`: the files of an export, or one compiled file, against the student they came from."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click


@click.command(short_help="Compare compiled files with the student they came from.")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--format", "formats", multiple=True, help="Only this; may be given again. Of a lone file: what it is.")
@click.option("--student", type=click.Path(path_type=Path), help="Of a lone file: folder of the torch student.")
@click.option("--prompts", type=click.Path(path_type=Path), help="Held-out questions to compare on, JSON lines.")
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
    from soloist.toolchain.tasks.files import load_questions
    from soloist.toolchain.verify.process import probe_of
    from soloist.toolchain.verify.stage import verify_export

    asked = load_questions(questions).questions if questions else ()
    if prompts is None and not asked:
        raise UsageError("nothing to compare on: give --prompts or --questions, a file of held-out questions")
    probe = probe_of((load_questions(prompts).questions if prompts else asked)[:24])
    limits: dict[str, Any] = {"limit_s": seconds, "memory_mb": memory_mb}
    failed = []
    with tempfile.TemporaryDirectory() as scratch:
        if student is not None:
            if len(formats) != 1 or asked:
                raise UsageError("a lone file takes one --format, and accuracy is of the files of an export")
            _lone(artifact, student, formats[0], probe, Path(scratch), limits)
            return
        options = {"questions": asked, "points": max_accuracy_drop, "entries": tools, **limits}
        for format, stands in verify_export(artifact, probe, Path(scratch), formats, **options):
            click.echo(f"{format:18} {stands.verdict:8} {_numbers(stands.facts)}")
            for note in filter(None, (stands.note, stands.facts.get("note"))):
                click.echo(f"{'':18} {note}")
            if stands.verdict == "fail":
                failed.append(format)
    if failed:
        raise GateError(f"{artifact}: no passing verdict on {', '.join(failed)}")


def _lone(file: Path, student: Path, format: str, probe: Any, scratch: Path, limits: dict[str, Any]) -> None:
    from soloist.kernels.errors import GateError, UsageError
    from soloist.targets.open import parts
    from soloist.targets.tolerances import tolerance_of
    from soloist.toolchain.verify.fidelity import judge_format

    models = parts(student) or {"": student}
    files = parts(file) or {"": file}
    if files.keys() != models.keys():
        raise UsageError(
            f"{student} and {file}: a student of two models is compared with a folder of two, and no other"
        )
    facts = judge_format(models, files, probe, scratch, tolerance_of(format), **limits)
    if facts["verdict"] != "pass":
        raise GateError(f"{file}: {facts['reason']}")
    click.echo(f"{file}: passes. {_numbers(facts)}")


def _numbers(facts: Any) -> str:
    if "kl_mean" not in facts:
        return ""
    said = f"KL {facts['kl_mean']:.4f}, same top-1 {facts['top1']:.1%}"
    if accuracy := facts.get("accuracy"):
        said += (
            f", {accuracy['file']} of {accuracy['questions']} right ({accuracy['points']:+.1f} points, "
            f"{accuracy['low']:+.1f} to {accuracy['high']:+.1f})"
        )
    return said

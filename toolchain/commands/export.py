"""`soloist export`: a student to files that run elsewhere."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click


@click.command(short_help="Compile a student to GGUF and ONNX, each file opened and checked.")
@click.argument("student", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
@click.option(
    "--formats",
    default="gguf-q8_0",
    show_default=True,
    help="Such as gguf,gguf-q4_k_m,onnx,onnx-portable,tensorrt-rtx,tensorrt-7.2; or 'all'.",
)
@click.option("--prompts", type=click.Path(path_type=Path), help="Questions to compare on  [default: of its traces]")
@click.option("--questions", type=click.Path(path_type=Path), help="Held-out questions whose right answers must stay.")
@click.option(
    "--importance",
    type=click.Path(path_type=Path),
    help="For gguf-q4_k_m and the like: importance.gguf, or a folder of `soloist quantize`.",
)
@click.option(
    "--plugin",
    "kernels",
    type=click.Path(path_type=Path),
    metavar="KERNELS",
    help="For tensorrt-7.0 and newer: 4-bit products by a folder of `soloist kernels build`.",
)
@click.option("--tools", multiple=True, help="Entry point of tools, where the student's are not built in.")
@click.option("--name", default="Student", show_default=True)
def command(
    student: Path,
    output: Path,
    formats: str,
    prompts: Path | None,
    questions: Path | None,
    importance: Path | None,
    kernels: Path | None,
    tools: tuple[str, ...],
    name: str,
) -> None:
    """Compile the artifact STUDENT. The formats gguf, onnx and onnx-portable take it as it is: of a quantized one they
    carry its integers. The others round a float student. A file that does not load or drifts past its tolerance is
    refused."""
    from soloist.toolchain.commands._options import prompts_for
    from soloist.toolchain.core.events import EventLog
    from soloist.toolchain.core.progress import Bars
    from soloist.toolchain.export.stage import export
    from soloist.toolchain.pipeline.job import FORMATS
    from soloist.toolchain.student.student import open_student
    from soloist.toolchain.tasks.files import load_questions
    from soloist.toolchain.verify.accuracy import accuracy_check
    from soloist.toolchain.verify.verdict import ExportFacts

    opened = open_student(student)
    compared = prompts_for(opened, prompts)
    chosen = FORMATS if formats == "all" else tuple(filter(None, formats.split(",")))
    accuracy = None
    if questions is not None:
        with tempfile.TemporaryDirectory() as scratch:
            accuracy = accuracy_check(opened.reference, load_questions(questions).questions, Path(scratch), tools)
    with Bars() as bars, EventLog(output.parent / "events.jsonl", (bars,)) as events:
        made = export(
            opened,
            output,
            chosen,
            compared,
            events,
            name=name,
            accuracy=accuracy,
            importance=importance,
            kernels=kernels,
        )
    for format, facts in made.read(ExportFacts).formats.items():
        verdict = facts.verdict
        drift = f"KL {verdict.drift.kl_mean:.4f}  top-1 {verdict.drift.top1:.1%}" if verdict.drift else "not compared"
        click.echo(f"{format:18} {facts.size_mb:7.1f} MB  {drift}  {output / facts.path}")
        if verdict.verdict != "pass":
            click.echo(f"{'':18} {verdict.verdict}: {verdict.reason}")
        if verdict.note:
            click.echo(f"{'':18} {verdict.note}")

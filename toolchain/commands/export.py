"""`soloist export`: a student to files that run elsewhere."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from soloist.toolchain.core.artifact import Artifact


def _student(path: Path) -> Artifact:
    from soloist.toolchain.core.artifact import Artifact

    found = Artifact.open(path)
    if found.manifest["stage"] not in ("distill", "quantize"):
        Artifact.open(path, stage="distill", verify=False)  # says which stage is needed
    return found


@click.command(short_help="Compile a student to GGUF and ONNX, each file opened and checked.")
@click.argument("student", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
@click.option(
    "--formats",
    default="gguf-q8_0",
    show_default=True,
    help="Such as gguf,gguf-q4_k_m,onnx,onnx-portable,tensorrt-rtx,tensorrt-7.2; or 'all'.",
)
@click.option("--prompts", type=click.Path(path_type=Path), required=True, help="Held-out questions, JSON lines.")
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
    prompts: Path,
    questions: Path | None,
    importance: Path | None,
    kernels: Path | None,
    tools: tuple[str, ...],
    name: str,
) -> None:
    """Compile the artifact STUDENT. The formats gguf, onnx and onnx-portable take it as it is: of a quantized one they
    carry its integers. The others round a float student. A file that does not load or drifts past its tolerance is
    refused."""
    from soloist.toolchain.core.events import EventLog
    from soloist.toolchain.core.progress import Bars
    from soloist.toolchain.export.stage import export, original
    from soloist.toolchain.pipeline.run import FORMATS
    from soloist.toolchain.tasks.files import load_questions
    from soloist.toolchain.verify.accuracy import exam_of
    from soloist.toolchain.verify.process import probe_of

    made_of = _student(student)
    probe = probe_of(load_questions(prompts).questions[:24])
    chosen = FORMATS if formats == "all" else tuple(filter(None, formats.split(",")))
    exam = None
    if questions is not None:
        with tempfile.TemporaryDirectory() as scratch:
            exam = exam_of(original(made_of), load_questions(questions).questions, Path(scratch), tools)
    with Bars() as bars, EventLog(output.parent / "events.jsonl", (bars,)) as events:
        made = export(
            made_of, output, chosen, probe, events, name=name, exam=exam, importance=importance, kernels=kernels
        )
    for format, facts in made.facts["formats"].items():
        click.echo(
            f"{format:18} {facts['size_mb']:7.1f} MB  KL {facts['kl_mean']:.4f}  top-1 {facts['top1']:.1%}  "
            f"{output / facts['path']}"
        )
        if facts["verdict"] != "pass":
            click.echo(f"{'':18} {facts['verdict']}: {facts['reason']}")
        if note := facts.get("note"):
            click.echo(f"{'':18} {note}")

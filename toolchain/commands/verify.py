"""`soloist verify`: one compiled file against its student."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click


@click.command(short_help="Compare a compiled file with the student it came from.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--student", type=click.Path(path_type=Path), required=True, help="Folder of the torch student.")
@click.option("--format", "format_", required=True, help="What the file claims to be, such as gguf-q5_0.")
@click.option("--probe", type=click.Path(path_type=Path), required=True, help="Held-out questions, JSON lines.")
def command(file: Path, student: Path, format_: str, probe: Path) -> None:
    """Open FILE in its own runtime and compare it with its student: chat template, tokens, KL, top-1."""
    from soloist.targets.tolerances import tolerance_of
    from soloist.toolchain.tasks.files import load_questions
    from soloist.toolchain.verify import Probe, verify

    asked = load_questions(probe).questions
    prompts = Probe(
        prompts=[[{"role": "user", "content": q.question}] for q in asked], references=[q.gold or "" for q in asked]
    )
    with tempfile.TemporaryDirectory() as scratch:
        facts = verify(student, file, prompts, Path(scratch), tolerance_of(format_))
    click.echo(f"{file}: passes. KL {facts['kl_mean']:.4f}, same top-1 {facts['top1']:.1%}")

"""`soloist import`: traces of other programs to our schema."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from soloist.toolchain.record.importing import ImportFacts


@click.command("import", short_help="Read traces that others recorded.")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE_OR_FOLDER...")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder of the traces.")
@click.option(
    "--format",
    "kind",
    default="auto",
    show_default=True,
    help="dylan, du, agentark, magdi, who-and-when or fireact; auto tells each file by its content.",
)
@click.option(
    "--questions", type=click.Path(path_type=Path), help="DyLAN's MMLU: its questions in order, or a folder of them."
)
@click.option("--benchmark", help="These are test questions of this benchmark, where the files do not say so.")
@click.option("--train-on-test", is_flag=True, help="Train on a benchmark's test questions; it is then never quoted.")
def command(
    paths: tuple[Path, ...], output: Path, kind: str, questions: Path | None, benchmark: str | None, train_on_test: bool
) -> None:
    """Read traces of DyLAN, Du-style debates, AgentArk, MAGDi, Who&When or FireAct, and say what became of them.

    A folder is searched for .json and .jsonl files. `soloist distill` takes the result.
    """
    from soloist.toolchain.core.events import EventLog
    from soloist.toolchain.core.progress import Bars
    from soloist.toolchain.record.importing import ImportFacts, ImportOptions, import_traces

    options = ImportOptions(format=kind, questions=questions, benchmark=benchmark, train_on_test=train_on_test)
    with Bars() as bars, EventLog(output.parent / "events.jsonl", (bars,)) as events:
        facts = import_traces(paths, output, options, events=events).read(ImportFacts)
    _show(facts)
    click.echo(f"{output}: {facts.runs} runs from {facts.files} files, {facts.correct} with a right answer")
    for name in facts.benchmarks:
        how = "marked as such, and not trained on without --train-on-test"
        if train_on_test:
            how = f"now training questions; no student of these traces is ever reported on {name}"
        click.echo(f"{name}: these are its test questions, {how}")


def _show(facts: ImportFacts) -> None:
    """The table of counts, and the first places of what was refused."""
    from soloist.toolchain.commands._output import number, print_table

    rows = []
    for name, counts in facts.formats.items():
        rows.append((name, "kept", str(counts.kept), ""))
        for kind in ("repaired", "refused", "noted"):
            for reason, count in getattr(counts, kind).items():
                rows.append(("", kind, str(count), reason))
    print_table(("format", "", number("n"), "why"), rows)
    for place in facts.refused_at:
        click.echo(f"refused  {place}", err=True)

"""`soloist knowledge`: build a graph, verify recorded traces against one."""

from __future__ import annotations

from pathlib import Path

import click

_PATH = click.Path(path_type=Path)


@click.group(short_help="Build a knowledge graph; verify traces against one.")
def command() -> None:
    """A knowledge graph to verify traces against: your own triples, the desk's tables, or documents at hand."""


@command.command()
@click.argument("sources", nargs=-1, required=True)
@click.option("-o", "--output", type=_PATH, required=True, help="Graph file; .json keeps everything.")
@click.option("--aliases", type=_PATH, help="Names that mean the same: one group a line, separated by tabs.")
@click.option("--single-valued", multiple=True, help="A relation with one tail per head; may be given several times.")
@click.option("--team", help="Team file whose agents extract facts from documents.")
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="Tries on one passage.")
def build(
    sources: tuple[str, ...],
    output: Path,
    aliases: Path | None,
    single_valued: tuple[str, ...],
    team: str | None,
    rounds: int,
) -> None:
    """Make one graph of SOURCES: triples files (.tsv, .jsonl, .json), documents (any other file), or `desk`."""
    from soloist.toolchain.knowledge.files import load_aliases
    from soloist.toolchain.teams.graph_builder import build_graph

    own = load_aliases(aliases) if aliases is not None else None
    built = build_graph(sources, own, single_valued, team=team, t_max=rounds)
    built.graph.save(output)
    read = f", {built.dropped} of {built.passages} passages dropped" if built.passages else ""
    click.echo(f"{output}: graph {built.graph.digest}, {len(built.graph)} facts{read}")


@command.command()
@click.argument("traces", type=_PATH)
@click.option("--graph", "name", required=True, help="Graph file, or `desk`.")
@click.option("-o", "--output", type=_PATH, help="Write every run's triples and verdicts here, as JSON lines.")
@click.option("--tools", multiple=True, help="Your tools as module:attribute, to compute their calls again.")
def verify(traces: Path, name: str, output: Path | None, tools: tuple[str, ...]) -> None:
    """Annotate TRACES (a file, or a folder made by `soloist record`) with verdicts and count them."""
    from soloist.toolchain.knowledge.annotate import verify_traces
    from soloist.toolchain.knowledge.files import find_graph
    from soloist.toolchain.tools.files import SHIPPED, load_tools

    counts = verify_traces(traces, find_graph(name), tools=load_tools((SHIPPED, *tools)), output=output)
    rates = counts.rates
    click.echo(
        f"{traces}: {counts.runs} runs, {counts.clean} without an unverified triple, {counts.silent} without any"
    )
    click.echo(
        f"triples {rates.triples}: verified {rates.verified}, unverified {rates.unverified}, "
        f"contradicted {rates.contradicted}"
    )
    if rates.verification_rate is not None and rates.unsupported_rate is not None:
        click.echo(
            f"fact-verification rate {rates.verification_rate:.1%}, "
            f"unsupported-triple rate {rates.unsupported_rate:.1%}"
        )

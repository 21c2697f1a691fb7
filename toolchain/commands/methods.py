"""`soloist methods`: the ways to distill."""

from __future__ import annotations

import click

_WIDE, _NUMBER = 160, 10  # columns in which every row fits, or a number of arXiv


@click.command(short_help="List the ways to distill, what they need and cost.")
@click.argument("name", required=False)
def command(name: str | None) -> None:
    """List the methods; with NAME, that method's options."""
    from rich.console import Console
    from rich.table import Table

    from soloist.toolchain.distill.methods.catalog import CATALOG, load, resolve

    if name is not None:
        entry = resolve(name)
        click.echo(f"{name}: {entry.summary} ({entry.source}); needs {', '.join(entry.needs) or 'nothing more'}")
        method = load(name)
        for key, field in method.options.model_fields.items():
            click.echo(
                f"  --set {key}={field.get_default(call_default_factory=True)}  {field.description or ''}".rstrip()
            )
        for key, value in method.defaults.items():
            click.echo(f"  --{key.replace('_', '-')} {value}  where you give none")
        if method.released:
            click.echo("  --variant released  follows the published code, where it differs from the paper")
        return
    console = Console()
    narrow = console.width < _WIDE
    table = Table(box=None, header_style="bold", expand=narrow)
    table.add_column("method", no_wrap=True)
    table.add_column("learns from", ratio=2)
    table.add_column("source", max_width=_NUMBER if narrow else None)
    table.add_column("needs", ratio=1)
    table.add_column("cost", max_width=_NUMBER if narrow else None)
    for key, entry in CATALOG.items():
        table.add_row(key, entry.summary, entry.source, ", ".join(entry.needs) or "-", entry.cost)
    console.print(table)

"""`soloist methods`: the ways to distill."""

from __future__ import annotations

import click


@click.command(short_help="List the ways to distill, what they need and cost.")
@click.argument("name", required=False)
def command(name: str | None) -> None:
    """List the methods; with NAME, that method's options."""
    from soloist.toolchain.commands._output import print_table
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
    rows = []
    for key, entry in CATALOG.items():
        rows.append((key, entry.summary, entry.source, ", ".join(entry.needs) or "-", entry.cost))
    print_table(("method", "learns from", "source", "needs", "cost"), rows)

"""Tables and JSON on stdout. A table fits the terminal; in a file or a pipe its rows stay whole, however wide."""

from __future__ import annotations

import json
from collections.abc import Sequence

import click
from rich.console import Console
from rich.table import Column, Table

_WIDEST = 10_000  # columns of a row that a program reads


def number(header: str) -> Column:
    """A column to the right."""
    return Column(header, justify="right")


def print_table(columns: Sequence[str | Column], rows: Sequence[Sequence[str]]) -> None:
    """Rows under a bold header, wrapped between words only, and in the first column not at all."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for i, column in enumerate(columns):
        shown = Column(column) if isinstance(column, str) else column
        cells = [str(shown.header), *(row[i] for row in rows)]
        words = cells if i == 0 else " ".join(cells).split()
        shown.min_width = max(map(len, words), default=0)
        table.columns.append(shown)
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False, markup=False, emoji=False)
    narrowest = console.measure(table, options=console.options.update(width=_WIDEST)).minimum
    console.width = max(console.width, narrowest) if console.is_terminal else _WIDEST
    console.print(table)


def echo_json(value: object) -> None:
    """One line of JSON, the last of the output."""
    click.echo(json.dumps(value, ensure_ascii=False))

"""Tables and JSON on stdout. A table fits the terminal; in a file or a pipe its rows stay whole, however wide."""

from __future__ import annotations

import json
from collections.abc import Sequence

import click
from rich.console import Console
from rich.table import Column, Table

_GAP = 2


def number(header: str) -> Column:
    """A column to the right."""
    return Column(header, justify="right")


def print_table(columns: Sequence[str | Column], rows: Sequence[Sequence[str]]) -> None:
    """Rows under a bold header, wrapped between words only, and in the first column not at all: it holds names.

    Widths are given to rich, which would break words and numbers, or leave columns out, where a terminal is narrow.
    """
    console = Console(highlight=False, markup=False, emoji=False)
    headers = [Column(column) if isinstance(column, str) else column for column in columns]
    cells = [[str(column.header), *(row[i] for row in rows)] for i, column in enumerate(headers)]
    widths = [max(map(len, column)) for column in cells]
    least = [max(map(len, " ".join(column).split()), default=0) for column in cells]
    least[0] = widths[0]
    if console.is_terminal:
        while sum(widths) + _GAP * (len(widths) - 1) > console.width and widths != least:
            slack = [width - narrow for width, narrow in zip(widths, least, strict=True)]
            widths[slack.index(max(slack))] -= 1
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, _GAP, 0, 0))
    for column, width in zip(headers, widths, strict=True):
        table.add_column(column.header, justify=column.justify, width=width)
    for row in rows:
        table.add_row(*row)
    console.width = sum(widths) + _GAP * len(widths)
    console.print(table)


def echo_json(value: object) -> None:
    """One line of JSON, the last of the output."""
    click.echo(json.dumps(value, ensure_ascii=False))

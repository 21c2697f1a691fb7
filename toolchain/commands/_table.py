"""Plain tables and JSON on stdout, for commands whose output people paste and programs read."""

from __future__ import annotations

import json
from collections.abc import Sequence

import click


def echo_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> None:
    """Aligned columns under a header, the first `left` of them to the left; numbers to the right."""
    widths = [max(len(line[column]) for line in (header, *rows)) for column in range(len(header))]
    numeric = [
        column >= left and all(not row[column] or row[column].lstrip("+-")[0].isdigit() for row in rows)
        for column in range(len(header))
    ]
    for line in (header, *rows):
        cells = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ]
        click.echo("  ".join(cells).rstrip())


def echo_json(value: object) -> None:
    """One line of JSON, the last of the output."""
    click.echo(json.dumps(value, ensure_ascii=False))

"""Tables of commands: whole rows for programs, whole words and numbers for people."""

from __future__ import annotations

import re

from soloist.toolchain.commands._output import number, print_table

COLUMNS = ("device", "what is known of it", number("GB/s"))
ROWS = [("jetson-orin-nano-8gb", "fitted to what others published about it", "102.4"), ("[bold]", ":smile:", "8")]


def test_a_row_in_a_pipe_is_one_line(capsys):
    print_table(COLUMNS, ROWS * 20)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 41
    assert re.fullmatch(r"jetson-orin-nano-8gb +fitted to what others published about it +102\.4 *", lines[1])


def test_a_narrow_terminal_breaks_neither_names_nor_numbers(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "30")
    print_table(COLUMNS, ROWS)
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) > 3
    for whole in ("jetson-orin-nano-8gb", "102.4", "published", "GB/s"):
        assert whole in shown


def test_cells_are_not_markup(capsys):
    print_table(COLUMNS, ROWS)
    shown = capsys.readouterr().out
    assert "[bold]" in shown
    assert ":smile:" in shown

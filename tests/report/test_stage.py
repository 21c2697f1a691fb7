import io
import json

import pytest
from rich.console import Console

from soloist.toolchain.report.format import find, names, percent
from soloist.toolchain.report.schema import read_report
from soloist.toolchain.report.stage import write_report
from soloist.toolchain.report.terminal import markdown, show


def test_report_is_written_in_three_forms(report, tmp_path):
    run = report.details.anatomy
    bare = report.model_copy(update={"details": report.details.model_copy(update={"anatomy": None})})
    page = write_report(bare, run, tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["report.html", "report.json", "report.md"]
    assert "Who said what" in page.read_text()
    assert read_report(tmp_path / "out" / "report.json") == report


def test_report_json_is_written_last(report, tmp_path, monkeypatch):
    from soloist.toolchain.report import stage

    def fail(_report):
        raise RuntimeError("no page")

    monkeypatch.setattr(stage, "render", fail)
    with pytest.raises(RuntimeError, match="no page"):
        write_report(report, None, tmp_path)
    assert not (tmp_path / "report.json").exists()


def test_page_can_be_made_again_from_the_json(report, tmp_path):
    first = write_report(report, None, tmp_path / "a").read_bytes()
    again = read_report(tmp_path / "a" / "report.json")
    assert write_report(again, None, tmp_path / "b").read_bytes() == first


def test_terminal_shows_sentence_tables_and_caveats(report):
    console = Console(record=True, width=160, file=io.StringIO())
    show(report, console)
    text = console.export_text()
    assert find(report).sentence in " ".join(text.split())
    assert text.count("GGUF Q8_0") >= 2
    assert report.details.caveats[0][:40] in text


def test_terminal_takes_markup_as_text(report):
    system = report.systems[-1].model_copy(update={"format": "[red]x[/nope]"})
    console = Console(record=True, width=160, file=io.StringIO())
    show(report.model_copy(update={"systems": (*report.systems[:-1], system)}), console)
    assert "[red]x[/nope]" in console.export_text()


def test_markdown_has_a_row_per_system_and_no_markup_from_data(report):
    system = report.systems[-1].model_copy(update={"format": "a|b<img src=x>[l](http://e)"})
    text = markdown(report.model_copy(update={"systems": (*report.systems[:-1], system)}))
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == len(report.systems) + 2
    widths = {len(line.replace("\\|", "").split("|")) for line in rows}
    assert len(widths) == 1
    assert "<img" not in text
    assert "\\[l\\](http" in text


def test_json_has_no_nan_and_no_infinity(report, tmp_path):
    write_report(report, None, tmp_path)

    def refuse(constant):
        raise AssertionError(constant)

    assert json.loads((tmp_path / "report.json").read_text(), parse_constant=refuse)["schema"] == 1


@pytest.mark.parametrize("width", [60, 80, 200])
def test_every_width_of_terminal_shows_whose_row_it_is_and_how_good(report, width):
    console = Console(record=True, width=width, file=io.StringIO())
    show(report, console)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= width
    for system in report.systems:
        short = names(report.of(system.split))[system.id]
        assert any(line.strip().startswith(short[:8]) and percent(system.accuracy.value) in line for line in lines)
    assert any("peak MB" in line for line in lines) == (width == 200)

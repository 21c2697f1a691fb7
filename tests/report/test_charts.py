"""The picture of accuracy against latency: names beside few points, numbers and a legend for many."""

import re

import pytest

from soloist.toolchain.report.charts import MOST_NAMED, accuracy_charts
from soloist.toolchain.report.format import names
from soloist.toolchain.report.page import render


@pytest.fixture
def panels(report):
    return [report.of("held-out"), report.of("unseen-wording")]


def texts(drawing):
    return re.findall(r'class="label [a-z-]+">(.*?)</text>', drawing)


def test_few_points_have_their_names_beside_them(report, panels):
    few = [systems[:1] + systems[4:8] for systems in panels]
    drawn, numbers = accuracy_charts(few, names(report.systems), report.details.headline)
    assert numbers == {}
    assert sorted(texts(drawn[0])) == [
        "GGUF F16 97%",
        "GGUF Q4_K/Q8 95%",
        "GGUF Q8_0 97%",
        "Student in torch 97%",
        "Team 93%",
    ]


def test_more_points_than_names_have_room_for_get_numbers(report, panels):
    assert len(panels[0]) > MOST_NAMED
    drawn, numbers = accuracy_charts(panels, names(report.systems), report.details.headline)
    assert list(numbers) == [system.id for system in panels[0]]
    for drawing in drawn:
        assert sorted(texts(drawing), key=int) == [str(n) for n in numbers.values()]


def test_names_that_find_no_room_become_numbers_too(report, panels):
    long = {system.id: f"{system.id} with a name that is as long as the whole picture is wide" for system in panels[0]}
    _, numbers = accuracy_charts([panels[0][:4]], long, None)
    assert list(numbers.values()) == [1, 2, 3, 4]


def test_every_number_stands_in_the_legend_with_its_name(report):
    legend = re.search(r'<ol class="numbers">.*?</ol>', render(report), re.DOTALL).group(0)
    entries = re.findall(r"<b>(\d+)</b> (.*)", legend)
    short = names(report.systems)
    assert entries == [(str(i + 1), short[system.id]) for i, system in enumerate(report.of("held-out"))]
    assert "93% held-out" in legend
    assert "62% unseen" in legend


def test_named_points_need_no_legend(builder, system_rows):
    assert 'class="numbers"' not in render(builder([system_rows["team"], system_rows["artifact"]]))

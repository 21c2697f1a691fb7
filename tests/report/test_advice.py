"""The assessment's section: there where one was made, absent where none was, and text is text."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from soloist.toolchain.assess.decide import decide
from soloist.toolchain.assess.result import Assessment, Freedom, OfQuestion, sentence
from soloist.toolchain.report.page import render
from soloist.toolchain.report.schema import Report
from soloist.toolchain.report.terminal import markdown, show


@pytest.fixture
def assessment():
    def make(value=0.31, rule="v3", why="", **more):
        question = OfQuestion(
            question="q",
            runs=6,
            mean_score=0.5,
            r=None if value is None else 1 - value,
            p=None if value is None else 0.012,
            permutations=720,
            why=why,
        )
        found = [
            Freedom(
                of=of,
                score=score,
                value=value,
                low=None if value is None else 0.12,
                high=None if value is None else 0.55,
                p=question.p,
                exact=value is not None,
                tied=0.4,
                questions=(question,),
            )
            for score in ("verdict", "turns")
            for of in ("output", "trace")
        ]
        fields = {
            "team": "desk",
            "distance": "edits of tokens",
            "temperature": 0.7,
            "runs": 6,
            "questions": 1,
            "mean_score": 0.5,
            "seconds": 12.0,
            "freedom": tuple(found),
            "decided_on": "verdict",
            "advice": decide(rule, found[0]),
            "warnings": ("40% of the pairs tie",),
        } | more
        return Assessment(**fields)

    return make


def test_the_section_stands_where_an_assessment_was_made(builder, make_context, assessment, report):
    made = builder(context=make_context(assessment=assessment()))
    html = render(made)
    assert '<section id="assessment"' in html and 'href="#assessment"' in html
    for text in (
        "Metric Freedom 0.31 (0.12 to 0.55)",
        "rule v3",
        "Advice only",
        "0.012 (exact)",
        "1 of 1",
        "keep: structure, instructions, skills, tools, knowledge",
        "40% of the pairs tie",
    ):
        assert text in html, text
    assert html.index('id="anatomy"') < html.index('id="assessment"') < html.index('id="training"')
    assert 'id="assessment"' not in render(report)


def test_undefined_is_said_and_never_a_number(builder, make_context, assessment):
    html = render(
        builder(context=make_context(assessment=assessment(None, why="every run has the score 1", warnings=())))
    )
    assert "Metric Freedom is undefined" in html and "<td>undefined</td>" in html.replace('<td class="num">', "<td>")
    assert "What makes it weak" not in html


def test_terminal_and_markdown_have_one_line_with_the_version(builder, make_context, assessment, report):
    made = builder(context=make_context(assessment=assessment(rule="v1")))
    console = Console(record=True, width=300, file=io.StringIO())
    show(made, console)
    assert f"Assessment: {sentence(made.details.assessment)}" in console.export_text()
    assert "rule v1" in markdown(made) and "Assessment: " not in markdown(report)


def test_the_assessment_goes_through_report_json(builder, make_context, assessment, report):
    made = builder(context=make_context(assessment=assessment()))
    assert Report.model_validate_json(made.to_json()) == made
    old = report.model_dump(mode="json", by_alias=True)
    del old["details"]["assessment"]  # a report of before there was one
    assert Report.model_validate(old) == report


def test_text_is_text(builder, make_context, assessment, hostile):
    html = render(builder(context=make_context(assessment=assessment(distance=hostile, warnings=(hostile,)))))
    assert "<script" not in html and "<img" not in html

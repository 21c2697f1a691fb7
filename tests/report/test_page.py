"""The page as text: self-contained, escaped, whole."""

import re
from html import unescape
from html.parser import HTMLParser

import pytest

from soloist.toolchain.bench.recommend import Candidate, Recommendation
from soloist.toolchain.report.format import find
from soloist.toolchain.report.page import render
from soloist.toolchain.report.schema import Difference, Parity, StageCost

VOID = {"meta", "br", "path", "line", "rect", "circle", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Tags, attributes, and whether every tag is closed in order."""

    def __init__(self):
        super().__init__()
        self.tags, self.open, self.faults = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(tag)


@pytest.fixture(scope="module")
def html(report):
    return render(report)


@pytest.fixture(scope="module")
def page(html):
    found = Page()
    found.feed(html)
    return found


def test_page_is_well_formed(page):
    assert page.faults == []
    assert page.open == []


def test_page_loads_nothing(html, page):
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        assert not {"src", "srcset", "action", "data", "poster"} & set(attributes), tag
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        assert (attributes.get("href") or "#").startswith("#")
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL).group(1)
    assert "url(" not in style
    assert "@import" not in style


def test_page_forbids_scripts_and_loads(page):
    policy = [a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert len(policy) == 1
    assert "default-src 'none'" in policy[0]
    assert "script-src" not in policy[0]


def test_page_opens_with_the_sentence(report, html):
    first = unescape(re.search(r"<h1>(.*?)</h1>", html).group(1)).replace("\N{NON-BREAKING HYPHEN}", "-")
    assert first == find(report).sentence
    assert html.index("<h1>") < html.index('id="picture"') < html.index('id="results"')


def test_every_drawing_has_a_name_and_a_description(page):
    drawings = [a for tag, a in page.tags if tag == "svg"]
    assert drawings
    ids = {a["id"] for _, a in page.tags if "id" in a}
    for attributes in drawings:
        if attributes.get("aria-hidden") == "true":
            continue
        assert attributes["role"] == "img"
        assert set(attributes["aria-labelledby"].split()) <= ids


def test_ids_are_unique_and_links_lead_somewhere(page):
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for tag, a in page.tags if tag == "a"} <= set(ids)


def test_hostile_text_is_text(builder, hostile, make_context, report):
    run = report.details.anatomy
    turns = (run.turns[0].model_copy(update={"agent": hostile, "role": hostile, "text": hostile}), *run.turns[1:])
    question = run.question.model_copy(update={"question": hostile, "gold": hostile})
    run = run.model_copy(update={"turns": turns, "question": question, "answer": hostile, "team": hostile})
    context = make_context(command=hostile, notes=(hostile,), prices=(hostile,), seeds={hostile: 1}, runs=(run,))
    made = builder(context=context, anatomy=run)
    systems = tuple(s.model_copy(update={"id": s.id + hostile, "format": hostile}) for s in made.systems)
    details = made.details.model_copy(
        update={
            "headline": made.details.headline + hostile,
            "families": tuple(f.model_copy(update={"task": f.task + hostile}) for f in made.details.families),
            "extras": tuple(e.model_copy(update={"system": e.system + hostile}) for e in made.details.extras),
            "parity": tuple(
                p.model_copy(update={"file": hostile, "tolerance": hostile, "note": hostile, "format": hostile})
                for p in made.details.parity
            ),
        }
    )
    changed = {"task": hostile, "commit": hostile, "device": {hostile: hostile}, "versions": {hostile: hostile}}
    html = render(made.model_copy(update={"systems": systems, "details": details, **changed}))
    assert "<script" not in html
    assert "<img" not in html
    found = Page()
    found.feed(html)
    assert found.faults == []
    assert not any(name.startswith("on") for _, attributes in found.tags for name in attributes)


def test_all_sections_stand_in_the_page(html):
    for key in (
        "picture",
        "results",
        "paired",
        "families",
        "latency",
        "anatomy",
        "training",
        "files",
        "cost",
        "method",
        "caveats",
    ):
        assert f'<section id="{key}"' in html


def test_empty_sections_are_left_out(builder, system_rows):
    html = render(builder([system_rows["artifact"]], splits=("held-out",), context=None, anatomy=None, spend=None))
    for key in ("paired", "anatomy", "training", "files"):
        assert f'id="{key}"' not in html
    assert 'id="results"' in html


def test_page_without_details_is_still_a_page(report):
    html = render(report.model_copy(update={"details": None}))
    assert 'id="results"' in html


def test_failed_parity_and_recorded_label_are_visible(builder, measured, system_rows, html):
    assert "✗ failed" in html
    team = measured(system_rows["team"], "held-out", 80).model_copy(update={"label": "recorded"})
    shown = render(builder(measurements=[team, measured(system_rows["artifact"], "held-out", 80)]))
    assert '<span class="tag">recorded</span>' in shown


def test_an_engine_that_was_not_run_does_not_look_as_passed(builder, make_context):
    parity = tuple(
        Parity(
            file=file,
            format=file,
            size_mb=90.0,
            kl=0.0123,
            top1=0.987,
            tolerance="KL ≤ 0.5",
            verdict=verdict,
            measured=measured,
            note=note,
        )
        for file, verdict, measured, note in (
            ("one.gguf", "pass", True, ""),
            ("tensorrt-rtx", "not run", False, "not run: runs where its GPU is; checked without it: its <graph>"),
            ("tensorrt-7.2", "pass", False, ""),
            ("two.gguf", "fail", False, "fail: drifted from the student"),
            ("three.gguf", "none", False, "none: never verified"),
        )
    )
    made = builder(context=make_context(parity=parity))
    body = re.search(r'<section id="files".*?</section>', render(made), re.DOTALL).group(0)
    rows = {re.search("<code>(.*?)</code>", row).group(1): row for row in body.split("<tr")[2:]}
    verdicts = {
        "one.gguf": "✓ passed",
        "tensorrt-rtx": "– not run here",
        "tensorrt-7.2": "✓ passed",
        "two.gguf": "✗ failed",
        "three.gguf": "– no verdict",
    }
    assert {
        file: re.search('<span class="[a-z]+">(.*?)</span>', row).group(1) for file, row in rows.items()
    } == verdicts
    assert {file for file, row in rows.items() if "not measured" in row} == {*verdicts} - {"one.gguf"}
    assert {file for file, row in rows.items() if "of its graph" in row} == {"tensorrt-rtx"}
    assert "its &lt;graph&gt;" in rows["tensorrt-rtx"]
    caveats = [line for line in made.details.caveats if line.startswith("Compiled but not measured: ")]
    assert [line.split(": ")[1].split(",")[0] for line in caveats] == [
        "tensorrt-7.2",
        "tensorrt-rtx",
        "two.gguf",
        "three.gguf",
    ]
    assert not any("one.gguf" in line for line in caveats)


def test_page_is_plain_text_that_escapes_nothing_added_to_it(html):
    assert type(html) is str


def test_same_report_gives_the_same_page(report, html):
    assert render(report) == html


def test_what_is_handed_over_and_what_it_took_are_on_the_page(report):
    found = Recommendation(
        system="student-q4",
        reason="2 files were asked 60 of selection questions; 2 score within 2 points of the best",
        candidates=(
            Candidate(
                system="student-q4", correct={"selection": 57}, n={"selection": 60}, score=0.95, p50_s=0.19, size_mb=104
            ),
        ),
    )
    stages = (
        StageCost(stage="distill", folder="student", seconds=312.0, peak_mb=2911.5),
        StageCost(stage="bench", folder="measured", seconds=600.0),
    )
    kept = Difference(difference=-0.02, low=-0.05, high=0.01)
    extras = tuple(extra.model_copy(update={"vs_16_bits": kept}) for extra in report.details.extras)
    changed = {"recommended": found, "stages": stages, "extras": extras, "hosted_price": "assumed: a hosted model"}
    page = render(report.model_copy(update={"details": report.details.model_copy(update=changed)}))
    section = page[page.index('<section id="recommended"') :].partition("</section>")[0]
    assert "2 files were asked 60 of selection questions" in section and "57 of 60" in section
    assert "−2" in section and "Files against the 16-bit one" in section
    assert re.search(r"<code>student</code>.*?2,?91\d MB", page, re.DOTALL) and "unknown" in page
    assert "Beside it, assumed: a hosted model." in page

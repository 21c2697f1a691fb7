"""`soloist verify`, and what other commands do with its verdict."""

from __future__ import annotations

import json

import pytest

from soloist.toolchain.core.artifact import stage
from soloist.toolchain.verify.verdict import FILE, ExportFacts, FormatFacts, Verdict, record_verdict

USAGE, ARTIFACT, GATE = 2, 4, 6


@pytest.fixture
def refused_file(tmp_path):
    """A file of an export that failed later on."""

    def build(made):
        (made / "gguf-q8_0").mkdir()
        (made / "gguf-q8_0" / "model.gguf").write_text("no model")
        return ExportFacts(formats={"gguf-q8_0": FormatFacts(verdict=Verdict(verdict="pass"))})

    export = stage("export", tmp_path / "compiled", {}, [], build)
    record_verdict(export, "gguf-q8_0", Verdict(verdict="fail", reason="loses 7.0 points of accuracy"))
    return export.path / "gguf-q8_0" / "model.gguf"


def test_a_file_without_a_passing_verdict_is_not_opened(refused, refused_file, question_file, sums, tmp_path):
    asked = question_file(sums.questions(1))
    for arguments in (
        ("chat", refused_file, "hi"),
        ("bench", refused_file, "--questions", asked, "-o", tmp_path / "b"),
    ):
        message = refused(GATE, *arguments)
        assert message.startswith(f"{refused_file}: no passing verdict (fail: loses 7.0 points of accuracy)")
    assert json.loads((refused_file.parent / FILE).read_text())["forced"] == []


def test_force_opens_it_and_leaves_its_mark(soloist, refused_file):
    result = soloist("chat", refused_file, "--force", "hi")
    assert result.exit_code == ARTIFACT and "not a GGUF file" in result.output, "it was opened"
    (mark,) = json.loads((refused_file.parent / FILE).read_text())["forced"]
    assert mark["command"] == "chat"
    assert mark["verdict"] == "fail"


def test_what_cannot_be_verified_is_said(refused, refused_file, question_file, sums, tmp_path):
    assert "give --prompts or --questions" in refused(USAGE, "verify", refused_file)
    asked = question_file(sums.questions(1))
    message = refused(USAGE, "verify", refused_file, "--student", tmp_path, "--prompts", asked)
    assert message == "a lone file takes one --format, and accuracy is of the files of an export"
    assert "not a whole artifact" in refused(ARTIFACT, "verify", tmp_path, "--prompts", asked)

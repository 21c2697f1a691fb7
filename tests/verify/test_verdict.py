import json
import shutil

import pytest

from soloist.kernels.errors import ArtifactError, GateError
from soloist.toolchain.core.artifact import Artifact, stage
from soloist.toolchain.verify.verdict import (
    FILE,
    ExportFacts,
    FormatFacts,
    Verdict,
    check_openable,
    export_around,
    latest_verdict,
    record_verdict,
)

FAILED = Verdict(verdict="fail", reason="loses 7.0 points")
PASSED = Verdict(verdict="pass")


@pytest.fixture
def export(tmp_path) -> Artifact:
    def build(made):
        for name in ("gguf-q8_0/model.gguf", "onnx/model.onnx", "gguf-q4_0/solver/model.gguf"):
            (made / name).parent.mkdir(parents=True, exist_ok=True)
            (made / name).write_text(name)
        return ExportFacts(
            formats={format: FormatFacts(verdict=PASSED) for format in ("gguf-q8_0", "onnx", "gguf-q4_0")}
        )

    return stage("export", tmp_path / "job" / "compiled", {}, [], build)


def test_what_an_export_found_counts_until_something_later_is_found(export):
    file = export.path / "gguf-q8_0" / "model.gguf"
    assert check_openable(file, force=False, command="chat") == "" and not (file.parent / FILE).exists()
    record_verdict(export, "gguf-q8_0", FAILED)
    assert latest_verdict(export, "gguf-q8_0").verdict == FAILED
    assert latest_verdict(export, "onnx").verdict == PASSED
    with pytest.raises(GateError, match=r"model\.gguf: no passing verdict \(fail: loses 7\.0 points\).*--force"):
        check_openable(file, force=False, command="chat")
    record_verdict(export, "gguf-q8_0", PASSED)
    assert check_openable(file, force=False, command="chat") == ""
    assert Artifact.open(export.path).digest == export.digest, "a verdict leaves the artifact what it was"


def test_force_marks_a_format_for_ever(export):
    folder = export.path / "onnx"
    record_verdict(export, "onnx", FAILED)
    note = check_openable(folder, force=True, command="chat")
    assert "fail: loses 7.0 points" in note and "opened by --force" in note
    check_openable(folder, force=True, command="bench")
    record_verdict(export, "onnx", PASSED)
    latest = latest_verdict(export, "onnx")
    assert [mark.command for mark in latest.forced] == ["chat", "bench"] and latest.verdict == PASSED
    assert "opened by --force" in check_openable(folder, force=False, command="chat")
    assert Artifact.open(export.path).digest == export.digest


def test_force_marks_nothing_that_passed(export):
    check_openable(export.path / "onnx", force=True, command="chat")
    assert latest_verdict(export, "onnx").forced == ()


def test_an_engine_that_was_not_run_is_opened_with_that_said(export):
    record_verdict(export, "onnx", Verdict(verdict="not run", reason="runs where its GPU is"))
    assert check_openable(export.path / "onnx", force=False, command="chat") == "onnx: not run: runs where its GPU is"


def test_the_verdict_names_what_was_verified(export):
    content = json.loads(record_verdict(export, "gguf-q4_0", PASSED).read_text())
    listed = export.manifest["files"]["gguf-q4_0/solver/model.gguf"]["sha256"]
    assert content["files"] == {"gguf-q4_0/solver/model.gguf": listed} and content["artifact"] == export.digest
    for model in ("gguf-q4_0", "gguf-q4_0/solver", "gguf-q4_0/solver/model.gguf"):
        assert export_around(export.path / model) == (export, "gguf-q4_0")


def test_another_artifacts_verdict_is_none(export):
    file = record_verdict(export, "onnx", PASSED)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"artifact": "0" * 16}))
    with pytest.raises(GateError, match=r"no passing verdict \(none: verdict\.json is of another artifact\)"):
        check_openable(export.path / "onnx", force=False, command="chat")
    file.write_text("{")
    with pytest.raises(ArtifactError, match="not a verdict of ours"):
        check_openable(export.path / "onnx", force=False, command="chat")


def test_a_changed_and_a_missing_file_are_named(export):
    file = export.path / "gguf-q8_0" / "model.gguf"
    file.write_text("gguf-q8_0/model.ggux")
    with pytest.raises(ArtifactError, match=r"model\.gguf: changed after it was made \(hash differs\)"):
        check_openable(file, force=True, command="chat")
    (export.path / "gguf-q4_0" / "solver" / "model.gguf").unlink()
    with pytest.raises(ArtifactError, match="listed in the manifest but missing"):
        check_openable(export.path / "gguf-q4_0", force=False, command="chat")


def test_a_folder_that_was_copied_out_keeps_its_verdict(export, tmp_path):
    record_verdict(export, "gguf-q8_0", FAILED)
    folder = shutil.copytree(export.path / "gguf-q8_0", tmp_path / "laptop")
    with pytest.raises(GateError, match="no passing verdict"):
        check_openable(folder / "model.gguf", force=False, command="chat")
    check_openable(folder / "model.gguf", force=True, command="chat")
    assert len(json.loads((folder / FILE).read_text())["forced"]) == 1
    assert latest_verdict(export, "gguf-q8_0").forced == (), "the original was not opened"


def test_files_that_are_not_ours_are_opened_as_they_are(export, tmp_path):
    alone = tmp_path / "alone.gguf"
    alone.write_text("x")
    beside = export.path / "gguf-q8_0" / "mine.gguf"
    beside.write_text("x")
    foreign = tmp_path / "other"
    foreign.mkdir()
    (foreign / "manifest.json").write_text('{"name": "a web page"}')
    for model in (alone, beside, foreign / "model.gguf", tmp_path / "none.gguf"):
        assert check_openable(model, force=False, command="chat") == ""

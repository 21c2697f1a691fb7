import json
import shutil

import pytest

from soloist.kernels.errors import ArtifactError, GateError, MissingExtraError, UsageError
from soloist.targets.open import parts
from soloist.targets.tensorrt.plan import Student
from soloist.targets.tolerances import Tolerance
from soloist.toolchain.bench.systems import student_team
from soloist.toolchain.commands.chat import _model
from soloist.toolchain.core.artifact import Artifact, stage
from soloist.toolchain.core.events import EventLog
from soloist.toolchain.export import stage as module
from soloist.toolchain.export.stage import export
from soloist.toolchain.tasks.base import Question
from soloist.toolchain.teams.team import Team
from soloist.toolchain.verify import Probe
from soloist.toolchain.verify.stage import verify_export

for package in ("torch", "transformers", "gguf", "llama_cpp"):
    pytest.importorskip(package)

PROBE = Probe([[{"role": "user", "content": "What is 12 + 30?"}]], ["The sum of 12 and 30 is 42."])


pytestmark = pytest.mark.usefixtures("warm_workers")  # one thread, here and in the subprocesses


@pytest.fixture(scope="module")
def student(tiny, tmp_path_factory) -> Artifact:
    def build(folder):
        shutil.copytree(tiny, folder / "model")
        return {}

    return stage("distill", tmp_path_factory.mktemp("student") / "student", {}, [], build)


@pytest.fixture
def judged(monkeypatch):
    """Counts compilations and answers for the gate, which has its own tests: what is in `bad` fails."""
    seen = {"compiled": [], "bad": set(), "kill": set()}
    compile_gguf = module.compile_gguf

    def counted(folder, out, precision, name, **importance):
        seen["compiled"].append(precision)
        return compile_gguf(folder, out, precision, name, **importance)

    def judge(folder, file, probe, scratch, tolerance, **limits):
        assert isinstance(tolerance, Tolerance)
        if file.parent.name in seen["kill"]:
            raise KeyboardInterrupt
        failed = {"verdict": "fail", "reason": "drifted far"}
        return failed if file.parent.name in seen["bad"] else {"verdict": "pass", "kl_mean": 0.0, "top1": 1.0}

    monkeypatch.setattr(module, "compile_gguf", counted)
    monkeypatch.setattr("soloist.toolchain.verify.fidelity.judge", judge)
    return seen


def test_a_checked_file_lies_in_the_artifact_with_its_numbers(student, tmp_path):
    events = []
    log = EventLog(None, (events.append,))
    made = export(student, tmp_path / "out", ["gguf-q8_0"], PROBE, log, name="Tiny", beside={"call.gbnf": "root ::= x"})
    facts = made.facts["formats"]["gguf-q8_0"]
    assert facts["verdict"] == "pass" and facts["kl_mean"] < 0.02 and facts["tolerance"]["kl"] == 0.02
    file = made.path / facts["path"]
    assert file.name.startswith("Tiny-") and file.stat().st_size / 1e6 == pytest.approx(facts["size_mb"], abs=1e-3)
    assert (file.parent / "call.gbnf").read_text() == "root ::= x"
    assert {path.relative_to(made.path).parts[0] for path in made.path.rglob("*")} == {"gguf-q8_0", "manifest.json"}
    assert [event["event"] for event in events] == ["start", "progress", "metric", "progress", "end"]
    assert Artifact.open(made.path, stage="export").digest == made.digest


def test_a_killed_export_goes_on_with_the_next_format(student, tmp_path, judged):
    formats = ["gguf-f16", "gguf-q8_0"]
    judged["kill"] = {"gguf-q8_0"}
    with pytest.raises(KeyboardInterrupt):
        export(student, tmp_path / "out", formats, PROBE)
    assert not (tmp_path / "out").exists()
    judged["kill"] = set()
    made = export(student, tmp_path / "out", formats, PROBE)
    assert judged["compiled"] == ["F16", "Q8_0", "Q8_0"]
    whole = export(student, tmp_path / "whole", formats, PROBE)
    assert whole.digest == made.digest  # the same artifact as without the kill
    assert export(student, tmp_path / "out", formats, PROBE).digest == made.digest
    assert len(judged["compiled"]) == 5


def test_a_finished_file_that_was_changed_since_is_made_again(student, tmp_path, judged):
    judged["kill"] = {"gguf-q8_0"}
    with pytest.raises(KeyboardInterrupt):
        export(student, tmp_path / "out", ["gguf-f16", "gguf-q8_0"], PROBE)
    file = next((tmp_path / "out.partial" / "gguf-f16").glob("*.gguf"))
    file.write_bytes(file.read_bytes()[:5000])
    judged["kill"] = set()
    export(student, tmp_path / "out", ["gguf-f16", "gguf-q8_0"], PROBE)
    assert judged["compiled"] == ["F16", "Q8_0", "F16", "Q8_0"]


def test_a_failing_file_is_removed_and_named_after_the_others_were_done(student, tmp_path, judged):
    judged["bad"] = {"gguf-f16", "gguf-q4_0"}
    with pytest.raises(GateError, match=r"^gguf-f16: drifted far; gguf-q4_0: drifted far$"):
        export(student, tmp_path / "out", ["gguf-f16", "gguf-q8_0", "gguf-q4_0"], PROBE)
    partial = tmp_path / "out.partial"
    assert not (tmp_path / "out").exists()
    assert not (partial / "gguf-f16").exists() and not (partial / "gguf-q4_0").exists()
    marker = json.loads((partial / "work" / "done" / "gguf-q8_0.json").read_text())
    assert marker["verdict"] == "pass" and (partial / marker["path"]).is_file()
    judged["bad"] = set()
    made = export(student, tmp_path / "out", ["gguf-f16", "gguf-q8_0", "gguf-q4_0"], PROBE)
    assert judged["compiled"] == ["F16", "Q8_0", "Q4_0", "F16", "Q4_0"]
    assert set(made.facts["formats"]) == {"gguf-f16", "gguf-q8_0", "gguf-q4_0"}


def test_unknown_formats_no_formats_and_no_model_are_refused(student, tmp_path):
    with pytest.raises(UsageError, match="unknown format 'gguf-q9'"):
        export(student, tmp_path / "out", ["gguf-q9"], PROBE)
    with pytest.raises(UsageError, match="name at least one"):
        export(student, tmp_path / "out", [], PROBE)
    empty = stage("distill", tmp_path / "empty", {}, [], lambda folder: {})
    with pytest.raises(ArtifactError, match="holds no model"):
        export(empty, tmp_path / "out", ["gguf-f16"], PROBE)
    assert not (tmp_path / "out.partial").exists()


@pytest.fixture(scope="module")
def pair(student, tmp_path_factory) -> Artifact:
    """A student of two models."""

    def build(folder):
        for part in ("decomposer", "solver"):
            shutil.copytree(student.path / "model", folder / part)
        return {}

    return stage("distill", tmp_path_factory.mktemp("pair") / "student", {}, [], build)


def _bytes(folder) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_both_models_of_a_pair_are_compiled_checked_and_asked_as_one(pair, tmp_path):
    made = export(pair, tmp_path / "out", ["gguf-q8_0"], PROBE, name="Tiny", beside={"tools.json": "{}"})
    facts = made.facts["formats"]["gguf-q8_0"]
    assert facts["path"] == "gguf-q8_0" and facts["verdict"] == "pass"
    assert facts["kl_mean"] == max(part["kl_mean"] for part in facts["parts"].values())
    models = parts(made.path / "gguf-q8_0")
    assert [model.name.split("-")[:2] for model in models.values()] == [["Tiny", "Decomposer"], ["Tiny", "Solver"]]
    assert facts["size_mb"] == pytest.approx(_bytes(made.path / "gguf-q8_0") / 1e6, abs=1e-3)
    assert _model(made.path) == made.path / "gguf-q8_0"
    with Team(student_team(made.path / facts["path"], (), ())) as team:
        run = team.answer(Question(id="q", question="What is 12 + 30?", gold="42", scorer="number"))
    assert run.turns[0].text == "The sum of 12 and 30 is 42."
    assert [turn.model for turn in run.turns] == ["decomposer", "solver"]


def test_a_pair_is_refused_where_one_part_is(pair, tmp_path, judged):
    judged["bad"] = {"solver"}
    with pytest.raises(GateError, match="gguf-q8_0: solver: drifted far"):
        export(pair, tmp_path / "out", ["gguf-q8_0"], PROBE)


@pytest.fixture
def engines(monkeypatch, judged):
    """Graph and engine as empty files: both have their own tests."""
    judged["students"] = []
    judged["rtx"] = module.require_rtx

    def portable(folder, out, dtype):
        assert dtype == "float16"
        out.mkdir(parents=True)
        for file in ("portable.json", "model.onnx", "model.onnx.data"):
            (out / file).write_text("{}")

    def build(graph, out, *, student):
        judged["students"].append(student)
        out.mkdir(parents=True)
        (out / "engine.json").write_text("{}")

    def folder(graph, out, found, *, student, kernels):
        assert kernels is None
        judged["students"].append(student)
        shutil.copytree(graph, out)
        (out / "build.json").write_text(found.title)
        return {"parsed": "tensorrt_rtx"}

    fakes = {"compile_portable": portable, "build_rtx": build, "compile_tensorrt": folder, "require_rtx": lambda: None}
    for name, fake in fakes.items():
        monkeypatch.setattr(module, name, fake)
    monkeypatch.setattr("soloist.toolchain.verify.fidelity.device", lambda: {"gpu": None})
    return judged


def test_an_engine_that_cannot_run_here_is_not_said_to_have_passed(student, tmp_path, engines):
    made = export(student, tmp_path / "out", ["tensorrt-rtx", "tensorrt", "tensorrt-7.2"], PROBE)
    facts = made.facts["formats"]
    assert [one["verdict"] for one in facts.values()] == ["not run"] * 3
    graph = "its graph in ONNX Runtime against the student"
    assert facts["tensorrt-rtx"]["checked"] == [graph, "parsed and built by TensorRT-RTX"]
    assert facts["tensorrt"]["checked"] == [graph, "parsed by tensorrt_rtx"]
    assert "runs where its GPU is; checked without it: its graph" in facts["tensorrt"]["reason"]
    assert "JetPack 7.2" in (made.path / "tensorrt-7.2" / "build.json").read_text()
    assert not (made.path / "work").exists()
    assert engines["students"] == [Student("Student", made.manifest["parents"][0]["digest"])] * 3


def test_the_engines_of_a_pair_are_made_and_verified_part_by_part(pair, tmp_path, engines):
    made = export(pair, tmp_path / "out", ["tensorrt-rtx", "tensorrt"], PROBE)
    for format, sidecar in (("tensorrt-rtx", "engine.json"), ("tensorrt", "build.json")):
        assert {file.parent.name for file in (made.path / format).rglob(sidecar)} == {"decomposer", "solver"}
        assert made.facts["formats"][format]["verdict"] == "not run"
    found = dict(verify_export(made.path, PROBE, tmp_path / "scratch"))
    assert {format: stands.verdict for format, stands in found.items()} == dict.fromkeys(
        made.facts["formats"], "not run"
    )
    engines["bad"] = {"tensorrt"}  # the folder of both graphs
    ((_, stands),) = verify_export(made.path, PROBE, tmp_path / "again", ["tensorrt"])
    assert stands.verdict == "fail" and stands.facts["reason"] == "decomposer: drifted far"


def test_an_engine_whose_graph_drifts_is_refused(student, tmp_path, engines):
    engines["bad"] = {"graph"}
    with pytest.raises(GateError, match="tensorrt-rtx: drifted far"):
        export(student, tmp_path / "out", ["tensorrt-rtx"], PROBE)
    assert not (tmp_path / "out.partial" / "tensorrt-rtx").exists()


def test_a_format_that_cannot_be_compiled_is_named_after_the_others_were_done(student, tmp_path, engines, monkeypatch):
    monkeypatch.setattr("soloist.targets.tensorrt.rtx.LIBRARY", "tensorrt_rtx_that_nobody_has")
    monkeypatch.setattr(module, "require_rtx", engines["rtx"])
    with pytest.raises(MissingExtraError, match=r"needs the package 'tensorrt_rtx_that_nobody_has'.*soloist\[rtx\]"):
        export(student, tmp_path / "out", ["tensorrt-rtx", "gguf-f16"], PROBE)
    partial = tmp_path / "out.partial"
    assert (
        engines["compiled"] == ["F16"] and not (partial / "tensorrt-rtx").exists() and not (tmp_path / "out").exists()
    )
    engines["bad"] = {"gguf-q8_0"}
    with pytest.raises(GateError, match=r"tensorrt-rtx: this needs the package .*; gguf-q8_0: drifted far"):
        export(student, tmp_path / "other", ["tensorrt-rtx", "gguf-q8_0"], PROBE)

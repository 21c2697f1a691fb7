import json
import shutil
from dataclasses import replace

import pytest

from soloist.kernels.errors import ArtifactError, GateError, MissingExtraError, UsageError
from soloist.targets import compile as module
from soloist.targets.open import parts
from soloist.targets.tensorrt.plan import Student
from soloist.targets.tolerances import Tolerance
from soloist.toolchain.core.artifact import Artifact, stage
from soloist.toolchain.core.events import EventLog
from soloist.toolchain.export.stage import export
from soloist.toolchain.student.ask import student_team
from soloist.toolchain.student.find import find_model
from soloist.toolchain.student.student import Student as Opened
from soloist.toolchain.student.student import open_student
from soloist.toolchain.tasks.base import Question
from soloist.toolchain.teams.team import Team
from soloist.toolchain.tools.files import SHIPPED
from soloist.toolchain.tools.tool_list import ToolList, read_tool_list
from soloist.toolchain.verify.process import Prompts
from soloist.toolchain.verify.stage import verify_export
from soloist.toolchain.verify.verdict import Drift, ExportFacts, Token, Verdict, Worst

for package in ("torch", "transformers", "gguf", "xllamacpp"):
    pytest.importorskip(package)

PROMPTS = Prompts([[{"role": "user", "content": "What is 12 + 30?"}]], ["The sum of 12 and 30 is 42."])

TOKEN = Token(token=0, student=1.0, file=1.0)
SAME = Drift(
    kl_mean=0.0,
    kl_p99=0.0,
    kl_first=0.0,
    top1=1.0,
    top1_first=1.0,
    same_answers=1.0,
    tokens=1,
    prompts=1,
    worst=Worst(prompt=0, position=0, kl=0.0, expected=TOKEN, got=TOKEN),
)


def formats_of(made):
    return made.read(ExportFacts).formats


pytestmark = pytest.mark.usefixtures("warm_workers")  # one thread, here and in the subprocesses


@pytest.fixture(scope="module")
def student(tiny, tmp_path_factory) -> Opened:
    def build(folder):
        shutil.copytree(tiny, folder / "model")
        return {}

    return open_student(stage("distill", tmp_path_factory.mktemp("student") / "student", {}, [], build))


@pytest.fixture
def judged(monkeypatch):
    """Counts compilations and answers for the gate, which has its own tests: what is in `bad` fails."""
    seen = {"compiled": [], "bad": set(), "kill": set()}
    compile_gguf = module.compile_gguf

    def counted(folder, out, precision, name, **importance):
        seen["compiled"].append(precision)
        return compile_gguf(folder, out, precision, name, **importance)

    def judge(folder, file, prompts, scratch, tolerance, allowed):
        assert isinstance(tolerance, Tolerance)
        if file.parent.name in seen["kill"]:
            raise KeyboardInterrupt
        if file.parent.name in seen["bad"]:
            return Verdict(verdict="fail", reason="drifted far")
        return Verdict(verdict="pass", drift=SAME)

    monkeypatch.setattr(module, "compile_gguf", counted)
    monkeypatch.setattr("soloist.toolchain.verify.fidelity.judge", judge)
    return seen


def test_a_checked_file_lies_in_the_artifact_with_its_numbers(student, tmp_path):
    events = []
    log = EventLog(None, (events.append,))
    tools = ToolList.of([SHIPPED]).subset(["calc"])
    made = export(replace(student, tools=tools), tmp_path / "out", ["gguf-q8_0"], PROMPTS, log, name="Tiny")
    facts = formats_of(made)["gguf-q8_0"]
    assert facts.verdict.verdict == "pass" and facts.verdict.drift.kl_mean < 0.02
    assert facts.verdict.tolerance.kl == 0.02
    file = made.path / facts.path
    assert file.name.startswith("Tiny-") and file.stat().st_size / 1e6 == pytest.approx(facts.size_mb, abs=1e-3)
    assert (file.parent / "calls.gbnf").read_text().startswith("root ::= call")
    assert read_tool_list(file.parent / "tools.json") == tools, "whoever opens the file finds its tools beside it"
    assert {path.relative_to(made.path).parts[0] for path in made.path.rglob("*")} == {"gguf-q8_0", "manifest.json"}
    assert [event["event"] for event in events] == ["start", "progress", "metric", "progress", "end"]
    assert Artifact.open(made.path, stage="export").digest == made.digest


def test_a_killed_export_goes_on_with_the_next_format(student, tmp_path, judged):
    formats = ["gguf-f16", "gguf-q8_0"]
    judged["kill"] = {"gguf-q8_0"}
    with pytest.raises(KeyboardInterrupt):
        export(student, tmp_path / "out", formats, PROMPTS)
    assert not (tmp_path / "out").exists()
    judged["kill"] = set()
    made = export(student, tmp_path / "out", formats, PROMPTS)
    assert judged["compiled"] == ["F16", "Q8_0", "Q8_0"]
    whole = export(student, tmp_path / "whole", formats, PROMPTS)
    assert whole.digest == made.digest  # the same artifact as without the kill
    assert export(student, tmp_path / "out", formats, PROMPTS).digest == made.digest
    assert len(judged["compiled"]) == 5


def test_a_finished_file_that_was_changed_since_is_made_again(student, tmp_path, judged):
    judged["kill"] = {"gguf-q8_0"}
    with pytest.raises(KeyboardInterrupt):
        export(student, tmp_path / "out", ["gguf-f16", "gguf-q8_0"], PROMPTS)
    file = next((tmp_path / "out.partial" / "gguf-f16").glob("*.gguf"))
    file.write_bytes(file.read_bytes()[:5000])
    judged["kill"] = set()
    export(student, tmp_path / "out", ["gguf-f16", "gguf-q8_0"], PROMPTS)
    assert judged["compiled"] == ["F16", "Q8_0", "F16", "Q8_0"]


def test_a_failing_file_is_removed_and_named_after_the_others_were_done(student, tmp_path, judged):
    judged["bad"] = {"gguf-f16", "gguf-q4_0"}
    with pytest.raises(GateError, match=r"^gguf-f16: drifted far; gguf-q4_0: drifted far$"):
        export(student, tmp_path / "out", ["gguf-f16", "gguf-q8_0", "gguf-q4_0"], PROMPTS)
    partial = tmp_path / "out.partial"
    assert not (tmp_path / "out").exists()
    assert not (partial / "gguf-f16").exists() and not (partial / "gguf-q4_0").exists()
    marker = json.loads((partial / "work" / "done" / "gguf-q8_0.json").read_text())
    assert marker["verdict"]["verdict"] == "pass" and (partial / marker["path"]).is_file()
    judged["bad"] = set()
    made = export(student, tmp_path / "out", ["gguf-f16", "gguf-q8_0", "gguf-q4_0"], PROMPTS)
    assert judged["compiled"] == ["F16", "Q8_0", "Q4_0", "F16", "Q4_0"]
    assert set(formats_of(made)) == {"gguf-f16", "gguf-q8_0", "gguf-q4_0"}


def test_unknown_formats_no_formats_and_no_model_are_refused(student, tmp_path):
    with pytest.raises(UsageError, match="unknown format 'gguf-q9'"):
        export(student, tmp_path / "out", ["gguf-q9"], PROMPTS)
    with pytest.raises(UsageError, match="name at least one"):
        export(student, tmp_path / "out", [], PROMPTS)
    empty = stage("distill", tmp_path / "empty", {}, [], lambda folder: {})
    with pytest.raises(ArtifactError, match="holds no model"):
        open_student(empty)
    assert not (tmp_path / "out.partial").exists()


@pytest.fixture(scope="module")
def pair(student, tmp_path_factory) -> Opened:
    """A student of two models."""

    def build(folder):
        for part in ("decomposer", "solver"):
            shutil.copytree(student.path / "model", folder / part)
        return {}

    return open_student(stage("distill", tmp_path_factory.mktemp("pair") / "student", {}, [], build))


def _bytes(folder) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_both_models_of_a_pair_are_compiled_checked_and_asked_as_one(pair, tmp_path):
    made = export(pair, tmp_path / "out", ["gguf-q8_0"], PROMPTS, name="Tiny")
    facts = formats_of(made)["gguf-q8_0"]
    verdict = facts.verdict
    assert facts.path == "gguf-q8_0" and verdict.verdict == "pass"
    assert verdict.drift.kl_mean == max(part.drift.kl_mean for part in verdict.parts.values())
    models = parts(made.path / "gguf-q8_0")
    assert [model.name.split("-")[:2] for model in models.values()] == [["Tiny", "Decomposer"], ["Tiny", "Solver"]]
    assert facts.size_mb == pytest.approx(_bytes(made.path / "gguf-q8_0") / 1e6, abs=1e-3)
    assert find_model(made.path).path == made.path / "gguf-q8_0"
    with Team(student_team(made.path / facts.path)) as team:
        run = team.answer(Question(id="q", question="What is 12 + 30?", gold="42", scorer="number"))
    assert run.turns[0].text == "The sum of 12 and 30 is 42."
    assert [turn.model for turn in run.turns] == ["decomposer", "solver"]


def test_a_pair_is_refused_where_one_part_is(pair, tmp_path, judged):
    judged["bad"] = {"solver"}
    with pytest.raises(GateError, match="gguf-q8_0: solver: drifted far"):
        export(pair, tmp_path / "out", ["gguf-q8_0"], PROMPTS)


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
    monkeypatch.setattr("soloist.toolchain.verify.fidelity.capability", lambda: None)
    return judged


def test_an_engine_that_cannot_run_here_is_not_said_to_have_passed(student, tmp_path, engines):
    made = export(student, tmp_path / "out", ["tensorrt-rtx", "tensorrt", "tensorrt-7.2"], PROMPTS)
    verdicts = {format: facts.verdict for format, facts in formats_of(made).items()}
    assert [one.verdict for one in verdicts.values()] == ["not run"] * 3
    graph = "its graph in ONNX Runtime against the student"
    assert verdicts["tensorrt-rtx"].checked == (graph, "parsed and built by TensorRT-RTX")
    assert verdicts["tensorrt"].checked == (graph, "parsed by tensorrt_rtx")
    assert "runs where its GPU is; checked without it: its graph" in verdicts["tensorrt"].reason
    assert "JetPack 7.2" in (made.path / "tensorrt-7.2" / "build.json").read_text()
    assert not (made.path / "work").exists()
    assert engines["students"] == [Student("Student", made.manifest["parents"][0]["digest"])] * 3


def test_the_engines_of_a_pair_are_made_and_verified_part_by_part(pair, tmp_path, engines):
    made = export(pair, tmp_path / "out", ["tensorrt-rtx", "tensorrt"], PROMPTS)
    for format, sidecar in (("tensorrt-rtx", "engine.json"), ("tensorrt", "build.json")):
        assert {file.parent.name for file in (made.path / format).rglob(sidecar)} == {"decomposer", "solver"}
        assert formats_of(made)[format].verdict.verdict == "not run"
    found = dict(verify_export(made.path, PROMPTS, tmp_path / "scratch"))
    outcomes = {format: latest.verdict.verdict for format, latest in found.items()}
    assert outcomes == dict.fromkeys(formats_of(made), "not run")
    engines["bad"] = {"tensorrt"}  # the folder of both graphs
    ((_, latest),) = verify_export(made.path, PROMPTS, tmp_path / "again", ["tensorrt"])
    assert latest.verdict.verdict == "fail" and latest.verdict.reason == "decomposer: drifted far"


def test_an_engine_whose_graph_drifts_is_refused(student, tmp_path, engines):
    engines["bad"] = {"graph"}
    with pytest.raises(GateError, match="tensorrt-rtx: drifted far"):
        export(student, tmp_path / "out", ["tensorrt-rtx"], PROMPTS)
    assert not (tmp_path / "out.partial" / "tensorrt-rtx").exists()


def test_a_format_that_cannot_be_compiled_is_named_after_the_others_were_done(student, tmp_path, engines, monkeypatch):
    monkeypatch.setattr("soloist.targets.tensorrt.rtx.LIBRARY", "tensorrt_rtx_that_nobody_has")
    monkeypatch.setattr(module, "require_rtx", engines["rtx"])
    with pytest.raises(MissingExtraError, match=r"needs the package 'tensorrt_rtx_that_nobody_has'.*soloist\[rtx\]"):
        export(student, tmp_path / "out", ["tensorrt-rtx", "gguf-f16"], PROMPTS)
    partial = tmp_path / "out.partial"
    assert (
        engines["compiled"] == ["F16"] and not (partial / "tensorrt-rtx").exists() and not (tmp_path / "out").exists()
    )
    engines["bad"] = {"gguf-q8_0"}
    with pytest.raises(GateError, match=r"tensorrt-rtx: this needs the package .*; gguf-q8_0: drifted far"):
        export(student, tmp_path / "other", ["tensorrt-rtx", "gguf-q8_0"], PROMPTS)

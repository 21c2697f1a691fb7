"""What a job does with each format: what it needs, what it measures, what its report says of it."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import shutil

import pytest

from soloist.kernels.errors import MissingExtraError, UsageError
from soloist.targets.formats import EXAMPLES, parse
from soloist.toolchain.bench import systems
from soloist.toolchain.bench.measure import BenchFacts
from soloist.toolchain.bench.systems import file_systems, format_title
from soloist.toolchain.core.artifact import Artifact, stage
from soloist.toolchain.pipeline import preflight
from soloist.toolchain.pipeline import run as pipeline
from soloist.toolchain.report.page import render
from soloist.toolchain.report.stage import ReportOptions, assemble
from soloist.toolchain.student.student import open_student
from soloist.toolchain.verify.verdict import Bounds, ExportFacts, Verdict, record_verdict

NAMES = {
    "gguf": "GGUF",
    "gguf-f16": "GGUF F16",
    "gguf-q4_k_m": "GGUF Q4_K_M",
    "onnx": "ONNX",
    "onnx-int8": "ONNX int8",
    "onnx-cuda": "ONNX CUDA",
    "onnx-portable": "ONNX portable",
    "onnx-portable-fp16": "ONNX portable fp16",
    "tensorrt-rtx": "TensorRT-RTX",
    "tensorrt": "TensorRT",
    "tensorrt-7.2": "TensorRT JetPack 7.2",
}


# --- what a job needs ---


def test_every_format_has_its_packages_and_its_name():
    named = {"gguf-<type of llama.cpp>": "gguf-q4_k_m", "tensorrt-<JetPack>": "tensorrt-7.2"}
    for example in EXAMPLES:
        assert preflight._PACKAGES[parse(named.get(example, example)).target], example
    assert {name: format_title(name) for name in NAMES} == NAMES
    assert format_title("gguf", 4) == "GGUF 4-bit"


@pytest.mark.parametrize(
    ("formats", "wanted", "spared"),
    [
        (["gguf-q4_k_m"], ("llama_cpp", "llama-quantize"), {"onnx", "onnxruntime", "onnxruntime_genai"}),
        (["onnx"], ("onnxruntime_genai", "onnx"), {"onnxscript", "tensorrt_rtx"}),
        (["onnx-portable-fp16"], ("onnxscript", "compile"), {"onnxruntime_genai", "tensorrt_rtx"}),
        (["tensorrt-7.2"], ("onnx_ir", "compile"), {"onnxruntime_genai", "tensorrt_rtx"}),
        (["gguf", "tensorrt-rtx"], ("tensorrt_rtx", "rtx"), {"onnxruntime_genai"}),
    ],
)
def test_a_package_that_a_format_lacks_is_named_before_the_job_begins(
    sums, tiny_smollm2, tiny_smollm2_gguf, tmp_path, monkeypatch, formats, wanted, spared
):
    job = dataclasses.replace(sums.job(tiny_smollm2, tiny_smollm2_gguf, tmp_path / "out"), formats=formats)
    asked, find = [], importlib.util.find_spec

    def find_spec(name):
        asked.append(name)
        return None if name == wanted[0] else find(name) or object()

    monkeypatch.setattr(preflight.importlib.util, "find_spec", find_spec)
    with pytest.raises(MissingExtraError, match=rf"'{wanted[0]}': pip install 'soloist\[{wanted[1]}\]'"):
        pipeline.run(job)
    assert not spared & set(asked) and not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="unknown format 'gguf-q9': use one of gguf, "):
        pipeline.run(dataclasses.replace(job, formats=["gguf", "gguf-q9"]))


# --- an engine whose GPU is not here ---


@pytest.fixture
def with_engine(whole_job, tmp_path):
    """The tiny job's folder, its float export made again with an engine that could not be run beside the files."""
    out = shutil.copytree(whole_job.out, tmp_path / "job")
    formats = dict(Artifact.open(out / "compiled").read(ExportFacts).formats)
    not_run = Verdict(verdict="not run", reason="runs where its GPU is; checked without it: its graph")
    formats["tensorrt-rtx"] = formats["gguf-f16"].model_copy(update={"path": "tensorrt-rtx", "verdict": not_run})

    def build(folder):
        shutil.copytree(out / "compiled", folder, dirs_exist_ok=True)
        (folder / "manifest.json").unlink()
        (folder / "tensorrt-rtx").mkdir()
        (folder / "tensorrt-rtx" / "engine.json").write_text(json.dumps({"target": {"capabilities": ["8.9"]}}))
        return ExportFacts(formats=formats)

    student = open_student(out / "student")
    export = stage("export", tmp_path / "job" / "with-engine", {"engine": True}, [student.artifact], build)
    return student, export


def remeasured(whole_job, export, tmp_path):
    """The tiny job's measurement as if it descended from that export."""
    measured = Artifact.open(whole_job.out / "measured")
    traces = Artifact.open(whole_job.out / "traces")

    def build(folder):
        shutil.copytree(measured.path, folder, dirs_exist_ok=True)
        (folder / "manifest.json").unlink()
        return measured.read(BenchFacts)

    parents = [traces, Artifact.open(tmp_path / "job" / "student"), export]
    return stage("bench", tmp_path / "job" / "again", measured.manifest["config"], parents, build)


def test_an_engine_that_was_not_run_is_reported_and_not_measured(whole_job, with_engine, monkeypatch, tmp_path):
    student, export = with_engine
    assert [one.id for one in file_systems(export, student, ())] == ["student-gguf-f16", "student-gguf-q8_0"]
    made = assemble(remeasured(whole_job, export, tmp_path), ReportOptions())
    parity = {one.format: one for one in made.details.parity}
    assert {name: (one.verdict, one.measured) for name, one in parity.items()} == {
        "gguf-f16": ("pass", True),
        "gguf-q8_0": ("pass", True),
        "tensorrt-rtx": ("not run", False),
    }
    assert "tensorrt-rtx" not in {system.id.removeprefix("student-") for system in made.systems}
    assert json.loads(made.to_json())["details"]["parity"][2]["verdict"] == "not run"
    (caveat,) = [line for line in made.details.caveats if "tensorrt-rtx" in line]
    assert caveat.startswith("Compiled but not measured: tensorrt-rtx, which cannot run on this machine")
    section = re.search(r'<section id="files".*?</section>', render(made), re.DOTALL).group(0)
    assert (section.count("✓ passed"), section.count("– not run here"), section.count("not measured")) == (2, 1, 1)

    record_verdict(export, "tensorrt-rtx", Verdict(verdict="pass"))  # on a machine with its GPU, which this one is not
    monkeypatch.setattr(systems, "runs_here", lambda folder: False)
    assert "student-tensorrt-rtx" not in [one.id for one in file_systems(export, student, ())]
    monkeypatch.setattr(systems, "runs_here", lambda folder: folder == export.path / "tensorrt-rtx")
    assert [one.id for one in file_systems(export, student, ())][2:] == ["student-tensorrt-rtx"]


def test_a_file_that_failed_since_is_no_longer_measured(whole_job, with_engine, tmp_path):
    student, export = with_engine
    record_verdict(export, "gguf-f16", Verdict(verdict="fail", reason="drifted", tolerance=Bounds(kl=0.02, top1=0.95)))
    assert [one.id for one in file_systems(export, student, ())] == ["student-gguf-q8_0"]
    made = assemble(remeasured(whole_job, export, tmp_path), ReportOptions())
    (failed,) = [one for one in made.details.parity if one.format == "gguf-f16"]
    assert failed.verdict == "fail" and failed.note == "fail: drifted"


@pytest.mark.slow
def test_a_job_with_a_graph_and_an_engine_ends_in_a_report(whole_job, tmp_path):
    for package in ("onnxruntime", "onnxscript", "onnx_ir", "onnx", "tokenizers", "jinja2"):
        pytest.importorskip(package)
    pytest.importorskip("llama_cpp", reason="needs the extra 'llama-quantize'")
    out = shutil.copytree(whole_job.out, tmp_path / "job")
    formats = ("gguf-q4_k_m", "onnx-portable", "tensorrt")
    made = pipeline.run(dataclasses.replace(whole_job.job, out=out, formats=formats))
    verdicts = {p.format: (p.verdict, p.measured) for p in made.details.parity}
    assert verdicts == {
        "gguf-q4_k_m": ("pass", True),
        "onnx-portable (4 bits)": ("pass", True),
        "tensorrt": ("not run", False),
    }
    shown = {system.id: system.format for system in made.systems if system.kind == "artifact"}
    assert shown == {
        "student-gguf-q4_k_m": "GGUF Q4_K_M",
        "student-4bit-onnx-portable": "ONNX portable 4-bit",
    }
    assert (out / "compiled" / "tensorrt" / "build_engine.py").is_file()
    assert "– not run here" in (out / "report.html").read_text()
    assert "Compiled but not measured: tensorrt, which" in (out / "report.md").read_text()

"""What a job does with each format: what it needs, what it measures, what its report says of it."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil

import pytest

from soloist.kernels.errors import MissingExtraError, UsageError
from soloist.targets.formats import EXAMPLES, parse
from soloist.toolchain.bench.systems import format_title
from soloist.toolchain.core.artifact import Artifact, stage
from soloist.toolchain.pipeline import run as pipeline
from soloist.toolchain.report.page import render
from soloist.toolchain.verify.verdict import latest_verdict

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
        assert pipeline._PACKAGES[parse(named.get(example, example)).target], example
    assert {name: format_title(name) for name in NAMES} == NAMES


@pytest.mark.parametrize(
    ("formats", "wanted", "spared"),
    [
        (["gguf-q4_k_m"], ("llama_cpp", "gguf"), {"onnx", "onnxruntime", "onnxruntime_genai"}),
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
    asked = []

    def find_spec(name):
        asked.append(name)
        return None if name == wanted[0] else object()

    monkeypatch.setattr(pipeline.importlib.util, "find_spec", find_spec)
    with pytest.raises(MissingExtraError, match=rf"'{wanted[0]}': pip install 'soloist\[{wanted[1]}\]'"):
        pipeline.run(job)
    assert not spared & set(asked) and not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="unknown format 'gguf-q9': use one of gguf, "):
        pipeline.run(dataclasses.replace(job, formats=["gguf", "gguf-q9"]))


# --- an engine whose GPU is not here ---


@pytest.fixture
def with_engine(whole_job, tmp_path):
    """The tiny job's artifacts, its export made again with an engine that could not be run beside the files."""
    found = {name: Artifact.open(whole_job.out / name) for name in ("traces", "student", "compiled", "measured")}
    formats = found["compiled"].facts["formats"]
    engine = formats["gguf-f16"] | {
        "path": "tensorrt-rtx",
        "verdict": "not run",
        "reason": "runs where its GPU is; checked without it: its graph",
    }

    def build(folder):
        shutil.copytree(whole_job.out / "compiled", folder, dirs_exist_ok=True)
        (folder / "manifest.json").unlink()
        (folder / "tensorrt-rtx").mkdir()
        (folder / "tensorrt-rtx" / "engine.json").write_text(json.dumps({"target": {"capabilities": ["8.9"]}}))
        return {"formats": formats | {"tensorrt-rtx": engine}}

    found["compiled"] = stage("export", tmp_path / "compiled", {"engine": True}, [found["student"]], build)
    return list(found.values())


def test_an_engine_that_was_not_run_is_reported_and_not_measured(whole_job, with_engine, monkeypatch):
    _, _, compiled, _ = with_engine
    systems = pipeline._systems(whole_job.job, *with_engine[:3])
    assert [s.id for s in systems if s.kind == "artifact"] == ["student-gguf-f16", "student-gguf-q8_0"]
    made = pipeline._report(whole_job.job, with_engine, 0)
    parity = {p.format: p for p in made.details.parity}
    assert {name: (p.verdict, p.measured) for name, p in parity.items()} == {
        "gguf-f16": ("pass", True),
        "gguf-q8_0": ("pass", True),
        "tensorrt-rtx": ("not run", False),
    }
    assert "tensorrt-rtx" not in {system.id.removeprefix("student-") for system in made.systems}
    assert json.loads(made.to_json())["details"]["parity"][2]["verdict"] == "not run"
    (said,) = [line for line in made.details.caveats if "tensorrt-rtx" in line]
    assert said.startswith("Compiled but not measured: tensorrt-rtx, which cannot run on this machine")
    section = re.search(r'<section id="files".*?</section>', render(made), re.DOTALL).group(0)
    assert (section.count("✓ passed"), section.count("– not run here"), section.count("not measured")) == (2, 1, 1)

    passed = dict(latest_verdict(compiled, "tensorrt-rtx").facts) | {"verdict": "pass"}
    record(compiled, "tensorrt-rtx", passed)  # on a machine with its GPU, which this one is not
    monkeypatch.setattr(pipeline, "runs_here", lambda folder: False)
    assert "tensorrt-rtx" not in pipeline._measurable(compiled)
    monkeypatch.setattr(pipeline, "runs_here", lambda folder: folder == compiled.path / "tensorrt-rtx")
    assert pipeline._measurable(compiled) == ["gguf-f16", "gguf-q8_0", "tensorrt-rtx"]


def test_a_file_that_failed_since_is_no_longer_measured(whole_job, with_engine):
    _, _, compiled, _ = with_engine
    failed = {"verdict": "fail", "reason": "drifted", "tolerance": {"kl": 0.02, "top1": 0.95}}
    record(compiled, "gguf-f16", failed)
    assert [s.id for s in pipeline._systems(whole_job.job, *with_engine[:3]) if s.kind == "artifact"] == [
        "student-gguf-q8_0"
    ]
    (said,) = [p for p in pipeline._report(whole_job.job, with_engine, 0).details.parity if p.format == "gguf-f16"]
    assert said.verdict == "fail" and said.note == "fail: drifted"


@pytest.mark.slow
def test_a_job_with_a_graph_and_an_engine_ends_in_a_report(whole_job, tmp_path):
    for package in ("onnxruntime", "onnxscript", "onnx_ir", "onnx", "tokenizers", "jinja2"):
        pytest.importorskip(package)
    out = shutil.copytree(whole_job.out, tmp_path / "job")
    formats = ("gguf-q4_k_m", "onnx-portable", "tensorrt")
    made = pipeline.run(dataclasses.replace(whole_job.job, out=out, formats=formats))
    verdicts = {p.format: (p.verdict, p.measured) for p in made.details.parity}
    assert verdicts == {
        "gguf-q4_k_m": ("pass", True),
        "onnx-portable": ("pass", True),
        "tensorrt": ("not run", False),
    }
    shown = {system.id: system.format for system in made.systems if system.kind == "artifact"}
    assert shown == {"student-gguf-q4_k_m": "GGUF Q4_K_M", "student-onnx-portable": "ONNX portable"}
    assert (out / "compiled" / "tensorrt" / "build_engine.py").is_file()
    assert "– not run here" in (out / "report.html").read_text()
    assert "Compiled but not measured: tensorrt, which" in (out / "report.md").read_text()

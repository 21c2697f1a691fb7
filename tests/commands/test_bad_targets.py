"""Files that are cut off or others, students no target knows, budgets and machines that cannot: a line and its code."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys

import pytest

for package in ("torch", "transformers", "gguf", "safetensors"):
    pytest.importorskip(package)

from soloist.kernels.errors import ArtifactError  # noqa: E402
from soloist.toolchain.core.artifact import stage  # noqa: E402
from soloist.toolchain.verify.verdict import ExportFacts, FormatFacts, Verdict  # noqa: E402

USAGE, ARTIFACT, GATE, NO_PROVIDER, MISSING = 2, 4, 6, 7, 8


@pytest.fixture
def probe(sums, question_file):
    return question_file(sums.questions(1, "held-out", 100), "probe.jsonl")


@pytest.fixture
def student_with(tiny, tmp_path):
    """The tiny student after a change of its folder, whole by its hashes."""

    def made(change=lambda folder: None):
        def build(folder):
            shutil.copytree(tiny, folder, dirs_exist_ok=True)
            change(folder)
            return {}

        return stage("distill", tmp_path / "student", {}, [], build).path

    return made


@pytest.fixture
def cannot(refused, tmp_path, probe):
    """Export or quantize, expect this exit code and one line; nothing that could be taken for a file is left."""

    def call(code, command, student, *arguments):
        more = ("--prompts", probe) if command == "export" else ()
        message = refused(code, command, student, "-o", tmp_path / "out", *arguments, *more)
        assert not (tmp_path / "out").exists()
        left = [file for file in (tmp_path / "out.partial").rglob("*") if file.is_file()]
        assert all(file.suffix in (".json", ".jinja") for file in left), left
        return message

    return call


def _settings(**changes):
    def change(folder):
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def _cut_weights(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-5000])


def _other_cut_of_texts(folder):
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    cut = {"type": "Split", "pattern": {"Regex": "[aeiou]"}, "behavior": "Isolated", "invert": False}
    file.write_text(json.dumps(content | {"pre_tokenizer": cut}))


# --- a student ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["gguf", "gguf-q4_k_m", "onnx-portable", "tensorrt-7.2"])
def test_weights_that_are_cut_off_become_no_file(cannot, student_with, format):
    for needed in ("xllamacpp", "onnxscript", "onnx_ir"):
        pytest.importorskip(needed)
    student = student_with(_cut_weights)
    message = cannot(ARTIFACT, "export", student, "--formats", format)
    assert message.startswith(str(student))
    assert "incomplete metadata, file not fully covered" in message


def test_weights_that_are_cut_off_are_not_quantized(cannot, student_with):
    student = student_with(_cut_weights)
    message = cannot(ARTIFACT, "quantize", student, "--rounding", "mse")
    assert message.startswith(f"{student / 'model.safetensors'}: cut off or damaged")


@pytest.mark.parametrize(
    ("format", "reason"),
    [
        ("gguf", "architecture 'mamba9' cannot become GGUF; only 'llama', 'smollm3'"),
        ("onnx", "the ONNX builder failed (You can update Transformers); its architecture is 'mamba9', and those that"),
        ("onnx-portable", "transformers does not know this architecture (The checkpoint you are trying to load has"),
        ("tensorrt-7.2", "transformers does not know this architecture (The checkpoint you are trying to load has"),
    ],
)
def test_an_architecture_no_target_knows_is_named(cannot, student_with, monkeypatch, format, reason):
    for needed in ("onnxscript", "onnx_ir"):
        pytest.importorskip(needed)

    def builder(folder, *_, device):
        """As the builder of onnxruntime-genai fails, after half a minute."""
        raise ArtifactError(f"{folder}: the ONNX builder failed (You can update Transformers)")

    monkeypatch.setattr("soloist.targets.compile.compile_onnx", builder)
    student = student_with(_settings(model_type="mamba9", architectures=["Mamba9ForCausalLM"]))
    message = cannot(ARTIFACT, "export", student, "--formats", format)
    assert message.startswith(f"{student}: {reason}")
    assert "mamba9" in message


@pytest.mark.parametrize("format", ["gguf", "gguf-q5_0", "gguf-iq4_nl"])
def test_a_tokenizer_never_seen_is_an_error_that_says_what_to_do(cannot, student_with, format):
    message = cannot(ARTIFACT, "export", student_with(_other_cut_of_texts), "--formats", format)
    assert message.startswith("tokenizer.json: this pre_tokenizer has no name in GGUF among smollm, gpt-2")
    assert "train it from a base whose tokenizer splits like one of these" in message


def test_a_plan_for_another_model_is_refused(cannot, student_with, tmp_path):
    plan = tmp_path / "other.yaml"
    rule = "rules:\n- {tensors: '*', bits: 4, rounding: mse}\n"
    plan.write_text(f"schema: 1\nmodel: {{type: llama, digest: '0123456789abcdef'}}\n{rule}")
    message = cannot(USAGE, "quantize", student_with(), "--plan", plan)
    assert "made for another model (llama, 0123456789abcdef), this one is llama, " in message
    assert "make a plan for it with `soloist plan`" in message


# --- a machine ------------------------------------------------------------------------------------------------------


def test_tensorrt_that_is_missing_is_named_before_the_graph_is_made(cannot, student_with, monkeypatch):
    monkeypatch.setattr("soloist.targets.tensorrt.rtx.LIBRARY", "tensorrt_rtx_that_nobody_has")
    message = cannot(MISSING, "export", student_with(), "--formats", "tensorrt-rtx")
    assert message == "this needs the package 'tensorrt_rtx_that_nobody_has': pip install 'soloist[rtx]'"


def test_a_provider_that_is_not_installed_is_named(refused, tiny_portable, tiny_gguf):
    message = refused(NO_PROVIDER, "chat", tiny_portable, "--provider", "cuda", "hi")
    assert message.startswith("onnxruntime has no provider 'cuda' here: pip uninstall")
    assert "onnx-gpu" in message
    message = refused(USAGE, "chat", tiny_gguf, "--provider", "cuda", "hi")
    assert message.endswith("the provider 'cuda' is of ONNX Runtime, and this is gguf")


@pytest.fixture
def engine(tmp_path):
    """What `soloist chat` opens as an engine, of TensorRT 10.3."""
    folder, content = tmp_path / "engine", b"an engine" * 50
    folder.mkdir()
    (folder / "model.engine").write_bytes(content)
    facts = {
        "schema": 1,
        "engine": {"file": "model.engine", "sha256": hashlib.sha256(content).hexdigest()},
        "built_with": {"library": "tensorrt", "version": "10.3"},
        "options": {"stripped": False},
        "target": {"library": "tensorrt", "install": "it is part of JetPack"},
        "model": {"context": 64, "piece": 8, "vocabulary": 32, "kv_heads": 1, "head_dim": 8, "dtype": "float16"},
    }
    (folder / "engine.json").write_text(json.dumps(facts))
    return folder


def test_an_engine_that_is_cut_off_or_has_no_library_is_named(refused, engine, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    message = refused(ARTIFACT, "chat", engine, "hi")
    assert message.startswith("no tensorrt here (")
    assert message.endswith("it is part of JetPack")
    file = engine / "model.engine"
    file.write_bytes(file.read_bytes()[:-7])
    message = refused(ARTIFACT, "chat", engine, "hi")
    assert message.startswith(f"{file} is not the engine that engine.json speaks of (its hash differs)")
    (engine / "engine.json").write_text('{"schema": 1, "eng')
    message = refused(ARTIFACT, "chat", engine, "hi")
    assert message.startswith(f"{engine / 'engine.json'}: not there or not ours")


# --- a file ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [3, 100, -3000])
def test_a_gguf_that_is_cut_off_is_named(refused, tiny, tmp_path, left):
    pytest.importorskip("xllamacpp")
    from soloist.targets.to_gguf import compile_gguf

    file = tmp_path / compile_gguf(tiny, tmp_path, "Q8_0", "Tiny")["file"]
    file.write_bytes(file.read_bytes()[:left])
    message = refused(ARTIFACT, "chat", file, "hi")
    assert message.startswith(f"{file}: ")
    assert "not a GGUF file" in message or "truncated" in message


FILES = {
    "gguf-q8_0": "Tiny-Q8_0.gguf",
    "onnx": "model.onnx.data",
    "onnx-portable": "model.onnx",
    "tensorrt-rtx": "model.engine",
    "tensorrt-7.2": "kernels/sm_87/product.ptx",
}


@pytest.mark.parametrize("format", FILES)
def test_an_exported_file_that_is_cut_off_or_gone_is_neither_verified_nor_opened(
    refused, student_with, probe, tmp_path, format
):
    from soloist.toolchain.core.artifact import Artifact

    def build(made):
        (made / format / FILES[format]).parent.mkdir(parents=True)
        (made / format / FILES[format]).write_bytes(b"x" * 5000)
        return ExportFacts(formats={format: FormatFacts(path=format, verdict=Verdict(verdict="pass"))})

    student = Artifact.open(student_with())
    folder = stage("export", tmp_path / "compiled", {}, [student], build).path
    file = folder / format / FILES[format]
    file.write_bytes(b"x" * 4000)
    message = f"{file}: changed after it was made (hash differs); make the artifact again"
    assert refused(ARTIFACT, "verify", folder, "--prompts", probe) == message
    assert refused(ARTIFACT, "chat", folder / format, "hi") == message
    file.unlink()
    assert refused(ARTIFACT, "verify", folder, "--prompts", probe) == (
        f"{file}: listed in the manifest but missing; make the artifact again"
    )
    assert not list(folder.rglob("verdict.json"))

"""TensorRT on a device, without the device: the scripts of an exported folder against a recorded double of its API."""

from __future__ import annotations

import inspect
import json
import runpy
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

for package in ("onnxruntime", "onnx", "tokenizers", "jinja2"):
    pytest.importorskip(package)

import onnx  # noqa: E402

from soloist.kernels.aot import read_builds  # noqa: E402
from soloist.kernels.errors import ArtifactError, EngineError, UsageError  # noqa: E402
from soloist.targets.base import Sampling  # noqa: E402
from soloist.targets.portable.facts import DATA, FACTS, GRAPH, input_names, read_facts  # noqa: E402
from soloist.targets.portable.run import PortableRuntime  # noqa: E402
from soloist.targets.repack import Matrix, dequantize_linear, pack  # noqa: E402
from soloist.targets.tensorrt import build_engine, jetson, plugin, run_engine  # noqa: E402
from soloist.targets.tensorrt.plan import Lengths, Student, profiles  # noqa: E402
from soloist.targets.tensorrt.runner import EngineRuntime  # noqa: E402
from soloist.targets.tensorrt.versions import release  # noqa: E402

double = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("tensorrt_engine_double.py"))))
folders = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("kernel_builds.py"))))
STUDENT = Student("Tiny", "d1" * 32)
LENGTHS = Lengths(context=96, piece=8)
QUESTION = [{"role": "user", "content": "What is 12 + 30?"}]
FOLLOWUP = [*QUESTION, {"role": "assistant", "content": "42"}, {"role": "user", "content": "Solve x + 5 = 20."}]


@pytest.fixture
def host():
    return double.Host()


@pytest.fixture
def install(monkeypatch, host):
    """Put a TensorRT of a version there."""

    def install(version="10.3.0.30", name="tensorrt"):
        module = double.library(version, name, host)
        monkeypatch.setitem(sys.modules, name, module)
        return module

    return install


@pytest.fixture(scope="module")
def half(tiny_portable, tmp_path_factory):
    """The tiny student's folder, saying float16: what goes to a device does not depend on it."""
    folder = shutil.copytree(tiny_portable, tmp_path_factory.mktemp("half") / "tiny")
    facts = json.loads((folder / FACTS).read_text())
    (folder / FACTS).write_text(json.dumps({**facts, "dtype": "float16"}))
    return folder


@pytest.fixture
def exported(half, tmp_path, monkeypatch):
    """A folder for JetPack 6.2; its plan says what the numbers are."""
    monkeypatch.setattr(jetson, "_parsed", lambda folder: "")
    plan = jetson.compile_tensorrt(half, tmp_path / "device", release(jetpack="6.2"), student=STUDENT, lengths=LENGTHS)
    plan["model"]["dtype"] = "float32"
    (tmp_path / "device" / build_engine.PLAN).write_text(json.dumps(plan))
    return tmp_path / "device"


def build(folder, *options):
    return build_engine.main(["--folder", str(folder), *map(str, options)])


def sidecar(folder):
    return json.loads((folder / build_engine.SIDECAR).read_text())


# --- what is exported -----------------------------------------------------------------------------------------------


def test_profiles_agree_at_their_corners(half):
    facts = read_facts(half)
    made = profiles(facts, LENGTHS)
    assert list(made) == list(run_engine.PROFILES)
    for shapes in made.values():
        assert set(shapes) == set(input_names(facts.layers))
        for corner in range(3):
            fed, past = shapes["input_ids"][corner][1], shapes["past_key_values.0.key"][corner][2]
            assert shapes["attention_mask"][corner] == (1, past + fed)
    assert [shape[1] for shape in made["prefill"]["input_ids"]] == [1, 8, 8]
    assert [shape[2] for shape in made["decode"]["past_key_values.1.value"]] == [0, 24, 95]


def test_a_folder_has_what_a_device_needs(exported, half):
    assert {file.name for file in exported.iterdir()} == {
        GRAPH,
        DATA,
        FACTS,
        "tokenizer.json",
        "chat_template.jinja",
        "build.json",
        "build_engine.py",
        "run_engine.py",
        "README.txt",
    }
    assert (exported / "build_engine.py").read_text() == inspect.getsource(build_engine)
    text = (exported / "README.txt").read_text()
    assert STUDENT.digest in text
    assert build_engine.sha256(half / GRAPH) in text
    assert "TensorRT 10.3" in text
    line = next(line for line in text.splitlines() if "trtexec --onnx" in line)
    assert "--stronglyTyped" in line
    assert "--profile=1" in line
    assert "past_key_values.1.value:1x2x95x16" in line


def test_all_wider_codes_are_counted_as_int8(half, exported):
    plan, facts = json.loads((exported / build_engine.PLAN).read_text()), read_facts(half)
    for bits, count in ({"4": 9, "5": 2, "6": 3, "8": 1}, 6), ({"4": 9, "5": 2}, 2), ({"4": 9}, 0):
        text = jetson.readme(plan, replace(facts, bits=bits), release(jetpack="6.2"))
        assert ("tensors are INT8 in blocks" in text) == bool(count)
        assert not count or f"\n{count} of its tensors are INT8 in blocks" in text


def test_from_11_on_nothing_says_that_a_network_is_strongly_typed(half, tmp_path, monkeypatch, install):
    monkeypatch.setattr(jetson, "_parsed", lambda folder: "tensorrt_rtx")
    out = tmp_path / "device"
    plan = jetson.compile_tensorrt(half, out, release(jetpack="7.2.2"), student=STUDENT, lengths=LENGTHS)
    assert "stronglyTyped" not in jetson.trtexec(plan)
    assert "Read by the parser" in (out / "README.txt").read_text()
    install("11.4.1.2")
    assert build(out) == 0
    assert sidecar(out)["built_with"] == {"library": "tensorrt", "version": "11.4.1.2"}


def test_bad_exports_leave_nothing(tiny_portable, half, tmp_path):
    wanted = release(jetpack="6.2")
    with pytest.raises(UsageError, match="its graph is float32; export it in float16"):
        jetson.compile_tensorrt(tiny_portable, tmp_path / "out", wanted)
    with pytest.raises(UsageError, match="a context of 4096 tokens: this student was made for 2048"):
        jetson.compile_tensorrt(half, tmp_path / "out", wanted, lengths=Lengths(4096))
    cut = shutil.copytree(half, tmp_path / "cut")
    (cut / GRAPH).write_bytes((cut / GRAPH).read_bytes()[:-100])
    with pytest.raises(ArtifactError, match=r"model.onnx has .* bytes of"):
        jetson.compile_tensorrt(cut, tmp_path / "out", wanted)
    with pytest.raises(UsageError, match="a piece is no longer than the context"):
        Lengths(4, 5)
    assert not list(tmp_path.glob("out*"))


# --- building -------------------------------------------------------------------------------------------------------


def test_an_engine_says_what_it_is(exported, install, capsys):
    install()
    assert build(exported, "--workspace-mb", 64, "--level", 5, "--timing-cache", exported / "timings") == 0
    assert capsys.readouterr().out.startswith(f"student Tiny {STUDENT.digest[:16]}, graph ")
    engine, facts = json.loads((exported / "model.engine").read_text()), sidecar(exported)
    assert (engine["pools"], engine["level"], engine["flags"]) == ({"WORKSPACE": 64 << 20}, 5, [])
    assert [list(shapes) for shapes in engine["profiles"]] == [list(s) for s in facts["profiles"].values()]
    assert facts["student"] == {"name": "Tiny", "digest": STUDENT.digest}
    assert facts["report"]["layers"] == 12
    assert facts["engine"]["sha256"] == build_engine.sha256(exported / "model.engine")
    assert (exported / "timings").read_bytes() == b"+"
    build(exported, "--timing-cache", exported / "timings")
    assert (exported / "timings").read_bytes() == b"++"


def test_a_stripped_engine_takes_weights_later(exported, install, tmp_path):
    install()
    assert build(exported, "--strip", "--out", exported / "slim.engine") == 0
    assert json.loads((exported / "slim.engine").read_text())["flags"] == ["REFIT", "STRIP_PLAN"]
    with pytest.raises(run_engine.EngineFault, match=r"no weights: build_engine.py --refit slim.engine puts"):
        run_engine.read_sidecar(exported)
    assert build(exported, "--refit", exported / "slim.engine") == 0
    assert json.loads((exported / "model.engine").read_text())["refitted"]
    assert run_engine.read_sidecar(exported)["report"]["refitted_from"] == build_engine.sha256(exported / "slim.engine")


REFUSAL = ("layers.0/DequantizeLinear", "DequantizeLinear", "ErrorCode.UNSUPPORTED_NODE", "no blocks\n of INT8")


def test_a_refusal_names_node_reason_and_remedy(exported, install, capsys, tmp_path):
    module = install()
    module.OnnxParser.REFUSALS = (REFUSAL, ("b", "Loop", "UNSUPPORTED_GRAPH", "no loops"))
    assert build(exported, "--check", "--report", tmp_path / "report.json") == 1
    message = capsys.readouterr().err
    assert "refuses it: node 'layers.0/DequantizeLinear' (DequantizeLinear): no blocks of INT8 (and 1 more" in message
    assert "quantize these tensors to 16 bits" in message
    first, second = json.loads((tmp_path / "report.json").read_text())["errors"]
    assert (first["kind"], first["reason"], second["operator"]) == ("UNSUPPORTED_NODE", "no blocks of INT8", "Loop")
    module.OnnxParser.REFUSALS, module.Builder.ENGINES = (), False
    assert build(exported) == 1
    assert "builds no engine: Error Code 10: no tactic for this block" in capsys.readouterr().err
    assert not (exported / "model.engine").exists()
    assert not (exported / run_engine.SIDECAR).exists()


FAULTS = {
    "another byte of the graph": (
        lambda f: (f / DATA).write_bytes(b"x"),
        "10.3.0",
        "is not the file that was",
    ),
    "no weights": (lambda f: (f / DATA).unlink(), "10.3.0", "model.onnx.data is missing; copy the whole folder"),
    "another JetPack": (None, "10.16.1", r"TensorRT|tensorrt 10.16.1, and the folder was made for JetPack 6.1"),
    "a longer number": (None, "10.30.1", "10.30.1, and the folder was made for"),
    "half a plan": (lambda f: (f / "build.json").write_text('{"schema"'), "10.3.0", "not a build plan of Soloist"),
    "a plan of tomorrow": (lambda f: (f / "build.json").write_text('{"schema": 9, "files": {}}'), "10.3.0", "schema 9"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_built_is_said_in_a_line(exported, install, capsys, fault):
    change, version, message = FAULTS[fault]
    install(version)
    if change is not None:
        change(exported)
    assert build(exported) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert any(part in error for part in message.split("|")), error
    assert not list(exported.glob("*.engine*"))
    assert not list(exported.glob("*.tmp"))


def test_a_version_may_be_insisted_on_and_timings_may_not(exported, install, capsys):
    install("10.16.1")
    assert build(exported, "--any-version") == 0
    (exported / "timings").write_bytes(b"another device")
    assert build(exported, "--any-version", "--timing-cache", exported / "timings") == 1
    assert "timings of another device or version" in capsys.readouterr().err


def test_no_tensorrt_says_where_it_comes_from(exported, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert build(exported) == 1
    assert "on a Jetson it is part of JetPack" in capsys.readouterr().err


@pytest.fixture
def blocks(half, tmp_path):
    """The folder with a graph of one product by 4-bit blocks behind the inputs."""
    folder = shutil.copytree(half, tmp_path / "blocks")
    model = onnx.load(str(folder / GRAPH))
    draw = np.random.default_rng(3)
    matrix = Matrix(pack(draw.integers(0, 16, (64, 64)).astype(np.uint8)), draw.random((64, 2)).astype(np.float16), 32)
    constants, node = dequantize_linear(matrix, "weight", dtype="float16")
    constants.append(onnx.numpy_helper.from_array(np.ones((1, 64), np.float16), "x"))
    model.graph.node.extend([node, onnx.helper.make_node("MatMul", ["x", "weight"], ["product"], name="product")])
    model.graph.initializer.extend(constants)
    onnx.save(model, str(folder / GRAPH), save_as_external_data=True, location=DATA, size_threshold=1024)
    facts = json.loads((folder / FACTS).read_text())
    facts["sizes"] |= {name: (folder / name).stat().st_size for name in (GRAPH, DATA)}
    (folder / FACTS).write_text(json.dumps(facts))
    return folder


def test_our_kernel_may_be_part_of_the_graph(blocks, half, tmp_path, monkeypatch, install, capsys):
    pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setattr(jetson, "_parsed", lambda folder: "")
    out, thor, kernels = tmp_path / "device", release(jetpack="7.0"), tmp_path / "built"
    kernels.mkdir()
    folders.write(kernels, ("sm_87", "sm_110"))
    plan = jetson.compile_tensorrt(blocks, out, thor, student=STUDENT, lengths=LENGTHS, kernels=kernels)
    model = onnx.load(str(out / GRAPH))
    assert plan["plugins"] == 1 == [node.op_type for node in model.graph.node].count("w4a16_gemv")
    assert not (out / FACTS).exists()
    assert {record["arch"] for record in read_builds(out / "kernels")} == {"sm_110"}
    text = (out / "README.txt").read_text()
    assert "timings --plugin kernels" in text
    assert "1 products are Soloist's kernel, whose PTX for sm_110 lies" in text
    again = onnx.load(str(jetson.standard(out, tmp_path / "standard") / GRAPH))
    assert {node.domain for node in again.graph.node} == {""}
    assert read_facts(tmp_path / "standard").layers == read_facts(half).layers
    assert jetson.standard(half, tmp_path / "unused") == half
    install("10.13.3")
    assert build(out) == 1
    assert "--plugin KERNELS" in capsys.readouterr().err
    asked = []
    monkeypatch.setattr(plugin, "register", asked.append)
    assert build(out, "--plugin", tmp_path / "kernels") == 0
    assert asked == [tmp_path / "kernels"]
    monkeypatch.setitem(sys.modules, "soloist.targets.tensorrt.plugin", None)
    assert build(out, "--plugin", tmp_path) == 1
    assert "--plugin needs Soloist" in capsys.readouterr().err
    with pytest.raises(UsageError, match=r"JetPack 6.1 .* has TensorRT 10.3; our kernels are plugins from 10.9 on"):
        jetson.compile_tensorrt(blocks, tmp_path / "no", release(jetpack="6.1"), kernels=kernels)
    with pytest.raises(UsageError, match="no products of 4-bit blocks in its graph"):
        jetson.compile_tensorrt(half, tmp_path / "no", thor, kernels=kernels)
    assert not list(tmp_path.glob("no*"))


# --- running --------------------------------------------------------------------------------------------------------


@pytest.fixture
def engine(exported, install, host):
    install()
    assert build(exported) == 0
    return exported


def test_the_cache_loop_gives_the_logits_of_onnx_runtime(engine, host, tiny_portable):
    runtime = EngineRuntime(engine, gpu=host)
    reference = PortableRuntime(tiny_portable, context=96, accuracy_level=1)
    tokens = reference.tokenize(reference.render(FOLLOWUP))
    assert runtime.tokenize(runtime.render(FOLLOWUP)) == tokens
    assert len(tokens) > 3 * LENGTHS.piece
    np.testing.assert_allclose(runtime.logits(tokens), reference.logits(tokens), atol=1e-4)
    for sampling in (Sampling(max_tokens=20), Sampling(max_tokens=9, temperature=1.0, seed=3)):
        for messages in (QUESTION, FOLLOWUP, QUESTION):  # the cache grows, and is cut back to a prefix
            ours, theirs = runtime.chat(messages, sampling), reference.chat(messages, sampling)
            assert (ours.text, ours.tokens_cached) == (theirs.text, theirs.tokens_cached)
    assert host.moved
    runtime.close()
    assert host.closed


def test_the_cache_is_filled_to_the_brim_and_no_further(engine, host):
    one = run_engine.Engine(engine, host)
    assert one.feed(list(range(5, 5 + 95))).shape == (one.vocabulary,)
    one.feed([7])
    with pytest.raises(run_engine.EngineFault, match="96 tokens and 1 more: the engine holds 96"):
        one.feed([7])
    one.crop(0)
    assert one.feed([5, 6], every=True).shape == (2, one.vocabulary)
    runtime = EngineRuntime(engine, gpu=double.Host())
    with pytest.raises(EngineError, match="97 tokens do not fit the context of 96"):
        runtime.logits([5] * 97)


def test_the_script_on_the_device_answers(engine, host, tiny_portable, monkeypatch, capsys):
    monkeypatch.setattr(run_engine, "Gpu", lambda: host)
    assert run_engine.main(["--folder", str(engine), QUESTION[0]["content"], "--max-tokens", "12"]) == 0
    answer = PortableRuntime(tiny_portable, accuracy_level=1).chat(QUESTION, Sampling(max_tokens=12)).text
    assert capsys.readouterr().out.strip() == answer.strip()


def test_an_engine_of_another_version_or_with_other_bytes_is_refused(engine, host, install):
    install("10.3.1")
    with pytest.raises(ArtifactError, match=r"built with tensorrt 10.3.0.30, and here is 10.3.1; build it again"):
        EngineRuntime(engine, gpu=host)
    install()
    (engine / "model.engine").write_bytes(b"{}")
    with pytest.raises(ArtifactError, match="its hash differs"):
        EngineRuntime(engine, gpu=host)
    (engine / "model.engine").unlink()
    with pytest.raises(ArtifactError, match=r"model.engine is missing"):
        EngineRuntime(engine, gpu=host)
    (engine / "engine.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"engine.json: not there or not ours"):
        EngineRuntime(engine, gpu=host)


def test_without_a_gpu_there_is_a_reason(engine, capsys):
    try:
        run_engine.Gpu().close()
    except run_engine.EngineFault as fault:
        assert "no NVIDIA driver here" in str(fault) or "no GPU" in str(fault)
        assert run_engine.main(["--folder", str(engine), "hello"]) == 1
        assert "error: " in capsys.readouterr().err
    else:
        pytest.skip("there is a GPU here")

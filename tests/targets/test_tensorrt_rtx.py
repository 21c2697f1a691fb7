"""TensorRT-RTX: engines of a quantized student where the library is, limits and refusals everywhere."""

from __future__ import annotations

import importlib.util
import json
import os
import runpy
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

for package in ("onnxruntime", "onnx", "jinja2"):
    pytest.importorskip(package)

from soloist.kernels.errors import ArtifactError, MissingExtraError, ResourceError, UsageError  # noqa: E402
from soloist.targets.portable.facts import DATA, FACTS, GRAPH, Facts, read_facts  # noqa: E402
from soloist.targets.portable.weights import positive  # noqa: E402
from soloist.targets.repack import Matrix, dequantize_linear, pack  # noqa: E402
from soloist.targets.tensorrt import build_engine, rtx  # noqa: E402
from soloist.targets.tensorrt.plan import Lengths, Student  # noqa: E402
from soloist.targets.tensorrt.versions import RELEASES, release  # noqa: E402

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed: pip install 'soloist[rtx]'"
)
double = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("tensorrt_engine_double.py"))))
LENGTHS = Lengths(64, 8)


@pytest.fixture(scope="module")
def quantized(tiny, tmp_path_factory):
    """A portable folder: float16, 4-bit layers, an 8-bit embedding that is the head."""
    for needed in ("onnxscript", "onnx_ir"):
        pytest.importorskip(needed)
    from soloist.targets.portable.export import compile_portable

    out = tmp_path_factory.mktemp("rtx")
    make = runpy.run_path(str(Path(__file__).with_name("test_portable.py")))["quantized"]
    student = make(tiny, out / "quantized", {"bits": 4, "group": 32}, {"bits": 8, "group": 32})
    compile_portable(student, out / "portable", "float16")
    return out / "portable"


@pytest.fixture
def graph(tmp_path):
    """A folder with a graph of one node, which is as good as any where nothing is built."""
    import onnx

    def make(*nodes, inputs=("input_ids",), constants=()):
        folder = tmp_path / "portable"
        folder.mkdir()
        values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, [1, "n"]) for name in inputs]
        out = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.INT64, None)
        model = onnx.helper.make_model(
            onnx.helper.make_graph(nodes, "g", values, [out], constants),
            opset_imports=[onnx.helper.make_opsetid("", 21)],
        )
        onnx.save(model, str(folder / GRAPH))
        for name, text in (
            (DATA, ""),
            ("tokenizer.json", "{}"),
            ("chat_template.jinja", "{{ messages[0]['content'] }}"),
        ):
            (folder / name).write_text(text)
        Facts(
            family="llama",
            dtype="float16",
            opset=21,
            layers=1,
            heads=2,
            kv_heads=1,
            head_dim=8,
            hidden=16,
            vocabulary=32,
            context=128,
            stop_ids=(1,),
            special={},
            bits={},
            accuracy_level=1,
            operators={},
            sizes={name: (folder / name).stat().st_size for name in (GRAPH, DATA)},
        ).write(folder)
        return folder

    return make


def identity():
    import onnx

    return onnx.helper.make_node("Identity", ["input_ids"], ["logits"], name="one")


# --- with TensorRT-RTX ----------------------------------------------------------------------------------------------


@needs_rtx
def test_an_engine_is_built_without_a_gpu(quantized, tmp_path):
    done = rtx.build_rtx(quantized, tmp_path / "engine", ("8.9",), student=Student("Tiny", "d1"), lengths=LENGTHS)
    folder = tmp_path / "engine"
    assert {file.name for file in folder.iterdir()} == {
        "model.engine",
        "engine.json",
        "tokenizer.json",
        "chat_template.jinja",
    }
    assert done["engine"]["sha256"] == build_engine.sha256(folder / "model.engine")
    assert done["files"][GRAPH] == build_engine.sha256(quantized / GRAPH)
    assert done["built_with"]["library"] == "tensorrt_rtx"
    assert done["target"]["capabilities"] == ["8.9"]
    assert done["student"] == {"name": "Tiny", "digest": "d1"}
    assert done["model"]["bits"] == {"4": 14, "8": 1}
    assert done["profiles"]["decode"]["input_ids"] == [[1, 1], [1, 1], [1, 1]]
    assert done["report"]["errors"] == []
    assert not list(tmp_path.glob("*.tmp"))


@needs_rtx
def test_every_refusal_of_the_parser_is_told_with_its_node(graph, tmp_path):
    import onnx

    folder = graph(onnx.helper.make_node("StringNormalizer", ["input_ids"], ["logits"], name="odd"))
    (refused,) = rtx.check_rtx(folder)
    assert (refused["node"], refused["operator"]) == ("odd", "StringNormalizer")
    assert refused["reason"]
    with pytest.raises(ArtifactError, match=r"model.onnx: tensorrt_rtx .* refuses it: node 'odd' \(StringNormalizer\)"):
        rtx.build_rtx(folder, tmp_path / "engine", ("8.9",), lengths=LENGTHS)
    assert not list(tmp_path.glob("engine*"))


@needs_rtx
def test_a_graph_that_is_none_is_refused(quantized, tmp_path):
    folder = shutil.copytree(quantized, tmp_path / "portable")
    (folder / GRAPH).write_bytes((folder / GRAPH).read_bytes()[: -(folder / GRAPH).stat().st_size // 2])
    facts = json.loads((folder / FACTS).read_text())
    facts["sizes"][GRAPH] = (folder / GRAPH).stat().st_size
    (folder / FACTS).write_text(json.dumps(facts))
    with pytest.raises(ArtifactError, match=r"refuses it: .*; .*the folder again|died"):
        rtx.build_rtx(folder, tmp_path / "engine", ("8.9",), lengths=LENGTHS)


@needs_rtx
def test_scales_are_as_the_parser_asks(graph):
    from onnx.helper import make_node

    cast = make_node("Cast", ["weight.scales"], ["scales"], to=10, name="cast")
    for bits, made, hidden, refused in (
        (8, signed(8), False, 1),
        (8, positive(signed(8)), False, 0),
        (8, signed(8), True, 0),
        (4, signed(4), True, 0),
    ):
        tensors, node = dequantize_linear(made, "weight", dtype="float16")
        if hidden:
            node.input[1] = "scales"
        rows = make_node("Gather", ["weight", "input_ids"], ["rows"]), make_node("Cast", ["rows"], ["logits"], to=7)
        folder = graph(*[cast] * hidden, node, *rows, inputs=rtx_inputs(), constants=tensors)
        refusals = rtx.check_rtx(folder)
        assert len(refusals) == refused, f"{bits} bits: {refusals}"
        assert all("positive" in one["reason"] and "scales above 0" in one["advice"] for one in refusals)
        shutil.rmtree(folder)


def signed(bits):
    """A matrix with a scale below 0 and one that is 0."""
    draw = np.random.default_rng(5)
    scales = draw.random((96, 2)).astype(np.float16)
    scales[3, 1], scales[5, 0] = -0.5, 0
    if bits == 4:
        return Matrix(pack(draw.integers(0, 16, (96, 64)).astype(np.uint8)), scales, 32)
    codes = draw.integers(-16, 16, (96, 64)).astype(np.int8)
    return Matrix(codes, scales, 32, narrow=5)


def test_scales_are_made_positive_where_codes_can_say_it():
    given = signed(8)
    made = positive(given)
    assert (made.scales > 0).all()
    assert made.narrow is None
    np.testing.assert_array_equal(made.dequantized(), given.dequantized())
    lowest = Matrix(np.full((1, 32), -128, np.int8), np.array([[-1]], np.float16), 32)
    for same in (signed(4), lowest):  # 4 bits have no code 8, 8 bits none of 128
        assert positive(same) is same


# --- without --------------------------------------------------------------------------------------------------------


@pytest.fixture
def there(monkeypatch):
    """As if TensorRT-RTX could be found."""
    monkeypatch.setattr(rtx.importlib.util, "find_spec", lambda name: name)


def test_without_the_package_its_extra_is_named(graph, monkeypatch, tmp_path):
    monkeypatch.setattr(rtx.importlib.util, "find_spec", lambda name: None)
    for call in (lambda folder: rtx.build_rtx(folder, tmp_path / "out"), rtx.check_rtx):
        with pytest.raises(MissingExtraError, match=r"needs the package 'tensorrt_rtx': pip install 'soloist\[rtx\]'"):
            call(tmp_path)


def test_capabilities_are_those_of_the_library(tmp_path):
    for given, message in (
        (("8.7",), r"compute capability '8.7': TensorRT-RTX builds for 8.6 \(GeForce RTX 30\), 8.9"),
        ((), "TensorRT-RTX builds for named compute capabilities"),
        (("8.9", "8.9"), "one is named twice"),
    ):
        with pytest.raises(UsageError, match=message):
            rtx.build_rtx(tmp_path, tmp_path / "out", given)
    assert not list(tmp_path.iterdir())


def test_what_is_asked_of_the_library_reaches_it(graph, monkeypatch, tmp_path):
    module = double.library("1.7.1.116", "tensorrt_rtx")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", module)
    folder = graph(identity(), inputs=rtx_inputs())
    plan = rtx.make_plan(folder, read_facts(folder), LENGTHS, Student("a", "b"), rtx.target(("8.6", "12.0")))
    rtx.write_plan(plan, folder)
    assert build_engine.main(["--folder", str(folder)]) == 0
    engine = json.loads((folder / "model.engine").read_text())
    assert engine["capabilities"] == ["SM86", "SM120"]
    assert len(engine["profiles"]) == 2
    assert plan["model"]["around"] == ["", ""]


def rtx_inputs():
    return "input_ids", "attention_mask", "position_ids", "past_key_values.0.key", "past_key_values.0.value"


PROGRAMS = {
    "too slow": ("import time; time.sleep(60)", ResourceError, "not built within 1 s"),
    "crash": (
        "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
        ArtifactError,
        r"builder of the engine was killed \(SIGSEGV\); check",
    ),
    "memory": ("raise MemoryError('no more')", ResourceError, "ran out of the memory .*no more"),
    "silence": ("raise SystemExit(3)", ArtifactError, "builder of the engine ended with code 3; check"),
}


@pytest.mark.parametrize("case", PROGRAMS)
def test_a_builder_that_dies_is_one_clear_error(graph, there, monkeypatch, tmp_path, case):
    program, kind, message = PROGRAMS[case]
    (tmp_path / "builder.py").write_text(program)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(rtx.build_engine, "__name__", "builder")
    with pytest.raises(kind, match=message):
        rtx.build_rtx(
            graph(identity()), tmp_path / "engine", ("8.9",), lengths=LENGTHS, seconds=1 if "slow" in case else 60
        )
    assert not list(tmp_path.glob("engine*"))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_the_builder_keeps_to_its_memory(graph, there, monkeypatch, tmp_path):
    folder = graph(identity())
    hog = "import resource; print(resource.getrlimit(resource.RLIMIT_DATA)); bytearray(1 << 30)"
    (tmp_path / "tensorrt_rtx.py").write_text(hog)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(ResourceError, match="ran out of the memory it may use"):
        rtx.build_rtx(folder, tmp_path / "engine", ("8.9",), lengths=LENGTHS, memory_mb=400)


# --- versions -------------------------------------------------------------------------------------------------------


def test_a_jetpack_is_its_tensorrt():
    assert release(jetpack="6.2").tensorrt == "10.3"
    assert release(jetpack="6.2").strongly_typed_flag
    assert not release(jetpack="6.2").has_plugins
    assert release(jetpack="7.0").has_plugins
    assert release(jetpack="7.2", architecture=87).tensorrt == release(jetpack="7.2", tensorrt="10.16.2").tensorrt
    assert not release(jetpack="7.2.2").strongly_typed_flag
    assert not release(tensorrt="11.4").jetpacks
    assert release(tensorrt="10.16.1.11").tensorrt == "10.16"
    assert [known.number for known in RELEASES] == sorted(known.number for known in RELEASES)


WRONG = {
    "neither": ({}, "say for which JetPack .6.1, .* or TensorRT"),
    "unknown": ({"jetpack": "5.1"}, "JetPack '5.1' is not known; there are 6.1"),
    "too old": ({"jetpack": "6.0"}, "TensorRT 8.6 .JetPack 6.0.: 8.6 reads neither INT4 nor int64"),
    "too old by number": ({"tensorrt": "10.2"}, "update to JetPack 6.2 or newer"),
    "no number": ({"tensorrt": "ten"}, "'ten' is not a version"),
    "not together": ({"jetpack": "6.2", "tensorrt": "10.13"}, "JetPack 6.2 has TensorRT 10.3, not 10.13"),
    "another board": ({"jetpack": "7.0", "architecture": 87}, r"JetPack 7.0 is not for sm_87; 6.1, .*7.2"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_versions_are_refused(case):
    asked, message = WRONG[case]
    with pytest.raises(UsageError, match=message):
        release(**asked)

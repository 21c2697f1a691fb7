"""One student, one plan, one command: every format of the same integers, and of a float student's own numbers."""

import json
import shutil
from dataclasses import replace

import pytest

for package in ("torch", "transformers", "gguf", "xllamacpp", "onnxruntime_genai", "onnx_ir", "onnx"):
    pytest.importorskip(package)

import gguf  # noqa: E402
import numpy as np  # noqa: E402

from soloist.kernels.errors import ArtifactError, SoloistError, UsageError  # noqa: E402
from soloist.targets import llama_quantize  # noqa: E402
from soloist.targets.llama_quantize import IMPORTANCE  # noqa: E402
from soloist.targets.portable.export import compile_portable  # noqa: E402
from soloist.toolchain.core.artifact import Artifact, stage  # noqa: E402
from soloist.toolchain.core.files import sha256_file  # noqa: E402
from soloist.toolchain.export.stage import export  # noqa: E402
from soloist.toolchain.quantize.plan import BitPlan  # noqa: E402
from soloist.toolchain.quantize.stage import QuantizeConfig, quantize  # noqa: E402
from soloist.toolchain.student.student import open_student  # noqa: E402
from soloist.toolchain.verify.process import Prompts  # noqa: E402
from soloist.toolchain.verify.stage import verify_export  # noqa: E402
from soloist.toolchain.verify.verdict import ExportFacts  # noqa: E402


def formats_of(made):
    return made.read(ExportFacts).formats


PROMPTS = Prompts([[{"role": "user", "content": "What is 12 + 30?"}]], ["The sum of 12 and 30 is 42."])
MIXED = BitPlan.model_validate(
    {
        "schema": 1,
        "rules": [
            {"tensors": "*.embed_tokens.weight", "bits": 8, "rounding": "mse"},
            {"tensors": "*.v_proj.weight", "bits": 6, "rounding": "mse"},
            {"tensors": "model.layers.0.*", "bits": 5, "rounding": "mse"},
            {"tensors": "*", "bits": 4, "rounding": "mse"},
        ],
    }
)


pytestmark = pytest.mark.usefixtures("warm_workers")  # one thread, here and in the subprocesses


def test_a_plan_of_mixed_widths_goes_into_every_format_and_each_is_checked(student, tmp_path):
    import onnx

    quantized = quantize(QuantizeConfig(plan=MIXED), student, tmp_path / "quantized")
    formats = ["gguf", "onnx", "onnx-cuda", "onnx-portable"]
    made = export(open_student(quantized), tmp_path / "out", formats, PROMPTS, name="Tiny")
    verdicts = [facts.verdict for facts in formats_of(made).values()]
    for verdict in verdicts:
        assert verdict.verdict == "pass" and verdict.tolerance.kl == 0.5, "held to the narrowest: 4 bits"
    drift = [verdict.drift.kl_mean for verdict in verdicts]
    assert max(drift) < 2 * min(drift), "the same integers everywhere"
    graphs = {name: onnx.load(str(made.path / name / "model.onnx")).graph for name in ("onnx", "onnx-cuda")}
    constants = {name: {c.name: c for c in graph.initializer} for name, graph in graphs.items()}
    for name, numbers in (("onnx", np.float32), ("onnx-cuda", np.float16)):
        nodes = [node for node in graphs[name].node if node.op_type == "MatMulNBits"]
        assert {a.i for node in nodes for a in node.attribute if a.name == "bits"} == {4, 8}
        for node in nodes:
            codes, scales = (onnx.numpy_helper.to_array(constants[name][one]) for one in node.input[1:3])
            assert scales.dtype == numbers
            assert np.array_equal(codes, onnx.numpy_helper.to_array(constants["onnx"][node.input[1]]))
            assert np.array_equal(scales, onnx.numpy_helper.to_array(constants["onnx"][node.input[2]])), "not rounded"
    facts = json.loads((made.path / "onnx-portable" / "portable.json").read_text())
    assert set(facts["bits"]) == {"4", "5", "6", "8"}
    assert Artifact.open(made.path, stage="export").manifest["parents"][0]["digest"] == quantized.digest


def test_a_float_student_goes_into_every_format_as_it_is(student, tiny_portable, tmp_path, monkeypatch):
    def traced_once(folder, out, dtype):
        return shutil.copytree(tiny_portable, out) if dtype == "float32" else compile_portable(folder, out, dtype)

    monkeypatch.setattr("soloist.targets.compile.compile_portable", traced_once)
    formats = ["gguf", "onnx", "onnx-cuda", "onnx-portable", "onnx-portable-fp16"]
    made = export(student, tmp_path / "out", formats, PROMPTS)
    verdicts = {format: facts.verdict for format, facts in formats_of(made).items()}
    limits = {format: verdict.tolerance.kl for format, verdict in verdicts.items()}
    halves = dict.fromkeys(("gguf", "onnx-cuda", "onnx-portable-fp16"), 0.002)
    assert limits == {**halves, "onnx": 0.0001, "onnx-portable": 0.0001}
    assert formats_of(made)["gguf"].path.endswith("-F16.gguf")
    assert "computed on the " in verdicts["onnx-cuda"].note and verdicts["onnx"].note is None


@pytest.fixture
def weighed(student, tmp_path):
    """Artifacts of stage `quantize` with an importance matrix of the tiny student's first layer."""

    def made(name, parent=student.artifact, importance=True):
        def build(folder):
            (folder / "config.json").write_text("{}")
            (folder / "quantization.json").write_text('{"tensors": {}}')
            if importance:
                squares = {f"blk.0.{part}.weight": (np.linspace(0, 40, 64) ** 2, 1) for part in ("attn_q", "ffn_up")}
                llama_quantize.write_importance(folder / IMPORTANCE, squares)
            return {}

        return stage("quantize", tmp_path / name, {}, [parent], build)

    return made


def test_llama_cpps_own_types_are_weighed_by_an_importance_matrix(student, weighed, tmp_path):
    """IQ4_NL: the mix that tells columns apart in rows as short as the tiny student's."""
    pytest.importorskip("llama_cpp", reason="needs the extra 'llama-quantize'")
    quantized, formats = weighed("quantized"), ["gguf-iq4_nl", "gguf-q8_0"]
    made = {
        name: export(student, tmp_path / name, formats, PROMPTS, importance=given)
        for name, given in (("plain", None), ("folder", quantized.path), ("file", quantized.path / IMPORTANCE))
    }
    tensors = {}
    for name, artifact in made.items():
        reader = gguf.GGUFReader(artifact.path / formats_of(artifact)["gguf-iq4_nl"].path)
        tensors[name] = {tensor.name: bytes(tensor.data) for tensor in reader.tensors}
    changed = {name for name, data in tensors["plain"].items() if tensors["folder"][name] != data}
    assert changed == {"blk.0.attn_q.weight", "blk.0.ffn_up.weight"} and tensors["file"] == tensors["folder"]
    facts = formats_of(made["folder"])
    digest = sha256_file(quantized.path / IMPORTANCE)
    assert facts["gguf-iq4_nl"].importance == {"file": IMPORTANCE, "artifact": quantized.digest, "sha256": digest}
    assert facts["gguf-q8_0"].importance is None
    assert made["folder"].manifest["config"]["importance"] == facts["gguf-iq4_nl"].importance
    assert made["folder"].digest != made["plain"].digest
    ((_, latest),) = verify_export(made["folder"].path, PROMPTS, tmp_path / "scratch", ["gguf-iq4_nl"])
    assert latest.verdict.verdict == "pass"


def test_an_importance_matrix_that_does_not_fit_is_refused(student, weighed, tmp_path):
    formats, quantized = ["gguf-iq4_nl"], weighed("quantized")

    def refused(given, of=student, formats=formats):
        with pytest.raises(SoloistError) as error:
            export(of, tmp_path / "out", formats, PROMPTS, importance=given)
        assert not list(tmp_path.glob("out*"))
        return type(error.value), str(error.value)

    def copied(made):
        shutil.copytree(student.path, made, dirs_exist_ok=True)
        return {}

    other = open_student(stage("distill", tmp_path / "other", {"seed": 1}, [], copied))
    for given in (quantized.path, quantized.path / IMPORTANCE):
        kind, said = refused(given, other)
        assert kind is ArtifactError and f"another student ({student.digest}) than {other.path}" in said
    assert "holds no importance.gguf; quantize with awq or gptq" in refused(weighed("rtn", importance=False).path)[1]
    assert "'quantize' is needed here" in refused(other.path)[1]
    cut = tmp_path / "cut.gguf"
    cut.write_bytes((quantized.path / IMPORTANCE).read_bytes()[:-200])
    assert refused(cut)[0] is ArtifactError and refused(tmp_path / "none.gguf")[0] is ArtifactError
    kind, said = refused(quantized.path, formats=["gguf-q8_0", "onnx"])
    assert kind is UsageError and "own types, such as gguf-q4_k_m" in said
    assert refused(quantized.path, replace(student, bits=4))[0] is UsageError

"""One student, one plan, one command: every format of the same integers, and of a float student's own numbers."""

import json
import shutil

import pytest

for package in ("torch", "transformers", "gguf", "llama_cpp", "onnxruntime_genai", "onnx_ir", "onnx", "optimum"):
    pytest.importorskip(package)

import numpy as np  # noqa: E402

from soloist.toolchain.artifact import Artifact, stage  # noqa: E402
from soloist.toolchain.export import IMPORTANCE, export  # noqa: E402
from soloist.toolchain.quantization.plan import Plan  # noqa: E402
from soloist.toolchain.quantization.stage import QuantizeConfig, quantize  # noqa: E402
from soloist.toolchain.verify import Probe  # noqa: E402

PROBE = Probe([[{"role": "user", "content": "What is 12 + 30?"}]], ["The sum of 12 and 30 is 42."])
MIXED = Plan.model_validate({
    "schema": 1,
    "rules": [
        {"tensors": "*.embed_tokens.weight", "bits": 8, "method": "mse"},
        {"tensors": "*.v_proj.weight", "bits": 6, "method": "mse"},
        {"tensors": "model.layers.0.*", "bits": 5, "method": "mse"},
        {"tensors": "*", "bits": 4, "method": "mse"},
    ],
})  # fmt: skip


@pytest.fixture(autouse=True)
def _threads(one_thread):
    """One thread, here and in the subprocesses."""


@pytest.fixture(scope="module")
def student(tiny, tmp_path_factory) -> Artifact:
    def build(made):
        shutil.copytree(tiny, made, dirs_exist_ok=True)
        return {}

    return stage("distill", tmp_path_factory.mktemp("student") / "student", {}, [], build)


def test_a_plan_of_mixed_widths_goes_into_every_format_and_each_is_checked(student, tmp_path):
    import onnx

    quantized = quantize(QuantizeConfig(plan=MIXED), student, tmp_path / "quantized")
    made = export(quantized, tmp_path / "out", ["gguf", "onnx", "onnx-portable"], PROBE, name="Tiny")
    for facts in made.facts["formats"].values():
        assert facts["verdict"] == "pass" and facts["tolerance"]["kl"] == 0.5, "held to the narrowest: 4 bits"
    drift = [facts["kl_mean"] for facts in made.facts["formats"].values()]
    assert max(drift) < 2 * min(drift), "the same integers everywhere"
    nodes = onnx.load(str(made.path / "onnx" / "model.onnx"), load_external_data=False).graph.node
    widths = [{a.name: a.i for a in node.attribute}["bits"] for node in nodes if node.op_type == "MatMulNBits"]
    assert sorted(set(widths)) == [4, 8]
    facts = json.loads((made.path / "onnx-portable" / "portable.json").read_text())
    assert set(facts["bits"]) == {"4", "5", "6", "8"}
    assert Artifact.open(made.path, stage="export").manifest["parents"][0]["digest"] == quantized.digest


def test_a_float_student_goes_into_every_format_as_it_is(student, tmp_path):
    made = export(student, tmp_path / "out", ["gguf", "onnx", "onnx-portable", "onnx-portable-fp16"], PROBE)
    found = {format: facts["tolerance"]["kl"] for format, facts in made.facts["formats"].items()}
    assert found == {"gguf": 0.002, "onnx": 0.0001, "onnx-portable": 0.0001, "onnx-portable-fp16": 0.002}
    assert made.facts["formats"]["gguf"]["path"].endswith("-F16.gguf")


def test_llama_cpps_own_types_take_the_students_importance_matrix(tiny, tmp_path, monkeypatch):
    from soloist.targets import llama_quantize
    from soloist.toolchain import export as module

    folder = shutil.copytree(tiny, tmp_path / "student")
    importance = np.linspace(1, 3, 64).astype(np.float32)
    llama_quantize.write_importance(folder / IMPORTANCE, {"blk.0.attn_q.weight": (importance, 1)})
    given = []
    compile_gguf = module.compile_gguf

    def seen(*arguments, importance=None):
        given.append(importance)
        return compile_gguf(*arguments, importance=importance)

    monkeypatch.setattr(module, "compile_gguf", seen)
    facts = module.compile_format({"": folder}, tmp_path / "out", "gguf-iq4_nl", "Tiny", {})
    assert facts["path"].endswith("-IQ4_NL.gguf") and np.array_equal(given[0]["blk.0.attn_q.weight"], importance)
    module.compile_format({"": folder}, tmp_path / "out", "gguf-q8_0", "Tiny", {})
    assert given[1] is None

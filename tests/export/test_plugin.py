"""`soloist export --plugin`: our kernel in the graph of a Jetson's folder, checked as far as it goes without one."""

import json
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

for package in ("torch", "transformers", "gguf", "triton", "onnxscript", "onnx_ir", "onnx"):
    pytest.importorskip(package)

from soloist.kernels.errors import ArtifactError, GateError, UsageError  # noqa: E402
from soloist.targets.portable.export import compile_portable  # noqa: E402
from soloist.targets.tensorrt import jetson  # noqa: E402
from soloist.targets.tensorrt.builds import Builds  # noqa: E402
from soloist.toolchain.core.artifact import Artifact, stage  # noqa: E402
from soloist.toolchain.export.stage import export  # noqa: E402
from soloist.toolchain.quantize.stage import QuantizeConfig, quantize  # noqa: E402
from soloist.toolchain.student.student import open_student  # noqa: E402
from soloist.toolchain.verify.process import Prompts  # noqa: E402
from soloist.toolchain.verify.stage import verify_export  # noqa: E402
from soloist.toolchain.verify.verdict import ExportFacts  # noqa: E402

PROMPTS = Prompts([[{"role": "user", "content": "What is 12 + 30?"}]], ["The sum of 12 and 30 is 42."])
FORMATS = ["tensorrt-7.2"]
folders = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "targets" / "kernel_builds.py")))


pytestmark = pytest.mark.usefixtures("warm_workers")  # one thread, here and in the subprocesses


@pytest.fixture(autouse=True)
def _unparsed(monkeypatch):
    """Without TensorRT-RTX's parser, wherever it is installed."""
    monkeypatch.setattr(jetson, "_parsed", lambda folder: "")


@pytest.fixture(scope="module")
def quantized(student, tmp_path_factory):
    """The tiny student in 4 bits, its embedding in 8: 14 products for the kernel."""
    folder = tmp_path_factory.mktemp("quantized")
    return open_student(quantize(QuantizeConfig(bits=4, group=32, rounding="mse"), student, folder / "quantized"))


@pytest.fixture(scope="module")
def graph(quantized, tmp_path_factory):
    out = tmp_path_factory.mktemp("graph") / "portable"
    compile_portable(quantized.path, out, "float16")
    return out


@pytest.fixture(autouse=True)
def _traced_once(graph, monkeypatch):
    monkeypatch.setattr("soloist.targets.compile.compile_portable", lambda _, out, dtype: shutil.copytree(graph, out))


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    def build(made):
        return {"builds": folders.write(made, ("sm_87", "sm_120"))}

    return stage("kernels", tmp_path_factory.mktemp("kernels") / "kernels", {}, [], build)


def test_the_folder_has_our_kernel_its_ptx_and_says_what_was_not_seen(quantized, kernels, tmp_path):
    made = export(quantized, tmp_path / "out", FORMATS, PROMPTS, kernels=kernels.path)
    folder, facts = made.path / "tensorrt-7.2", made.read(ExportFacts).formats["tensorrt-7.2"]
    verdict = facts.verdict
    plan = json.loads((folder / "build.json").read_text())
    assert plan["plugins"] == 14 and plan["boards"] == ["sm_87"]
    assert plan["student"] == {"name": "Student", "digest": quantized.digest}
    assert Builds.read(folder / "kernels", "sm_87").tactics("", "FP16", 32)
    assert verdict.verdict == "not run" and verdict.drift.kl_mean < verdict.tolerance.kl
    assert facts.kernels == {"artifact": kernels.digest} == made.manifest["config"]["kernels"]
    assert verdict.checked == (
        "its graph in ONNX Runtime against the student, our kernels written out in standard operators",
    )
    assert verdict.reason.endswith("; not checked: our kernels inside TensorRT")
    assert not list(made.path.glob("work"))
    ((_, latest),) = verify_export(made.path, PROMPTS, tmp_path / "scratch")
    assert latest.verdict.verdict == "not run" and latest.verdict.drift.kl_mean == verdict.drift.kl_mean
    assert latest.verdict.reason == verdict.reason
    assert Artifact.open(made.path).digest == made.digest


def test_a_graph_whose_kernels_hold_other_numbers_is_refused(quantized, kernels, tmp_path, monkeypatch):
    import numpy as np
    from onnx import numpy_helper

    replace_all = jetson.replace_all

    def wrong(model):
        count = replace_all(model)
        for tensor in model.graph.initializer:
            if tensor.name.endswith(".words"):
                turned = np.roll(numpy_helper.to_array(tensor), 1, axis=0)
                tensor.CopyFrom(numpy_helper.from_array(turned, tensor.name))
        return count

    monkeypatch.setattr(jetson, "replace_all", wrong)
    with pytest.raises(GateError, match=r"tensorrt-7\.2: drifted from the student"):
        export(quantized, tmp_path / "out", FORMATS, PROMPTS, kernels=kernels.path)
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial" / "tensorrt-7.2").exists()


def test_what_takes_no_kernels_is_refused_before_anything_is_compiled(student, quantized, kernels, tmp_path):
    for of, formats, said in (
        (quantized, ["gguf", "onnx-portable"], "name a format such as tensorrt-7.2 in --formats"),
        (quantized, ["tensorrt"], "has TensorRT 10.3; our kernels are plugins from 10.9 on"),
        (student, FORMATS, "this student has none; quantize it to 4 bits"),
    ):
        with pytest.raises(UsageError, match=said):
            export(of, tmp_path / "out", formats, PROMPTS, kernels=kernels.path)
    with pytest.raises(ArtifactError, match="no folder of `soloist kernels build`"):
        export(quantized, tmp_path / "out", FORMATS, PROMPTS, kernels=quantized.path)
    with pytest.raises(ArtifactError, match="no builds of w4a16_gemv for sm_110, but sm_87, sm_120"):
        export(quantized, tmp_path / "out", ["tensorrt-7.0"], PROMPTS, kernels=kernels.path)
    assert not list(tmp_path.iterdir())

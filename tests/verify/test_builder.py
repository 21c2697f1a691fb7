"""What the builder of onnxruntime-genai writes and exits 0 for: the gate lets no broken file through."""

import itertools
import subprocess
import sys

import pytest

for package in ("torch", "transformers", "onnxruntime_genai", "onnx_ir"):
    pytest.importorskip(package)

from soloist.kernels.errors import ArtifactError  # noqa: E402
from soloist.targets.to_onnx import compile_onnx  # noqa: E402
from soloist.targets.tolerances import tolerance_of  # noqa: E402
from soloist.toolchain.verify.fidelity import judge  # noqa: E402
from soloist.toolchain.verify.process import Prompts  # noqa: E402

PROMPTS = Prompts([[{"role": "user", "content": "What is 12 + 30?"}]], ["The sum of 12 and 30 is 42."])
MIXED = "last_matmul:int8"
KNOWN = {
    "asymmetric": {"is_symmetric": "false"},
    "mixed": {"matmul_mixed_precision": MIXED},
    "mixed and asymmetric": {"matmul_mixed_precision": MIXED, "is_symmetric": "false"},
}
# those that change what nodes there are, all with all; blocks and accuracy levels take turns among them
NODES = {
    "algo_config": (None, "rtn", "k_quant"),
    "is_symmetric": (None, "false"),
    "matmul_mixed_precision": (None, MIXED, f"{MIXED},mixed_layers:int8"),
    "shared_embeddings": (None, "false"),
    "use_qdq": (None, "true"),
}
NUMBERS = list(itertools.product(("16", "32", "64", "128"), (None, "1", "4")))


def combinations():
    every = itertools.product(("int4", "int8"), *NODES.values())
    for (precision, *values), (block, level) in zip(every, itertools.cycle(NUMBERS), strict=False):
        options = dict(zip(NODES, values, strict=True)) | {"block_size": block, "accuracy_level": level}
        yield precision, {key: value for key, value in options.items() if value is not None}


pytestmark = pytest.mark.usefixtures("warm_workers")  # one thread, here and in the subprocesses


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    """The student's record is taken once."""
    return tmp_path_factory.mktemp("scratch")


@pytest.mark.parametrize("options", KNOWN.values(), ids=KNOWN)
def test_the_three_known_broken_files_are_caught(options, tiny, scratch, tmp_path):
    compile_onnx(tiny, tmp_path / "broken", "int4", options=options)
    verdict = judge(tiny, tmp_path / "broken", PROMPTS, scratch, tolerance_of("onnx-int4"))
    assert verdict.verdict == "fail"
    assert "does not run: " in verdict.reason and "onnxruntime cannot load this model" in verdict.reason


def test_the_same_options_without_sharing_pass(tiny, scratch, tmp_path):
    options = {**KNOWN["mixed and asymmetric"], "shared_embeddings": "false"}
    compile_onnx(tiny, tmp_path / "whole", "int4", options=options)
    assert judge(tiny, tmp_path / "whole", PROMPTS, scratch, tolerance_of("onnx-int4")).verdict == "pass"


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "options"), list(combinations()))
def test_no_combination_of_options_gets_a_broken_file_through(precision, options, tiny, scratch, tmp_path):
    try:
        compile_onnx(tiny, tmp_path / "file", precision, options=options)
    except ArtifactError as error:
        assert "the ONNX builder failed (" in str(error) and not (tmp_path / "file").exists()
        return
    limit = tolerance_of(f"onnx-{precision}")
    verdict = judge(tiny, tmp_path / "file", PROMPTS, scratch, limit)
    load = "import sys, onnxruntime_genai as og; og.Model(sys.argv[1])"
    loads = subprocess.run([sys.executable, "-c", load, str(tmp_path / "file")], capture_output=True, check=False)
    if verdict.verdict == "pass":
        assert loads.returncode == 0, "passed, and another process cannot load it"
        assert verdict.drift.kl_mean <= limit.kl and verdict.drift.top1 >= limit.top1
    else:
        assert verdict.verdict == "fail" and len(verdict.reason) > 20

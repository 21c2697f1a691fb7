"""Kernels for a device's folder, from builds that no compiler has seen: the PTX is only copied."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton", reason="Triton is not installed")

from soloist.kernels.aot import read_builds
from soloist.kernels.errors import ArtifactError, UsageError
from soloist.targets.tensorrt.builds import Builds, copy_builds, in_order

folders = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("kernel_builds.py"))))


def test_a_copy_has_what_the_graph_needs_and_no_more(tmp_path):
    folders.write(tmp_path, ("sm_87", "sm_120"))
    out = tmp_path / "device" / "kernels"
    out.mkdir(parents=True)
    assert copy_builds(tmp_path, out, (87, 110), {32}) == ["sm_87"]
    wanted = Builds.read(tmp_path, "sm_87").tactics("", "FP16", 32)
    assert len(wanted) > 1
    assert [r["build"] for r in Builds.read(out, "sm_87").tactics("", "FP16", 32)] == [
        record["build"] for record in wanted
    ]
    copied = read_builds(out)
    assert {file.suffix for file in out.rglob("*") if file.is_file()} == {".json", ".ptx"}
    assert len(list(out.rglob("*.ptx"))) == len(wanted) == len(copied)
    with pytest.raises(ArtifactError, match="no builds of w4a16_gemv for sm_110, but sm_87, sm_120"):
        copy_builds(tmp_path, out, (110,), {32})
    with pytest.raises(UsageError, match="groups of 64 was not built for sm_87; there are FP16 in groups of 32"):
        copy_builds(tmp_path, out, (87,), {32, 64})
    (out / copied[0]["files"]["ptx"]["path"]).write_text("other")
    with pytest.raises(ArtifactError, match="missing or changed"):
        Builds.read(out, "sm_87")


def test_a_kernel_that_reads_what_it_would_not_get_is_refused():
    ptx = (
        ".visible .entry k(\n\t.param .u64 k_param_0,\n\t.param .u64 k_param_1\n)\n{ ld.param.b64 %rd1, [k_param_1]; }"
    )
    assert in_order(ptx, ["y_ptr", "x_ptr"], ["x_ptr", "y_ptr"]).index("param_1") < ptx.index("param_1")
    assert "k_param_0" not in in_order(ptx, ["scratch", "x_ptr"], ["x_ptr"])
    with pytest.raises(ArtifactError, match="reads scratch, which TensorRT has not to give"):
        in_order(ptx, ["y_ptr", "scratch"], ["y_ptr"])
    with pytest.raises(ArtifactError, match="no entry of 3 arguments"):
        in_order(ptx, ["a", "b", "c"], ["a"])

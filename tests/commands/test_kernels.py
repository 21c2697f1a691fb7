"""`soloist kernels`, `soloist devices` and `soloist predict`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from soloist.kernels.aot import read_builds
from soloist.kernels.choose import REGISTRY, Impl
from soloist.toolchain.core.artifact import Artifact

FOLDER = Path(__file__).parents[1] / "kernels"


@pytest.fixture
def row_dot(monkeypatch, tmp_path):
    """The tests' own kernel as the only one, and a cache of its own."""
    pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setenv("PYTHONPATH", str(FOLDER), prepend=os.pathsep)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in list(REGISTRY):
        monkeypatch.delitem(REGISTRY, name)
    monkeypatch.setitem(REGISTRY, "row_dot", Impl("row_dot", "row_dot"))


def last(result):
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1])


def test_list_shows_builds_and_what_runs_here(soloist, row_dot):
    shown = soloist("kernels", "list").stdout
    head, row = shown.splitlines()[:2]
    assert head.split() == ["kernel", "variants", "configurations", "builds", "cases", "architectures"]
    assert row.split() == ["row_dot", "1", "1", "1", "2", "sm_87", "sm_89", "sm_90", "sm_110", "sm_120"]
    assert "here: " in shown
    assert "block_n16-block_k64-w4-s2" in shown
    (kernel,) = last(soloist("kernels", "list", "--json"))["kernels"]
    assert kernel["variants"] == ["fp16"]
    assert kernel["implementation"] in ("reference", "triton")


def test_check_prints_the_worst_error_of_each_case(soloist, row_dot):
    shown = soloist("kernels", "check", "--seed", 1).stdout.splitlines()
    assert shown[0].startswith("ok    row_dot          N19-K128-float16  worst 0.")
    assert shown[-1] == "1 cases pass on cpu"
    checked = last(soloist("kernels", "check", "--seed", 1, "--slow", "--json"))
    assert len(checked["results"]) == 2
    assert checked["seed"] == 1
    assert checked["results"][0]["worst"] < 1


def test_check_fails_with_exit_code_6(refused, row_dot, monkeypatch):
    monkeypatch.setenv("ROW_DOT", "wrong")
    assert refused(6, "kernels", "check") == "1 of 1 cases fail on cpu: row_dot N19-K128-float16"


def test_build_makes_a_whole_artifact_and_knows_it_again(soloist, row_dot, tmp_path):
    out = tmp_path / "compiled"
    result = soloist("kernels", "build", "--arch", "sm_87,sm_120", "-o", out, "-j", 1)
    assert result.exit_code == 0, result.output
    assert f"{out}: 2 builds" in result.stdout
    assert "kernels: 2 of 2" in result.stderr
    records = read_builds(out)
    assert [record["arch"] for record in records] == ["sm_120", "sm_87"]
    made = Artifact.open(out, stage="kernels")
    assert made.manifest["config"]["architectures"] == [87, 120]
    assert made.manifest["versions"]["triton"] == records[0]["triton"]
    assert len(made.manifest["files"]) == 4
    again = soloist("kernels", "build", "--arch", "sm_87,sm_120", "-o", out, "-j", 1, "--json")
    assert last(again) == json.loads((out / "manifest.json").read_text())
    assert "was there already" in again.stderr


def test_build_that_spills_fails_and_leaves_no_artifact(refused, row_dot, monkeypatch, tmp_path):
    monkeypatch.setenv("ROW_DOT", "greedy")
    message = refused(6, "kernels", "build", "--arch", "sm_87", "-o", tmp_path / "compiled")
    assert "spills" in message
    assert not (tmp_path / "compiled").exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("kernels", "build", "--arch", "sm_75", "-o", "x"), "architecture sm_75: there are sm_87"),
        (("kernels", "build", "--kernel", "w3a16", "-o", "x"), "kernel 'w3a16': there is none"),
        (("kernels", "list", "--kernel", "w3a16"), "kernel 'w3a16': there is none"),
        (("kernels", "check", "--kernel", "w3a16"), "kernel 'w3a16': there is none"),
        (("devices", "toaster"), "device 'toaster': there is none"),
        (("predict", "no-such"), "student 'no-such': no folder"),
        (("predict", "smollm2-135m", "--device", "toaster"), "device 'toaster'"),
        (("predict", "smollm2-135m", "--precision", "w3"), "precision 'w3': there are fp16"),
    ],
)
def test_bad_input_is_one_line(refused, arguments, reason):
    message = refused(2, *arguments)
    assert reason in message


def test_devices_are_listed_and_shown(soloist):
    from soloist.targets.devices.spec import devices

    head, *rows, _, foot = soloist("devices").stdout.splitlines()
    assert len(rows) == len(devices())
    assert head.split()[-2:] == ["$/h", "W"]
    assert "assumed" in foot
    shown = soloist("devices", "jetson-orin-nano-8gb").stdout
    assert "bandwidth_gbs    102" in shown
    assert "the vendor's documentation" in shown
    assert "sm_87" in shown
    assert "usd_per_hour     0.0095   assumed: the developer kit at $249" in shown
    assert "watts            18       assumed: mode 25W" in shown
    assert last(soloist("devices", "this", "--json"))["usd_per_hour"] > 0
    assert last(soloist("devices", "--json"))["h100-sxm"]["architecture"] == 90
    assert last(soloist("devices", "h100-sxm", "--json"))["bandwidth_gbs"] == 3350


def test_predictions_are_labeled_as_such(soloist):
    from soloist.targets.devices.spec import devices
    from soloist.targets.predict import PRECISIONS

    shown = soloist("predict", "smollm2-135m", "--device", "jetson-orin-nano-8gb", "--precision", "w4-g32").stdout
    head, row, _, foot = shown.splitlines()
    assert "floor ms" in head
    assert head.count("predicted") == 3
    assert foot.startswith("predicted, not measured")
    assert row.split()[:2] == ["jetson-orin-nano-8gb", "w4-g32"]
    predictions = last(soloist("predict", "smollm2-135m", "--json"))["predictions"]
    assert len(predictions) == len(devices()) * len(PRECISIONS)
    assert {one["label"] for one in predictions} == {"predicted"}
    assert all(one["tokens_per_second"] > 0 for one in predictions)


def test_predictions_matrix_by_matrix(soloist):
    arguments = ("predict", "qwen2.5-0.5b", "--device", "h100-sxm", "--precision", "w4-g128", "--matrices")
    shown = soloist(*arguments).stdout.splitlines()
    assert len(shown) == 6
    assert "gate, up" in shown[3]
    rows = last(soloist(*arguments, "--json"))["matrices"]
    assert [(row["rows"], row["columns"]) for row in rows][3] == (896, 4864)
    assert {row["label"] for row in rows} == {"predicted"}

"""Compiling ahead of time, with no GPU: a small kernel through the real compiler, and every registered build."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from soloist.kernels.aot import HIDDEN, LIMITS, architectures, build_kernels, check_limits, read_builds, resources
from soloist.kernels.choose import ARCHITECTURES, REGISTRY, Impl
from soloist.kernels.errors import ArtifactError, GateError, MissingExtraError, ResourceError, UsageError
from soloist.kernels.grid import grid_size, names_in
from soloist.kernels.listing import read_ptx, read_sass

pytest.importorskip("triton", reason="Triton is not installed")
ROW_DOT = [Impl("row_dot", "row_dot")]


@pytest.fixture(scope="module")
def importable():
    """`row_dot`, importable in the compiling processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        yield patch


@pytest.fixture(scope="module")
def built(importable, tmp_path_factory):
    """The small kernel on the oldest and the newest kind of architecture: records, folder, cache, progress."""
    folder, cache, calls = tmp_path_factory.mktemp("out"), tmp_path_factory.mktemp("cache"), []
    records = build_kernels(ROW_DOT, (87, 110), folder, cache, progress=lambda *call: calls.append(call))
    return records, folder, cache, calls


def test_records_say_what_a_launch_needs(built):
    records, _, _, calls = built
    assert [record["arch"] for record in records] == ["sm_110", "sm_87"]
    names = [f"{sm} row_dot.fp16.block_n16-block_k64-w4-s2" for sm in ("sm_87", "sm_110")]
    assert calls == [(1, 2, names[0]), (2, 2, names[1])]
    for record in records:
        assert record["entry"] == "_row_dot_kernel"
        arguments = [tuple(argument.values()) for argument in record["arguments"]]
        assert arguments == [  # name, type, PTX's type, aligned, hidden
            ("w_ptr", "*fp16", "u64", True, False),
            ("x_ptr", "*fp16", "u64", True, False),
            ("y_ptr", "*fp16", "u64", True, False),
            ("N", "i32", "u32", False, False),
            ("K", "i32", "u32", True, False),
            (HIDDEN[0], "*i8", "u64", False, True),
            (HIDDEN[1], "*i8", "u64", False, True),
        ]
        assert record["block"] == [128, 1, 1]
        assert record["warps"] == 4
        assert grid_size(record["grid"], {"N": 100, **record["constants"]}) == (7, 1, 1)
        assert 16 <= record["registers"] <= 255
        assert record["spill_stores"] == record["spill_loads"] == 0
        assert record["scratch"] == {"global": [0, 1], "profile": [0, 1]}
    check_limits(records)


def test_files_are_of_their_architecture_and_hashed(built):
    records, folder, _, _ = built
    for record, target in zip(records, ("sm_110a", "sm_87"), strict=True):
        ptx, cubin = (folder / record["files"][kind]["path"] for kind in ("ptx", "cubin"))
        assert read_ptx(ptx.read_text()).target == record["ptx_target"] == target
        assert cubin.read_bytes()[:4] == b"\x7fELF"
        assert read_sass(cubin)["EXIT"] >= 1
        for kind, file in (("ptx", ptx), ("cubin", cubin)):
            assert record["files"][kind]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()


def test_the_ptx_is_as_old_as_its_machines_need(built):
    records, *_ = built
    assert [record["ptx_version"] for record in records] == ["9.0", "8.5"]


def test_weights_are_loaded_sixteen_bytes_at_a_time_and_once(built):
    records, *_ = built
    for record in records:
        inside = [load for load in record["loads"]["w_ptr"] if load[1] > 0]
        assert {load[0] for load in record["loads"]["w_ptr"]} == {16}
        assert sum(load[0] for load in inside) * record["block"][0] == 16 * 64 * 2  # the block, in bytes
        assert record["matrix"] == {}


def test_what_was_compiled_is_not_compiled_again(built, tmp_path):
    records, _, cache, _ = built
    times = {file.name: file.stat().st_mtime_ns for file in cache.iterdir()}
    again = build_kernels(ROW_DOT, (87, 110), tmp_path, cache, workers=2)
    assert again == records
    assert {file.name: file.stat().st_mtime_ns for file in cache.iterdir()} == times
    lost = next(cache.glob("*.json"))
    lost.unlink()  # as after a kill between the files of a build
    assert [r["files"] for r in build_kernels(ROW_DOT, (87, 110), tmp_path, cache)] == [r["files"] for r in records]
    assert lost.is_file()


def test_another_ptx_version_can_be_asked_for(importable, tmp_path):
    (record,) = build_kernels(ROW_DOT, (87,), tmp_path, tmp_path / "cache", ptx=84)
    assert record["ptx_version"] == "8.4"
    assert ".version 8.4" in (tmp_path / record["files"]["ptx"]["path"]).read_text()


def test_spills_are_refused(importable, tmp_path):
    importable.setenv("ROW_DOT", "greedy")
    try:
        records = build_kernels(ROW_DOT, (87,), tmp_path, tmp_path / "cache")
    finally:
        importable.delenv("ROW_DOT")
    assert records[0]["spill_stores"] > 0
    with pytest.raises(GateError, match=r"sm_87 row_dot\.fp16\.block_n64-block_k128-w1-s1 spills \d+ bytes"):
        check_limits(records)
    check_limits([{**records[0], "shipped": False}])


def test_too_much_shared_memory_is_refused_shipped_or_not(built):
    records, *_ = built
    check_limits([{**records[1], "shared": 163 * 1024}])
    with pytest.raises(GateError, match=r"sm_87 .* takes 166913 bytes of shared memory, 166912 there are"):
        check_limits([{**records[1], "shared": 163 * 1024 + 1, "shipped": False}])


def test_what_does_not_compile_is_named(importable, tmp_path):
    importable.setenv("ROW_DOT", "broken")
    try:
        with pytest.raises(GateError, match=r"2 of 2 builds did not compile: sm_87 row_dot.*no_such_function"):
            build_kernels(ROW_DOT, (87, 90), tmp_path, tmp_path / "cache")
    finally:
        importable.delenv("ROW_DOT")


def test_a_process_that_dies_is_told(importable, tmp_path):
    with pytest.raises(
        ResourceError,
        match="a compiling process ended with code 1: ModuleNotFoundError: No module named 'no_such_module'",
    ):
        build_kernels([Impl("ghost", "no_such_module")], (87,), tmp_path, tmp_path / "cache")


def test_without_triton_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("soloist.kernels.choose._installed", lambda: False)
    with pytest.raises(MissingExtraError, match=r"soloist\[kernels\]"):
        build_kernels(ROW_DOT, (87,), tmp_path, tmp_path / "cache")


def test_architectures_by_name():
    assert architectures("sm_87,sm_110") == (87, 110)
    assert architectures("90, sm_90,120") == (90, 120)
    assert tuple(LIMITS) == ARCHITECTURES
    for text in ("sm_86", "sm_87,banana", ""):
        with pytest.raises(UsageError, match="there are sm_87"):
            architectures(text)


def test_what_ptxas_says_is_read():
    log = (
        "ptxas info    : Function properties for k\n"
        "    24 bytes stack frame, 16 bytes spill stores, 12 bytes spill loads\n"
        "ptxas info    : Used 255 registers, used 1 barriers, 24 bytes cumulative stack size, 512 bytes smem\n"
    )
    assert resources(log) == {
        "registers": 255,
        "stack": 24,
        "spill_stores": 16,
        "spill_loads": 12,
        "static_shared": 512,
    }
    with pytest.raises(ArtifactError, match="ptxas did not say"):
        resources("nothing")


def test_a_folder_is_read_back_and_a_changed_file_is_noticed(built):
    records, folder, *_ = built
    with pytest.raises(ArtifactError, match="no folder of `soloist kernels build`"):
        read_builds(folder)
    (folder / "manifest.json").write_text(json.dumps({"facts": {"builds": records}}))
    assert read_builds(folder) == records
    file = folder / records[0]["files"]["ptx"]["path"]
    text = file.read_text()
    file.write_text(text + "\n")
    with pytest.raises(ArtifactError, match="missing or changed"):
        read_builds(folder)
    file.write_text(text)
    (folder / "manifest.json").unlink()


@pytest.mark.parametrize("name", REGISTRY)
def test_builds_of_a_kernel_are_whole(name):
    """Without compiling: names differ, every argument is given once, grids speak of arguments."""
    builds = list(REGISTRY[name].load().builds())
    assert builds
    assert len({build.name for build in builds}) == len(builds)
    for build in builds:
        given = [*build.signature, *build.constants]
        assert build.kernel == name
        assert sorted(given) == sorted(build.function.arg_names), build.name
        assert set(build.aligned) <= set(build.signature), build.name
        assert set(build.configuration.constants) <= set(build.constants), build.name
        assert set(build.architectures) <= set(ARCHITECTURES)
        assert len(build.grid) == 3
        for expression in build.grid:
            assert names_in(expression) <= set(given), f"{build.name}: grid {expression}"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_build_compiles_for_every_architecture_within_its_limits(tmp_path, tmp_path_factory):
    cache = tmp_path_factory.getbasetemp() / "compiled"
    records = build_kernels(list(REGISTRY.values()), ARCHITECTURES, tmp_path, cache, workers=os.cpu_count())
    check_limits(records)
    assert {record["kernel"] for record in records} == set(REGISTRY)
    for record in records:
        assert record["block"][0] == 32 * record["warps"]
        assert record["registers"] * record["block"][0] <= 65536
        assert [a["name"] for a in record["arguments"] if a["hidden"]] == list(HIDDEN)
        assert record["scratch"]["global"][0] == 0, f"{record['build']} needs a scratch buffer"

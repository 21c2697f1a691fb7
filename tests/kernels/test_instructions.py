"""The machine code of what ships: weights are read 16 bytes at a time and once, matrix instructions stand where meant.

What is streamed: the matrices of the low-bit matmuls, the cache of attention, the logits of the loss, what is packed.
The default tests look at a few builds on two architectures, the slow ones at all builds on all.
"""

from __future__ import annotations

import os

import pytest

from soloist.kernels.aot import build_kernels
from soloist.kernels.choose import ARCHITECTURES, REGISTRY
from soloist.kernels.listing import read_sass

pytest.importorskip("triton", reason="Triton is not installed")
BYTES = {"*fp32": 4, "*i32": 4, "*fp16": 2, "*bf16": 2, "*i8": 1}
MATMULS = ("w4a16_gemv", "w8a16_gemv", "w4a16_gemm", "w8a16_gemm")
STREAMING = (*MATMULS, "decode_attention", "linear_kl", "pack")


def _bytes_per_turn(kernel, constants, types):
    """Bytes of each streamed tensor that a program takes per turn of its loop, by argument; none in a helper kernel."""
    if kernel in MATMULS:
        names = sorted({"words_ptr", "up_words_ptr"} & set(types))
        wide = constants.get("CHUNKS", 4)  # loads of 16 bytes side by side in a row
        return dict.fromkeys(names, constants.get("BLOCK_N", 0) * wide * 16)
    if kernel == "linear_kl":
        names = ["logits", "teacher"][: 1 if constants.get("KIND") == 0 else 2]
        elements = constants["BLOCK_T"] * constants["BLOCK_V"]
    elif kernel == "pack":
        names, elements = ["weight"], constants["ELEMENTS"]
    else:
        names = sorted({"key", "value"} & set(types))
        elements = constants.get("BLOCK_S", 0) * constants["BLOCK_D"]
    return {name: elements * BYTES[types[name]] for name in names}


def _streamed(record):
    return _bytes_per_turn(record["kernel"], record["constants"], {a["name"]: a["type"] for a in record["arguments"]})


def _multiplies_matrices(record):
    return "BLOCK_M" in record["constants"] or "BLOCK_G" in record["constants"]


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """One build of every function that streams: in the default configuration and precision, and one more of int8."""
    folder, cache = tmp_path_factory.mktemp("few"), tmp_path_factory.getbasetemp() / "compiled"
    names = {}
    for name in STREAMING:
        for build in REGISTRY[name].load().builds():
            if build.shipped and _bytes_per_turn(name, build.constants, build.signature):
                names.setdefault((name, build.function.__name__, build.signature.get("key")), build.name)
    only = list(names.values())
    return folder, build_kernels([REGISTRY[name] for name in STREAMING], (87, 90), folder, cache, only=only)


@pytest.fixture(scope="module")
def every(tmp_path_factory):
    folder, cache = tmp_path_factory.mktemp("every"), tmp_path_factory.getbasetemp() / "compiled"
    impls = [REGISTRY[name] for name in STREAMING]
    return folder, build_kernels(impls, ARCHITECTURES, folder, cache, workers=os.cpu_count())


def _check(folder, record):
    who = f"{record['arch']} {record['build']}"
    for name, streamed in _streamed(record).items():
        loads = record["loads"][name]
        assert {load[0] for load in loads} <= {16, 32}, f"{who}: {name} is loaded {loads}"
        looped = max(depth for _, depth, _ in loads)  # or there is none, and a program is one turn
        turn = sum(width for width, depth, _ in loads if depth or not looped) * record["block"][0]
        assert turn == streamed, f"{who}: a turn of the loop loads {turn} bytes of {name}, its block has {streamed}"
    sass = read_sass(folder / record["files"]["cubin"]["path"])
    if _streamed(record):
        assert any(name.startswith(("LDG", "LDGSTS")) and ".128" in name for name in sass), f"{who}: {sorted(sass)}"
    matrix = [name for name in sass if name.startswith(("HMMA", "HGMMA", "UTCHMMA", "IMMA"))]
    assert bool(record["matrix"]) == bool(matrix) == (_multiplies_matrices(record) and bool(_streamed(record))), (
        f"{who}: {record['matrix']} in the PTX, {matrix} in the cubin"
    )


def test_a_few_builds_load_wide_and_once(few):
    folder, records = few
    assert {record["kernel"] for record in records} == set(STREAMING)
    for record in records:
        assert _streamed(record)
        _check(folder, record)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_build_loads_wide_and_once(every):
    folder, records = every
    assert sum(bool(_streamed(record)) for record in records) > len(records) / 2
    for record in records:
        if record["shipped"]:
            _check(folder, record)

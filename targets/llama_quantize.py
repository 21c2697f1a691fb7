"""A GGUF file in any type llama.cpp's own quantizer writes, with our importance matrix and types per tensor.

`llama_model_quantize` takes importances and per-tensor types as plain C arrays ended by an empty entry (llama-cpp-
python 0.3.36; older versions took C++ containers, which no Python can build). A K-quant's rows must divide by 256:
llama.cpp falls back to a type of blocks of 32 where they do not, and the facts say what was written.

An importance is the mean of the squares of what enters each column of a matrix. Its file, in llama.cpp's GGUF form
(`llama-quantize --imatrix` reads it), holds per matrix the sum of the squares and how many tokens were summed:

    <tensor>.in_sum2 float32 (columns,)    <tensor>.counts float32 (1,)    general.type "imatrix"

Left out: files split in shards, the older .dat form.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from soloist.kernels.errors import ArtifactError
from soloist.targets.base import require
from soloist.targets.files import whole_file
from soloist.targets.gguf_file import field, read_gguf

Importance = Mapping[str, npt.NDArray[Any]]
_SUMS, _COUNTS = ".in_sum2", ".counts"
IMPORTANCE = "importance.gguf"  # how an importance matrix is called
_PREFIX = "MOSTLY_"
_LOG_ERROR = 4  # GGML_LOG_LEVEL_ERROR in ggml.h; the binding counts otherwise


def types() -> tuple[str, ...]:
    """The mixes llama.cpp's quantizer writes, by their names: "Q4_K_M", "IQ4_NL" …"""
    gguf = require("gguf", "train")
    return tuple(kind.name.removeprefix(_PREFIX) for kind in gguf.LlamaFileType if kind.name.startswith(_PREFIX))


def quantize_gguf(
    source: Path,
    out: Path,
    type: str,
    *,
    importance: Importance | None = None,
    overrides: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Write `source` as `type` to the file `out`; returns its facts: bytes, tensors by type, what fell back.

    Args:
        type: one of `types()`, in any case.
        importance: tensor name in GGUF -> (columns,) mean squares of what the matrix is multiplied with.
        overrides: tensor name in GGUF -> type such as "q6_k", instead of the mix's choice.

    Raises:
        ArtifactError: a source, type, tensor or importance that does not fit; no file is left then.
    """
    gguf, lib = require("gguf", "train"), require("llama_cpp", "llama-quantize")
    name = type.upper()
    if name not in types():
        raise ArtifactError(f"'{type}' is not a type llama.cpp quantizes to; use one of {', '.join(types())}")
    columns = {tensor.name: int(tensor.shape[0]) for tensor in read_gguf(source).tensors}
    weights = _checked(importance or {}, columns, source)
    kinds = _kinds(overrides or {}, columns, source)
    parameters = lib.llama_model_quantize_default_params()
    parameters.ftype = gguf.LlamaFileType[_PREFIX + name].value
    parameters.allow_requantize = True
    parameters.nthread = int(os.environ.get("OMP_NUM_THREADS") or 0)
    if weights:
        parameters.imatrix = _importances(lib, weights)
    if kinds:
        parameters.tt_overrides = _overrides(lib, kinds)
    with whole_file(out) as temporary:
        with _log(lib) as log:
            code = lib.llama_model_quantize(str(source).encode(), str(temporary).encode(), ctypes.byref(parameters))
        if code != 0:
            raise ArtifactError(f"{source}: llama.cpp could not write it as {type} ({_reason(log, code)})")
        written = {tensor.name: tensor.tensor_type for tensor in read_gguf(temporary).tensors}
        size = temporary.stat().st_size
    counts = Counter(kind.name for kind in written.values())
    fell_back = {tensor: written[tensor].name for tensor, kind in kinds.items() if written[tensor] != kind}
    return {"file": out.name, "type": name, "bytes": size, "tensors": dict(counts), "fell_back": fell_back}


def _checked(importance: Importance, columns: Mapping[str, int], source: Path) -> dict[str, npt.NDArray[np.float32]]:
    arrays: dict[str, npt.NDArray[np.float32]] = {}
    for name, values in importance.items():
        array = np.ascontiguousarray(values, np.float32).reshape(-1)
        if name not in columns:
            raise ArtifactError(f"{source}: has no tensor '{name}' of the importance matrix, which is another model's")
        if array.size != columns[name]:
            raise ArtifactError(f"{source}: '{name}' has {columns[name]} columns, its importance {array.size}")
        if not np.isfinite(array).all() or (array < 0).any():
            raise ArtifactError(f"the importance of '{name}' is not made of finite squares; measure it again")
        arrays[name] = array
    return arrays


def _kinds(overrides: Mapping[str, str], columns: Mapping[str, int], source: Path) -> dict[str, Any]:
    known = require("gguf", "train").GGMLQuantizationType
    kinds = {}
    for name, kind in overrides.items():
        if name not in columns:
            raise ArtifactError(f"{source}: has no tensor '{name}', whose type was asked for")
        if kind.upper() not in known.__members__:
            raise ArtifactError(
                f"'{kind}' for '{name}' is no type of tensor; use one of {', '.join(known.__members__)}"
            )
        kinds[name] = known[kind.upper()]
    return kinds


def _importances(lib: Any, weights: Mapping[str, npt.NDArray[np.float32]]) -> Any:
    """The C array; numpy's memory stays alive as long as `weights`, names as long as the array."""
    array = (lib.llama_model_imatrix_data * (len(weights) + 1))()
    for entry, (name, values) in zip(array, weights.items(), strict=False):
        entry.name, entry.size = name.encode(), values.size
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    return array


def _overrides(lib: Any, kinds: Mapping[str, Any]) -> Any:
    """The C array; llama.cpp searches each tensor's name for the pattern."""
    array = (lib.llama_model_tensor_override * (len(kinds) + 1))()
    for entry, (name, kind) in zip(array, kinds.items(), strict=False):
        entry.pattern, entry.type = f"^{re.escape(name)}$".encode(), int(kind)
    return array


@contextlib.contextmanager
def _log(lib: Any) -> Iterator[list[tuple[int, str]]]:
    """The level and text of what llama.cpp logs meanwhile, which does not reach the terminal."""
    log: list[tuple[int, str]] = []
    callback = lib.llama_log_callback(lambda level, text, _: log.append((level, text.decode("utf-8", "replace"))))
    before, data = lib.llama_log_callback(), ctypes.c_void_p()
    lib.llama_log_get(ctypes.byref(before), ctypes.byref(data))
    lib.llama_log_set(callback, ctypes.c_void_p(0))
    try:
        yield log
    finally:
        lib.llama_log_set(before, data)


def _reason(log: list[tuple[int, str]], code: int) -> str:
    """The last error that was logged."""
    for level, text in reversed(log):
        line = text.rpartition("failed to quantize:")[2].strip()
        if level == _LOG_ERROR and line:
            return line
    return f"code {code}"


def write_importance(path: Path, sums: Mapping[str, tuple[npt.NDArray[Any], float]], dataset: str = "traces") -> None:
    """Write sums of squares (columns,) and numbers of tokens as llama.cpp's importance-matrix file."""
    gguf = require("gguf", "train")
    with whole_file(path) as temporary:
        writer = gguf.GGUFWriter(str(temporary), "")  # such a file has no architecture
        writer.add_type("imatrix")
        writer.add_array("imatrix.datasets", [dataset])
        most = 1.0
        for name, (total, count) in sorted(sums.items()):
            writer.add_tensor(name + _SUMS, np.ascontiguousarray(total, np.float32).reshape(1, -1))
            writer.add_tensor(name + _COUNTS, np.full((1, 1), count, np.float32))
            most = max(most, count)
        writer.add_uint32("imatrix.chunk_count", 1)
        writer.add_uint32("imatrix.chunk_size", round(most))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def read_importance(path: Path) -> dict[str, tuple[npt.NDArray[np.float32], float]]:
    """Sums of squares and numbers of tokens by tensor. Raises ArtifactError: no such file, or not of that form."""
    reader = read_gguf(path)
    if field(reader, "general.type") != "imatrix":
        raise ArtifactError(f"{path}: a GGUF file but not an importance matrix")
    arrays = {tensor.name: np.array(tensor.data, np.float32).reshape(-1) for tensor in reader.tensors}
    sums = {}
    for key in sorted(arrays):
        if key.endswith(_SUMS):
            name = key.removesuffix(_SUMS)
            counts = arrays.get(name + _COUNTS)
            if counts is None or counts.size != 1:
                raise ArtifactError(f"{path}: no count for {name}; measure the matrix again")
            sums[name] = (arrays[key], float(counts[0]))
    if not sums:
        raise ArtifactError(f"{path}: no count for any tensor; measure the matrix again")
    return sums


def mean_squares(sums: Mapping[str, tuple[npt.NDArray[Any], float]]) -> dict[str, npt.NDArray[np.float32]]:
    """The importances of `quantize_gguf`. A matrix no token has passed weighs all columns alike, as in llama.cpp."""
    means = {}
    for name, (total, count) in sums.items():
        means[name] = np.asarray(total / count if count > 0 else np.ones_like(total), np.float32)
    return means

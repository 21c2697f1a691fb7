"""A GGUF file in another precision, made once and kept: the same model where its runtime computes fastest.

The embedded base comes as Q4_1, which llama.cpp multiplies without a fast path on most processors; the
same weights as Q8_0 read a prompt almost twice as fast on one core, and every value is kept to 8 bits.
The `gguf` package rounds as llama.cpp's quantizer does, to the same bytes, and needs no compiler.

    matrices   Q8_0 or F16; F16 where a row does not divide into Q8_0's blocks of 32
    vectors    F32, as every file has them
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from soloist.kernels.errors import ArtifactError
from soloist.targets.base import require
from soloist.targets.gguf_file import check_gguf, read_gguf

PRECISIONS = ("q8_0", "f16")
_WRITTEN_BY_THE_WRITER = ("GGUF.", "general.architecture", "general.file_type", "general.quantization_version")


def cache_folder() -> Path:
    """Where files are kept that can be made again: $XDG_CACHE_HOME/soloist, or ~/.cache/soloist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "soloist"


def requantize(source: Path, precision: str, folder: Path | None = None) -> Path:
    """`source` as `precision` (of PRECISIONS), from the cache if it was made before. Raises ArtifactError."""
    if precision not in PRECISIONS:
        raise ArtifactError(f"{source}: no copy in '{precision}' is made; use one of {', '.join(PRECISIONS)}")
    check_gguf(source)
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    target = (folder or cache_folder()) / f"{source.name.split('.')[0]}-{digest}.{precision}.gguf"
    if target.is_file():
        return target
    reader = read_gguf(source)
    if "general.architecture" not in reader.fields or not reader.tensors:
        raise ArtifactError(f"{source}: names no architecture or has no tensors, so it is no model")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    try:
        _write(reader, precision, temporary)
        temporary.replace(target)
    except NotImplementedError as error:  # a type the package does not read
        raise ArtifactError(f"{source}: cannot be written as {precision} ({error})") from error
    finally:
        temporary.unlink(missing_ok=True)
    return target


def _write(reader: Any, precision: str, out: Path) -> None:
    """Write every tensor of an open file in `precision`, one in memory at a time, and the metadata as it is."""
    gguf = require("gguf", "gguf")
    writer = gguf.GGUFWriter(str(out), reader.fields["general.architecture"].contents())
    try:
        for key, field in reader.fields.items():
            if not key.startswith(_WRITTEN_BY_THE_WRITER):
                element = field.types[-1] if len(field.types) > 1 else None
                writer.add_key_value(key, field.contents(), field.types[0], element)
        writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{precision.upper()}"])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        kinds = [_kind(gguf, tensor, precision) for tensor in reader.tensors]
        for tensor, kind in zip(reader.tensors, kinds, strict=True):
            block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
            shape = [int(length) for length in reversed(tensor.shape)]
            nbytes = int(tensor.n_elements) // block * block_bytes
            writer.add_tensor_info(tensor.name, shape, np.dtype(np.float32), nbytes, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor, kind in zip(reader.tensors, kinds, strict=True):
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            writer.write_tensor_data(gguf.quants.quantize(values, kind))
    finally:
        writer.close()


def _kind(gguf: Any, tensor: Any, precision: str) -> Any:
    kinds = gguf.GGMLQuantizationType
    if len(tensor.shape) == 1:
        return kinds.F32
    kind = kinds[precision.upper()]
    return kind if int(tensor.shape[0]) % gguf.GGML_QUANT_SIZES[kind][0] == 0 else kinds.F16

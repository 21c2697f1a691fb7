"""A GGUF file in another precision, made once and kept: the same model where its runtime computes fastest.

The embedded base comes as Q4_1, which llama.cpp multiplies without a fast path on most processors; the
same weights as Q8_0 read a prompt almost twice as fast on one core, and every value is kept to 8 bits.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from soloist.targets.gguf_file import check_gguf
from soloist.targets.llama_quantize import quantize_gguf


def cache_folder() -> Path:
    """Where files are kept that can be made again: $XDG_CACHE_HOME/soloist, or ~/.cache/soloist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "soloist"


def requantize(source: Path, precision: str, folder: Path | None = None) -> Path:
    """`source` as `precision` ("q8_0" or "f16"), from the cache if it was made before. Raises ArtifactError."""
    check_gguf(source)
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    target = (folder or cache_folder()) / f"{source.name.split('.')[0]}-{digest}.{precision}.gguf"
    if target.is_file():
        return target
    quantize_gguf(source, target, precision)
    return target

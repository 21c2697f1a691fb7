"""GGUF files from outside: what is checked before llama.cpp or the `gguf` package reads one."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from soloist.kernels.errors import ArtifactError
from soloist.targets.base import require

MAGIC = b"GGUF"


def check_gguf(path: Path) -> None:
    """Raise ArtifactError where a file is missing, is not GGUF, or has a version that is not read."""
    if not path.is_file():
        raise ArtifactError(f"{path}: no such model file")
    with path.open("rb") as file:
        head = file.read(24)  # magic, version, counts of tensors and keys
    if head[:4] != MAGIC:
        raise ArtifactError(f"{path}: not a GGUF file (it begins with {head[:4]!r}); give the path of a GGUF model")
    if len(head) < 24:
        raise ArtifactError(f"{path}: the GGUF file is cut off or damaged ({len(head)} bytes); fetch it again")
    version = struct.unpack("<I", head[4:8])[0]
    if not 2 <= version <= 3:
        raise ArtifactError(f"{path}: GGUF version {version} is not supported (2 and 3 are)")


def read_gguf(path: Path) -> Any:
    """Open a GGUF file for reading, every tensor inside the file.

    Raises:
        ArtifactError: missing, not GGUF, cut off or damaged.
    """
    gguf = require("gguf", "train")
    check_gguf(path)
    try:
        return gguf.GGUFReader(path)
    except Exception as error:  # the reader indexes a memory map: damage shows as almost any exception
        raise ArtifactError(f"{path}: the GGUF file is cut off or damaged ({error}); fetch it again") from error


def field(reader: Any, key: str, default: Any = None) -> Any:
    """One metadata value of an open GGUF file."""
    entry = reader.fields.get(key)
    return default if entry is None else entry.contents()

"""Files written whole or not at all, hashed, and a full or forbidden disk said in one line."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from soloist.kernels.errors import ResourceError


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def explain_disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk or a forbidden folder into one line."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(f"{path}: the disk is full; free some space and run the same command again") from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise ResourceError(f"{path}: not writable; choose another folder with --output") from error
        raise


def write_atomic(path: Path, text: str) -> None:
    """Write a text file under a temporary name, then rename it."""
    temporary = path.with_name(path.name + ".tmp")
    with explain_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


def append_line(file: FileIO, line: str) -> None:
    """Write a whole line to an unbuffered file, whose `close` then has nothing left that could fail."""
    data = memoryview(line.encode())
    while data:
        data = data[file.write(data) :]

"""Files and folders that exist whole or not at all: written under another name, renamed when they are complete.

A model file is minutes of work and gigabytes; whoever finds one under its own name may open it. Left out: waiting for
another writer of the same name (the last one to finish wins).
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole_file(file: Path) -> Iterator[Path]:
    """The name to write to. The file takes its own name at the end; after an exception nothing is left.

    Each process writes to a name of its own, so that two may make the same file of a cache.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """An empty folder to fill. It takes the name at the end, in the place of what has it; else nothing is left."""
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)

"""How much memory a stage takes: this process and all it started, looked at every few seconds.

Memory that processes share (a mapped model file, libraries) is divided among them where the system tells (Linux, by
PSS), so that it counts once. A peak between two looks is missed. Left out: memory of a GPU.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from threading import Event, Thread

import psutil

INTERVAL_S = 2.0


@dataclass
class Peak:
    """The most that was seen, in megabytes (10^6 bytes); 0 before the first look."""

    mb: float = 0.0


@contextlib.contextmanager
def peak_memory(interval_s: float = INTERVAL_S) -> Iterator[Peak]:
    """Look at once, every `interval_s`, and once more at the end."""
    peak, ended = Peak(), Event()

    def look() -> None:
        peak.mb = max(peak.mb, round(_family_bytes() / 1e6, 1))

    def watch() -> None:
        while not ended.wait(interval_s):
            look()

    look()
    watcher = Thread(target=watch, name="peak-memory", daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        ended.set()
        watcher.join()
        look()


def _family_bytes() -> int:
    """Memory of this process and of its children's children."""
    me = psutil.Process(os.getpid())
    total = 0
    for process in (me, *me.children(recursive=True)):
        with contextlib.suppress(psutil.Error):  # it ended meanwhile
            memory = process.memory_full_info()
            total += getattr(memory, "pss", 0) or memory.rss
    return total

"""A child process that ends when its parent does, however the parent ended.

The child's stdin is a pipe whose other end only the parent holds. When the parent is gone, killed with
SIGKILL too, the system closes that end; a thread of the child sees it and ends the process, whatever the
main thread is computing. So no killed job leaves a model in memory, or a second writer in a folder that
the next start works in. Plain pipes, because asking the kernel for a signal (PR_SET_PDEATHSIG) is Linux's
own and watches the parent's thread, not the process. Left out: native code that holds Python's lock; its
process ends when it lets go.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from queue import SimpleQueue
from threading import Event, Thread

_CHUNK = 65536


@contextlib.contextmanager
def lifeline() -> Iterator[int]:
    """The parent's side, for a child that is told nothing: what to give it as stdin, for as long as it may live."""
    theirs, ours = os.pipe()
    try:
        yield theirs
    finally:
        os.close(theirs)
        os.close(ours)


class Parent:
    """The child's side: lines from the parent, and its end.

    An end that comes while the child works (from the start, and from each line until `wait`) is the
    parent's death, and the child's. One that comes while it waits is a parent that needs nothing more.
    """

    def __init__(self) -> None:
        self._lines: SimpleQueue[str | None] = SimpleQueue()
        self._working = Event()
        self._working.set()
        Thread(target=self._listen, name="lifeline", daemon=True).start()

    def _listen(self) -> None:
        # not through sys.stdin: its lock, held by a waiting thread, would abort the interpreter's shutdown
        pending = b""
        while chunk := os.read(0, _CHUNK):
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                self._working.set()  # here, so that no end comes between a line and its being read
                self._lines.put(line.decode())
        if self._working.is_set():
            os._exit(1)  # nobody is left to be told, and the main thread may not listen for minutes
        self._lines.put(None)

    def wait(self) -> None:
        """Say that the work is done. To be called before the parent can know it, lest its end be its death."""
        self._working.clear()

    def line(self) -> str | None:
        """The next line; None when the parent needs nothing more."""
        return self._lines.get()

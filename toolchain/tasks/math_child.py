"""Answers compared by math-verify, in a process of its own.

    parent   verified(reply, gold)                          starts the child at the first question, keeps it
    child    python -m soloist.toolchain.tasks.math_child   {"reply", "gold", "bare"} -> {"same"}

The library limits its time with an alarm signal, which only a main thread may set and which no product of large
integers hears. Here the system ends the child that takes more processor time or memory than it may, and the next
question starts another. So a verdict comes soon, to every thread, and what a model wrote ends no more than the child.
"""

from __future__ import annotations

import atexit
import functools
import os
import re
import sys
import threading
import time

from soloist.kernels.child import Child, ChildDied, Json, Parent, limit_memory
from soloist.kernels.errors import ResourceError

LIMIT_S = 3  # of processor time: a busy machine gives the same verdicts
_PATIENCE_S = 60.0  # where there is no such limit, or the child waits for something
_MEMORY_MB = 2048
_ROOT = re.compile(r"√\s*(?:\{([^{}]*)\}|\(([^()]*)\)|(\d+(?:\.\d+)?|[a-z]))")


class _Library:
    """The child, its owner's process id, and the lock of whoever asks it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.child: Child | None = None
        self.owner = 0

    def ask(self, order: Json) -> bool:
        with self.lock:
            child = self.started()
            child.send(order)
            try:
                return bool(child.receive(_PATIENCE_S)["same"])
            except (ChildDied, TimeoutError):  # what takes so much time or memory to compare is no match
                self.close()
                return False

    def started(self) -> Child:
        if self.child is None or self.owner != os.getpid():  # a fork must not write into its parent's pipes
            self.child, self.owner = Child("soloist.toolchain.tasks.math_child"), os.getpid()
            try:
                self.child.receive()
            except ChildDied as error:
                self.close()
                raise ResourceError(f"the process that compares mathematical answers {error}") from error
        return self.child

    def close(self) -> None:
        if self.child is not None and self.owner == os.getpid():
            self.child.close()
        self.child = None


_LIBRARY = _Library()
atexit.register(_LIBRARY.close)


@functools.lru_cache(maxsize=4096)  # runs of one question give few different answers
def verified(reply: str, gold: str, bare: bool) -> bool:
    """Whether math-verify finds the gold answer in a reply; False where it finds none, or not in time.

    Args:
        bare: the reply is nothing but an answer, LaTeX or not.
    """
    return _LIBRARY.ask({"reply": _ROOT.sub(_root, reply), "gold": _ROOT.sub(_root, gold), "bare": bare})


def _root(match: re.Match[str]) -> str:
    return rf"\sqrt{{{next(filter(None, match.groups()), '')}}}"


def work() -> None:
    """Answer the parent until it needs nothing more."""
    parent = Parent()
    limit_memory(_MEMORY_MB)
    import logging

    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)  # it warns that it has no time limit
    parent.send({})
    while (order := parent.receive()) is not None:
        _limit_time()
        try:
            text = _delimited(order["reply"]) if order["bare"] else order["reply"]
            reply = parse(text, parsing_timeout=0)
            same = verify(parse(_delimited(order["gold"]), parsing_timeout=0), reply, timeout_seconds=None)
        except Exception:  # whatever a parser raises at what a model wrote: there is nothing to compare
            same = False
        parent.send({"same": bool(same)})


def _limit_time() -> None:
    if sys.platform != "win32":
        import resource

        used = int(time.process_time()) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (used + LIMIT_S, resource.RLIM_INFINITY))


def _delimited(text: str) -> str:
    """Between dollars, which the library needs to read LaTeX."""
    return text if "\\boxed" in text or re.search(r"(?<!\\)\$", text) else f"${text}$"


if __name__ == "__main__":
    work()

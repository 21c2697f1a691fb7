"""Child processes: Python modules that speak JSON lines, or do one job, and end when their parent does.

    ask and answer   child = Child("soloist.toolchain.teams.worker")     send, receive, send, receive, ..., close
    one order        child.send(order); for answer in child.answers()    until the child ends by itself
    one job          run_module("soloist.toolchain.verify.worker", [job], limit_s=900, memory_mb=4096)
    in the child     parent = Parent()                                   receive, send

A child's stdin is a pipe whose other end only the parent holds. When the parent is gone, killed with SIGKILL too, the
system closes that end; a thread of the child sees it and ends the process, whatever the main thread is computing. So no
killed command leaves a model in memory, or a second writer in a folder that the next start works in. Plain pipes,
because asking the kernel for a signal (PR_SET_PDEATHSIG) is Linux's own and watches the parent's thread, not the
process. A module of others that does one job is held the same way: this module runs as `__main__` and starts it.

Children get `-P`, no warnings (the last line of stderr says why a child died) and UTF-8. Left out: native code that
holds Python's lock; its process ends when it lets go. Windows has no limit of memory for a process by itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Event, Thread, Timer
from typing import IO, Any

PYTHON = sys.executable
Json = dict[str, Any]
_PATIENCE_S = 20  # for a child that was told to end
_CHUNK = 65536
_END = "null"  # the line that asks a child to end in order
# as Python, C++, Rust, torch, threads, TensorRT, the loader of shared libraries and llama.cpp say it; last, what Python
# says of an extension that failed and gave no reason, as extensions do that do not expect to run out
_NO_MEMORY = re.compile(
    r"MemoryError|bad_alloc|OutOfMemory|can(?:no|')t (?:allocate|start new thread)|temporarily unavailable"
    r"|failed to (?:map segment|allocate)|memory allocation of|without (?:setting an )?exception(?: set)?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Ended:
    """How a child ended: exit code, or minus the number of the signal; what it wrote."""

    code: int
    stderr: str
    stdout: str = ""

    @property
    def signal_name(self) -> str:
        """The signal that ended it, such as "SIGSEGV"; empty where it ended by itself."""
        return signal.Signals(-self.code).name if self.code < 0 else ""

    @property
    def last(self) -> str:
        """The last line it wrote, to stderr if it wrote there; it says why, most of the time."""
        lines = [line.strip() for line in (self.stderr.strip() or self.stdout).splitlines() if line.strip()]
        return lines[-1][:300] if lines else ""

    @property
    def out_of_memory(self) -> bool:
        """Whether what it wrote says so; a SIGKILL says nothing."""
        return _NO_MEMORY.search(self.stderr) is not None

    def __str__(self) -> str:
        if self.signal_name == "SIGKILL":
            return "was killed (SIGKILL); is there enough memory?"
        if self.signal_name:
            return f"was killed ({self.signal_name})"
        return f"ended with code {self.code}" + (f": {self.last}" if self.last else "")


class ChildDied(Exception):
    """A child ended without the answer it owed. Its text completes "its process …"."""

    def __init__(self, ended: Ended) -> None:
        super().__init__(str(ended))
        self.ended = ended


# --- parent ---------------------------------------------------------------------------------------------------------


def run_module(
    module: str,
    arguments: Sequence[str],
    *,
    limit_s: float | None = None,
    memory_mb: int = 0,
    environment: Mapping[str, str | None] | None = None,
) -> Ended:
    """`python -m module arguments` in a process of its own, until it ends; any module.

    Args:
        memory_mb: its private memory at most (`limit_memory`); 0 for no limit.
        environment: what differs from this process's; None takes a variable away.

    Raises:
        TimeoutError: it took longer than `limit_s`, and was killed.
    """
    command = [*_python(), "-m", "soloist.kernels.child", str(memory_mb), module, *arguments]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=out, stderr=errors, env=_environment(environment)
        )
        with process:
            try:
                code = process.wait(limit_s)
            except subprocess.TimeoutExpired:
                raise TimeoutError(f"{module} did not end within {limit_s:g} s") from None
            finally:
                process.kill()
        return Ended(code, _text(errors), _text(out))


class Child:
    """A module at work in a process of its own. Close it, or use it as a context manager."""

    def __init__(self, module: str, environment: Mapping[str, str | None] | None = None) -> None:
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child
        self._owes = False
        self.process = subprocess.Popen(
            [*_python(), "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
            env=_environment(environment),
        )

    @property
    def _pipes(self) -> tuple[IO[str], IO[str]]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        return self.process.stdin, self.process.stdout

    def send(self, value: Json) -> None:
        """Give it something to do."""
        self._owes = True
        self._write(json.dumps(value, ensure_ascii=False))

    def _write(self, line: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # the answer that does not come tells it
            self._pipes[0].write(line + "\n")
            self._pipes[0].flush()

    def receive(self, limit_s: float | None = None) -> Json:
        """Its answer to what was sent.

        Raises:
            ChildDied: it ended without one.
            TimeoutError: it took longer than `limit_s`, and was killed.
        """
        with self._limited(limit_s) as late:
            line = self._pipes[1].readline()
        if late.is_set():
            raise TimeoutError(f"no answer within {limit_s:g} s")
        if not line.endswith("\n"):  # nothing, or an answer that its death cut off
            raise ChildDied(self._wait())
        self._owes = False
        answer: Json = json.loads(line)
        return answer

    @contextlib.contextmanager
    def _limited(self, seconds: float | None) -> Iterator[Event]:
        """Kill the child after so many seconds, which sets the event."""
        late = Event()

        def end() -> None:
            late.set()
            self.process.kill()

        if seconds is None:
            yield late
            return
        timer = Timer(seconds, end)
        timer.start()
        try:
            yield late
        finally:
            timer.cancel()

    def answers(self) -> Iterator[Json]:
        """All that it answers until it ends by itself. Raises ChildDied if that is not with code 0."""
        while (line := self._pipes[1].readline()).endswith("\n"):
            yield json.loads(line)
        ended = self._wait()
        self._owes = False
        if ended.code:
            raise ChildDied(ended)

    def _wait(self) -> Ended:
        return Ended(self.process.wait(), _text(self._errors))

    def close(self) -> None:
        """End it: in order if it waits, at once if it is at work."""
        if self._owes:
            self.process.kill()
        elif not self._pipes[0].closed:
            self._write(_END)
        with contextlib.suppress(BrokenPipeError):  # what a dead process did not read is written once more
            self._pipes[0].close()
        try:
            self.process.wait(timeout=_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._pipes[1].close()
        self._errors.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _python() -> list[str]:
    return [PYTHON, "-P", "-W", "ignore"]


def _environment(changed: Mapping[str, str | None] | None) -> dict[str, str]:
    wanted = {**os.environ, "PYTHONUTF8": "1", **(changed or {})}
    return {name: value for name, value in wanted.items() if value is not None}


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


# --- child ----------------------------------------------------------------------------------------------------------


class Parent:
    """The child's side: what the parent sends, and answers to it. What libraries print to stdout goes to stderr."""

    def __init__(self) -> None:
        self._lines = end_with_parent()
        self._out = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
        os.dup2(2, 1)

    def receive(self) -> Json | None:
        """What to do next; None when the parent needs nothing more."""
        value: Json | None = json.loads(self._lines.get())
        return value

    def send(self, value: Json) -> None:
        """Answer."""
        self._out.write(json.dumps(value, ensure_ascii=False) + "\n")


def end_with_parent() -> SimpleQueue[str]:
    """From now on this process ends when its stdin does; the lines that come there until then."""
    lines: SimpleQueue[str] = SimpleQueue()

    def listen() -> None:
        # not through sys.stdin: its lock, held by a waiting thread, would abort the interpreter's shutdown
        pending = b""
        while chunk := os.read(0, _CHUNK):
            *whole, pending = (pending + chunk).split(b"\n")
            for line in whole:
                lines.put(line.decode())
            if whole and whole[-1].decode() == _END:
                return  # what ends now is no parent's death
        os._exit(1)  # nobody is left to be told, and the main thread may not listen for minutes

    Thread(target=listen, name="lifeline", daemon=True).start()
    return lines


def limit_memory(megabytes: int) -> None:
    """A ceiling for this process's private memory, where the system has one; 0 for none.

    RLIMIT_DATA: on Linux heap, stacks and buffers. A mapped model file does not count, which RLIMIT_AS would count,
    together with the many gigabytes that runtimes only reserve. On other Unix systems it counts the heap alone.
    """
    if sys.platform != "win32" and megabytes:
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (megabytes << 20, megabytes << 20))


def _become(memory_mb: str, module: str, *arguments: str) -> None:
    """Run another module in this process, in place of this one."""
    end_with_parent()
    limit_memory(int(memory_mb))
    sys.argv[:] = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _become(*sys.argv[1:])

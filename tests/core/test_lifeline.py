"""Children whose parent is killed: they end, in the middle of their work too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PATIENCE_S = 30

# Opening a model, and a team at work on a question, that never come to an end.
HANGING_RUNTIME = """
import os, time
import soloist.targets.open as module

def open_runtime(path):
    open(os.environ["MARK"], "w").write(str(os.getpid()))
    time.sleep(600)

module.open_runtime = open_runtime
"""
HANGING_TEAM = """
import os, time
from soloist.toolchain.core.config import Config

class Hang:
    class Options(Config):
        pass

    @staticmethod
    def run(session, options):
        if "quick" in session.question.question:
            return session.finish("1")
        open(os.environ["MARK"], "w").write(str(os.getpid()))
        time.sleep(600)
"""
GATE = """
import sys
from pathlib import Path
from soloist.toolchain.verify import Probe, observe

observe(Path(sys.argv[1]), Probe([[{"role": "user", "content": "hi"}]], ["ho"]), Path(sys.argv[1]) / "out")
"""
BENCH = """
from soloist.toolchain.teams.process import Worker
from soloist.toolchain.tasks.base import Question
from soloist.toolchain.teams.config import TeamConfig

team = TeamConfig.model_validate({
    "name": "t", "topology": "hanging:Hang", "agents": [{"name": "a", "role": "a"}],
    "engine": {"kind": "openai", "model": "m", "base_url": "http://127.0.0.1:9/v1"},
})
worker = Worker("t", team)
assert worker.ask(Question(id="q", question="quick", gold="1"), 0).answer == "1"
worker.ask(Question(id="q", question="slow", gold="1"), 0)
"""


def alive(pid):
    """Whether a process runs; one that has ended and that nobody has asked about does not."""
    try:
        os.kill(pid, 0)
        status = Path(f"/proc/{pid}/stat")
        return not status.is_file() or status.read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def said(mark):
    return mark.read_text() if mark.is_file() else ""


def wait_until(true, what):
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("parent", "hook", "needs"),
    [(GATE, ("sitecustomize.py", HANGING_RUNTIME), "numpy"), (BENCH, ("hanging.py", HANGING_TEAM), "openai")],
    ids=["gate", "bench"],
)
def test_a_child_at_work_ends_with_its_killed_parent(parent, hook, needs, tmp_path):
    pytest.importorskip(needs)
    mark = tmp_path / "mark"
    (tmp_path / hook[0]).write_text(hook[1])
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "MARK": str(mark)}
    command = [sys.executable, "-P", "-c", parent, str(tmp_path)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_until(lambda: said(mark) or process.poll() is not None, "the child never began")
            assert process.poll() is None, process.stderr.read()
            child = int(said(mark))
            assert child != process.pid and alive(child)
        finally:
            process.kill()
    try:
        wait_until(lambda: not alive(child), "the child outlives its parent")
    finally:
        if alive(child):
            os.kill(child, signal.SIGKILL)


ECHO = """
from soloist.toolchain.core.lifeline import Parent

parent = Parent()
while (line := parent.line()) is not None:
    parent.wait()
    print(line, flush=True)
print("bye")
"""


def test_a_child_that_waits_ends_in_order_when_it_is_needed_no_more():
    """Lines may come in any pieces, and are read whole."""
    process = subprocess.Popen([sys.executable, "-P", "-c", ECHO], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        long = "ä" * 100_000
        for piece in ("one\ntw", "o\n", f"{long}\n"):
            process.stdin.write(piece.encode())
            process.stdin.flush()
        assert [process.stdout.readline().decode().strip() for _ in range(3)] == ["one", "two", long]
        process.stdin.close()
        assert process.stdout.read() == b"bye\n"
    assert process.returncode == 0


def test_a_lifeline_is_held_as_long_as_the_block_lasts():
    from soloist.toolchain.core.lifeline import lifeline

    script = (
        "import time; from soloist.toolchain.core.lifeline import Parent; "
        "Parent(); print(1, flush=True); time.sleep(60)"
    )
    with lifeline() as stdin:
        process = subprocess.Popen([sys.executable, "-P", "-c", script], stdin=stdin, stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"1\n"
        time.sleep(0.3)
        assert process.poll() is None
    with process:
        assert process.wait(PATIENCE_S) == 1

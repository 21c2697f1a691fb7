"""Children: what they are told and answer, how they end, and that they end with their parent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from soloist.kernels.child import Child, ChildDied, Ended, run_module

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
from soloist.toolchain.verify.process import Prompts, observe

observe(Path(sys.argv[1]), Prompts([[{"role": "user", "content": "hi"}]], ["ho"]), Path(sys.argv[1]) / "out")
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


def content(mark):
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
    environment = {**os.environ, "MARK": str(mark)}
    command = [sys.executable, "-P", "-c", parent, str(tmp_path)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_until(lambda: content(mark) or process.poll() is not None, "the child never began")
            assert process.poll() is None, process.stderr.read()
            child = int(content(mark))
            assert child != process.pid
            assert alive(child)
        finally:
            process.kill()
    try:
        wait_until(lambda: not alive(child), "the child outlives its parent")
    finally:
        if alive(child):
            os.kill(child, signal.SIGKILL)


ECHO = """
from soloist.kernels.child import Parent

parent = Parent()
print("not an answer")
while (order := parent.receive()) is not None:
    if order.get("die"):
        raise SystemExit("no more of this")
    parent.send(order)
parent.send({"bye": True})
"""
STREAM = """
import sys
from soloist.kernels.child import Parent

parent = Parent()
for number in range(parent.receive()["count"]):
    parent.send({"number": number})
sys.exit("one is missing" if number == 2 else 0)
"""
SLEEP = """
import sys, time
from soloist.kernels.child import Parent

Parent().send({"ready": True})
time.sleep(600)
"""
JOB = """
import os, sys, time

print(sys.argv[1:], os.environ.get("COLOR"))
if sys.argv[1:] == ["memory"]:
    bytearray(1 << 30)
if sys.argv[1:] == ["signal"]:
    os.abort()
if sys.argv[1:] == ["sleep"]:
    time.sleep(600)
if sys.argv[1:] == ["outlive"]:
    open("mark", "w").write(str(os.getpid()))
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def modules(tmp_path, monkeypatch):
    """Modules that children run, importable there."""
    for name, text in (("echo", ECHO), ("stream", STREAM), ("sleep", SLEEP), ("job", JOB)):
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)


def test_a_child_answers_and_ends_in_order_when_it_is_needed_no_more():
    long = {"text": "ä\n" * 100_000}
    with Child("echo") as child:
        for order in ({"one": 1}, long):
            child.send(order)
            assert child.receive() == order
    assert child.process.returncode == 0
    child.close()  # twice is once


def test_lines_may_come_in_any_pieces():
    command = [sys.executable, "-P", "-m", "echo"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **pipes) as process:
        for piece in (b'{"a": 1}\n{"b"', b": 2}\nnu", b"ll\n"):
            process.stdin.write(piece)
            process.stdin.flush()
            time.sleep(0.05)
        process.stdin.close()
        answers = [json.loads(line) for line in process.stdout]
    assert answers == [{"a": 1}, {"b": 2}, {"bye": True}]
    assert process.returncode == 0


def test_a_child_that_waits_ends_with_its_parent_too():
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-P", "-m", "echo"], **pipes) as process:
        process.stdin.write(b"{}\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"{}\n"
        process.stdin.close()
        assert process.wait(PATIENCE_S) == 1
        assert process.stdout.read() == b""


def test_a_death_is_told_in_words():
    child = Child("echo")
    child.send({"die": True})
    with pytest.raises(ChildDied, match=r"^ended with code 1: no more of this$"):
        child.receive()
    child.close()
    child = Child("echo")
    child.process.kill()
    child.send({})
    with pytest.raises(ChildDied, match=r"^was killed \(SIGKILL\); is there enough memory\?$"):
        child.receive()
    child.close()
    assert str(Ended(3, "", "")) == "ended with code 3"
    assert str(Ended(-signal.SIGSEGV, "", "")) == "was killed (SIGSEGV)"


def test_answers_come_until_the_child_ends():
    with Child("stream") as child:
        child.send({"count": 2})
        assert [answer["number"] for answer in child.answers()] == [0, 1]
    with Child("stream") as child:
        child.send({"count": 3})
        with pytest.raises(ChildDied, match="ended with code 1: one is missing"):
            list(child.answers())


def test_a_child_at_work_is_closed_at_once():
    began = time.monotonic()
    with Child("sleep") as child:
        child.send({})
        assert next(child.answers()) == {"ready": True}
    assert child.process.returncode == -signal.SIGKILL
    assert time.monotonic() - began < 15


def test_a_job_gets_arguments_and_environment_and_its_output_is_kept(monkeypatch):
    monkeypatch.setenv("COLOR", "red")
    done = run_module("job", ["a b", "c"])
    assert (done.code, done.stdout) == (0, "['a b', 'c'] red\n")
    assert run_module("job", [], environment={"COLOR": "blue"}).last == "[] blue"
    assert run_module("job", [], environment={"COLOR": None}).last == "[] None"


def test_a_job_that_dies_says_how():
    assert run_module("job", ["signal"]).signal_name == "SIGABRT"
    assert str(run_module("ghost", [])) == "ended with code 1: ImportError: No module named ghost"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not count what libraries map")
def test_a_job_has_no_more_memory_than_it_may():
    assert run_module("job", ["memory"]).code == 0
    ended = run_module("job", ["memory"], memory_mb=500)
    assert str(ended) == "ended with code 1: MemoryError"
    assert ended.out_of_memory
    assert not run_module("ghost", []).out_of_memory


def test_a_job_has_no_more_time_than_it_may():
    with pytest.raises(TimeoutError, match=r"job did not end within 0\.5 s"):
        run_module("job", ["sleep"], limit_s=0.5)


def test_a_job_that_knows_nothing_of_us_ends_with_its_killed_parent(tmp_path):
    code = "from soloist.kernels.child import run_module; run_module('job', ['outlive'])"
    mark = tmp_path / "mark"
    with subprocess.Popen([sys.executable, "-P", "-c", code], cwd=tmp_path) as process:
        try:
            wait_until(lambda: content(mark), "the child never began")
            child = int(content(mark))
        finally:
            process.kill()
    wait_until(lambda: not alive(child), "the child outlives its parent")

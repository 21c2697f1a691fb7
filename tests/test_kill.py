"""SIGKILL in each stage of a job: the same command goes on, loses nothing, and ends with the same artifacts."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time

import pytest

from soloist.toolchain.core.artifact import Artifact
from soloist.toolchain.report.schema import read_report
from soloist.toolchain.traces.store import read_runs

# stage -> artifact, and how many units of its progress are done when the kill falls
KILLS = {"record": ("traces", 9), "distill": ("student", 3), "export": ("compiled", 1), "bench": ("measured", 20)}
# a process that never begins itself: each start of the job is a fork of it
STARTER = """
import os, sys, time
from pathlib import Path
from soloist.kernels import child as children
from soloist.toolchain.distill import train
from soloist.toolchain.core.events import EventLog
from soloist.toolchain.pipeline.run import run
from sums_team import job

def often(self, base, config, accelerator=None, begin=train.Trainer.__init__):
    begin(self, base, config.model_copy(update={"checkpoint_seconds": 1e-9}), accelerator)

def slowly(event):
    if event["event"] == "progress":
        time.sleep(0.05)

for _ in sys.stdin:
    if (child := os.fork()) == 0:
        break
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
train.Trainer.__init__ = often
base, model, out = map(Path, sys.argv[2:])
children.PYTHON = sys.argv[1]
with EventLog(out / "events.jsonl", (slowly,)) as events:
    run(job(base, model, out), events)
os._exit(0)
"""


class Starter:
    """Starts the job in processes of its own, one after the other."""

    def __init__(self, python, whole_job, out):
        script, self.errors = out.with_name("starter.py"), out.with_name("errors.txt")
        script.write_text(STARTER)
        command = [python, "-P", str(script), python, str(whole_job.base), str(whole_job.gguf), str(out)]
        with self.errors.open("w") as file:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True
            )

    def start(self):
        """The id of a new process that does the job."""
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def ended(self):
        """Wait until the process has ended; its exit code, or the signal that ended it as a negative number."""
        return int(self.process.stdout.readline())

    def close(self):
        self.process.communicate(timeout=60)


def events_of(out):
    lines = (out / "events.jsonl").read_bytes().split(b"\n") if (out / "events.jsonl").is_file() else []
    return [json.loads(line) for line in lines[:-1]]  # the last one may be on its way


def alive(child):
    """Whether the process is there; the one that started it takes its exit code at once."""
    try:
        os.kill(child, 0)
    except ProcessLookupError:
        return False
    return True


def kill_in(stage, done, starter, out):
    """Wait until `stage` has got as far as `done`, then a moment that nobody can foresee, then kill."""
    seen = len(events_of(out))
    child = starter.start()
    deadline = time.monotonic() + 120
    while not any(
        e["stage"] == stage and e["event"] == "progress" and e["done"] >= done for e in events_of(out)[seen:]
    ):
        assert alive(child), starter.errors.read_text()
        assert time.monotonic() < deadline, f"{stage} never got to {done}"
        time.sleep(0.02)
    time.sleep(random.uniform(0, 0.2))
    os.kill(child, signal.SIGKILL)
    assert starter.ended() == -signal.SIGKILL


@pytest.fixture(scope="module")
def killed_job(warm_python, whole_job, tmp_path_factory):
    """The tiny job, killed once in each stage and started again; its folder."""
    out = tmp_path_factory.mktemp("killed") / "out"
    starter = Starter(warm_python, whole_job, out)
    for stage, (name, done) in KILLS.items():
        kill_in(stage, done, starter, out)
        assert (out / f"{name}.partial").is_dir() and not (out / name).exists(), f"not killed within {stage}"
    starter.start()
    assert starter.ended() == 0, starter.errors.read_text()
    starter.close()
    return out


def test_the_artifacts_are_those_of_an_uninterrupted_job(whole_job, killed_job):
    for name in ("traces", "student", "compiled"):
        killed, whole = Artifact.open(killed_job / name), Artifact.open(whole_job.out / name)
        assert killed.manifest["files"] == whole.manifest["files"], name
        assert killed.digest == whole.digest, name


def test_no_question_is_lost_or_doubled(whole_job, killed_job):
    for folder, pattern in (("traces", "*.jsonl.gz"), ("measured", "*.jsonl")):
        files = sorted((whole_job.out / folder).glob(pattern))
        assert files and [f.name for f in files] == [f.name for f in sorted((killed_job / folder).glob(pattern))]
        for file in files:
            whole, killed = (
                [run.question.id for run in read_runs(path)] for path in (file, killed_job / folder / file.name)
            )
            assert killed == whole, file.name


def test_the_report_counts_the_same_answers(whole_job, killed_job):
    def counted(report):
        return {(s.id, s.split): (s.n, s.correct) for s in report.systems}

    killed = read_report(killed_job / "report.json")
    assert counted(killed) == counted(whole_job.report)
    assert all(system.peak_mb > 10 for system in killed.systems)


def test_nothing_half_written_remains(whole_job, killed_job):
    def names(out):
        return {path.relative_to(out).as_posix() for path in out.rglob("*")}

    assert names(killed_job) == names(whole_job.out)
    assert not [name for name in names(killed_job) if name.endswith((".tmp", ".partial", ".replaced", "plan.json"))]


def test_each_stage_went_on_where_it_was_killed(killed_job):
    events = events_of(killed_job)
    asked = [e for e in events if e["stage"] == "record" and e["event"] == "progress"]
    done = [e["done"] for e in asked]
    assert done == sorted(set(done)) and done[-1] == 24, "a recorded question was asked again"
    (resumed,) = [e["text"] for e in events if e["stage"] == "distill" and "resumed after step" in e.get("text", "")]
    assert int(resumed.split()[3]) >= 2
    measured = [e["done"] for e in events if e["stage"] == "bench" and e["event"] == "progress"]
    assert measured == sorted(set(measured)), "an answered question was asked again"
    ends = [e for e in events if e["event"] == "end" and e["stage"] in KILLS]
    assert {e["stage"] for e in ends} == set(KILLS)
    for path in {e["path"] for e in ends}:  # made once, found again by every later start
        reused = [e["reused"] for e in ends if e["path"] == path]
        assert reused[0] is False
        assert reused.count(False) == 1, path

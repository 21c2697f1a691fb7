"""The event log: what the terminal shows is what the file says."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from soloist.kernels.errors import ResourceError
from soloist.toolchain.core.events import QUIET, EventLog


def test_events_reach_the_file_and_the_listeners_alike(tmp_path):
    path, seen = tmp_path / "runs" / "events.jsonl", []
    before = time.time()
    with EventLog(path, (seen.append,)) as events:
        events.emit("distill", "start", path="runs/student")
        events.progress("distill", 3, 10, loss=0.25, note="größer")
        events.emit("distill", "end", reused=False)
        assert len(path.read_text("utf-8").splitlines()) == 3, "readable while the run goes on"
    records = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert records == seen
    assert [r["event"] for r in records] == ["start", "progress", "end"]
    assert records[1] | {"time": 0} == {
        "time": 0,
        "stage": "distill",
        "event": "progress",
        "done": 3,
        "total": 10,
        "loss": 0.25,
        "note": "größer",
    }
    assert before - 1 <= records[0]["time"] <= records[-1]["time"] <= time.time() + 1


def test_events_are_appended_when_a_run_is_taken_up_again(tmp_path):
    for stage in ("record", "distill"):
        with EventLog(tmp_path / "events.jsonl") as events:
            events.emit(stage, "start")
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["stage"] for line in lines] == ["record", "distill"]


def test_quiet_log_takes_events_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    QUIET.emit("distill", "start")
    QUIET.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_full_disk_is_one_line_also_when_the_log_is_closed():
    with pytest.raises(ResourceError, match="/dev/full: the disk is full"), EventLog(Path("/dev/full")) as events:
        events.emit("distill", "start")

"""Recording: resumed, side by side, with failing engines."""

from __future__ import annotations

import pytest

from soloist.kernels.errors import DataError, EngineError
from soloist.toolchain.core.events import EventLog
from soloist.toolchain.record.team import record
from soloist.toolchain.teams import team as teams
from soloist.toolchain.traces.recording import TaskCount, TraceFacts
from soloist.toolchain.traces.store import TraceWriter, read_runs


def ids(artifact):
    return [run.question.id for run in read_runs(artifact.path / "traces.jsonl.gz")]


@pytest.fixture
def team(sums, one_thread, tiny_smollm2_gguf):
    return sums.team(tiny_smollm2_gguf)


def test_side_by_side_gives_the_same_traces_in_question_order(team, sums, tmp_path):
    asked = sums.questions(7)
    events = []
    alone = record(team, asked, tmp_path / "alone", seed=5)
    beside = record(team, asked, tmp_path / "beside", seed=5, jobs=2, events=EventLog(None, (events.append,)))
    assert ids(beside) == ids(alone) == [question.id for question in asked]
    assert beside.manifest["files"] == alone.manifest["files"]
    assert beside.digest == alone.digest
    assert beside.facts == alone.facts
    assert [event["done"] for event in events if event["event"] == "progress"] == list(range(1, 8))


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_is_recorded_is_not_asked_again(team, sums, tmp_path, jobs):
    """Interrupted after two questions, which came in another order: only the others are asked."""
    asked = sums.questions(5)
    whole = record(team, asked, tmp_path / "whole")
    runs = {run.question.id: run for run in read_runs(whole.path / "traces.jsonl.gz")}

    def interrupt(event):
        if event["event"] == "start":
            with TraceWriter(tmp_path / "out.partial" / "traces.jsonl") as writer:
                for index in (3, 0):
                    writer.add(runs[asked[index].id].model_copy(update={"seed": 99}))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record(team, asked, tmp_path / "out", jobs=jobs, events=EventLog(None, (interrupt,)))
    events = []
    made = record(team, asked, tmp_path / "out", jobs=jobs, events=EventLog(None, (events.append,)))
    assert [event["done"] for event in events if event["event"] == "progress"] == [3, 4, 5]
    recorded = list(read_runs(made.path / "traces.jsonl.gz"))
    assert [run.question.id for run in recorded] == [question.id for question in asked]
    assert [run.seed for run in recorded] == [99, 0, 0, 99, 0]


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_failing_engine_is_a_run_that_says_why(team, sums, tmp_path, jobs):
    asked = [*sums.questions(1), *sums.questions(1, start=1, words=sums.BROKEN), *sums.questions(1, start=2)]
    events = []
    made = record(team, asked, tmp_path / "out", jobs=jobs, events=EventLog(None, (events.append,)))
    good, broken, after = read_runs(made.path / "traces.jsonl.gz")
    assert (good.verdict, broken.verdict, after.verdict) == ("correct", "absent", "correct")
    assert broken.answer is None
    assert "cannot be reached" in broken.error
    facts = made.read(TraceFacts)
    assert (facts.runs, facts.correct, facts.errors) == (3, 2, 1)
    (warning,) = [event for event in events if event["event"] == "warning"]
    assert warning["question"] == "train-1"
    assert "cannot be reached" in warning["text"]


def test_a_copy_that_dies_loses_no_other_question(team, sums, tmp_path):
    asked = [*sums.questions(3), *sums.questions(1, start=3, words=sums.DEAD)]
    with pytest.raises(EngineError, match="its process ended with code 3"):
        record(team, asked, tmp_path / "out", jobs=2)
    kept = [run.question.id for run in read_runs(tmp_path / "out.partial" / "traces.jsonl")]
    assert sorted(kept) == [question.id for question in asked[:3]]
    assert not (tmp_path / "out").exists()


def test_facts_are_counted_by_task(team, sums, tmp_path):
    asked = [*sums.questions(2), *sums.questions(1, start=2, words=sums.MUTE)]
    asked[0] = asked[0].model_copy(update={"task": ""})
    facts = record(team, asked, tmp_path / "out").read(TraceFacts)
    assert facts.tasks == {"all": TaskCount(correct=1, n=1), "sums": TaskCount(correct=1, n=2)}
    assert (facts.calls, facts.seconds) == (3, pytest.approx(1.5 + 1.5 + 0.5))
    assert facts.tokens_in > 3 * 5
    assert facts.tokens_out >= 3


def test_an_engine_that_never_opens_stops_the_recording(sums, tmp_path, monkeypatch):
    def refuse(config):
        raise EngineError("no API key: set the environment variable KEY")

    monkeypatch.setattr(teams, "open_engine", refuse)
    with pytest.raises(EngineError, match="no API key"):
        record(sums.team(tmp_path / "m.gguf"), sums.questions(2), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_questions_are_refused(sums, tmp_path):
    with pytest.raises(DataError, match="give at least one"):
        record(sums.team(tmp_path / "m.gguf"), [], tmp_path / "out")
    assert not list(tmp_path.iterdir())

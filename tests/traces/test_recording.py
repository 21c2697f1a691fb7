"""Artifacts of traces: what they say of themselves, and how they are opened."""

from __future__ import annotations

import pytest

from soloist.kernels.errors import ArtifactError, DataError
from soloist.toolchain.core.artifact import stage
from soloist.toolchain.tasks.base import Question
from soloist.toolchain.traces.recording import IMPORT, RECORD, TRACES, TraceFacts, open_traces, summarize, traces_at
from soloist.toolchain.traces.schema import Run, Turn
from soloist.toolchain.traces.store import read_runs, write_runs


def run(number, *, task="sums", verdict="correct", benchmark=None, **fields):
    question = Question(id=f"q{number}", question=f"{number} + 1?", gold="2", task=task, benchmark=benchmark)
    turns = (
        Turn(id=0, agent="a", role="reader", model="m", tokens_in=10, tokens_cached=4, tokens_out=3),
        Turn(id=1, agent="c", role="critic"),
    )
    return Run(question=question, team="t", turns=turns, verdict=verdict, wall=1.25, **fields)


RUNS = [run(1), run(2, verdict="wrong"), run(3, task=""), run(4, verdict="absent", error="no answer")]


@pytest.fixture
def made(tmp_path):
    """An artifact of these runs, of any stage."""

    def make(name):
        def build(folder):
            write_runs(RUNS, folder / TRACES)
            return summarize(RUNS)

        return stage(name, tmp_path / name, {}, [], build)

    return make


def test_runs_are_counted_by_task_and_calls_where_a_model_answered(made):
    facts = made(RECORD).read(TraceFacts)
    assert (facts.runs, facts.correct, facts.errors, facts.calls) == (4, 2, 1, 4)
    assert (facts.tokens_in, facts.tokens_cached, facts.tokens_out) == (40, 16, 12)
    assert {task: (count.correct, count.n) for task, count in facts.tasks.items()} == {"sums": (1, 3), "all": (1, 1)}
    assert facts.seconds == 5.0
    assert summarize([]).runs == 0


def test_traces_say_whose_test_questions_they_hold():
    assert summarize(RUNS).benchmarks == {}
    assert summarize([*RUNS, run(5, benchmark="gsm8k")]).benchmarks == {"gsm8k": "test"}


def test_recordings_and_imports_are_opened_and_no_other_stage(made):
    for name in (RECORD, IMPORT):
        artifact = made(name)
        assert open_traces(artifact.path).digest == artifact.digest
    with pytest.raises(ArtifactError, match="stage 'export', 'record' or 'import' is needed"):
        open_traces(made("export").path)


def test_traces_are_found_by_their_file_or_by_any_artifact_that_holds_them(made, tmp_path):
    folder = made("assess").path
    assert traces_at(folder) == traces_at(folder / TRACES) == folder / TRACES
    assert list(read_runs(traces_at(folder))) == RUNS
    for nothing in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError, match="no traces here"):
            traces_at(nothing)

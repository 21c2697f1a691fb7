"""Stage `record`: a team answers questions, every run becomes a trace.

    traces.jsonl.gz   one run a line, in the order of the questions

Recording appends run by run, so a kill loses at most the question under way; the same call goes on with
the next one. A question that the engine failed on is recorded with its error and without an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Lock

from soloist.kernels.errors import DataError
from soloist.toolchain.core.artifact import Artifact, stage
from soloist.toolchain.core.events import QUIET, EventLog
from soloist.toolchain.tasks.base import Question, questions_digest
from soloist.toolchain.teams.config import TeamConfig
from soloist.toolchain.teams.process import Worker
from soloist.toolchain.teams.team import Team
from soloist.toolchain.tools.tool_list import ToolList
from soloist.toolchain.traces.recording import RECORD, TRACES, TraceFacts, summarize
from soloist.toolchain.traces.schema import Run
from soloist.toolchain.traces.store import TraceWriter, read_runs, write_runs

_RAW = "traces.jsonl"


def record(
    config: TeamConfig,
    questions: Sequence[Question],
    out: Path,
    *,
    seed: int = 0,
    jobs: int = 1,
    events: EventLog = QUIET,
) -> Artifact:
    """Record the team on `questions`; `jobs` copies of the team work side by side, each in a process of its own.

    Raises DataError if there are no questions, and what the team raises if it never opens.
    """
    if not questions:
        raise DataError("no questions to record: give at least one")
    plan = {
        "team": config.model_dump(mode="json"),
        "questions": questions_digest(questions),
        "count": len(questions),
        "seed": seed,
    }

    def build(folder: Path) -> TraceFacts:
        with TraceWriter(folder / _RAW) as writer:
            waiting = [question for question in questions if question.question not in writer]
            if waiting:
                ask = _ask_in_turn if jobs == 1 else _ask_side_by_side
                ask(config, waiting, writer, Recording(len(questions), seed, jobs, events))
        order = {question.question: index for index, question in enumerate(questions)}
        runs = sorted(read_runs(folder / _RAW), key=lambda run: order[run.question.question])
        write_runs(runs, folder / TRACES)
        (folder / _RAW).unlink()
        tools = ToolList.of(config.tools) if config.tools else None
        return summarize(runs, tools)

    return stage(RECORD, out, plan, [], build, events=events)


@dataclass(frozen=True)
class Recording:
    """How a recording goes: of how many questions, with which seed, how many side by side."""

    total: int
    seed: int
    jobs: int
    events: EventLog

    def add(self, run: Run, writer: TraceWriter) -> None:
        writer.add(run)
        self.events.progress(RECORD, len(writer), self.total, verdict=run.verdict, seconds=round(run.wall, 2))
        if run.error is not None:
            self.events.emit(RECORD, "warning", question=run.question.id, text=run.error)


def _ask_in_turn(config: TeamConfig, waiting: Sequence[Question], writer: TraceWriter, how: Recording) -> None:
    with Team(config) as team:
        for question in waiting:
            how.add(team.try_answer(question, seed=how.seed), writer)


def _ask_side_by_side(config: TeamConfig, waiting: Sequence[Question], writer: TraceWriter, how: Recording) -> None:
    queue: SimpleQueue[Question] = SimpleQueue()
    for question in waiting:
        queue.put(question)
    lock = Lock()

    def work(_: int) -> None:
        worker = Worker("team", config)
        try:
            while True:
                run = worker.ask(queue.get_nowait(), how.seed)
                with lock:
                    how.add(run, writer)
        except Empty:
            return
        finally:
            worker.close()

    with ThreadPoolExecutor(how.jobs) as pool:
        list(pool.map(work, range(how.jobs)))

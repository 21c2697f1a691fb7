"""Stage `teach`: a team answers questions, every run becomes a trace.

    traces.jsonl.gz   one run a line, in the order of the questions

Recording appends run by run, so a kill loses at most the question under way; the same call goes on with
the next one. A question that the engine failed on is recorded with its error and without an answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from soloist.kernels.errors import DataError
from soloist.toolchain.artifact import Artifact, stage
from soloist.toolchain.events import QUIET, EventLog
from soloist.toolchain.tasks.base import Question
from soloist.toolchain.teams.config import TeamConfig
from soloist.toolchain.teams.team import Team
from soloist.toolchain.traces.schema import Run
from soloist.toolchain.traces.store import TraceWriter, read_runs, seal

STAGE = "teach"
TRACES = "traces.jsonl.gz"
_RAW = "traces.jsonl"


def teach(
    config: TeamConfig, questions: Sequence[Question], out: Path, *, seed: int = 0, events: EventLog = QUIET
) -> Artifact:
    """Record the team on `questions`. Raises DataError if there are none, EngineError if the engine never opens."""
    if not questions:
        raise DataError("no questions to record: give at least one")
    asked = hashlib.sha256("\n".join(question.model_dump_json() for question in questions).encode()).hexdigest()
    plan = {"team": config.model_dump(mode="json"), "questions": asked[:16], "count": len(questions), "seed": seed}

    def build(folder: Path) -> Mapping[str, Any]:
        with TraceWriter(folder / _RAW) as writer:
            waiting = [question for question in questions if question.question not in writer]
            if waiting:
                _record(config, waiting, writer, len(questions), seed=seed, events=events)
        seal(folder / _RAW, folder / TRACES)
        (folder / _RAW).unlink()
        return summarize(list(read_runs(folder / TRACES)))

    return stage(STAGE, out, plan, [], build, events=events)


def _record(
    config: TeamConfig, waiting: Sequence[Question], writer: TraceWriter, total: int, *, seed: int, events: EventLog
) -> None:
    with Team(config) as team:
        for question in waiting:
            run = team.try_answer(question, seed=seed)
            writer.add(run)
            events.progress(STAGE, len(writer), total, verdict=run.verdict, seconds=round(run.wall, 2))
            if run.error is not None:
                events.emit(STAGE, "warning", question=question.id, text=run.error)


def summarize(runs: Sequence[Run]) -> dict[str, Any]:
    """What a recording holds: runs, correct ones by task, calls, tokens, seconds."""
    by_task: dict[str, list[int]] = {}
    for run in runs:
        counts = by_task.setdefault(run.question.task or "all", [0, 0])
        counts[0] += run.verdict == "correct"
        counts[1] += 1
    return {
        "runs": len(runs),
        "correct": sum(run.verdict == "correct" for run in runs),
        "errors": sum(run.error is not None for run in runs),
        "tasks": {task: {"correct": c, "n": n} for task, (c, n) in by_task.items()},
        "calls": sum(len(run.calls) for run in runs),
        "tokens_in": sum(run.tokens_in for run in runs),
        "tokens_cached": sum(run.tokens_cached for run in runs),
        "tokens_out": sum(run.tokens_out for run in runs),
        "seconds": round(sum(run.wall for run in runs), 1),
    }

"""TO BE DESCRIBED."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from soloist.kernels.errors import ArtifactError, DataError
from soloist.toolchain.core.artifact import MANIFEST, Artifact
from soloist.toolchain.traces.schema import Run

RECORD = "record"


TRACES = "traces.jsonl.gz"


def summarize(runs: Sequence[Run]) -> dict[str, Any]:
    """What a recording holds: runs, correct ones by task, calls, tokens, seconds; whose test questions, if any."""
    benchmarks = sorted({run.question.benchmark for run in runs if run.question.benchmark})
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
        **({"benchmarks": dict.fromkeys(benchmarks, "test")} if benchmarks else {}),
    }


IMPORT = "import"


def open_traces(path: Path) -> Artifact:
    """An artifact of traces, recorded by a team of ours or imported. Raises ArtifactError for any other stage."""
    artifact = Artifact.open(path)
    if artifact.manifest["stage"] not in (RECORD, IMPORT):
        found = artifact.manifest["stage"]
        raise ArtifactError(f"{path}: this is an artifact of stage '{found}', '{RECORD}' or '{IMPORT}' is needed here")
    return artifact


def traces_at(path: Path) -> Path:
    """The trace file at `path`: the file itself, or that of an artifact's folder. Raises DataError."""
    if path.is_file():
        return path
    if (path / MANIFEST).is_file():
        Artifact.open(path)
        found = sorted(file for file in path.iterdir() if file.name.endswith((".jsonl", ".jsonl.gz")))
        traces = [file for file in found if file.name == TRACES]
        if traces:
            return traces[0]
    raise DataError(f"{path}: no traces here; give a .jsonl or .jsonl.gz file, or a folder made by record or assess")

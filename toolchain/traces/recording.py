"""An artifact of traces: the name of its file, what its manifest says, and how it is opened.

    traces.jsonl.gz   one run a line, recorded by a team of ours (stage `record`) or imported (stage `import`)

Every stage that reads traces finds them through this module, so that the two kinds are told apart nowhere else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from soloist.kernels.errors import ArtifactError, DataError
from soloist.toolchain.core.artifact import MANIFEST, Artifact, Facts
from soloist.toolchain.core.lineage import BenchmarkFacts
from soloist.toolchain.tools.tool_list import ToolList
from soloist.toolchain.traces.schema import Run
from soloist.toolchain.traces.store import read_runs

TRACES = "traces.jsonl.gz"
RECORD = "record"
IMPORT = "import"


class TaskCount(Facts):
    """Of a task: its runs, and those that ended right."""

    correct: int
    n: int


class TraceFacts(BenchmarkFacts):
    """What traces hold, counted over their runs; tokens are the models' own counts, seconds the sum of wall times.

    `tools` are those of the team, where they are known: what a student of it will call.
    """

    runs: int
    correct: int
    errors: int
    tasks: dict[str, TaskCount]
    calls: int
    tokens_in: int
    tokens_cached: int
    tokens_out: int
    seconds: float
    tools: ToolList | None = None


def summarize(runs: Sequence[Run], tools: ToolList | None = None) -> TraceFacts:
    """Count what a recording holds. A question without a task counts as task `all`."""
    correct: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    totals = Counter(errors=0, calls=0, tokens_in=0, tokens_cached=0, tokens_out=0)
    benchmarks = set()
    for run in runs:
        task = run.question.task or "all"
        asked[task] += 1
        correct[task] += run.verdict == "correct"
        totals["errors"] += run.error is not None
        totals["calls"] += len(run.calls)
        totals["tokens_in"] += run.tokens_in
        totals["tokens_cached"] += run.tokens_cached
        totals["tokens_out"] += run.tokens_out
        if run.question.benchmark:
            benchmarks.add(run.question.benchmark)
    return TraceFacts(
        runs=len(runs),
        correct=correct.total(),
        tasks={task: TaskCount(correct=correct[task], n=n) for task, n in asked.items()},
        seconds=round(sum(run.wall for run in runs), 1),
        benchmarks=dict.fromkeys(sorted(benchmarks), "test"),
        tools=tools,
        **totals,
    )


def calls_tools(traces: Artifact) -> bool:
    """Whether any run of the traces calls a tool on the path that makes its answer."""
    return any(run.trajectory for run in read_runs(traces.path / TRACES))


def open_traces(path: Path) -> Artifact:
    """An artifact of traces, recorded by a team of ours or imported. Raises ArtifactError for any other stage."""
    artifact = Artifact.open(path)
    stage = artifact.manifest["stage"]
    if stage not in (RECORD, IMPORT):
        raise ArtifactError(f"{path}: this is an artifact of stage '{stage}', '{RECORD}' or '{IMPORT}' is needed here")
    return artifact


def traces_at(path: Path) -> Path:
    """The trace file at `path`: the file itself, or that of an artifact's folder. Raises DataError."""
    if path.is_file():
        return path
    if (path / MANIFEST).is_file():
        Artifact.open(path)
        if (path / TRACES).is_file():
            return path / TRACES
    raise DataError(f"{path}: no traces here; give a .jsonl or .jsonl.gz file, or a folder made by record or assess")

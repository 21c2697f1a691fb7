"""Stage `bench`: all systems, the same questions, one machine, one run, taking turns question by question.

    <system>.jsonl      every run, with its whole trace
    measurements.json   per question: right or wrong, seconds, calls, tokens

Every run is written as soon as it is there; a killed measurement goes on with the next question. The
systems rotate their order from question to question, so that none is always the one after a slow one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from soloist.toolchain.bench.cost import ApiCall, ApiPrice
from soloist.toolchain.bench.recommend import Recommendation, recommend
from soloist.toolchain.bench.records import REPORTED, SELECTION, Answered, Measurement, save_measurements
from soloist.toolchain.bench.systems import System
from soloist.toolchain.core.artifact import Artifact, Facts, stage
from soloist.toolchain.core.events import QUIET, EventLog
from soloist.toolchain.core.files import write_atomic
from soloist.toolchain.tasks.base import Question, questions_digest
from soloist.toolchain.teams.process import Worker
from soloist.toolchain.traces.schema import Run
from soloist.toolchain.traces.store import TraceWriter, read_runs

STAGE = "bench"
MEASUREMENTS = "measurements.json"
_PEAKS = "peaks.json"


class Count(Facts):
    """Of one system on one split: questions, and how many of them it has right."""

    n: int
    correct: int


class BenchFacts(Facts):
    """What stage `bench` writes into its manifest. `counts` by "system/split"; `team`: the one measured beside."""

    team: str | None = None
    counts: dict[str, Count]
    recommended: Recommendation | None = None
    notes: tuple[str, ...] = ()


def measure(
    systems: Sequence[System],
    questions: Sequence[Question],
    warmup: Sequence[Question],
    out: Path,
    *,
    parents: Sequence[Artifact] = (),
    notes: Sequence[str] = (),
    seed: int = 42,
    events: EventLog = QUIET,
) -> Artifact:
    """Ask every system every question of its share. Questions carry their split. Raises EngineError."""
    described = [_without_paths(system) for system in systems]
    plan = {"systems": described, "questions": questions_digest(questions), "count": len(questions), "seed": seed}

    def build(folder: Path) -> BenchFacts:
        writers = {system.id: TraceWriter(folder / f"{system.id}.jsonl") for system in systems}
        peaks = _read_peaks(folder)
        try:
            _ask_all(systems, questions, warmup, writers, peaks, folder, seed, events)
        finally:
            for writer in writers.values():
                writer.close()
        measurements: list[Measurement] = []
        for system in systems:
            measurements += _measurements(system, folder, peaks.get(system.id))
        save_measurements(folder / MEASUREMENTS, measurements)
        (folder / _PEAKS).unlink(missing_ok=True)
        return BenchFacts(
            team=next((system.team.name for system in systems if system.kind == "team"), None),
            counts={f"{m.system_id}/{m.split}": Count(n=len(m.answers), correct=m.correct) for m in measurements},
            recommended=recommend(measurements),
            notes=tuple(notes),
        )

    return stage(STAGE, out, plan, parents, build, events=events)


def _without_paths(system: System) -> dict[str, Any]:
    """A system's description without the place its file lies in: moving a folder changes no measurement."""
    described = system.model_dump(mode="json")
    if described["team"]["engine"]["kind"] == "student":
        described["team"]["engine"]["path"] = Path(described["team"]["engine"]["path"]).name
    return described


def _ask_all(
    systems: Sequence[System],
    questions: Sequence[Question],
    warmup: Sequence[Question],
    writers: Mapping[str, TraceWriter],
    peaks: dict[str, float],
    folder: Path,
    seed: int,
    events: EventLog,
) -> None:
    todo = {
        system.id: [q for q in share_of(questions, system) if q.question not in writers[system.id]]
        for system in systems
    }
    total = sum(len(share_of(questions, system)) for system in systems)
    done = total - sum(map(len, todo.values()))
    workers: dict[str, Worker] = {}
    try:
        for system in systems:
            if todo[system.id]:
                events.emit(STAGE, "note", text=f"opening {system.id}")
                workers[system.id] = Worker(system.id, system.team)
                for question in warmup[: system.warmup]:
                    workers[system.id].ask(question, seed)
        waiting = {name: {q.id for q in those} for name, those in todo.items()}
        for index, question in enumerate(questions):
            for system in _rotated(systems, index):
                if question.id not in waiting[system.id]:
                    continue
                worker = workers[system.id]
                run = worker.ask(question, seed)
                writers[system.id].add(run)
                peaks[system.id] = max(worker.peak or 0.0, peaks.get(system.id, 0.0))
                done += 1
                events.progress(STAGE, done, total, system=system.id, verdict=run.verdict, seconds=round(run.wall, 3))
            write_atomic(folder / _PEAKS, json.dumps(peaks))
    finally:
        for worker in workers.values():
            worker.close()


def share_of(questions: Sequence[Question], system: System) -> list[Question]:
    """An evenly spread share of the questions of each split, at least one of a split that is asked at all."""
    kept: list[Question] = []
    for split in dict.fromkeys(q.split for q in questions):
        those = [q for q in questions if q.split == split]
        share = system.share(split)
        count = max(1, round(len(those) * share)) if share > 0 else 0
        kept += [those[(i * len(those)) // count] for i in range(count)]
    return kept


def _rotated(systems: Sequence[System], index: int) -> list[System]:
    at = index % len(systems)
    return [*systems[at:], *systems[:at]]


def _read_peaks(folder: Path) -> dict[str, float]:
    path = folder / _PEAKS
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _measurements(system: System, folder: Path, peak: float | None) -> list[Measurement]:
    runs = list(read_runs(folder / f"{system.id}.jsonl"))
    prices = {
        call.model: ApiPrice(call.model, usd_per_million=system.usd_per_million)
        for run in runs
        for call in run.calls
        if call.model and system.team.engine.kind == "openai"
    }
    return [
        Measurement(
            system_id=system.id,
            split=split,
            kind=system.kind,
            format=system.format,
            size_mb=system.size_mb,
            answers=tuple(_answered(run, prices) for run in runs if run.question.split == split),
            peak_mb=peak,
            where="api" if system.team.engine.kind == "openai" else "local",
        )
        for split in (*REPORTED, *SELECTION)
        if any(run.question.split == split for run in runs)
    ]


def _answered(run: Run, prices: Mapping[str, ApiPrice]) -> Answered:
    return Answered(
        question_id=run.question.id,
        task=run.question.task,
        correct=run.verdict == "correct",
        seconds=run.wall,
        ttft=run.time_to_first_token,
        calls=len(run.calls),
        tokens_in=run.tokens_in,
        tokens_cached=run.tokens_cached,
        tokens_out=run.tokens_out,
        error=run.error,
        critical_path=run.critical_path if run.turns else None,
        usd=_usd(run, prices),
    )


def _usd(run: Run, prices: Mapping[str, ApiPrice]) -> float | None:
    """What the hosted calls of a run cost, each priced on its own; None for local models and unknown prices."""
    if not prices:
        return None
    costs = [
        prices[call.model or ""].usd([ApiCall(call.tokens_in, call.tokens_cached, call.tokens_out)])
        for call in run.calls
    ]
    known = [cost for cost in costs if cost is not None]
    return sum(known) if len(known) == len(costs) else None

"""The main job: its stages, one after the other, and nothing else. By hand they end in the same report.

    <out>/traces          recorded by the team; or traces that are there already
    <out>/assess          where asked for: whether distilling is advised, and the team's skill card
    <out>/student         distilled from them
    <out>/quantized       its integers, calibrated on the traces
    <out>/compiled        files of the float student, each opened and compared with it
    <out>/compiled-4bit   files that carry the integers, likewise
    <out>/measured        team, baselines, student and the files that passed, on the same questions
    <out>/report.html · report.json · report.md · events.jsonl

Stages that are there already with the same inputs are not done again, so the same command goes on after a kill and
costs nothing after it has ended. An engine whose GPU is not here is compiled, and neither passes nor is measured.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from soloist.kernels.errors import DataError, UsageError
from soloist.toolchain.assess.stage import AssessConfig, assess
from soloist.toolchain.bench.measure import measure
from soloist.toolchain.bench.systems import System, compared_systems
from soloist.toolchain.core.artifact import Artifact
from soloist.toolchain.core.events import QUIET, EventLog
from soloist.toolchain.core.files import write_atomic
from soloist.toolchain.core.lineage import lineage_of, refuse_trained
from soloist.toolchain.distill.stage import distill
from soloist.toolchain.export.stage import export
from soloist.toolchain.pipeline.job import Job
from soloist.toolchain.pipeline.preflight import check, distillation, refuse_overlap
from soloist.toolchain.quantize.stage import QuantizeConfig, quantize
from soloist.toolchain.record.team import record
from soloist.toolchain.report.schema import Report
from soloist.toolchain.report.stage import ReportOptions, assemble, write_report
from soloist.toolchain.student.find import RECOMMENDED
from soloist.toolchain.student.student import Student, open_student
from soloist.toolchain.tasks.base import Question, spread
from soloist.toolchain.teams.config import StudentEngineConfig
from soloist.toolchain.traces.recording import RECORD, TRACES, open_traces
from soloist.toolchain.traces.store import read_runs
from soloist.toolchain.verify.process import Prompts, prompts_of

PROMPTS = 24
_ASSESSED = 6  # the published operating point, six runs each


def run(job: Job, events: EventLog = QUIET) -> Report:
    """Do whatever of the job is not done yet, and write the report. Raises SoloistError."""
    began = time.time()
    base = check(job)
    traces = _traces(job, events)
    refuse_overlap((one.question.question for one in read_runs(traces.path / TRACES)), job.task.test)
    refuse_trained(lineage_of([traces]), (question.benchmark for question in job.task.test))
    if job.assess:
        _assess(job, traces, events)
    config = distillation(job, traces)
    student = open_student(distill(config, traces, base, job.out / "student", events=events))
    exports = _exports(job, student, events)
    systems = compared_systems(
        job.task.team,
        student,
        exports,
        traces,
        examples=job.task.examples,
        undebated=job.task.undebated,
        warmup=len(job.task.warmup),
        team_shares=job.task.team_shares,
        usd_per_million=job.usd_per_million,
    )
    measured = measure(
        systems,
        job.task.asked,
        job.task.warmup,
        job.out / "measured",
        parents=[traces, student.artifact, *exports],
        notes=job.task.notes,
        seed=job.seed,
        events=events,
    )
    options = ReportOptions(
        price=job.price, usd_per_million=job.usd_per_million, command=job.command, assessments=job.out
    )
    report = assemble(measured, options)
    page = write_report(report, None, job.out)
    _hand_over(report, systems, job.out)
    events.emit("report", "end", path=str(page), seconds=round(time.time() - began, 1))
    return report


def _hand_over(report: Report, systems: Sequence[System], out: Path) -> None:
    """Write where the recommended file lies, so that whoever names the job's folder gets it."""
    for system in systems:
        if report.details is not None and system.id == report.details.headline:
            engine = system.team.engine
            assert isinstance(engine, StudentEngineConfig)
            write_atomic(out / RECOMMENDED, Path(engine.path).relative_to(out).as_posix() + "\n")


def _traces(job: Job, events: EventLog) -> Artifact:
    if job.task.traces is None:
        assert job.task.team is not None, "questions are recorded by a team"
        return record(job.task.team, job.task.train, job.out / "traces", seed=job.seed, events=events)
    traces = open_traces(job.task.traces)
    events.emit(RECORD, "end", reused=True, path=str(job.task.traces), digest=traces.digest)
    return traces


def _assess(job: Job, traces: Artifact, events: EventLog) -> None:
    """Ask before training whether it is advised; on questions the team was recorded on, never on test questions.

    Advice never blocks: where there is nothing to compare, that is said and the job goes on.
    """
    questions = spread([one.question for one in read_runs(traces.path / TRACES)], _ASSESSED)
    try:
        assess(
            AssessConfig(seed=job.seed),
            job.task.team,
            job.out / "assess",
            questions=questions,
            known=[traces.path],
            events=events,
        )
    except DataError as error:
        events.emit("assess", "warning", text=f"no advice before training: {error}")


def _exports(job: Job, student: Student, events: EventLog) -> list[Artifact]:
    """The files of the float student, and those that carry the integers made of it."""
    name = job.name.capitalize()
    prompts = _prompts(job)
    exports = []
    if job.float_formats:
        exports.append(export(student, job.out / "compiled", job.float_formats, prompts, events, name=name))
    if job.carried_formats:
        quantized = open_student(_quantized(job, student, events))
        folder = job.out / f"compiled-{quantized.bits}bit"
        exports.append(export(quantized, folder, job.carried_formats, prompts, events, name=name))
    if not exports:
        raise UsageError("no format to compile: name at least one with --formats")
    return exports


def _quantized(job: Job, student: Student, events: EventLog) -> Artifact:
    """Integers calibrated on the traces; of a student of two models, rounded without looking at inputs."""
    assert job.quantize is not None
    config = job.quantize
    if len(student.models) > 1 and config.reads:
        config = QuantizeConfig(bits=config.bits, embedding_bits=config.embedding_bits, rounding="mse")
    return quantize(config, student, job.out / "quantized", events=events)


def _prompts(job: Job) -> Prompts:
    """Questions that files are compared with the student on: those that files are chosen on, else the test's."""
    questions: list[Question] = list(job.task.selection) or list(job.task.test)
    step = max(1, len(questions) // PROMPTS)
    return prompts_of(questions[::step][:PROMPTS])

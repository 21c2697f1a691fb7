"""Stage `report`: a report from the artifact of a measurement and all it descends from, and its three forms on disk.

Each file is written whole or not at all, and report.json last: programs that wait for it find the page
that belongs to it beside it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from soloist.toolchain.assess.result import Assessment
from soloist.toolchain.assess.stage import assessment_of
from soloist.toolchain.bench.cost import ApiPrice, LocalPrice, Spend
from soloist.toolchain.bench.measure import MEASUREMENTS, BenchFacts
from soloist.toolchain.bench.records import REPORTED, Measurement, load_measurements
from soloist.toolchain.bench.systems import file_id
from soloist.toolchain.core.artifact import Artifact
from soloist.toolchain.core.environment import commit, device, versions
from soloist.toolchain.core.files import write_atomic
from soloist.toolchain.core.lineage import ancestors, lineage_of
from soloist.toolchain.report.build import build_report
from soloist.toolchain.report.context import Context
from soloist.toolchain.report.page import render
from soloist.toolchain.report.schema import Details, Parity, Report, StageCost, TrainingPoint
from soloist.toolchain.report.terminal import markdown
from soloist.toolchain.student.artifact import StudentFacts
from soloist.toolchain.student.student import DISTILL, QUANTIZE, open_student, parent_of
from soloist.toolchain.tasks.base import question_key
from soloist.toolchain.teams.config import TeamConfig
from soloist.toolchain.traces.recording import IMPORT, RECORD, TRACES, TraceFacts
from soloist.toolchain.traces.schema import Run
from soloist.toolchain.traces.store import read_runs
from soloist.toolchain.verify.verdict import EXPORT, ExportFacts, latest_verdict


def write_report(report: Report, run_for_anatomy: Run | None, out_dir: Path) -> Path:
    """Write the report into `out_dir` and return the path of the page.

    `run_for_anatomy` is the debate to draw; None keeps the one the report has.
    """
    if run_for_anatomy is not None:
        details = (report.details or Details()).model_copy(update={"anatomy": run_for_anatomy})
        report = report.model_copy(update={"details": details})
    page = out_dir / "report.html"
    write_atomic(page, render(report))
    write_atomic(out_dir / "report.md", markdown(report))
    write_atomic(out_dir / "report.json", report.to_json())
    return page


def choose_anatomy(runs: list[Run]) -> Run | None:
    """The run worth drawing: right in the end, with the most disagreement on the way, then the shortest."""

    def worth(run: Run) -> tuple[bool, int, int]:
        spoken = sum(edge.kind in ("disputes", "corrects") for edge in run.edges)
        return run.verdict == "correct", min(spoken, 4), -len(run.turns)

    return max((run for run in runs if run.turns), key=worth, default=None)


@dataclass(frozen=True)
class ReportOptions:
    """What no artifact knows: prices, the command line, and the folder of a job that may hold an assessment."""

    price: LocalPrice = field(default_factory=LocalPrice)
    usd_per_million: tuple[float, float] | None = None
    command: str = ""
    assessments: Path | None = None


def assemble(measured: Artifact, options: ReportOptions) -> Report:
    """The report of a measurement: what it measured, and what its ancestors say of traces, training and files.

    Args:
        measured: an artifact of stage `bench`.

    Raises:
        DataError: measurements that cannot be compared, or a student measured on what it was trained on.
        ArtifactError: an ancestor whose facts are not those of this version.
    """
    made = _Ancestors.of(measured)
    facts = measured.read(BenchFacts)
    measurements = load_measurements(measured.path / MEASUREMENTS)
    reported = [one for one in measurements if one.split in REPORTED]
    runs = list(read_runs(measured.path / "team.jsonl")) if (measured.path / "team.jsonl").is_file() else []
    assessment = None
    if options.assessments is not None and facts.team is not None:
        assessment = assessment_of(options.assessments, facts.team)
    context = Context(
        command=options.command,
        created=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        seeds=_seeds(measured, made),
        method=_method(made),
        training=_training(made.student),
        parity=_parity(made.exports, {one.system_id for one in measurements}),
        runs=runs,
        overlap=_overlap(made.traces, measured),
        lineage=lineage_of([measured]),
        prices=_hosted_prices(measured, options),
        notes=_notes(made, facts),
        assessment=assessment,
        recommended=facts.recommended,
        stages=_stages(measured, made),
    )
    return build_report(
        reported,
        task=facts.team or measured.path.name,
        commit=commit(),
        device=device(),
        versions=versions(),
        price=options.price,
        spend=_spend(made, measurements, options.price, assessment),
        context=context,
        anatomy=choose_anatomy(runs),
    )


@dataclass(frozen=True)
class _Ancestors:
    """What a measurement descends from, by stage; None where it is not there."""

    traces: Artifact | None = None
    student: Artifact | None = None
    quantized: Artifact | None = None
    exports: tuple[Artifact, ...] = ()

    @classmethod
    def of(cls, measured: Artifact) -> _Ancestors:
        stages: dict[str, list[Artifact]] = {}
        for artifact in ancestors([measured])[0]:
            stages.setdefault(artifact.manifest["stage"], []).append(artifact)
        traces = [*stages.get(RECORD, []), *stages.get(IMPORT, [])]
        return cls(
            traces=next(iter(traces), None),
            student=next(iter(stages.get(DISTILL, [])), None),
            quantized=next(iter(stages.get(QUANTIZE, [])), None),
            exports=tuple(sorted(stages.get(EXPORT, []), key=lambda export: export.path.name)),
        )


def _method(made: _Ancestors) -> list[str]:
    lines = []
    if made.traces is not None:
        recorded = made.traces.read(TraceFacts)
        lines.append(
            f"Recorded: {recorded.runs} questions, {recorded.correct} answered correctly by the team "
            f"({made.traces.digest})."
        )
    if made.student is not None:
        student = made.student.read(StudentFacts)
        lines.append(
            f"Distilled: {student.method} on {student.data.conversations} conversations, mode {student.mode}, from "
            f"{student.base}, {student.tuning} fine-tuning in {student.precision} ({made.student.digest})."
        )
    if made.quantized is not None:
        config = made.quantized.manifest["config"]
        lines.append(
            f"Quantized: {config.get('bits', 'planned')} bits, groups of {config.get('group', 'planned')}, calibrated "
            f"on the traces ({made.quantized.digest}); the same integers in every format."
        )
    return lines


def _notes(made: _Ancestors, facts: BenchFacts) -> list[str]:
    notes = list(facts.notes)
    if made.traces is not None and made.traces.manifest["commit"] != commit():
        notes.append(
            f"The student learned from traces recorded earlier (commit {made.traces.manifest['commit']}); "
            "the comparison was measured live."
        )
    return notes


def _seeds(measured: Artifact, made: _Ancestors) -> dict[str, int]:
    seeds = {"measurement": int(measured.manifest["config"]["seed"])}
    if made.student is not None:
        seeds["training"] = int(made.student.manifest["config"]["train"]["seed"])
    return seeds


def _overlap(traces: Artifact | None, measured: Artifact) -> int | None:
    """How many reported questions occur among those of the traces; None where there are no traces to look at."""
    if traces is None:
        return None
    trained = {question_key(run.question.question) for run in read_runs(traces.path / TRACES)}
    asked: set[str] = set()
    for file in sorted(measured.path.glob("*.jsonl")):
        for run in read_runs(file):
            if run.question.split in REPORTED:
                asked.add(question_key(run.question.question))
    return len(trained & asked)


def _spend(
    made: _Ancestors, measurements: Sequence[Measurement], price: LocalPrice, assessment: Assessment | None
) -> Spend:
    """What was paid once: recording (and assessing), training with quantizing and compiling, and evaluating files."""
    recording = made.traces.read(TraceFacts).seconds if made.traces is not None else None
    if recording is not None and assessment is not None:
        recording += assessment.seconds
    training = None
    if made.student is not None:
        # the manifest's seconds are those since the last start, the steps' those of all starts
        training = max(made.student.manifest["seconds"], made.student.read(StudentFacts).training.seconds)
        for artifact in (made.quantized, *made.exports):
            training += artifact.manifest["seconds"] if artifact is not None else 0
    evaluation = 0.0
    for one in measurements:
        if one.kind == "artifact":
            evaluation += sum(answer.seconds for answer in one.answers)
    return Spend.of_seconds(price, recording=recording, training=training, evaluation=evaluation)


def _hosted_prices(measured: Artifact, options: ReportOptions) -> list[str]:
    """The price list's words for the models of a hosted team."""
    for described in measured.manifest["config"]["systems"]:
        team = TeamConfig.model_validate(described["team"])
        if described["kind"] == "team" and team.engine.kind == "openai":
            models = {agent.model or team.engine.model for agent in team.agents}
            return [ApiPrice(model, usd_per_million=options.usd_per_million).describe() for model in sorted(models)]
    return []


def _training(student: Artifact | None) -> list[TrainingPoint]:
    if student is None or not (student.path / "train.jsonl").is_file():
        return []
    points = []
    for line in (student.path / "train.jsonl").read_text(encoding="utf-8").splitlines():
        step = json.loads(line)
        points.append(
            TrainingPoint(step=step["step"], loss=step["loss"], tokens_per_second=step.get("tokens_per_second"))
        )
    return points


def _parity(exports: Sequence[Artifact], measured: Collection[str]) -> list[Parity]:
    """Every compiled format against its student, by the latest verdict."""
    rows = []
    for export in exports:
        bits = open_student(parent_of(export)).bits
        for format, facts in export.read(ExportFacts).formats.items():
            latest = latest_verdict(export, format)
            drift, bounds = latest.verdict.drift, latest.verdict.tolerance
            rows.append(
                Parity(
                    file=Path(facts.path).name,
                    format=format if bits is None else f"{format} ({bits} bits)",
                    size_mb=facts.size_mb,
                    kl=drift.kl_mean if drift else None,
                    top1=drift.top1 if drift else None,
                    verdict=latest.verdict.verdict,
                    measured=file_id(format, bits) in measured,
                    tolerance=f"KL ≤ {bounds.kl:g}, top-1 ≥ {bounds.top1:.0%}" if bounds else "",
                    note=latest.note,
                )
            )
    return rows


def _stages(measured: Artifact, made: _Ancestors) -> list[StageCost]:
    """Seconds and peak memory of every stage, in the order of the data."""
    costs = []
    for artifact in (made.traces, made.student, made.quantized, *made.exports, measured):
        if artifact is not None:
            manifest = artifact.manifest
            costs.append(
                StageCost(
                    stage=manifest["stage"],
                    folder=artifact.path.name,
                    seconds=manifest["seconds"],
                    peak_mb=manifest.get("peak_mb"),
                )
            )
    return costs

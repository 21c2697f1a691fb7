"""The main job: traces → student → compiled files → measurements → report, each stage an artifact.

    <out>/traces      recorded by the team, or the recording that ships with Soloist
    <out>/assess      where asked for: whether distilling is advised, and the team's skill card
    <out>/student     distilled from them
    <out>/compiled    files of the formats asked for, each opened and compared with the student
    <out>/measured    team, rivals, student and the files that passed, on the same held-out questions
    <out>/report.html · report.json · report.md · events.jsonl

Stages that are there already with the same inputs are not done again, so the same command goes on after
a kill and costs nothing after it has ended. An engine whose GPU is not here is compiled, and neither passes
nor is measured.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soloist.kernels.errors import DataError, MissingExtraError
from soloist.targets.base import check_one_onnxruntime
from soloist.targets.formats import ENGINES, parse
from soloist.toolchain.assess.stage import assessment_of
from soloist.toolchain.bench.cost import ApiPrice, LocalPrice, Spend
from soloist.toolchain.bench.measure import MEASUREMENTS, measure
from soloist.toolchain.bench.measure import STAGE as BENCH
from soloist.toolchain.bench.records import load_measurements
from soloist.toolchain.bench.systems import System, rivals, student_tools, students
from soloist.toolchain.core.artifact import Artifact
from soloist.toolchain.core.environment import commit, device, versions
from soloist.toolchain.core.events import QUIET, EventLog
from soloist.toolchain.core.lineage import Lineage, lineage_of, refuse_trained
from soloist.toolchain.distill.data import conversation
from soloist.toolchain.export.stage import export
from soloist.toolchain.record.team import record
from soloist.toolchain.report.build import Context, build_report
from soloist.toolchain.report.schema import Parity, Report, TrainingPoint
from soloist.toolchain.report.stage import choose_anatomy, write_report
from soloist.toolchain.student.artifact import Mode, StudentFacts
from soloist.toolchain.tasks.base import Question, question_key
from soloist.toolchain.teams.config import Demonstration, TeamConfig
from soloist.toolchain.tools.calls import grammar
from soloist.toolchain.traces.recording import RECORD, TRACES, TraceFacts
from soloist.toolchain.traces.schema import Run
from soloist.toolchain.traces.store import read_runs
from soloist.toolchain.verify.fidelity import runs_here
from soloist.toolchain.verify.verdict import standing

if TYPE_CHECKING:
    from soloist.toolchain.distill.stage import DistillConfig

FORMATS = ("gguf-f16", "gguf-q8_0", "gguf-q5_0", "gguf-q4_0", "onnx-int8", "onnx-int4")
_GRAPH = (
    ("onnxruntime", "onnx"),
    ("tokenizers", "onnx"),
    ("jinja2", "onnx"),
    ("onnx", "compile"),
    ("onnx_ir", "compile"),
    ("onnxscript", "compile"),
    ("optimum", "compile"),
)
_GENAI = (("onnxruntime_genai", "onnx"), ("onnx", "compile"), ("onnx_ir", "compile"))
# target -> packages that compile and check it, and the extras that carry them
_PACKAGES = {
    "gguf": (("llama_cpp", "gguf"),),
    "onnx": _GENAI,
    "onnx-cuda": _GENAI,
    "onnx-portable": _GRAPH,
    "tensorrt-rtx": (*_GRAPH, ("tensorrt_rtx", "rtx")),
    "tensorrt": _GRAPH,
}
PROBES = 24
ENOUGH = 1000  # trajectories to read while training; see benchmarks/LOG.md
ASSESSED = 6  # the published operating point, six runs each


@dataclass(frozen=True)
class Job:
    """One whole run. `train` is empty where a recording is given; `test` holds the held-out questions."""

    team: TeamConfig
    base: str
    out: Path
    test: Sequence[Question]
    train: Sequence[Question] = ()
    recording: Path | None = None
    examples: Sequence[Demonstration] = ()
    warmup: Sequence[Question] = ()
    mode: Mode = "tools"
    method: str = "sft"
    options: Mapping[str, Any] = field(default_factory=dict)
    formats: Sequence[str] = FORMATS
    epochs: int | None = None
    limit: int | None = None
    seed: int = 42
    price: LocalPrice = field(default_factory=LocalPrice)
    usd_per_million: tuple[float, float] | None = None
    command: str = ""
    assess: bool = False


def run(job: Job, events: EventLog = QUIET) -> Report:
    """Do whatever of the job is not done yet, and write the report. Raises SoloistError."""
    began = time.time()
    base = _check(job)
    traces = _traces(job, events)
    overlap = _refuse_overlap((run.question.question for run in read_runs(traces.path / TRACES)), job.test)
    refuse_trained(lineage_of([traces]), (question.benchmark for question in job.test))
    if job.assess:
        _assess(job, traces, events)
    student = _student(job, base, traces, events)
    compiled = _compiled(job, traces, student, events)
    measured = _measured(job, traces, student, compiled, events)
    report = _report(job, [traces, student, compiled, measured], overlap)
    write_report(report, None, job.out)
    events.emit("report", "end", path=str(job.out / "report.html"), seconds=round(time.time() - began, 1))
    return report


def _check(job: Job) -> Path:
    """Refuse at once what would otherwise be refused after hours of recording; returns the base model's path."""
    from soloist.targets.from_gguf import find_base
    from soloist.toolchain.distill.methods.catalog import resolve

    if not job.test:
        raise DataError("no held-out questions: the comparison needs at least one")
    _refuse_overlap((question.question for question in job.train), job.test)
    trained = {question.benchmark for question in job.train if question.benchmark}
    refuse_trained(Lineage(tuple(trained)), (question.benchmark for question in job.test))
    targets = sorted({parse(name).target for name in job.formats})
    resolve(job.method)
    base = Path(job.base) if Path(job.base).exists() else find_base(job.base)
    if targets != ["gguf"]:
        check_one_onnxruntime()
    for package, extra in _needed(job, targets):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, extra)
    from soloist.toolchain.distill.model import check_base

    _distillation(job, correct=0).settled()
    check_base(base)
    return base


def _needed(job: Job, targets: Iterable[str]) -> list[tuple[str, str]]:
    """The optional packages that any stage of the job will want, and the extras that carry them."""
    needed = [(package, "train") for package in ("torch", "transformers", "accelerate", "safetensors", "gguf")]
    if job.team.engine.kind == "gguf":
        needed += _PACKAGES["gguf"]
    needed += [package for target in targets for package in _PACKAGES[target]]
    if job.team.engine.kind == "openai":
        needed += [("openai", "api"), *([] if job.usd_per_million else [("genai_prices", "prices")])]
    return needed


def _traces(job: Job, events: EventLog) -> Artifact:
    if job.recording is None:
        return record(job.team, job.train, job.out / "traces", seed=job.seed, events=events)
    traces = Artifact.open(job.recording, stage=RECORD)
    events.emit(RECORD, "end", reused=True, path=str(job.recording), digest=traces.digest)
    return traces


def _assess(job: Job, traces: Artifact, events: EventLog) -> None:
    """Ask before training whether it is advised; on questions the team was recorded on, never on test questions.

    Advice never blocks: where there is nothing to compare, that is said and the job goes on.
    """
    from soloist.toolchain.assess.stage import AssessConfig, assess, spread

    config = AssessConfig(seed=job.seed)
    asked = spread([run.question for run in read_runs(traces.path / TRACES)], ASSESSED)
    try:
        assess(config, job.team, job.out / "assess", questions=asked, known=[traces.path], events=events)
    except DataError as error:
        events.emit("assess", "warning", text=f"no advice before training: {error}")


def _refuse_overlap(train: Iterable[str], test: Sequence[Question]) -> int:
    """How many test texts occur among the texts of training: none, or a DataError that names the first."""
    known = {question_key(text) for text in train}
    shared = [question for question in test if question_key(question.question) in known]
    if shared:
        raise DataError(
            f"{len(shared)} of {len(test)} test questions were used for training, the first is '{shared[0].id}': "
            "take other questions"
        )
    return len(shared)


def _student(job: Job, base: Path, traces: Artifact, events: EventLog) -> Artifact:
    from soloist.toolchain.distill.stage import distill

    config = _distillation(job, traces.read(TraceFacts).correct)
    return distill(config, traces, base, job.out / "student", events=events)


def _distillation(job: Job, correct: int) -> DistillConfig:
    from soloist.toolchain.distill.stage import DistillConfig
    from soloist.toolchain.distill.train import TrainConfig

    train = TrainConfig(epochs=job.epochs or enough_epochs(correct, job.limit), seed=job.seed)
    return DistillConfig(method=job.method, options=job.options, mode=job.mode, train=train, limit=job.limit)


def enough_epochs(correct: int, limit: int | None) -> int:
    """Passes that read about a thousand trajectories, three at most: more passes of few make a student of those few."""
    return min(3, max(1, round(ENOUGH / max(1, min(correct, limit or correct)))))


def _compiled(job: Job, traces: Artifact, student: Artifact, events: EventLog) -> Artifact:
    from soloist.toolchain.verify import Probe

    tools = student_tools(student)
    step = max(1, len(job.test) // PROBES)
    asked = list(job.test)[::step][:PROBES]
    probe = Probe(
        prompts=[[{"role": "user", "content": question.question}] for question in asked],
        references=[_reference(run, calls=bool(tools)) for run in _similar(traces, asked, calls=bool(tools))],
    )
    return export(
        student,
        job.out / "compiled",
        job.formats,
        probe,
        events,
        name=job.team.name.capitalize(),
        beside=_beside(job, tools),
    )


def _similar(traces: Artifact, asked: Sequence[Question], *, calls: bool) -> list[Run]:
    """For each question a correct recorded run of its task: the form, not the content, of a good answer."""
    found: dict[str, list[Run]] = {}
    for run in read_runs(traces.path / TRACES):
        if run.verdict == "correct" and (run.trajectory or not calls):
            found.setdefault(run.question.task, []).append(run)
    every = [run for runs in found.values() for run in runs]
    if not every:
        raise DataError(f"{traces.path}: no correct run to take reference answers from")
    return [(found.get(q.task) or every)[i % len(found.get(q.task) or every)] for i, q in enumerate(asked)]


def _reference(run: Run, *, calls: bool) -> str:
    """What the student should say first: the call, or the worked steps where it answers in words."""
    messages = conversation(run, "tools" if calls else "cot")
    return messages[1]["content"] if messages else run.answer or ""


def _beside(job: Job, tools: Sequence[str]) -> dict[str, str]:
    """The call grammar and the schemas, to lie next to every compiled file of a student that acts."""
    import json

    from soloist.toolchain.tools.files import load_tools

    if not tools:
        return {}
    toolbox = load_tools(job.team.tools).subset(tools)
    return {
        "calls.gbnf": grammar(toolbox),
        "tools.json": json.dumps({"entries": list(job.team.tools), "tools": toolbox.schemas()}, indent=1),
    }


def _systems(job: Job, traces: Artifact, student: Artifact, compiled: Artifact) -> list[System]:
    facts = traces.read(TraceFacts)
    budget = max(1, (facts.tokens_in + facts.tokens_out) // max(1, facts.runs))
    team = System(id="team", kind="team", team=job.team, warmup=len(job.warmup))
    tools = student_tools(student)
    hosted = [team, *rivals(job.team, job.examples, tools, budget)]
    priced = [system.model_copy(update={"usd_per_million": job.usd_per_million}) for system in hosted]
    return [*priced, *students(student, compiled, _measurable(compiled), job.team.tools)]


def _measurable(compiled: Artifact) -> list[str]:
    """The formats that passed and whose device is here, by the latest verdict on each."""
    passed = [name for name in compiled.facts["formats"] if standing(compiled, name).verdict == "pass"]
    return [name for name in passed if parse(name).target not in ENGINES or runs_here(compiled.path / name)]


def _measured(job: Job, traces: Artifact, student: Artifact, compiled: Artifact, events: EventLog) -> Artifact:
    systems = _systems(job, traces, student, compiled)
    return measure(
        systems,
        job.test,
        job.warmup,
        job.out / "measured",
        parents=[traces, student, compiled],
        seed=job.seed,
        events=events,
    )


def _report(job: Job, artifacts: Sequence[Artifact], overlap: int) -> Report:
    traces, student, compiled, measured = artifacts
    assert measured.manifest["stage"] == BENCH
    measurements = load_measurements(measured.path / MEASUREMENTS)
    runs = list(read_runs(measured.path / "team.jsonl"))
    evaluation = sum(a.seconds for m in measurements if m.kind == "artifact" for a in m.answers)
    # the manifest's seconds are those since the last start, the steps' those of all starts
    trained = student.read(StudentFacts).training.passes
    training = max(student.manifest["seconds"], sum(one.seconds for one in trained))
    advised = assessment_of(job.out, job.team.name)
    asked = traces.read(TraceFacts).seconds + (advised.seconds if advised else 0)
    spend = Spend.of_seconds(job.price, recording=asked, training=training, evaluation=evaluation)
    context = Context(
        command=job.command,
        created=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        seeds={"measurement": job.seed, "training": job.seed},
        method=_method(traces, student),
        training=_training(student),
        parity=_parity(compiled, {m.system_id for m in measurements}),
        runs=runs,
        overlap=overlap,
        lineage=lineage_of(artifacts),
        prices=_prices(job),
        notes=_notes(job, traces),
        assessment=advised,
    )
    return build_report(
        measurements,
        task=job.team.name,
        commit=commit(),
        device=device(),
        versions=versions(),
        price=job.price,
        spend=spend,
        context=context,
        anatomy=choose_anatomy(runs),
    )


def _method(traces: Artifact, student: Artifact) -> list[str]:
    recorded, learned = traces.read(TraceFacts), student.read(StudentFacts)
    return [
        f"Recorded: {recorded.runs} questions, {recorded.correct} answered correctly by the team ({traces.digest}).",
        f"Distilled: {learned.method} on {learned.data.conversations} conversations, mode {learned.mode}, "
        f"from {learned.base}, {learned.tuning} fine-tuning in {learned.precision} ({student.digest}).",
    ]


def _notes(job: Job, traces: Artifact) -> list[str]:
    notes = []
    if any(agent.role == "scribe" for agent in job.team.agents):
        notes.append(
            "The team's time includes its scribe, who writes the solution out; the student answers without one."
        )
    if job.recording is not None:
        notes.append(
            f"The student learned from traces recorded earlier (commit {traces.manifest['commit']}); "
            "the comparison was measured live in this run."
        )
    return notes


def _prices(job: Job) -> list[str]:
    if job.team.engine.kind != "openai":
        return []
    models = {agent.model or job.team.engine.model for agent in job.team.agents}
    return [ApiPrice(model, usd_per_million=job.usd_per_million).describe() for model in sorted(models)]


def _training(student: Artifact) -> list[TrainingPoint]:
    import json

    lines = (student.path / "train.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [json.loads(line) for line in lines]
    return [TrainingPoint(step=s["step"], loss=s["loss"], tokens_per_second=s.get("tokens_per_second")) for s in steps]


def _parity(compiled: Artifact, measured: Collection[str]) -> list[Parity]:
    return [
        Parity(
            file=Path(facts["path"]).name,
            format=name,
            size_mb=facts["size_mb"],
            kl=facts.get("kl_mean"),
            top1=facts.get("top1"),
            verdict=facts["verdict"],
            measured=f"student-{name}" in measured,
            tolerance=f"KL ≤ {facts['tolerance']['kl']:g}, top-1 ≥ {facts['tolerance']['top1']:.0%}",
            note=stands.note,
        )
        for name, made in compiled.facts["formats"].items()
        for stands in [standing(compiled, name)]
        for facts in [{**made, **stands.facts}]
    ]

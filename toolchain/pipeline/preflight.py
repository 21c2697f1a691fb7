"""What can be refused before hours of recording: packages, questions that overlap, options that cannot work."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from pathlib import Path

from soloist.kernels.errors import DataError, MissingExtraError
from soloist.targets.base import check_one_onnxruntime
from soloist.targets.formats import parse
from soloist.targets.from_gguf import find_base
from soloist.targets.llama_library import library_file
from soloist.toolchain.core.artifact import Artifact
from soloist.toolchain.core.lineage import Lineage, refuse_trained
from soloist.toolchain.distill.methods.catalog import resolve
from soloist.toolchain.distill.stage import DistillConfig
from soloist.toolchain.distill.train import TrainConfig
from soloist.toolchain.pipeline.job import Job
from soloist.toolchain.tasks.base import Question, question_key
from soloist.toolchain.traces.recording import TraceFacts, calls_tools

ENOUGH = 1000  # trajectories to read while training; see benchmarks/LOG.md
_TRAINING = ("torch", "transformers", "accelerate", "safetensors", "gguf")
_GRAPH = (
    ("onnxruntime", "onnx"),
    ("tokenizers", "onnx"),
    ("onnx", "compile"),
    ("onnx_ir", "compile"),
    ("onnxscript", "compile"),
    ("optimum", "compile"),
)
_GENAI = (("onnxruntime_genai", "onnx"), ("onnx", "compile"), ("onnx_ir", "compile"))
# target -> packages that compile and check it, and the extras that carry them
_PACKAGES = {
    "gguf": (("gguf", "gguf"),),  # and llama.cpp's library, which comes in either of two packages
    "onnx": _GENAI,
    "onnx-cuda": _GENAI,
    "onnx-portable": _GRAPH,
    "tensorrt-rtx": (*_GRAPH, ("tensorrt_rtx", "rtx")),
    "tensorrt": _GRAPH,
}


def check(job: Job) -> Path:
    """Refuse a job that could not end in a report; returns the base model's path.

    Raises:
        SoloistError: what is wrong with it, see the module.
    """
    from soloist.toolchain.distill.model import check_base

    task = job.task
    if not task.test:
        raise DataError("no held-out questions: the comparison needs at least one")
    refuse_overlap((question.question for question in task.train), [*task.test, *_kept_apart(job)])
    trained = {question.benchmark for question in task.train if question.benchmark}
    refuse_trained(Lineage(tuple(trained)), (question.benchmark for question in task.test))
    formats = [parse(name) for name in job.formats]
    targets = sorted({format.target for format in formats})
    resolve(job.method)
    base = Path(job.base) if Path(job.base).exists() else find_base(job.base)
    if targets != ["gguf"]:
        check_one_onnxruntime()
    needed = _needed(job, targets)
    if any(format.mix for format in formats):
        needed.append(("llama_cpp", "llama-quantize"))
    for package, extra in needed:
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, extra)
    if ("gguf", "gguf") in needed:
        library_file()
    distillation(job).settled()
    check_base(base)
    return base


def _kept_apart(job: Job) -> list[Question]:
    """Selection questions that are not among those of training, as small sets of a user's are."""
    trained = {question.id for question in job.task.train}
    return [question for question in job.task.selection if question.id not in trained] if job.task.train else []


def _needed(job: Job, targets: Iterable[str]) -> list[tuple[str, str]]:
    """The optional packages that any stage of the job will want, and the extras that carry them."""
    needed = [(package, "train") for package in _TRAINING]
    kind = job.task.team.engine.kind if job.task.team is not None else None
    if kind == "gguf":
        needed += _PACKAGES["gguf"]
    for target in targets:
        needed += _PACKAGES[target]
    if kind == "openai":
        needed.append(("openai", "api"))
        if job.usd_per_million is None:
            needed.append(("genai_prices", "prices"))
    return needed


def refuse_overlap(train: Iterable[str], test: Sequence[Question]) -> int:
    """How many test texts occur among the texts of training: none, or a DataError that names the first."""
    known = {question_key(text) for text in train}
    shared = [question for question in test if question_key(question.question) in known]
    if shared:
        raise DataError(
            f"{len(shared)} of {len(test)} test questions were used for training, the first is '{shared[0].id}': "
            "take other questions"
        )
    return len(shared)


def distillation(job: Job, traces: Artifact | None = None) -> DistillConfig:
    """How the student is trained on these traces; without them, on any."""
    correct = traces.read(TraceFacts).correct if traces is not None else 0
    mode = job.mode or ("tools" if traces is None or calls_tools(traces) else "cot")
    train = TrainConfig(epochs=job.epochs or enough_epochs(correct, job.limit), seed=job.seed)
    return DistillConfig(method=job.method, options=job.options, mode=mode, train=train, limit=job.limit)


def enough_epochs(correct: int, limit: int | None) -> int:
    """Passes that read about a thousand trajectories, three at most: more passes of few make a student of those few."""
    return min(3, max(1, round(ENOUGH / max(1, min(correct, limit or correct)))))

"""The export stage: a student becomes files that run elsewhere, each of them checked before it counts.

    <out>/gguf-q5_0/Desk-135M-Q5_0.gguf   one folder per format, the tools' grammar and schemas beside the model
    <out>/onnx-int4/model.onnx …
    <out>/manifest.json                   facts: size, KL, top-1, tolerance, verdict of each file

A format that is compiled and has passed leaves a marker, so that a killed export goes on with the next
one. A format that fails is removed and named at the end, after the others were done. A student of two models
becomes <format>/decomposer and <format>/solver: each is checked, and the worse one counts. A quantized student
(`quantize.py`) becomes files with its very integers, compared with the student that it was made from. Left out:
choosing among the files, which is for whoever has measured them on the task.

Given an importance matrix (a file of `targets.llama_quantize`, or the artifact that `quantize.py` made of the same
student), llama.cpp's quantizer weighs columns by it. Given kernels (`soloist kernels build`), products of 4-bit blocks
are plugins in the folders for TensorRT on a Jetson.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soloist.kernels.errors import ArtifactError, GateError, SoloistError, UsageError
from soloist.targets.families import FAMILIES
from soloist.targets.formats import DEVICES, ENGINES, EXAMPLES, Format, parse
from soloist.targets.llama_quantize import mean_squares, read_importance
from soloist.targets.open import parts
from soloist.targets.portable.export import compile_portable
from soloist.targets.quantized import is_quantized, read_plan
from soloist.targets.tensorrt.jetson import compile_tensorrt, standard
from soloist.targets.tensorrt.plan import Student
from soloist.targets.tensorrt.rtx import build_rtx, require_rtx
from soloist.targets.to_gguf import compile_gguf, read_config
from soloist.targets.to_onnx import compile_onnx
from soloist.targets.tolerances import Tolerance, tolerance_of
from soloist.toolchain.core.artifact import Artifact, stage
from soloist.toolchain.core.events import QUIET, EventLog
from soloist.toolchain.core.files import write_atomic
from soloist.toolchain.export.inputs import PLAIN, Inputs, inputs_of, release_of, weighs
from soloist.toolchain.knowledge.context import FILE
from soloist.toolchain.verify.fidelity import judge_format, runs_here, without_device
from soloist.toolchain.verify.process import Probe

if TYPE_CHECKING:
    from soloist.toolchain.verify.accuracy import Exam

STAGE = "export"
DEFAULT_FORMATS = ("gguf-f16", "gguf-q8_0", "gguf-q5_0", "onnx-int8", "onnx-int4")
_WORK = "work"
_QUANTIZED = "quantize"


def model_folder(student: Artifact) -> Path:
    """The Hugging Face folder of a student artifact: the artifact itself or its `model` folder."""
    for folder in (student.path, student.path / "model"):
        if (folder / "config.json").is_file():
            return folder
    raise ArtifactError(f"{student.path}: holds no model (no config.json); run the distill stage again")


def model_folders(student: Artifact) -> dict[str, Path]:
    """The student's model by the name "", or its two models by what they do."""
    return parts(student.path) or {"": model_folder(student)}


def original(student: Artifact) -> Artifact:
    """What files are compared with: the student, or the one that a quantized student was made from.

    Raises:
        ArtifactError: that one is not where it was, or is another by now.
    """
    return parent_of(student) if student.manifest["stage"] == _QUANTIZED else student


def parent_of(made: Artifact) -> Artifact:
    """The student that an artifact was made from. Raises ArtifactError: not where it was, or another by now."""
    parent = made.manifest["parents"][0]
    path = (made.path.parent / parent["path"]).resolve()
    found = Artifact.open(path) if path.is_dir() else None
    if found is None or found.digest != parent["digest"]:
        raise ArtifactError(
            f"{made.path}: the student it was made from is not at {path}, and files are compared with that one"
        )
    return found


def export(
    student: Artifact,
    out: Path,
    formats: Sequence[str],
    probe: Probe,
    events: EventLog = QUIET,
    *,
    name: str = "Student",
    beside: Mapping[str, str] | None = None,
    exam: Exam | None = None,
    importance: Path | None = None,
    kernels: Path | None = None,
) -> Artifact:
    """Compile and check every format. `beside` is text that goes next to each model: file name -> content.

    With an `exam` a format must keep the task's accuracy as well, where it can run here. What `importance` and
    `kernels` may be, `export_inputs` says.

    Raises:
        GateError: some file does not load, drifts, or loses accuracy; every reason is named.
        SoloistError: the only format that failed could not be compiled.
    """
    if not formats:
        raise UsageError(f"no format to export: name at least one of {', '.join(EXAMPLES)}")
    formats = tuple(dict.fromkeys(formats))
    models = model_folders(student)
    limits = {format: tolerance_of(format, width_of(models)) for format in formats}
    references = model_folders(original(student))
    beside = {**knowledge(student.path), **(beside or {})}
    inputs = inputs_of(student, width_of(models), formats, importance, kernels)
    config = _config(limits, name, probe, beside, exam) | inputs.said

    def build(partial: Path) -> Mapping[str, Any]:
        found: dict[str, dict[str, Any]] = {}
        failed: list[SoloistError] = []
        for done, format in enumerate(formats):
            events.progress(STAGE, done, len(formats), format=format)
            facts = _finished(partial, format)
            if facts is None:
                try:
                    facts = compile_format(models, partial, format, name, beside, inputs)
                except SoloistError as error:
                    shutil.rmtree(partial / format, ignore_errors=True)
                    failed.append(error)
                    found[format] = {"verdict": "fail", "reason": str(error)}
                    continue
                _check(references, partial, format, facts, probe, limits[format], exam)
            events.emit(STAGE, "metric", format=format, **facts)
            found[format] = facts
        events.progress(STAGE, len(formats), len(formats))
        refused = [f"{format}: {facts['reason']}" for format, facts in found.items() if facts["verdict"] == "fail"]
        if len(refused) == len(failed) == 1:
            raise failed[0]
        if refused:
            raise GateError("; ".join(refused))
        return {"formats": found}

    return stage(STAGE, out, config, [student], build, events=events, scratch=(_WORK,))


def _config(
    limits: Mapping[str, Tolerance], name: str, probe: Probe, beside: Mapping[str, str], exam: Exam | None
) -> dict[str, Any]:
    """What makes one export another: long texts by their hashes."""

    def digest(text: str) -> str:
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    asked = json.dumps([[list(messages) for messages in probe.prompts], list(probe.references)], ensure_ascii=False)
    return {
        "formats": {format: vars(limit) for format, limit in limits.items()},
        "name": name,
        "probe": digest(asked),
        "beside": {file: digest(text) for file, text in beside.items()},
        **({} if exam is None else {"exam": digest(repr(exam))}),
    }


def width_of(models: Mapping[str, Path]) -> int | None:
    """The fewest bits of a matrix of quantized models; None for floats."""
    plans = [read_plan(folder) for folder in models.values() if is_quantized(folder)]
    return min((int(facts["bits"]) for plan in plans for facts in plan["tensors"].values()), default=None)


def knowledge(student: Path) -> dict[str, str]:
    """The graph whose facts the student must be given with each question, if it was taught so."""
    path = student / FILE
    return {FILE: path.read_text(encoding="utf-8")} if path.is_file() else {}


def _marker(partial: Path, format: str) -> Path:
    return partial / _WORK / "done" / f"{format}.json"


def _finished(partial: Path, format: str) -> dict[str, Any] | None:
    """Facts of a format that an earlier, killed run compiled and passed, its files still as they were."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        facts: dict[str, Any] = json.loads(_marker(partial, format).read_text(encoding="utf-8"))
        if facts["size_mb"] == _size_mb(partial / facts["path"]):
            return facts
    return None


@dataclass(frozen=True)
class _Work:
    """One model to compile: its folder, where to, as what, what to call it, and a folder for graphs on the way."""

    folder: Path
    out: Path
    format: Format
    name: str
    graph: Path
    inputs: Inputs

    @property
    def precision(self) -> str | None:
        return self.format.precision


_Made = tuple[str, list[str]]  # name of the file, empty where the folder is the model; what was checked meanwhile


def _gguf(work: _Work) -> _Made:
    precision = work.precision.upper() if work.precision else None
    given = work.inputs.importance if weighs(work.format) else None
    weights = None if given is None else mean_squares(read_importance(given[0]))
    return str(compile_gguf(work.folder, work.out, precision, work.name, importance=weights)["file"]), []


def _onnx(work: _Work) -> _Made:
    try:
        compile_onnx(work.folder, work.out, work.precision, device=DEVICES[work.format.target])
    except ArtifactError as error:
        kind = read_config(work.folder).get("model_type")
        if kind in FAMILIES:
            raise
        known = ", ".join(FAMILIES)  # the builder itself may not name what it does not know
        raise ArtifactError(f"{error}; its architecture is '{kind}', and those that work are {known}") from error
    return "", []


def _portable(work: _Work) -> _Made:
    compile_portable(work.folder, work.out, "float16" if work.precision == "fp16" else "float32")
    return "", []


def _engine(work: _Work) -> _Made:
    """An engine, or what a device builds it of, from a graph in fp16 that other engines take too."""
    if work.format.target == "tensorrt-rtx":
        require_rtx()
    if not work.graph.is_dir():
        compile_portable(work.folder, work.graph, "float16")
    who = Student(work.name, work.inputs.digest) if work.inputs.digest else None
    if work.format.target == "tensorrt-rtx":
        build_rtx(work.graph, work.out, student=who)
        return "", ["parsed and built by TensorRT-RTX"]
    kernels = work.inputs.kernels
    plan = compile_tensorrt(
        work.graph, work.out, release_of(work.format), student=who, kernels=None if kernels is None else kernels[0]
    )
    parsed = f"parsed by {plan['parsed']}{'' if kernels is None else ' without our kernels'}"
    return "", [parsed] if plan["parsed"] else []


_COMPILERS: Mapping[str, Callable[[_Work], _Made]] = {
    "gguf": _gguf,
    **dict.fromkeys(DEVICES, _onnx),
    "onnx-portable": _portable,
    **dict.fromkeys(ENGINES, _engine),
}


def compile_format(
    models: Mapping[str, Path],
    partial: Path,
    format: str,
    name: str,
    beside: Mapping[str, str],
    inputs: Inputs = PLAIN,
) -> dict[str, Any]:
    """Write one format of a student's model or models, without comparing it; returns its path and size."""
    wanted = parse(format)
    shutil.rmtree(partial / format, ignore_errors=True)
    path, checked = format, []
    for part, folder in models.items():
        title = f"{name}-{part.capitalize()}" if part else name
        work = _Work(folder, partial / format / part, wanted, title, _graph(partial, part), inputs)
        file, seen = _COMPILERS[wanted.target](work)
        path = f"{format}/{file}" if file and not part else format
        checked += seen
    for file, text in beside.items():
        write_atomic(partial / format / file, text)
    facts: dict[str, Any] = {"path": path, "size_mb": _size_mb(partial / path), **inputs.taken(wanted)}
    return facts | ({"checked": checked} if checked else {})


def _graph(partial: Path, part: str) -> Path:
    return partial / _WORK / "graph" / (part or "model")


def files_of(folder: Path, path: Path, models: Mapping[str, Path]) -> dict[str, Path]:
    """The model or models of a compiled format by the name of the part."""
    return parts(folder) if len(models) > 1 else {"": path}


def graphs_of(folder: Path, models: Mapping[str, Path], scratch: Path) -> dict[str, Path]:
    """What ONNX Runtime opens of a folder for a Jetson, by the name of the part."""
    return {part: standard(folder / part, scratch / "graph" / part) for part in models}


def _check(
    models: Mapping[str, Path],
    partial: Path,
    format: str,
    facts: dict[str, Any],
    probe: Probe,
    limit: Tolerance,
    exam: Exam | None,
) -> None:
    """Compare a compiled format with the student; keep it with its marker, or remove it.

    Of an engine that cannot run here, its graph is compared.
    """
    scratch = partial / _WORK / "verify"
    apart = parse(format).target in ENGINES and not runs_here(partial / format)
    if not apart:
        files = files_of(partial / format, partial / facts["path"], models)
    elif parse(format).target == "tensorrt":
        files = graphs_of(partial / format, models, scratch)
    else:
        files = {part: _graph(partial, part) for part in models}
    sits = None if apart or exam is None else (exam, partial / facts["path"])
    found = judge_format(models, files, probe, scratch, limit, sits)
    if apart and found["verdict"] == "pass":
        found = without_device(found, facts)
    facts.update(found)
    for part in (*(f"{part}/file" for part in models), "graph", "exam"):
        shutil.rmtree(scratch / part, ignore_errors=True)
    if facts["verdict"] == "fail":
        shutil.rmtree(partial / format)
        return
    write_atomic(_marker(partial, format), json.dumps(facts))


def _size_mb(path: Path) -> float:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    if not files:
        raise FileNotFoundError(path)
    return round(sum(file.stat().st_size for file in files) / 1e6, 3)

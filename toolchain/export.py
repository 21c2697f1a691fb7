"""The export stage: a student becomes files that run elsewhere, each of them checked before it counts.

    <out>/gguf-q5_0/Desk-135M-Q5_0.gguf   one folder per format, the tools' grammar and schemas beside the model
    <out>/onnx-int4/model.onnx …
    <out>/manifest.json                   facts: size, KL, top-1, tolerance, verdict of each file

A format that is compiled and has passed leaves a marker, so that a killed export goes on with the next
one. A format that fails is removed and named at the end, after the others were done. Left out: choosing
among the files, which is for whoever has measured them on the task.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from soloist.kernels.errors import ArtifactError, GateError, UsageError
from soloist.targets.to_gguf import compile_gguf
from soloist.targets.to_onnx import compile_onnx
from soloist.targets.tolerances import TOLERANCES, tolerance_of
from soloist.toolchain.artifact import Artifact, stage, write_atomic
from soloist.toolchain.events import QUIET, EventLog
from soloist.toolchain.knowledge.context import FILE
from soloist.toolchain.verify import Probe, judge

STAGE = "export"
DEFAULT_FORMATS = ("gguf-f16", "gguf-q8_0", "gguf-q5_0", "onnx-int8", "onnx-int4")
_WORK = "work"


def model_folder(student: Artifact) -> Path:
    """The Hugging Face folder of a student artifact: the artifact itself or its `model` folder."""
    for folder in (student.path, student.path / "model"):
        if (folder / "config.json").is_file():
            return folder
    raise ArtifactError(f"{student.path}: holds no model (no config.json); run the distill stage again")


def export(
    student: Artifact,
    out: Path,
    formats: Sequence[str],
    probe: Probe,
    events: EventLog = QUIET,
    *,
    name: str = "Student",
    beside: Mapping[str, str] | None = None,
) -> Artifact:
    """Compile and check every format. `beside` is text that goes next to each model: file name -> content.

    Raises:
        GateError: some file does not load or drifts; every reason is named.
    """
    if not formats:
        raise UsageError(f"no format to export: name at least one of {', '.join(TOLERANCES)}")
    formats = tuple(dict.fromkeys(formats))
    limits = {format: vars(tolerance_of(format)) for format in formats}
    folder = model_folder(student)
    beside = {**_knowledge(student.path), **(beside or {})}
    asked = json.dumps([[list(messages) for messages in probe.prompts], list(probe.references)], ensure_ascii=False)
    config = {
        "formats": limits,
        "name": name,
        "probe": hashlib.sha256(asked.encode()).hexdigest()[:16],
        "beside": {file: hashlib.sha256(text.encode()).hexdigest()[:16] for file, text in beside.items()},
    }

    def build(partial: Path) -> Mapping[str, Any]:
        found: dict[str, dict[str, Any]] = {}
        for done, format in enumerate(formats):
            events.progress(STAGE, done, len(formats), format=format)
            facts = _finished(partial, format)
            if facts is None:
                facts = _compile(folder, partial, format, name, beside)
                _check(folder, partial, format, facts, probe)
            events.emit(STAGE, "metric", format=format, **facts)
            found[format] = facts
        events.progress(STAGE, len(formats), len(formats))
        refused = [f"{format}: {facts['reason']}" for format, facts in found.items() if facts["verdict"] != "pass"]
        if refused:
            raise GateError("; ".join(refused))
        return {"formats": found}

    return stage(STAGE, out, config, [student], build, events=events, scratch=(_WORK,))


def _knowledge(student: Path) -> dict[str, str]:
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


def _compile(folder: Path, partial: Path, format: str, name: str, beside: Mapping[str, str]) -> dict[str, Any]:
    family, _, precision = format.partition("-")
    shutil.rmtree(partial / format, ignore_errors=True)
    if family == "gguf":
        made = compile_gguf(folder, partial / format, precision.upper(), name)
        path = f"{format}/{made['file']}"
    else:
        compile_onnx(folder, partial / format, precision)
        path = format
    for file, text in beside.items():
        write_atomic(partial / format / file, text)
    return {"path": path, "size_mb": _size_mb(partial / path)}


def _check(folder: Path, partial: Path, format: str, facts: dict[str, Any], probe: Probe) -> None:
    """Compare a compiled format with the student; keep it with its marker, or remove it."""
    scratch = partial / _WORK / "verify"
    facts.update(judge(folder, partial / facts["path"], probe, scratch, tolerance_of(format)))
    shutil.rmtree(scratch / "file", ignore_errors=True)
    if facts["verdict"] != "pass":
        shutil.rmtree(partial / format)
        return
    write_atomic(_marker(partial, format), json.dumps(facts))


def _size_mb(path: Path) -> float:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    if not files:
        raise FileNotFoundError(path)
    return round(sum(file.stat().st_size for file in files) / 1e6, 3)

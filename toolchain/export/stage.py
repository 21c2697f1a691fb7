"""Stage `export`: a student becomes files that run elsewhere, each of them checked before it counts.

    <out>/gguf-q5_0/Desk-135M-Q5_0.gguf   one folder per format, the tools' grammar and schemas beside the model
    <out>/onnx-int4/model.onnx …
    <out>/manifest.json                   ExportFacts: size and verdict of each format

A format that is compiled and has passed leaves a marker, so that a killed export goes on with the next one. A format
that fails is removed and named at the end, after the others were done. A student of two models becomes
<format>/decomposer and <format>/solver: each is checked, and the worse one counts. A quantized student becomes files
with its very integers, compared with the float student that it was made from. Compiling itself: `targets/compile.py`;
comparing: `verify`. Left out: choosing among the files, which is for whoever has measured them on the task.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from soloist.kernels.errors import GateError, SoloistError, UsageError
from soloist.targets.compile import Compiled, compile_format, graph_of, size_mb
from soloist.targets.formats import EXAMPLES, parse
from soloist.targets.tolerances import Tolerance, tolerance_of
from soloist.toolchain.core.artifact import Artifact, stage
from soloist.toolchain.core.events import QUIET, EventLog
from soloist.toolchain.core.files import write_atomic
from soloist.toolchain.export.inputs import Given, check_inputs
from soloist.toolchain.student.student import Student
from soloist.toolchain.verify.accuracy import AccuracyCheck
from soloist.toolchain.verify.fidelity import Comparison
from soloist.toolchain.verify.process import Prompts
from soloist.toolchain.verify.verdict import EXPORT, ExportFacts, FormatFacts, Verdict

_WORK = "work"


def export(
    student: Student,
    out: Path,
    formats: Sequence[str],
    prompts: Prompts,
    events: EventLog = QUIET,
    *,
    name: str = "Student",
    accuracy: AccuracyCheck | None = None,
    importance: Path | None = None,
    kernels: Path | None = None,
) -> Artifact:
    """Compile and check every format. With `accuracy` a format must keep that as well, where it can run here.

    What `importance` and `kernels` may be, `export/inputs.py` says.

    Raises:
        GateError: some file does not load, drifts, or loses accuracy; every reason is named.
        SoloistError: the only format that failed could not be compiled.
    """
    if not formats:
        raise UsageError(f"no format to export: name at least one of {', '.join(EXAMPLES)}")
    formats = tuple(dict.fromkeys(formats))
    limits = {format: tolerance_of(format, student.bits) for format in formats}
    given = check_inputs(student, formats, importance, kernels)
    config = _config(student, limits, name, prompts, accuracy) | given.facts

    def build(partial: Path) -> ExportFacts:
        graphs = partial / _WORK / "graph"
        comparison = Comparison(
            student.reference.models,
            prompts,
            partial / _WORK / "verify",
            graphs={part: graph_of(graphs, part) for part in student.reference.models},
            accuracy=accuracy,
        )
        facts: dict[str, FormatFacts] = {}
        uncompiled: list[SoloistError] = []
        for done, format in enumerate(formats):
            events.progress(EXPORT, done, len(formats), format=format)
            kept = _finished(partial, format)
            if kept is None:
                try:
                    compiled = compile_format(student.models, partial, format, name, graphs=graphs, inputs=given.inputs)
                except SoloistError as error:
                    shutil.rmtree(partial / format, ignore_errors=True)
                    uncompiled.append(error)
                    facts[format] = FormatFacts(verdict=Verdict(verdict="fail", reason=str(error)))
                    continue
                student.write_sidecars(partial / format)
                kept = _facts_of(compiled, format, given)
                kept = kept.model_copy(update={"verdict": comparison.verdict_on(partial, format, kept, limits[format])})
                _keep_or_remove(partial, format, kept)
            facts[format] = kept
            _tell(events, format, kept)
        events.progress(EXPORT, len(formats), len(formats))
        _raise_refusals(facts, uncompiled)
        return ExportFacts(formats=facts)

    return stage(EXPORT, out, config, [student.artifact], build, events=events, scratch=(_WORK,))


def _facts_of(compiled: Compiled, format: str, given: Given) -> FormatFacts:
    """What is known of a format before it was compared."""
    return FormatFacts(
        path=compiled.path,
        size_mb=compiled.size_mb,
        checked=compiled.checked,
        importance=given.importance_of(parse(format)),
        kernels=given.kernels_of(parse(format)),
        verdict=Verdict(),
    )


def _raise_refusals(facts: Mapping[str, FormatFacts], uncompiled: Sequence[SoloistError]) -> None:
    """Name every format that failed; where only one could not even be compiled, its own error."""
    refused = [f"{format}: {one.verdict.reason}" for format, one in facts.items() if one.verdict.verdict == "fail"]
    if len(refused) == len(uncompiled) == 1:
        raise uncompiled[0]
    if refused:
        raise GateError("; ".join(refused))


def _config(
    student: Student,
    limits: Mapping[str, Tolerance],
    name: str,
    prompts: Prompts,
    accuracy: AccuracyCheck | None,
) -> dict[str, Any]:
    """What makes one export another: long texts by their hashes."""

    def digest(text: str) -> str:
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    asked = json.dumps([[list(messages) for messages in prompts.prompts], list(prompts.references)], ensure_ascii=False)
    config: dict[str, Any] = {
        "formats": {format: vars(limit) for format, limit in limits.items()},
        "name": name,
        "prompts": digest(asked),
        "sidecars": {file: digest(text) for file, text in student.sidecars().items()},
    }
    if accuracy is not None:
        config["accuracy"] = digest(repr(accuracy))
    return config


def _marker(partial: Path, format: str) -> Path:
    return partial / _WORK / "done" / f"{format}.json"


def _finished(partial: Path, format: str) -> FormatFacts | None:
    """Facts of a format that an earlier, killed run compiled and passed, its files still as they were."""
    with contextlib.suppress(OSError, ValidationError):
        facts = FormatFacts.model_validate_json(_marker(partial, format).read_bytes())
        if facts.size_mb == size_mb(partial / facts.path):
            return facts
    return None


def _keep_or_remove(partial: Path, format: str, facts: FormatFacts) -> None:
    """Mark a format that did not fail as done; remove one that did, and what was observed of any."""
    scratch = partial / _WORK / "verify"
    for folder in (*scratch.glob("*/file"), scratch / "file", scratch / "graph", scratch / "accuracy"):
        shutil.rmtree(folder, ignore_errors=True)
    if facts.verdict.verdict == "fail":
        shutil.rmtree(partial / format)
    else:
        write_atomic(_marker(partial, format), facts.model_dump_json(exclude_none=True))


def _tell(events: EventLog, format: str, facts: FormatFacts) -> None:
    """One metric in the event log: what a person wants to see of a format."""
    drift = facts.verdict.drift
    events.emit(
        EXPORT,
        "metric",
        format=format,
        path=facts.path,
        size_mb=facts.size_mb,
        verdict=facts.verdict.verdict,
        kl_mean=drift.kl_mean if drift else None,
        top1=drift.top1 if drift else None,
    )

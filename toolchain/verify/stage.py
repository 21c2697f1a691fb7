"""An export verified again: every format of it, on this machine, with these prompts and questions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from soloist.kernels.errors import ArtifactError, UsageError
from soloist.targets.formats import ENGINES, parse
from soloist.targets.tolerances import tolerance_of
from soloist.toolchain.core.artifact import Artifact
from soloist.toolchain.export.stage import STAGE, files_of, graphs_of, model_folders, original, parent_of, width_of
from soloist.toolchain.tasks.base import Question
from soloist.toolchain.verify.accuracy import exam_of
from soloist.toolchain.verify.fidelity import judge_format, runs_here, without_device
from soloist.toolchain.verify.process import LIMIT_S, Probe
from soloist.toolchain.verify.verdict import Standing, check_files, record, standing

_KEPT = ("path", "size_mb", "checked", "importance", "kernels")


def verify_export(
    path: Path,
    probe: Probe,
    scratch: Path,
    formats: Sequence[str] = (),
    *,
    questions: Sequence[Question] = (),
    points: float | None = None,
    entries: Sequence[str] = (),
    limit_s: float = LIMIT_S,
    memory_mb: int | None = None,
) -> Iterator[tuple[str, Standing]]:
    """Verify formats of an export (all of them if none is named) and write each verdict beside its files.

    Args:
        questions: held-out ones, for accuracy; `points` replaces how many the table lets it lose.
        entries: tool entries, where none stand beside the files.

    Raises:
        ArtifactError: no export, or its files or its student are not what they were.
        UsageError: a format it has not.
    """
    export = Artifact.open(path, stage=STAGE, verify=False)
    known = export.facts["formats"]
    unknown = [format for format in formats if format not in known]
    if unknown:
        raise UsageError(f"{path}: has no format {', '.join(unknown)}; it has {', '.join(known)}")
    student = parent_of(export)
    source = original(student)
    models = model_folders(source)
    width = width_of(model_folders(student))
    exam = None
    if questions:
        exam = exam_of(source, questions, scratch / "accuracy", tuple(entries) or _entries(path))
    for format in formats or tuple(known):
        check_files(export, format)
        limit = tolerance_of(format, width)
        if points is not None:
            limit = replace(limit, points=points)
        kept = {key: known[format][key] for key in _KEPT if key in known[format]}
        apart = parse(format).target in ENGINES and not runs_here(path / format)
        if apart and parse(format).target == "tensorrt-rtx":  # holds no graph that could be run instead
            found = dict(known[format])
        else:
            model = path / known[format]["path"]
            if apart:
                files = graphs_of(path / format, models, scratch)
                model = next(iter(files.values())) if len(files) == 1 else next(iter(files.values())).parent
            else:
                files = files_of(path / format, model, models)
            sits = (exam, model) if exam else None
            found = judge_format(models, files, probe, scratch, limit, sits, limit_s=limit_s, memory_mb=memory_mb)
            if apart and found["verdict"] == "pass":
                found = without_device(found, kept)
        record(export, format, {**kept, **found})
        yield format, standing(export, format)


def _entries(path: Path) -> tuple[str, ...]:
    """The tool entries that stand beside the files."""
    for file in sorted(path.glob("*/tools.json")):
        try:
            return tuple(json.loads(file.read_text(encoding="utf-8"))["entries"])
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{file}: not a list of tools of ours ({error})") from error
    return ()

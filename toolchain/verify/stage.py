"""Stage `verify`: every format of an export, compared again on this machine, with these prompts and questions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from soloist.kernels.errors import UsageError
from soloist.targets.tolerances import tolerance_of
from soloist.toolchain.core.artifact import Artifact
from soloist.toolchain.student.student import open_student, parent_of
from soloist.toolchain.tasks.base import Question
from soloist.toolchain.verify.accuracy import accuracy_check
from soloist.toolchain.verify.fidelity import Comparison
from soloist.toolchain.verify.process import DEFAULT, Allowed, Prompts
from soloist.toolchain.verify.verdict import (
    EXPORT,
    ExportFacts,
    LatestVerdict,
    check_files,
    latest_verdict,
    record_verdict,
)


def verify_export(
    path: Path,
    prompts: Prompts,
    scratch: Path,
    formats: Sequence[str] = (),
    *,
    questions: Sequence[Question] = (),
    points: float | None = None,
    entries: Sequence[str] = (),
    allowed: Allowed = DEFAULT,
) -> Iterator[tuple[str, LatestVerdict]]:
    """Verify formats of an export (all of them if none is named) and write each verdict beside its files.

    Args:
        questions: held-out ones, for accuracy; `points` replaces how many the table lets it lose.
        entries: tool entries, where the student's tools do not ship with Soloist.

    Raises:
        ArtifactError: no export, or its files or its student are not what they were.
        UsageError: a format it has not.
    """
    export = Artifact.open(path, stage=EXPORT, verify=False)
    made = export.read(ExportFacts).formats
    unknown = [format for format in formats if format not in made]
    if unknown:
        raise UsageError(f"{path}: has no format {', '.join(unknown)}; it has {', '.join(made)}")
    student = open_student(parent_of(export))
    accuracy = None
    if questions:
        accuracy = accuracy_check(student.reference, questions, scratch / "accuracy", entries)
    comparison = Comparison(student.reference.models, prompts, scratch, accuracy=accuracy, allowed=allowed)
    for format in formats or tuple(made):
        check_files(export, format)
        tolerance = tolerance_of(format, student.bits)
        if points is not None:
            tolerance = replace(tolerance, points=points)
        record_verdict(export, format, comparison.verdict_on(path, format, made[format], tolerance))
        yield format, latest_verdict(export, format)

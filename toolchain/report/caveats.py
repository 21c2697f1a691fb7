"""Why a report may say less than it seems to: generated from the numbers, so that none is forgotten or talked away."""

from __future__ import annotations

from collections.abc import Sequence

from soloist.toolchain.bench.records import Measurement, TestSplit
from soloist.toolchain.core.statistics import smallest_sample, wilson
from soloist.toolchain.report.context import Context
from soloist.toolchain.report.schema import System

_UNMEASURED = {
    "pass": "which passed where its GPU is and cannot run on this machine",
    "not run": "which cannot run on this machine: only its graph was compared with the student",
    "fail": "which did not keep to the student",
    "none": "which was never verified",
}


def caveats(measurements: Sequence[Measurement], systems: Sequence[System], context: Context) -> list[str]:
    """The lines under "Caveats", in the order of their weight."""
    lines: list[str] = []
    if context.simulated:
        lines.append("The team's agents are simulated: their answers, times and tokens are those of a script.")
    if context.overlap is None:
        lines.append("Nobody checked whether test questions also occur in the training data.")
    elif context.overlap:
        lines.append(f"{context.overlap} test questions also occur in the training data: accuracies are too high.")
    if context.lineage.benchmarks:
        trained = ", ".join(context.lineage.benchmarks)
        lines.append(
            f"The student was trained on test questions of {trained}; it is never measured on those benchmarks."
        )
    if context.lineage.missing:
        gone = ", ".join(context.lineage.missing)
        lines.append(f"What the student was trained on is not known in full: {gone} is no longer there.")
    lines += _measured_otherwise(measurements)
    lines += _small_samples(measurements)
    lines += _incomplete(measurements)
    for verdict, reason in _UNMEASURED.items():
        files = [p.file for p in context.parity if p.verdict == verdict and not p.measured]
        if files:
            lines.append(f"Compiled but not measured: {', '.join(files)}, {reason}.")
    choices = sum(s.kind == "artifact" and s.split == "held-out" for s in systems)
    if choices > 1 and context.recommended is None:
        lines.append(
            f"The file named first is the best of {choices} on these very questions, which flatters it a little."
        )
    if not any(s.split == "unseen-wording" for s in systems):
        lines.append("No wording outside the training templates was tested: people do not speak in templates.")
    if not any(s.kind == "team" for s in systems):
        lines.append("No team was measured: nothing is compared with one.")
    return [*lines, *context.notes]


def _measured_otherwise(measurements: Sequence[Measurement]) -> list[str]:
    lines = []
    for label, reason in (("recorded", "comes from an earlier run"), ("predicted", "is predicted, not run")):
        names = sorted({m.system_id for m in measurements if m.label == label})
        if names:
            lines.append(f"What is shown for {', '.join(names)} {reason}; it was not measured beside the others.")
    return lines


def _splits(measurements: Sequence[Measurement]) -> list[TestSplit]:
    return list(dict.fromkeys(m.split for m in measurements))


def _small_samples(measurements: Sequence[Measurement]) -> list[str]:
    """One line for all sets of questions that are small, with the width of an interval at 80 %."""
    parts, few, needed = [], False, smallest_sample(0.95)
    for split in _splits(measurements):
        n = max(len(m.answers) for m in measurements if m.split == split)
        few = few or n < needed
        if n < max(100, needed):
            typical = wilson(round(0.8 * n), n)
            parts.append(f"±{50 * (typical.high - typical.low):.0f} points with {n} {split} questions")
    if not parts:
        return []
    tails = f"; below {needed} questions the 95th percentiles have no interval" if few else ""
    return [f"An accuracy is known to about {' and '.join(parts)} only{tails}."]


def _incomplete(measurements: Sequence[Measurement]) -> list[str]:
    """Who answered a part of the questions, one line a set; and whose answers ended in an error, one line."""
    lines = []
    for split in _splits(measurements):
        sizes = {m.system_id: len(m.answers) for m in measurements if m.split == split}
        asked = max(sizes.values())
        partly = [f"{name} answered {size}" for name, size in sizes.items() if size < asked]
        if partly:
            lines.append(f"{', '.join(partly)} of the {asked} {split} questions.")
    failed: dict[str, int] = {}
    for one in measurements:
        errors = sum(answer.error is not None for answer in one.answers)
        if errors:
            failed[one.system_id] = failed.get(one.system_id, 0) + errors
    if failed:
        counts = ", ".join(f"{count} of {name}" for name, count in failed.items())
        lines.append(f"Questions that ended in an error: {counts}; without an answer they count as wrong.")
    return lines

"""From observations to a verdict: on one model, and on a format, which may be two models that answer as one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from soloist.kernels.errors import ArtifactError, GateError
from soloist.kernels.gpu import capability
from soloist.targets.compile import files_of, graphs_of
from soloist.targets.formats import ENGINES, parse
from soloist.targets.tensorrt.build_engine import SIDECAR
from soloist.targets.tolerances import Tolerance
from soloist.toolchain.verify.accuracy import AccuracyCheck
from soloist.toolchain.verify.differences import compare, in_words
from soloist.toolchain.verify.process import DEFAULT, Allowed, Prompts, memory_for, observe
from soloist.toolchain.verify.verdict import Bounds, Drift, FormatFacts, Limits, Verdict

_GRAPH = "its graph in ONNX Runtime against the student"
_RESTORED = f"{_GRAPH}, our kernels written out in standard operators"
_UNSEEN = "our kernels inside TensorRT"


def judge(
    student: Path, file: Path, prompts: Prompts, scratch: Path, tolerance: Tolerance, allowed: Allowed = DEFAULT
) -> Verdict:
    """Compare a model file or folder with its student; `scratch` keeps the student's record.

    Raises:
        ArtifactError: the student itself does not run; that is no verdict on the file.
    """
    try:
        expected = observe(student, prompts, scratch / "student", allowed)
    except GateError as error:
        raise ArtifactError(f"{student}: the student cannot be run, so nothing can be compared ({error})") from error
    verdict = Verdict(
        tolerance=Bounds.of(tolerance),
        limits=Limits(seconds=allowed.seconds, memory_mb=allowed.memory_mb or memory_for(file)),
    )
    prompts = replace(prompts, references=expected["references"])
    try:
        observed = observe(file, prompts, scratch / "file", allowed)
        drift = compare(expected, observed, scratch / "student", scratch / "file")
    except GateError as error:
        return verdict.model_copy(update={"verdict": "fail", "reason": str(error)})
    drift = drift.model_copy(update={"worst": in_words(drift.worst, expected, student)})
    reason = _past_tolerance(drift, tolerance)
    return verdict.model_copy(
        update={
            "verdict": "fail" if reason else "pass",
            "reason": reason,
            "note": observed["note"] or None,
            "drift": drift,
            "load_s": observed["load_s"],
            "peak_mb": observed["peak_mb"],
        }
    )


def _past_tolerance(drift: Drift, tolerance: Tolerance) -> str | None:
    """Every number that is past its tolerance, and where it is worst; None if all are within."""
    numbers = (
        ("mean KL", drift.kl_mean, "most", tolerance.kl),
        ("99th percentile of KL", drift.kl_p99, "most", tolerance.p99),
        ("KL of first tokens", drift.kl_first, "most", tolerance.first),
        ("same top-1", drift.top1, "least", tolerance.top1),
    )
    past = []
    for name, value, side, limit in numbers:
        if value > limit if side == "most" else value < limit:
            past.append(f"{name} {value:.4g} (at {side} {limit:g})")
    if not past:
        return None
    worst = drift.worst
    expected = worst.expected.token if worst.expected.text is None else worst.expected.text
    got = worst.got.token if worst.got.text is None else worst.got.text
    where = f"worst at prompt {worst.prompt}, answer token {worst.position}: {got!r} instead of {expected!r}"
    return f"drifted from the student: {', '.join(past)} over {drift.tokens} answer tokens; {where}"


def judge_models(
    students: Mapping[str, Path],
    files: Mapping[str, Path],
    prompts: Prompts,
    scratch: Path,
    tolerance: Tolerance,
    allowed: Allowed = DEFAULT,
) -> Verdict:
    """The verdict on all models of a format by the name of the part: the first refusal, else the one that drifted most.

    Raises:
        ArtifactError: a student itself does not run.
    """
    verdicts = {}
    for part, folder in students.items():
        verdicts[part] = judge(folder, files[part], prompts, scratch / part, tolerance, allowed)
    if len(verdicts) == 1:
        return next(iter(verdicts.values()))
    for part, verdict in verdicts.items():
        if verdict.verdict != "pass":
            return verdict.model_copy(update={"reason": f"{part}: {verdict.reason}"})
    drifts = {part: verdict.drift for part, verdict in verdicts.items() if verdict.drift is not None}
    worst = max(drifts, key=lambda part: drifts[part].kl_mean)
    drift = drifts[worst].model_copy(update={"top1": min(one.top1 for one in drifts.values())})
    return verdicts[worst].model_copy(update={"drift": drift, "parts": verdicts})


@dataclass(frozen=True)
class Comparison:
    """What the formats of a student are held against, the same for all of them.

    Args:
        students: the float models by the name of the part.
        scratch: keeps what was observed of the students from format to format.
        graphs: where graphs lie that engines were built from; None where nobody kept them.
        accuracy: held-out questions whose right answers must stay, if any.
    """

    students: Mapping[str, Path]
    prompts: Prompts
    scratch: Path
    graphs: Mapping[str, Path] | None = None
    accuracy: AccuracyCheck | None = None
    allowed: Allowed = DEFAULT

    def verdict_on(self, export: Path, format: str, made: FormatFacts, tolerance: Tolerance) -> Verdict:
        """The verdict on a compiled format inside the folder `export`.

        Of an engine that cannot run here its graph is compared, which is no pass of its own. One whose graph nobody
        kept has the verdict it had.

        Raises:
            ArtifactError: a student itself does not run.
        """
        folder, model = export / format, export / made.path
        target = parse(format).target
        if target not in ENGINES or runs_here(folder):
            files = files_of(folder, model, self.students)
            verdict = judge_models(self.students, files, self.prompts, self.scratch, tolerance, self.allowed)
            return self._with_accuracy(verdict, model, tolerance)
        if target == "tensorrt":
            files = graphs_of(folder, self.students, self.scratch)
        elif self.graphs is not None:
            files = dict(self.graphs)
        else:
            return made.verdict
        verdict = judge_models(self.students, files, self.prompts, self.scratch, tolerance, self.allowed)
        if target == "tensorrt":
            graph = next(iter(files.values()))
            verdict = self._with_accuracy(verdict, graph if len(files) == 1 else graph.parent, tolerance)
        return without_device(verdict, made) if verdict.verdict == "pass" else verdict

    def _with_accuracy(self, verdict: Verdict, model: Path, tolerance: Tolerance) -> Verdict:
        if self.accuracy is None or verdict.verdict != "pass":
            return verdict
        checked = self.accuracy.run(
            model,
            self.scratch / "accuracy",
            tolerance,
            self.allowed,
        )
        found = {"verdict": checked.verdict, "reason": checked.reason, "accuracy": checked.accuracy}
        return verdict.model_copy(update=found)


def runs_here(folder: Path) -> bool:
    """Whether a folder (or the two of a pair) holds engines that were built, for a GPU that is here."""
    cards = [*folder.glob(SIDECAR), *folder.glob(f"*/{SIDECAR}")]
    here = capability()
    if not cards or here is None:
        return False
    for card in cards:
        wanted = json.loads(card.read_text(encoding="utf-8")).get("target", {}).get("capabilities")
        if wanted and here not in wanted:
            return False
    return True


def without_device(verdict: Verdict, made: FormatFacts) -> Verdict:
    """What is said of an engine that cannot run here: its graph passed, and that is not a pass of its own.

    Args:
        verdict: the one on the graph.
        made: what was said when it was compiled.
    """
    graph = _GRAPH if made.kernels is None else _RESTORED
    checked = tuple(dict.fromkeys([graph, *made.checked]))
    reason = f"runs where its GPU is; checked without it: {', '.join(checked)}"
    if made.kernels is not None:
        reason += f"; not checked: {_UNSEEN}"
    return verdict.model_copy(update={"verdict": "not run", "reason": reason, "checked": checked})

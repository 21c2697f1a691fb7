"""From observations to a verdict: on one model, and on a format, which may be two models that answer as one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soloist.kernels.errors import ArtifactError, GateError
from soloist.targets.tensorrt.build_engine import SIDECAR
from soloist.targets.tolerances import Tolerance
from soloist.toolchain.core.environment import _capability, device
from soloist.toolchain.verify.differences import compare, in_words
from soloist.toolchain.verify.process import LIMIT_S, Probe, memory_for, observe

_GRAPH = "its graph in ONNX Runtime against the student"
_RESTORED = f"{_GRAPH}, our kernels written out in standard operators"
_UNSEEN = "our kernels inside TensorRT"

if TYPE_CHECKING:
    from soloist.toolchain.verify.accuracy import Exam


def verify(
    student: Path,
    file: Path,
    probe: Probe,
    out: Path,
    tolerance: Tolerance,
    *,
    limit_s: float = LIMIT_S,
) -> dict[str, Any]:
    """Compare a compiled file with its student; `out` is a scratch folder that keeps the student's record.

    Raises:
        GateError: the file does not load, crashes, hangs, or drifts past its tolerance.
    """
    facts = judge(student, file, probe, out, tolerance, limit_s=limit_s)
    if facts["verdict"] != "pass":
        raise GateError(f"{file}: {facts['reason']}")
    return facts


def judge(
    student: Path,
    file: Path,
    probe: Probe,
    out: Path,
    tolerance: Tolerance,
    *,
    limit_s: float = LIMIT_S,
    memory_mb: int | None = None,
) -> dict[str, Any]:
    """Like `verify`, with the refusal as `verdict` "fail" and `reason` instead of an exception.

    Raises:
        ArtifactError: the student itself does not run; that is no verdict on the file.
    """
    try:
        wanted = observe(student, probe, out / "student", limit_s=limit_s, memory_mb=memory_mb)
    except GateError as error:
        raise ArtifactError(f"{student}: the student cannot be run, so nothing can be compared ({error})") from error
    said = {"tolerance": asdict(tolerance), "limits": {"seconds": limit_s, "memory_mb": memory_mb or memory_for(file)}}
    probe = replace(probe, references=wanted["references"])
    try:
        got = observe(file, probe, out / "file", limit_s=limit_s, memory_mb=memory_mb)
        numbers = compare(wanted, got, out / "student", out / "file")
    except GateError as error:
        return {"verdict": "fail", "reason": str(error), **said}
    numbers["worst"] = in_words(numbers["worst"], wanted, student)
    facts = {**numbers, "load_s": got["load_s"], "peak_mb": got["peak_mb"], **said}
    facts |= {"note": got["note"]} if got["note"] else {}
    reason = _drift(numbers, tolerance)
    return facts | ({"verdict": "fail", "reason": reason} if reason else {"verdict": "pass"})


def _drift(numbers: Mapping[str, Any], tolerance: Tolerance) -> str | None:
    """Every number that is past its tolerance, and where it is worst; None if all are within."""
    past = [
        f"{what} {numbers[key]:.4g} (at {side} {limit:g})"
        for what, key, side, limit, wrong in (
            ("mean KL", "kl_mean", "most", tolerance.kl, numbers["kl_mean"] > tolerance.kl),
            ("99th percentile of KL", "kl_p99", "most", tolerance.p99, numbers["kl_p99"] > tolerance.p99),
            ("KL of first tokens", "kl_first", "most", tolerance.first, numbers["kl_first"] > tolerance.first),
            ("same top-1", "top1", "least", tolerance.top1, numbers["top1"] < tolerance.top1),
        )
        if wrong
    ]
    if not past:
        return None
    worst = numbers["worst"]
    expected, got = (worst[name].get("text", worst[name]["token"]) for name in ("expected", "got"))
    where = f"worst at prompt {worst['prompt']}, answer token {worst['position']}: {got!r} instead of {expected!r}"
    return f"drifted from the student: {', '.join(past)} over {numbers['tokens']} answer tokens; {where}"


def judge_format(
    students: Mapping[str, Path],
    files: Mapping[str, Path],
    probe: Probe,
    scratch: Path,
    tolerance: Tolerance,
    exam: tuple[Exam, Path] | None = None,
    **limits: Any,
) -> dict[str, Any]:
    """The verdict on all models of a format by the name of the part, and on its accuracy where there is an exam.

    Args:
        exam: and who sits it: the file, or the folder of a pair.

    Raises:
        ArtifactError: a student itself does not run.
    """
    judged = {
        part: judge(folder, files[part], probe, scratch / part, tolerance, **limits)
        for part, folder in students.items()
    }
    facts = _worse(judged)
    if exam is None or facts["verdict"] != "pass":
        return facts
    return facts | exam[0].sit(exam[1], scratch / "exam", tolerance, **limits)


def runs_here(folder: Path) -> bool:
    """Whether a folder (or the two of a pair) holds engines that were built, for a GPU that is here."""
    cards = [*folder.glob(SIDECAR), *folder.glob(f"*/{SIDECAR}")]
    if not cards or device()["gpu"] is None:
        return False
    targets = [json.loads(card.read_text(encoding="utf-8")).get("target", {}) for card in cards]
    wanted = [target["capabilities"] for target in targets if target.get("capabilities")]
    return not wanted or all(_capability() in one for one in wanted)


def without_device(found: Mapping[str, Any], made: Mapping[str, Any]) -> dict[str, Any]:
    """What is said of an engine that cannot run here: its graph passed, and that is not a pass of its own.

    Args:
        found: the verdict on the graph.
        made: what was said when it was compiled: `checked`, and `kernels` where ours are in it.
    """
    graph = _RESTORED if "kernels" in made else _GRAPH
    checked = list(dict.fromkeys([graph, *made.get("checked", [])]))
    reason = f"runs where its GPU is; checked without it: {', '.join(checked)}"
    if "kernels" in made:
        reason += f"; not checked: {_UNSEEN}"
    return {**found, "verdict": "not run", "reason": reason, "checked": checked}


def _worse(judged: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The verdict on all parts: the first refusal, else the numbers of the part that drifted most."""
    if len(judged) == 1:
        return next(iter(judged.values()))
    for part, facts in judged.items():
        if facts["verdict"] != "pass":
            return {**facts, "reason": f"{part}: {facts['reason']}"}
    worst = max(judged.values(), key=lambda facts: float(facts["kl_mean"]))
    return {**worst, "top1": min(facts["top1"] for facts in judged.values()), "parts": dict(judged)}

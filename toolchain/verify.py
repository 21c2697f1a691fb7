"""The fidelity gate: a compiled file is opened in its own runtime, in a subprocess, and compared.

    student (torch, float32) ─┐
                              ├─ same job ─> record.json + logits ─> compare ─> verdict with numbers
    compiled file ────────────┘

The student and the file go through the same worker, so that nothing but the model differs. A subprocess,
because a broken file may take its runtime down with it; a crash, a hang or an error becomes the reason in
the verdict; it ends with the process that started it. Compared, in this order: the text of the chat
template, token ids of the prompts, answers and hostile texts, next-token distributions over the reference
answers (KL divergence, same top-1). Greedy answers are compared too, as a number for the report and not as
a gate: one flipped token early changes all that follows. Left out: accuracy on the task, which `bench`
measures on every file.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from soloist.kernels.errors import ArtifactError, DataError, GateError, SoloistError
from soloist.targets.base import Message, Sampling
from soloist.targets.hostile import HOSTILE
from soloist.targets.open import open_runtime
from soloist.targets.tolerances import Tolerance
from soloist.toolchain.artifact import write_atomic
from soloist.toolchain.lifeline import Parent, lifeline

RECORD = "record.json"
LIMIT_S = 900
_GREEDY, _NEW_TOKENS = 4, 64  # whole answers are drawn for the first prompts only: they take most of the time
Rows = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Probe:
    """Held-out prompts, and for each the answer over whose tokens distributions are compared."""

    prompts: Sequence[Sequence[Message]]
    references: Sequence[str]

    def __post_init__(self) -> None:
        if not self.prompts or len(self.prompts) != len(self.references):
            raise DataError(
                f"the gate needs one reference answer for each prompt, "
                f"has {len(self.references)} for {len(self.prompts)}"
            )


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
) -> dict[str, Any]:
    """Like `verify`, with the refusal as `verdict` "fail" and `reason` instead of an exception.

    Raises:
        ArtifactError: the student itself does not run; that is no verdict on the file.
    """
    limits = {"kl": tolerance.kl, "top1": tolerance.top1}
    try:
        wanted = observe(student, probe, out / "student", limit_s=limit_s)
    except GateError as error:
        raise ArtifactError(f"{student}: the student cannot be run, so nothing can be compared ({error})") from error
    try:
        got = observe(file, probe, out / "file", limit_s=limit_s)
        numbers = compare(wanted, got, out / "student", out / "file")
    except GateError as error:
        return {"verdict": "fail", "reason": str(error), "tolerance": limits}
    facts = {**numbers, "load_s": got["load_s"], "peak_mb": got["peak_mb"], "tolerance": limits}
    reason = _drift(numbers, tolerance)
    return facts | ({"verdict": "fail", "reason": reason} if reason else {"verdict": "pass"})


def _drift(numbers: Mapping[str, Any], tolerance: Tolerance) -> str | None:
    if numbers["kl_mean"] <= tolerance.kl and numbers["top1"] >= tolerance.top1:
        return None
    return (
        f"drifted from the student: mean KL {numbers['kl_mean']:.4g} (at most {tolerance.kl:g}), "
        f"same top-1 {numbers['top1']:.3f} (at least {tolerance.top1:g}) over {numbers['tokens']} answer tokens"
    )


def observe(
    model: Path,
    probe: Probe,
    out: Path,
    *,
    limit_s: float = LIMIT_S,
) -> dict[str, Any]:
    """Run a model over the prompts in a subprocess; its record, logits beside it in `out`.

    A record that is there already is used again if model and prompts are the same.

    Raises:
        GateError: it does not load, crashes or takes longer than `limit_s`.
    """
    job = {
        "model": str(model.resolve()),
        "files": _stamp(model),
        "prompts": [list(messages) for messages in probe.prompts],
        "references": list(probe.references),
        "hostile": list(HOSTILE),
    }
    file = out / "job.json"
    text = json.dumps(job, ensure_ascii=False)
    if not (out / RECORD).is_file() or not file.is_file() or file.read_text(encoding="utf-8") != text:
        (out / RECORD).unlink(missing_ok=True)
        write_atomic(file, text)
        _run_worker(file, limit_s)
    record: dict[str, Any] = json.loads((out / RECORD).read_text(encoding="utf-8"))
    return record


def _stamp(model: Path) -> list[tuple[str, int, int]]:
    files = [model] if model.is_file() else sorted(p for p in model.rglob("*") if p.is_file())
    return [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files]


def _run_worker(job: Path, limit_s: float) -> None:
    command = [sys.executable, "-P", "-m", "soloist.toolchain.verify", str(job)]
    try:
        with lifeline() as stdin:
            done = subprocess.run(
                command, stdin=stdin, capture_output=True, text=True, errors="replace", timeout=limit_s, check=False
            )
    except subprocess.TimeoutExpired as error:
        raise GateError(f"did not finish within {limit_s:g} s in its runtime") from error
    if done.returncode < 0:
        raise GateError(f"crashed its runtime ({signal.Signals(-done.returncode).name})")
    if done.returncode != 0 or not (job.parent / RECORD).is_file():
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise GateError(f"does not run: {lines[-1] if lines else f'exit code {done.returncode}'}")


def work(job_file: Path) -> None:
    """What the subprocess does: open the model, take everything that is compared, write the record last."""
    job = json.loads(job_file.read_text(encoding="utf-8"))
    began = time.perf_counter()
    model = open_runtime(Path(job["model"]))
    record: dict[str, Any] = {"load_s": round(time.perf_counter() - began, 3)}
    rendered = [model.render(messages) for messages in job["prompts"]]
    record["rendered"] = rendered
    record["prompt_ids"] = [model.tokenize(text) for text in rendered]
    record["answer_ids"] = [model.tokenize(text) for text in job["references"]]
    record["hostile_ids"] = [model.tokenize(text) for text in job["hostile"]]
    record["answers"] = []
    for index, messages in enumerate(job["prompts"]):
        prompt, answer = record["prompt_ids"][index], record["answer_ids"][index]
        rows = model.logits([*prompt, *answer])[len(prompt) - 1 :]  # the row after the last token: does it stop?
        np.save(job_file.parent / f"logits-{index}.npy", rows)
        if index < _GREEDY:
            record["answers"].append(model.chat(messages, Sampling(max_tokens=_NEW_TOKENS)).text)
    model.close()
    record["peak_mb"] = _peak_mb()
    write_atomic(job_file.parent / RECORD, json.dumps(record, ensure_ascii=False))


def _peak_mb() -> float | None:
    """Peak memory of this process. `ru_maxrss` would do, but a child inherits its parent's there."""
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.is_file() else []
    found = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
    return round(found[0] / 1024, 1) if found else None


def compare(wanted: Mapping[str, Any], got: Mapping[str, Any], wanted_dir: Path, got_dir: Path) -> dict[str, Any]:
    """Numbers between two records.

    Raises:
        GateError: another chat template, other token ids, another vocabulary, or logits that are no numbers.
    """
    for index, (a, b) in enumerate(zip(wanted["rendered"], got["rendered"], strict=True)):
        if a != b:
            raise GateError(f"renders another chat template (prompt {index}: {_first_difference(a, b)})")
    for key, what in (("prompt_ids", "prompt"), ("answer_ids", "answer"), ("hostile_ids", "hostile text")):
        for index, (ids, other) in enumerate(zip(wanted[key], got[key], strict=True)):
            if ids != other:
                shown = f" {HOSTILE[index]!r}" if key == "hostile_ids" else ""
                raise GateError(f"cuts {what} {index}{shown} into other tokens: {other[:8]} instead of {ids[:8]}")
    kl, same = [], []
    for index in range(len(wanted["rendered"])):
        a = np.load(wanted_dir / f"logits-{index}.npy", allow_pickle=False)
        b = np.load(got_dir / f"logits-{index}.npy", allow_pickle=False)
        if a.shape != b.shape:
            raise GateError(f"has another vocabulary: {b.shape[-1]} tokens instead of {a.shape[-1]}")
        if not np.isfinite(b).all():
            raise GateError(f"gives logits that are not numbers (prompt {index})")
        kl.append(divergence(a, b))
        same.append(a.argmax(-1) == b.argmax(-1))
    every = np.concatenate(kl)
    answers = [a == b for a, b in zip(wanted["answers"], got["answers"], strict=True)]
    return {
        "kl_mean": float(every.mean()),
        "kl_p99": float(np.quantile(every, 0.99)),
        "top1": float(np.concatenate(same).mean()),
        "same_answers": float(np.mean(answers)),
        "tokens": len(every),
        "prompts": len(kl),
    }


def divergence(reference: Rows, other: Rows) -> npt.NDArray[np.float64]:
    """KL(reference || other) of each row of logits, in nats, never below zero."""
    p, q = _log_softmax(reference), _log_softmax(other)
    found: npt.NDArray[np.float64] = np.maximum((np.exp(p) * (p - q)).sum(-1), 0.0)
    return found


def _log_softmax(logits: Rows) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    found: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return found


def _first_difference(a: str, b: str) -> str:
    at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return f"{b[at : at + 30]!r} instead of {a[at : at + 30]!r}"


if __name__ == "__main__":
    Parent()
    try:
        work(Path(sys.argv[1]))
    except SoloistError as problem:
        print(str(problem).replace("\n", " "), file=sys.stderr)
        sys.exit(problem.exit_code)

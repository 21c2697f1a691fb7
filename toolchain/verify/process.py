"""The parent's side of `worker.py`: a model is opened in a process of its own, with limits of time and memory.

A subprocess, because a broken file may take its runtime down with it; a crash, a hang or an error becomes the reason
in the verdict. Memory is limited where the system can (`limit_memory`); on Windows only time is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soloist.kernels.child import run_module
from soloist.kernels.errors import DataError, GateError
from soloist.targets.base import Message
from soloist.targets.tokenizer_cases import TOKENIZER_CASES
from soloist.toolchain.core.files import write_atomic
from soloist.toolchain.tasks.base import Question

RECORD = "record.json"
LIMIT_S = 900
_LEAST_MB, _TIMES = 4096, 8  # torch alone takes one gigabyte; weights may be widened to fp32, logits are kept


@dataclass(frozen=True)
class Prompts:
    """Held-out prompts, and for each the answer over whose tokens distributions are compared.

    An empty reference stands for what the student itself answers.
    """

    prompts: Sequence[Sequence[Message]]
    references: Sequence[str]

    def __post_init__(self) -> None:
        if not self.prompts or len(self.prompts) != len(self.references):
            raise DataError(
                f"comparing needs one reference answer for each prompt, "
                f"has {len(self.references)} for {len(self.prompts)}"
            )


def prompts_of(questions: Sequence[Question]) -> Prompts:
    """Questions as prompts, the student's own answers as references."""
    return Prompts([[{"role": "user", "content": q.question}] for q in questions], [""] * len(questions))


@dataclass(frozen=True)
class Allowed:
    """Seconds and megabytes a file may take to be observed; without `memory_mb` what its size makes likely."""

    seconds: float = LIMIT_S
    memory_mb: int | None = None


DEFAULT = Allowed()


def observe(model: Path, prompts: Prompts, out: Path, allowed: Allowed = DEFAULT) -> dict[str, Any]:
    """Run a model over the prompts in a subprocess; its record, logits beside it in `out`.

    A record that is there already is used again if model and prompts are the same.

    Raises:
        GateError: it does not load, crashes, or takes more time or memory than it is allowed.
    """
    job = {
        "what": "observe",
        "model": str(model.resolve()),
        "files": stamp(model),
        "prompts": [list(messages) for messages in prompts.prompts],
        "references": list(prompts.references),
        "tokenizer_cases": list(TOKENIZER_CASES),
    }
    return run_worker(job, out, allowed.seconds, allowed.memory_mb or memory_for(model))


def stamp(model: Path) -> list[tuple[str, int, int]]:
    """What tells one state of a model's files from another."""
    files = [model] if model.is_file() else sorted(p for p in model.rglob("*") if p.is_file())
    return [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files]


def memory_for(model: Path) -> int:
    """Megabytes that are plenty for a model of this size."""
    return _LEAST_MB + _TIMES * sum(size for _, size, _ in stamp(model)) // 1_000_000


def run_worker(job: Mapping[str, Any], out: Path, limit_s: float, memory_mb: int) -> dict[str, Any]:
    """Do a job unless `out` holds its record; returns the record. Raises GateError with the reason."""
    file = out / "job.json"
    text = json.dumps({**job, "memory_mb": memory_mb}, ensure_ascii=False)
    if not (out / RECORD).is_file() or not file.is_file() or file.read_text(encoding="utf-8") != text:
        (out / RECORD).unlink(missing_ok=True)
        write_atomic(file, text)
        _start(file, limit_s, memory_mb)
    record: dict[str, Any] = json.loads((out / RECORD).read_text(encoding="utf-8"))
    return record


def _start(job: Path, limit_s: float, memory_mb: int) -> None:
    try:
        ended = run_module("soloist.toolchain.verify.worker", [str(job)], limit_s=limit_s, memory_mb=memory_mb)
    except TimeoutError as error:
        raise GateError(f"did not finish within {limit_s:g} s in its runtime") from error
    if ended.code == 0 and (job.parent / RECORD).is_file():
        return
    if ended.out_of_memory:
        raise GateError(f"needs more than the {memory_mb} MB of memory it may use")
    if ended.signal_name:
        raise GateError(f"crashed its runtime ({ended.signal_name})")
    raise GateError(f"does not run: {ended.last or f'exit code {ended.code}'}")

"""Stage `distill`: traces -> a student, a plain Hugging Face folder with its training log.

    config.json · model.safetensors (bf16) · tokenizer.json · chat_template.jinja
    student.json      method, mode, base, what was kept and rejected: what compiling and running need
    train.jsonl       one line per step

A kill loses at most `checkpoint_seconds` of training; the same call goes on from there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from soloist.toolchain.artifact import Artifact, sha256_file, stage, write_atomic
from soloist.toolchain.config import Config
from soloist.toolchain.distill.data import CheckSteps, Mode, select
from soloist.toolchain.distill.student import freed_memory_kept
from soloist.toolchain.distill.train import CHECKPOINTS, STAGE, TrainConfig, Trainer
from soloist.toolchain.events import QUIET, EventLog
from soloist.toolchain.traces.store import read_runs

TRACES = "traces.jsonl.gz"
CARD = "student.json"


class DistillConfig(Config):
    """What the student learns (`mode`) and how (`train`). `limit` keeps only the first traces."""

    mode: Mode = "acts"
    train: TrainConfig = TrainConfig()
    tools: tuple[str, ...] = ()
    limit: int | None = Field(default=None, ge=1)


def recheck(steps: Sequence[str]) -> bool:
    """Whether every equality in the worked steps holds, recomputed exactly."""
    from soloist.toolchain.tools.arithmetic import check_steps

    return check_steps("\n".join(steps))


def base_digest(base: Path) -> str:
    """What the base model is: the hash of its GGUF file or of its weights, not where it lies."""
    files = [base] if base.is_file() else sorted([*base.glob("*.safetensors"), *base.glob("config.json")])
    return "+".join(sha256_file(file)[:16] for file in files)


def distill(
    config: DistillConfig,
    traces: Artifact,
    base: Path,
    out: Path,
    *,
    events: EventLog = QUIET,
    check_steps: CheckSteps = recheck,
) -> Artifact:
    """Train a student on an artifact of traces and save it.

    Raises:
        DataError: held-out questions among the traces, or no trace to learn from.
        ArtifactError: a base model that cannot be loaded.
    """

    def build(folder: Path) -> dict[str, Any]:
        trainer = Trainer(base, config.train)
        runs = list(read_runs(traces.path / TRACES))[: config.limit]
        chosen = select(
            runs,
            trainer.student.tokenizer,
            check_steps=check_steps,
            mode=config.mode,
            max_length=config.train.max_length,
        )
        events.emit(STAGE, "note", text=_describe(chosen.counts), **chosen.counts)
        trained = trainer.fit(chosen.examples, folder, events=events)
        trainer.student.save(folder, trainer.optimizer.master)
        card = {
            "method": config.train.method,
            "mode": config.mode,
            "tuning": config.train.tuning,
            "base": base.name,
            "tools": list(config.tools) or sorted({use.name for run in runs for use in run.trajectory}),
            "data": chosen.counts,
            "precision": f"{trainer.dtype}".removeprefix("torch."),
            "precision_reason": trainer.precision_reason,
        }
        write_atomic(folder / CARD, json.dumps(card, indent=1, ensure_ascii=False))
        return {**card, "training": trained.facts()}

    plan = {**config.model_dump(mode="json"), "base": base_digest(base)}
    del plan["train"]["checkpoint_seconds"]  # when it was saved does not change what was learned
    with freed_memory_kept():
        return stage(STAGE, out, plan, [traces], build, events=events, scratch=(CHECKPOINTS,))


def _describe(counts: dict[str, Any]) -> str:
    rejected = ", ".join(f"{count} {reason}" for reason, count in counts["rejected"].items())
    return f"{counts['kept']} traces kept" + (f"; rejected: {rejected}" if rejected else "")

"""The one training loop: batches, schedule, log, checkpoints, exact resume. Methods plug in a loss.

A step takes `batch_size` groups (most methods: conversations), splits them into parts that fit in memory,
sums the objective's terms over them, clips and updates. Everything random is
a function of (seed, epoch, step), so a resumed run continues the very numbers of an uninterrupted one
on a CPU with the same number of threads. Under `accelerate launch` each process takes its share of a
step's groups and gradients are summed. Left out: evaluation while training (the compiled files
are what is measured), early stopping.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from soloist.kernels.errors import ArtifactError, UsageError
from soloist.targets.base import require
from soloist.toolchain.config import Config
from soloist.toolchain.distill.checkpoint import load_checkpoint, save_checkpoint
from soloist.toolchain.distill.data import Example, Group, as_groups
from soloist.toolchain.distill.methods.base import Objective, Observing, Refreshing
from soloist.toolchain.distill.methods.sft import CrossEntropy
from soloist.toolchain.distill.optimizer import MasterAdamW
from soloist.toolchain.distill.packing import pack
from soloist.toolchain.distill.student import Precision, Student, choose_precision, load_base
from soloist.toolchain.events import QUIET, EventLog

LOG = "train.jsonl"
CHECKPOINTS = "checkpoints"
STAGE = "distill"


class TrainConfig(Config):
    """How to train. `batch_size` counts groups per update; `part_tokens` bounds memory, not results.

    `order` "given" takes the groups as a method has sorted them, in every epoch. `spend`: read so many tokens
    of conversations, however many or few epochs that makes, so that methods with more and with less data can
    be compared at one cost.
    """

    tuning: Literal["full", "lora"] = "full"
    lora_rank: int = Field(default=16, ge=1)
    lora_alpha: float = Field(default=32.0, gt=0)
    epochs: int = Field(default=1, ge=1)
    spend: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=8, ge=1)
    part_tokens: int = Field(default=2048, ge=64)
    learning_rate: float = Field(default=2e-4, gt=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = Field(default=0.05, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    clip_norm: float = Field(default=1.0, gt=0)
    precision: Precision = "auto"
    device: Literal["auto", "cpu"] = "auto"
    max_length: int = Field(default=1024, ge=16)
    order: Literal["shuffled", "given"] = "shuffled"
    seed: int = 0
    checkpoint_seconds: float = Field(default=120.0, gt=0)

    def fingerprint(self, groups: Sequence[Group]) -> str:
        """What a checkpoint must share with the run that resumes it."""
        settings = self.model_dump(exclude={"checkpoint_seconds"})
        data = [[group.facts, [(e.ids, e.trained, e.weights, e.spans) for e in group.examples]] for group in groups]
        content = json.dumps([settings, data], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


@dataclass
class Trained:
    """What a run left behind: one record per step, and totals over the steps of this process."""

    steps: list[dict[str, Any]] = field(default_factory=list)
    resumed_at: int = 0

    def facts(self) -> dict[str, Any]:
        """Totals for the manifest. Tokens per second leave checkpoints out."""
        seconds = sum(step["seconds"] for step in self.steps)
        totals = {
            name: sum(step[name] for step in self.steps) for name in ("tokens", "trained_tokens", "computed_tokens")
        }
        return {
            "steps": len(self.steps),
            **totals,
            "seconds": round(seconds, 2),
            "tokens_per_second": round(totals["tokens"] / seconds, 1) if seconds else None,
            "trained_tokens_per_second": round(totals["trained_tokens"] / seconds, 1) if seconds else None,
            "first_loss": self.steps[0]["loss"] if self.steps else None,
            "last_loss": self.steps[-1]["loss"] if self.steps else None,
        }


def plan(count: int, config: TrainConfig, tokens: Sequence[int] = ()) -> list[list[int]]:
    """The groups of each step: every epoch its own shuffle of all of them, or the order they have.

    `tokens` of each group are needed only where `config.spend` says how many to read in all.
    """
    steps: list[list[int]] = []
    read = 0
    for epoch in itertools.count() if config.spend else range(config.epochs):
        order = list(range(count))
        if config.order == "shuffled":
            random.Random(f"{config.seed}/{epoch}").shuffle(order)  # noqa: S311 - not cryptography
        for start in range(0, count, config.batch_size):
            if config.spend and read >= config.spend:
                return steps
            steps.append(order[start : start + config.batch_size])
            read += sum(tokens[i] for i in steps[-1]) if config.spend else 0
    return steps


def parts(groups: Sequence[Group], part_tokens: int) -> Iterator[list[Group]]:
    """Split a step's groups so that each part, attention's padding included, stays within bounds.

    A single group that exceeds them is a part of its own.
    """
    part: list[Group] = []
    count = 0
    for group in sorted(groups, key=_longest):
        if part and (count + len(group.examples)) * _longest(group) > part_tokens:
            yield part
            part, count = [], 0
        part.append(group)
        count += len(group.examples)
    if part:
        yield part


def _longest(group: Group) -> int:
    return max(len(example.ids) for example in group.examples)


def learning_rate(step: int, total: int, config: TrainConfig) -> float:
    """Linear warm-up, then the schedule down to a tenth (cosine) or nothing (linear)."""
    warm = round(config.warmup * total)
    if step < warm:
        return config.learning_rate * (step + 1) / (warm + 1)
    done = (step - warm) / max(1, total - warm)
    shape = {"cosine": 0.1 + 0.45 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}
    return config.learning_rate * shape[config.schedule]


class Trainer:
    """A student, its objective and its optimizer, step by step."""

    def __init__(
        self,
        base: Path,
        config: TrainConfig,
        accelerator: Any = None,  # noqa: ANN401 - accelerate is untyped here
        objective: Objective | None = None,
    ) -> None:
        self.config = config
        accelerate = require("accelerate", "train")
        self.accelerator = accelerator or accelerate.Accelerator(cpu=config.device == "cpu", mixed_precision="no")
        self.dtype, self.precision_reason = choose_precision(config.precision, self.accelerator.device)
        torch.manual_seed(config.seed)
        model, tokenizer = load_base(base)
        self.student = Student(model, tokenizer, self.accelerator.device)
        self.student.verify_packing(config.max_length)
        if config.tuning == "lora":
            self.student.add_lora(config.lora_rank, config.lora_alpha)
        self.optimize(objective or CrossEntropy())

    def optimize(self, objective: Objective) -> None:
        """Choose what is optimized, and start its optimizer; to be called before any step."""
        if hasattr(self, "optimizer"):  # the exact weights are there: the model's own are rounded by now
            self.student.restore(self.optimizer.master)
        self.objective = objective
        beside = [(f"objective.{name}", value) for name, value in objective.parameters]
        for _, value in beside:
            value.data = value.data.to(self.student.device)
        self.optimizer = MasterAdamW(
            [*self.student.named_parameters(), *beside],
            separate=self.dtype != torch.float32,
            weight_decay=self.config.weight_decay,
        )
        self.student.compute_in(self.dtype)

    def step(self, groups: Sequence[Group], index: int, rate: float) -> dict[str, Any]:
        """One update on `groups`; returns its record."""
        torch.manual_seed(self.config.seed * 1_000_003 + index)
        if isinstance(self.objective, Refreshing):
            groups = self.objective.refresh(self.student, groups, index)
        counts = self.objective.counts(groups)
        processes, rank = self.accelerator.num_processes, self.accelerator.process_index
        names = list(self.objective.names)
        logged = [*names, *(self.objective.observed if isinstance(self.objective, Observing) else ())]
        totals = torch.zeros(len(logged), device=self.student.device)
        computed = 0
        pieces = list(parts(groups[rank::processes], self.config.part_tokens))
        for piece in pieces:
            batch = pack(piece).to(self.student.device)
            terms = self.objective.terms(self.student, batch, counts)
            self.student.backward(torch.stack([terms[name] for name in names]).sum())
            totals += torch.stack([terms[name].detach().float() for name in logged])
            computed += batch.ids.numel()
            if len(pieces) > 1:
                self.optimizer.accumulate()
        if processes > 1:
            self.optimizer.reduce(lambda tensor: self.accelerator.reduce(tensor, "sum"))
            totals = self.accelerator.reduce(totals, "sum")
        norm, total = float(self.optimizer.norm()), float(totals[: len(names)].sum())
        if not math.isfinite(norm) or not math.isfinite(total):
            raise UsageError(f"step {index}: the loss is {total}, its gradient {norm}; lower learning_rate")
        self.optimizer.step(rate, min(1.0, self.config.clip_norm / (norm + 1e-6)))
        examples = [example for group in groups for example in group.examples]
        values = {name: round(float(value), 6) for name, value in zip(logged, totals, strict=True)}
        named = {f"loss_{name}": values[name] for name in names}
        return {
            "step": index,
            "loss": round(total, 6),
            **(named if len(names) > 1 else {}),
            **{name: values[name] for name in logged[len(names) :]},
            "learning_rate": rate,
            "gradient_norm": round(norm, 4),
            "tokens": sum(len(example.ids) for example in examples),
            "trained_tokens": sum(example.targets for example in examples),
            "computed_tokens": computed,
        }

    def fit(
        self,
        items: Sequence[Example | Group],
        folder: Path,
        *,
        events: EventLog = QUIET,
        on_step: Callable[[dict[str, Any]], None] | None = None,
    ) -> Trained:
        """Train to the end, resuming from what `folder` holds.

        The log `folder`/train.jsonl holds no times, so that the same work gives the same file; they are
        in the events and in what is returned.
        """
        groups = as_groups(items)
        steps = plan(len(groups), self.config, [sum(len(e.ids) for e in group.examples) for group in groups])
        fingerprint = self.config.fingerprint(groups)
        trained = self._resume(folder, fingerprint)
        trained.resumed_at = len(trained.steps)
        if trained.resumed_at:
            events.emit(STAGE, "note", text=f"resumed after step {trained.resumed_at} of {len(steps)}")
        saved = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / LOG).open("a", encoding="utf-8", buffering=1) as log:
            for index in range(trained.resumed_at, len(steps)):
                began = time.perf_counter()
                rate = learning_rate(index, len(steps), self.config)
                record = self.step([groups[i] for i in steps[index]], index, rate)
                log.write(json.dumps(record) + "\n")
                record["seconds"] = round(time.perf_counter() - began, 4)
                trained.steps.append(record)
                self._report(record, len(steps), events)
                if on_step is not None:
                    on_step(record)
                if time.monotonic() - saved >= self.config.checkpoint_seconds and index + 1 < len(steps):
                    self._save(folder, trained, fingerprint)
                    saved = time.monotonic()
        return trained

    def _report(self, record: dict[str, Any], total: int, events: EventLog) -> None:
        speed = record["tokens"] / record["seconds"] if record["seconds"] else 0.0
        trained = record["trained_tokens"] / record["seconds"] if record["seconds"] else 0.0
        rates = {"tokens_per_second": round(speed, 1), "trained_tokens_per_second": round(trained, 1)}
        events.emit(STAGE, "metric", **record, **rates)
        events.progress(STAGE, record["step"] + 1, total, loss=record["loss"], **rates)

    def _save(self, folder: Path, trained: Trained, fingerprint: str) -> None:
        if self.accelerator.is_main_process:
            facts = {"fingerprint": fingerprint, "seconds": [step["seconds"] for step in trained.steps]}
            save_checkpoint(folder / CHECKPOINTS, len(trained.steps), self.optimizer.state(), facts)

    def _resume(self, folder: Path, fingerprint: str) -> Trained:
        log = folder / LOG
        found = load_checkpoint(folder / CHECKPOINTS)
        if found is None:
            log.unlink(missing_ok=True)
            return Trained()
        facts, tensors = found
        if facts["fingerprint"] != fingerprint:
            raise ArtifactError(f"{folder}: its checkpoint is of other settings or data; delete the folder")
        self.optimizer.load(tensors, facts["step"])
        lines = log.read_text(encoding="utf-8").splitlines()[: facts["step"]]
        log.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        timed = zip(lines, facts["seconds"], strict=True)
        return Trained([{**json.loads(line), "seconds": seconds} for line, seconds in timed])

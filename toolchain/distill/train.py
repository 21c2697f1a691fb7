"""The one training loop: batches, schedule, log, checkpoints, exact resume. Methods plug in a loss.

A step takes `batch_size` groups (most methods: conversations), splits them into parts that fit in memory,
sums the objective's terms over them, clips and updates. Everything random is
a function of (seed, epoch, step), so a resumed run continues the very numbers of an uninterrupted one
on a CPU with the same number of threads.

Under `accelerate launch` (`distributed.py`) each process takes its share of a step's groups, gradients are summed
and the losses are those of one process up to rounding. Sharded are the fp32 weights, both moments and the summed
gradients: each tensor lies with one owner (`optimizer.py`). Not sharded are the weights that compute and the
activations, so a student must fit every device in its working precision. That is why it is not torch's FSDP: it
gathers weights layer by layer in every forward pass, and so all processes must make equally many passes, where
here each packs its own groups into as many parts as they need, sometimes none. Checkpoints are whole, whoever
owned what: a run may go on with another number of processes.

Left out: evaluation while training (the compiled files are what is measured), early stopping.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from soloist.kernels.errors import ArtifactError, UsageError
from soloist.toolchain.core.config import Config
from soloist.toolchain.core.events import QUIET, EventLog
from soloist.toolchain.distill.checkpoint import CheckpointFacts, load_checkpoint, save_checkpoint
from soloist.toolchain.distill.data import Example, Group, as_groups, count_tokens
from soloist.toolchain.distill.distributed import Processes, launched
from soloist.toolchain.distill.model import Precision, Student, choose_precision, load_base
from soloist.toolchain.distill.objective import CrossEntropy, Objective, Observing, Refreshing
from soloist.toolchain.distill.optimizer import MasterAdamW
from soloist.toolchain.distill.packing import Batch, pack
from soloist.toolchain.student.artifact import TrainingFacts

LOG = "train.jsonl"
CHECKPOINTS = "checkpoints"
STAGE = "distill"


class TrainConfig(Config):
    """How to train. `batch_size` counts groups per update; `part_tokens` bounds memory, not results.

    `order` "given" takes the groups as a method has sorted them, in every epoch. `max_train_tokens` reads so many
    tokens of conversations in place of `epochs`, so that methods with more and with less data can be compared at
    one cost.
    """

    tuning: Literal["full", "lora"] = "full"
    lora_rank: int = Field(default=16, ge=1)
    lora_alpha: float = Field(default=32.0, gt=0)
    epochs: int = Field(default=1, ge=1)
    max_train_tokens: int | None = Field(default=None, ge=1)
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
        data: list[Any] = []
        for group in groups:
            data.append(group.facts)
            for example in group.examples:
                data.append([example.ids, example.trained, example.weights, example.spans])
        content = json.dumps([settings, data], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


@dataclass
class Trained:
    """What a run leaves: one record per step, of which `facts` are the totals."""

    steps: list[dict[str, Any]] = field(default_factory=list)
    resumed_at: int = 0
    processes: int = 1

    def facts(self, phases: Mapping[str, TrainingFacts] | None = None) -> TrainingFacts:
        """Totals for the manifest, after the passes `phases`. Tokens per second leave checkpoints out."""
        seconds, tokens, trained_tokens, computed_tokens = 0.0, 0, 0, 0
        for step in self.steps:
            seconds += step["seconds"]
            tokens += step["tokens"]
            trained_tokens += step["trained_tokens"]
            computed_tokens += step["computed_tokens"]
        return TrainingFacts(
            steps=len(self.steps),
            processes=self.processes,
            tokens=tokens,
            trained_tokens=trained_tokens,
            computed_tokens=computed_tokens,
            seconds=round(seconds, 2),
            tokens_per_second=round(tokens / seconds, 1) if seconds else None,
            trained_tokens_per_second=round(trained_tokens / seconds, 1) if seconds else None,
            first_loss=self.steps[0]["loss"] if self.steps else None,
            last_loss=self.steps[-1]["loss"] if self.steps else None,
            phases=phases or {},
        )


def plan(count: int, config: TrainConfig, tokens: Sequence[int] = ()) -> list[list[int]]:
    """The groups of each step: every epoch its own shuffle of all of them, or the order they have.

    `tokens` of each group are needed only where `config.max_train_tokens` bounds what is read in all.
    """
    steps: list[list[int]] = []
    read = 0
    for epoch in itertools.count() if config.max_train_tokens else range(config.epochs):
        order = list(range(count))
        if config.order == "shuffled":
            random.Random(f"{config.seed}/{epoch}").shuffle(order)  # noqa: S311 - not cryptography
        for start in range(0, count, config.batch_size):
            if config.max_train_tokens and read >= config.max_train_tokens:
                return steps
            steps.append(order[start : start + config.batch_size])
            for group in steps[-1] if config.max_train_tokens else ():
                read += tokens[group]
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


def read_in_parts(groups: Sequence[Group], part_tokens: int, device: torch.device) -> Iterator[tuple[Batch, list[int]]]:
    """Groups for a model that is only read: batches of bounded size, and the place of each group in `groups`."""
    numbered = [replace(group, facts={**group.facts, "place": place}) for place, group in enumerate(groups)]
    for part in parts(numbered, part_tokens):
        yield pack(part).to(device), [group.facts["place"] for group in part]


def learning_rate(step: int, total: int, config: TrainConfig) -> float:
    """Linear warm-up, then the schedule down to a tenth (cosine) or nothing (linear)."""
    warm = round(config.warmup * total)
    if step < warm:
        return config.learning_rate * (step + 1) / (warm + 1)
    done = (step - warm) / max(1, total - warm)
    shape = {"cosine": 0.1 + 0.45 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}
    return config.learning_rate * shape[config.schedule]


class Trainer:
    """A student, its objective and its optimizer, step by step.

    `prepare` may change the float32 model that was loaded, freeze parts of it for instance, before it is a student.
    """

    optimizer: MasterAdamW

    def __init__(
        self,
        base: Path,
        config: TrainConfig,
        processes: Processes | None = None,
        objective: Objective | None = None,
        prepare: Callable[[Any], object] | None = None,
    ) -> None:
        self.config = config
        self.processes = processes or launched(cpu=config.device == "cpu")
        self.dtype, self.precision_reason = choose_precision(config.precision, self.processes.device)
        torch.manual_seed(config.seed)
        model, tokenizer = load_base(base)
        if prepare is not None:
            prepare(model)
        self.student = Student(model, tokenizer, self.processes.device)
        self.student.verify_packing(config.max_length)
        if config.tuning == "lora":
            self.student.add_lora(config.lora_rank, config.lora_alpha)
        self.optimize(objective or CrossEntropy())

    def optimize(self, objective: Objective) -> None:
        """Choose what is optimized, and start its optimizer; to be called before any step."""
        if hasattr(self, "optimizer"):  # the model's own weights are rounded by now
            self.student.restore(self.optimizer.exact())
        self.objective = objective
        trained = self.student.named_parameters()
        for name, value in objective.parameters:
            value.data = value.data.to(self.student.device)
            trained.append((f"objective.{name}", value))
        self.optimizer = MasterAdamW(
            trained,
            separate=self.dtype != torch.float32,
            weight_decay=self.config.weight_decay,
            processes=self.processes,
        )
        self.student.compute_in(self.dtype)

    def step(self, groups: Sequence[Group], index: int, rate: float) -> dict[str, Any]:
        """One update on `groups`; returns its record."""
        torch.manual_seed(self.config.seed * 1_000_003 + index)
        if isinstance(self.objective, Refreshing):
            groups = self.objective.refresh(self.student, groups, index)
        counts = self.objective.counts(groups)
        names = list(self.objective.names)
        logged = [*names, *(self.objective.observed if isinstance(self.objective, Observing) else ())]
        totals = torch.zeros(len(logged), device=self.student.device)
        computed = torch.zeros((), device=self.student.device)
        pieces = list(parts(groups[self.processes.rank :: self.processes.count], self.config.part_tokens))
        for piece in pieces:
            batch = pack(piece).to(self.student.device)
            terms = self.objective.terms(self.student, batch, counts)
            self.student.backward(torch.stack([terms[name] for name in names]).sum())
            totals += torch.stack([terms[name].detach().float() for name in logged])
            computed += batch.ids.numel()
            if len(pieces) > 1:
                self.optimizer.accumulate()
        if self.processes.several:
            self.optimizer.reduce()
            totals, computed = self.processes.sum(totals), self.processes.sum(computed)
        norm, total = float(self.optimizer.norm()), float(totals[: len(names)].sum())
        if not math.isfinite(norm) or not math.isfinite(total):
            raise UsageError(f"step {index}: the loss is {total}, its gradient {norm}; lower learning_rate")
        self.optimizer.step(rate, min(1.0, self.config.clip_norm / (norm + 1e-6)))
        tokens, targets = count_tokens(groups)
        record: dict[str, Any] = {"step": index, "loss": round(total, 6)}
        for name, value in zip(logged, totals.tolist(), strict=True):
            if name not in names:
                record[name] = round(value, 6)
            elif len(names) > 1:
                record[f"loss_{name}"] = round(value, 6)
        return record | {
            "learning_rate": rate,
            "gradient_norm": round(norm, 4),
            "tokens": tokens,
            "trained_tokens": targets,
            "computed_tokens": int(computed),
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
        in the events and in what is returned. Only the main process writes it.
        """
        groups = as_groups(items)
        steps = plan(len(groups), self.config, [group.tokens for group in groups])
        fingerprint = self.config.fingerprint(groups)
        trained = self._resume(folder, fingerprint, len(steps), events)
        saved = time.monotonic()
        with self._log(folder) as write:
            for index in range(trained.resumed_at, len(steps)):
                began = time.perf_counter()
                rate = learning_rate(index, len(steps), self.config)
                record = self.step([groups[i] for i in steps[index]], index, rate)
                write(json.dumps(record) + "\n")
                record["seconds"] = round(time.perf_counter() - began, 4)
                trained.steps.append(record)
                self._report(record, len(steps), events)
                if on_step is not None:
                    on_step(record)
                due = time.monotonic() - saved >= self.config.checkpoint_seconds and index + 1 < len(steps)
                if self.processes.share(due):
                    self._save(folder, trained, fingerprint)
                    saved = time.monotonic()
        return trained

    def save(self, folder: Path) -> None:
        """Write the trained student, once and at the end; it lies there whole when this returns, in any process."""
        exact = self.optimizer.exact()
        if self.processes.main:
            self.student.save(folder, exact)
        self.processes.share(None)

    @contextlib.contextmanager
    def _log(self, folder: Path) -> Iterator[Callable[[str], object]]:
        if not self.processes.main:
            yield lambda line: None
            return
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / LOG).open("a", encoding="utf-8", buffering=1) as log:
            yield log.write

    def _report(self, record: dict[str, Any], total: int, events: EventLog) -> None:
        rates = {}
        for name in ("tokens", "trained_tokens"):
            rates[f"{name}_per_second"] = round(record[name] / record["seconds"], 1) if record["seconds"] else 0.0
        events.emit(STAGE, "metric", **record, **rates)
        events.progress(STAGE, record["step"] + 1, total, loss=record["loss"], **rates)

    def _save(self, folder: Path, trained: Trained, fingerprint: str) -> None:
        state = self.optimizer.state()
        if self.processes.main:
            seconds = tuple(step["seconds"] for step in trained.steps)
            facts = CheckpointFacts(
                step=len(seconds), fingerprint=fingerprint, seconds=seconds, processes=self.processes.count
            )
            save_checkpoint(folder / CHECKPOINTS, facts, state)

    def _resume(self, folder: Path, fingerprint: str, total: int, events: EventLog) -> Trained:
        """What the folder holds of this run, read by the main process and shared with the others."""
        steps: list[dict[str, Any]] = []
        tensors: dict[str, Tensor] = {}
        before = self.processes.count
        if self.processes.main and (checkpoint := load_checkpoint(folder / CHECKPOINTS)) is not None:
            facts, tensors = checkpoint
            if facts.fingerprint != fingerprint:
                raise ArtifactError(f"{folder}: its checkpoint is of other settings or data; delete the folder")
            before = facts.processes
            log = (folder / LOG).read_text(encoding="utf-8").splitlines()[: facts.step]
            # what the log holds of later steps is removed, for they come again
            (folder / LOG).write_text("".join(line + "\n" for line in log), encoding="utf-8")
            for line, seconds in zip(log, facts.seconds, strict=True):
                steps.append({**json.loads(line), "seconds": seconds})
        elif self.processes.main:
            (folder / LOG).unlink(missing_ok=True)
        steps = self.processes.share(steps)
        if steps:
            self.optimizer.load(tensors, len(steps))
            events.emit(STAGE, "note", text=f"resumed after step {len(steps)} of {total}")
        if before != self.processes.count:
            text = f"{before} processes before, {self.processes.count} now: the same steps, other rounding"
            events.emit(STAGE, "note", text=text)
        return Trained(steps, len(steps), self.processes.count)

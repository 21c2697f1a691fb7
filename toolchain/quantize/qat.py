"""Quantization-aware distillation: a quantized student learns once more from the student it was made from.

    float student ── teacher ───────────────► D(teacher, student) over the student's own words
    its integers ─── rounded layers ─ train ─► new integers, new scales: same bits, groups, zero points

Trained are the linear layers (`qat_linear.py`); embedding, head and norms stay as they are. Data are the task's own
conversations: what a small model has to keep is what it says there. Some questions are held back, the divergence on
them is measured before and after, and the better of the two models is what comes out: a learning rate that is too high
costs time, never quality.

A quantized student is close to its teacher, so gradients are small, and AdamW, which divides by their size, moves all
weights in step: those near a border cross it together, and the divergence jumps fifty-fold (benchmarks/LOG.md). What it
adds to the divisor is therefore a few times the gradient's own size at the start: a weight moves as far as it matters.
A kill costs what happened since the last checkpoint, and changes no number. Left out: bf16 (its weights are coarser
than the way to a border), several processes.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from soloist.kernels.errors import DataError, UsageError
from soloist.toolchain.core.artifact import Facts
from soloist.toolchain.core.config import Config
from soloist.toolchain.core.events import QUIET, EventLog

if TYPE_CHECKING:
    from soloist.kernels.layout import Quantized
    from soloist.toolchain.distill.data import Example
    from soloist.toolchain.distill.model import Student
    from soloist.toolchain.distill.train import TrainConfig, Trained, Trainer

STAGE = "qat"
_FEWEST = 2  # questions: one to learn from, one held back
_DAMPING = 5.0  # AdamW's epsilon in root mean squares of the first gradient
_LEAST = 1e-12  # where a student of 8 bits has no gradient at all


class QATConfig(Config):
    """How long and how to train.

    `max_train_tokens`: tokens of conversations to read. `learning_rate`: steps of the format per update, at most.
    `lmbda`: share of updates on the student's own words. `held_back`: of the questions at most so many, and never more
    than a quarter, are kept to measure on.
    """

    max_train_tokens: int = Field(default=60_000, ge=1)
    batch_size: int = Field(default=16, ge=1)
    learning_rate: float = Field(default=0.02, gt=0)
    divergence: Literal["forward", "reverse", "jsd"] = "forward"
    lmbda: float = Field(default=0.0, ge=0, le=1)
    held_back: int = Field(default=32, ge=1)
    seed: int = 42
    checkpoint_seconds: float = Field(default=300.0, gt=0)


class QATFacts(Facts):
    """What the training was and brought: conversations, its length, KL in nats on those held back before and after.

    `kept` is false where that grew and the integers stayed as they were; `codes_changed` and `scales_changed` are
    shares of those that were trained.
    """

    conversations: int
    held_back: int
    steps: int
    tokens: int
    seconds: float
    first_loss: float | None = None
    last_loss: float | None = None
    codes_changed: float
    scales_changed: float
    kl_before: float
    kl_after: float
    kept: bool


def qat(
    folder: Path,
    matrices: Mapping[str, Quantized],
    examples: Sequence[Example],
    config: QATConfig,
    work: Path,
    *,
    device: str = "cpu",
    events: EventLog = QUIET,
) -> tuple[dict[str, Quantized], QATFacts]:
    """New codes and scales for the linear layers among `matrices`, and the facts of their making.

    Args:
        folder: the float student, a Hugging Face folder.
        matrices: all its quantized matrices by the name of the weight, embedding and head included.
        examples: conversations of its task. Those of one question are held back or learned from together.
        work: scratch; what is there of the same work is gone on with.
        device: "cpu", or anything else for the accelerator there is.

    Raises:
        UsageError: no linear layer among the matrices; a learning rate at which the loss is infinite.
        DataError: fewer than two questions.
        ArtifactError: matrices of another model, a damaged checkpoint.
    """
    from soloist.toolchain.distill.methods.gkd import Distillation, Options
    from soloist.toolchain.distill.model import freed_memory_kept
    from soloist.toolchain.distill.teacher import load_teacher
    from soloist.toolchain.distill.train import Trainer
    from soloist.toolchain.distill.work import Setup
    from soloist.toolchain.quantize.qat_linear import QATLinear, swap_linears

    learned, held = split(examples, config.held_back, config.seed)
    options = Options(divergence=config.divergence, lmbda=config.lmbda)
    train = _training(config, examples, options.max_new_tokens if config.lmbda else 0, device)
    layers: dict[str, QATLinear] = {}
    with freed_memory_kept():
        trainer = Trainer(folder, train, prepare=lambda model: layers.update(swap_linears(model, matrices)))
        if not layers:
            raise UsageError("there is no quantized linear layer to train; embedding and head stay as they are")
        student = trainer.student
        teacher = load_teacher(folder, student, train.max_length)
        setup = Setup(student.tokenizer, lambda _: True, max_length=train.max_length, seed=config.seed)
        trainer.optimize(Distillation(options, teacher, setup))
        trainer.optimizer.epsilon = max(_DAMPING * typical_gradient(trainer, held), _LEAST)
        before = divergence(student, teacher, held)
        trained = trainer.fit(learned, work / _key(matrices, config), events=_renamed(events))
        after = divergence(student, teacher, held)
        exact = trainer.optimizer.exact()
    new: dict[str, Quantized] = {}
    for name, layer in layers.items():
        prefix = name.removesuffix("weight")
        new[name] = layer.codes(exact[prefix + "steps"], exact[prefix + "gain"]).to("cpu")
    facts = _facts(matrices, new, trained, (len(learned), len(held)), (before, after))
    if facts.kept:
        return new, facts
    text = f"KL on held-back conversations {before:.4g} before and {after:.4g} after: the integers stay as they were"
    events.emit(STAGE, "warning", text=f"{text}; try a lower learning_rate")
    return {name: matrices[name] for name in layers}, facts


def _facts(
    old: Mapping[str, Quantized],
    new: Mapping[str, Quantized],
    trained: Trained,
    conversations: tuple[int, int],
    kl: tuple[float, float],
) -> QATFacts:
    """Of conversations learned from and held back, and the KL on the latter before and after."""
    codes_changed, scales_changed = _changed(old, new)
    return QATFacts(
        conversations=conversations[0],
        held_back=conversations[1],
        **trained.facts().model_dump(include={"steps", "tokens", "seconds", "first_loss", "last_loss"}),
        codes_changed=codes_changed,
        scales_changed=scales_changed,
        kl_before=round(kl[0], 6),
        kl_after=round(kl[1], 6),
        kept=kl[1] < kl[0],
    )


def _training(config: QATConfig, examples: Sequence[Example], new_tokens: int, device: str) -> TrainConfig:
    from soloist.toolchain.distill.train import TrainConfig

    longest = max(len(example.ids) for example in examples) + new_tokens
    return TrainConfig(
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        seed=config.seed,
        checkpoint_seconds=config.checkpoint_seconds,
        max_train_tokens=config.max_train_tokens,
        precision="fp32",
        max_length=max(16, longest),
        device="cpu" if device == "cpu" else "auto",
    )


def split(examples: Sequence[Example], most: int, seed: int) -> tuple[list[Example], list[Example]]:
    """Conversations to learn from and conversations held back, by question; always the same ones for a seed.

    Raises:
        DataError: fewer than two questions.
    """
    of_question: dict[str, list[Example]] = {}
    for number, example in enumerate(examples):
        of_question.setdefault(example.question_id or f"conversation {number}", []).append(example)
    if len(of_question) < _FEWEST:
        raise DataError(
            f"training through the rounding needs conversations of two questions, there are {len(of_question)}; "
            "give more traces"
        )
    questions = sorted(of_question)
    random.Random(f"{seed}/held back").shuffle(questions)  # noqa: S311 - not cryptography
    chosen = set(questions[: max(1, min(most, len(questions) // 4))])
    learned: list[Example] = []
    held: list[Example] = []
    for question, members in of_question.items():
        (held if question in chosen else learned).extend(members)
    return learned, held


def divergence(student: Student, teacher: Student, examples: Sequence[Example], part_tokens: int = 2048) -> float:
    """Mean KL(teacher || student) of the conversations' trained tokens, nats."""
    import torch

    from soloist.toolchain.distill.data import as_groups
    from soloist.toolchain.distill.divergence import divergences
    from soloist.toolchain.distill.packing import pack
    from soloist.toolchain.distill.train import parts

    total, rows = 0.0, 0
    with torch.no_grad():
        for piece in parts(as_groups(examples), part_tokens):
            nats = divergences(student, teacher, pack(piece).to(student.device), "forward")
            total, rows = total + float(nats.double().sum()), rows + len(nats)
    return total / rows


def typical_gradient(trainer: Trainer, examples: Sequence[Example], part_tokens: int = 2048) -> float:
    """Root mean square, over all trained numbers, of the gradient of the objective on some conversations."""
    from soloist.toolchain.distill.data import as_groups
    from soloist.toolchain.distill.packing import pack
    from soloist.toolchain.distill.train import parts

    optimizer, groups = trainer.optimizer, as_groups(examples)
    counts = trainer.objective.counts(groups)
    for piece in parts(groups, part_tokens):
        terms = trainer.objective.terms(trainer.student, pack(piece).to(trainer.student.device), counts)
        trainer.student.backward(sum(terms.values()))
    norm = float(optimizer.norm())
    for parameter in optimizer.parameters.values():
        parameter.grad = None
    count: int = sum(parameter.numel() for parameter in optimizer.parameters.values())
    return norm / math.sqrt(count)


def _changed(old: Mapping[str, Quantized], new: Mapping[str, Quantized]) -> tuple[float, float]:
    """Which share of the codes and of the scales is another."""
    from soloist.toolchain.quantize.qat_linear import values

    codes = scales = changed_codes = changed_scales = 0
    for name, after in new.items():
        before = old[name]
        codes += after.shape[0] * after.shape[1]
        scales += after.scales.numel()
        changed_codes += int((values(before) != values(after)).sum())
        changed_scales += int((before.scales != after.scales).sum())
    return round(changed_codes / codes, 6), round(changed_scales / scales, 6)


def _key(matrices: Mapping[str, Quantized], config: QATConfig) -> str:
    """Names the folder of a run: a checkpoint from other codes or for another divergence is not gone on with."""
    digest = hashlib.sha256(config.model_dump_json(exclude={"checkpoint_seconds"}).encode())
    for name, matrix in sorted(matrices.items()):
        digest.update(name.encode())
        for part in (matrix.codes, matrix.scales, matrix.zeros):
            digest.update(b"" if part is None else part.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _renamed(events: EventLog) -> EventLog:
    """What the training loop reports, as events of this stage."""

    def relay(record: dict[str, Any]) -> None:
        events.emit(STAGE, **{name: value for name, value in record.items() if name not in ("time", "stage")})

    return EventLog(listeners=(relay,))

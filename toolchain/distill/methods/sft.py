"""Supervised fine-tuning: cross-entropy of the student's own tokens, on one verified trajectory a question.

The cross-entropy that most other methods are made of is here too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from soloist.toolchain.distill.data import Group, Selection, select
from soloist.toolchain.distill.methods.base import Method, SelfContained, Setup
from soloist.toolchain.distill.packing import Batch
from soloist.toolchain.distill.student import Student
from soloist.toolchain.traces.schema import Run


class _SummedCrossEntropy(torch.autograd.Function):  # type: ignore[misc]  # torch's types are not followed
    """sum_i w_i (logsumexp(z_i) - z_i[y_i]), and its gradient w_i (softmax(z_i) - onehot(y_i)), in one pass.

    Both are made a few rows at a time in fp32 while the rows are in cache; torch's own needs five
    passes over an fp32 copy of all logits.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:  # noqa: ANN401
        gradient = torch.empty_like(logits)
        precise = torch.float64 if logits.dtype == torch.float64 else torch.float32
        total = torch.zeros((), dtype=precise, device=logits.device)
        rows = 16 if logits.device.type == "cpu" else 1024
        for start in range(0, len(labels), rows):
            z = logits[start : start + rows].to(precise)
            y = labels[start : start + rows, None]
            z = z - torch.logsumexp(z, dim=-1, keepdim=True)
            lost = z.gather(1, y)
            z.exp_().scatter_add_(1, y, torch.full_like(y, -1, dtype=precise))
            if weights is not None:
                w = weights[start : start + rows, None].to(precise)
                lost, z = lost * w, z * w
            total -= lost.sum()
            gradient[start : start + rows] = z
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        (gradient,) = ctx.saved_tensors
        return gradient * upstream.to(gradient.dtype), None, None


def summed_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy of `labels` (R,) under `logits` (R, V), summed, each row times its weight (R,)."""
    total: Tensor = _SummedCrossEntropy.apply(logits, labels, weights)
    return total


class CrossEntropy(SelfContained):
    """Mean cross-entropy over a step's trained tokens, each with its own weight (1 unless an example says else)."""

    names = ("lm",)

    def counts(self, groups: Sequence[Group]) -> Mapping[str, float]:
        return {"tokens": sum(example.weight for group in groups for example in group.examples)}

    def terms(self, student: Student, batch: Batch, counts: Mapping[str, float]) -> Mapping[str, Tensor]:
        return {"lm": summed_cross_entropy(student.logits(batch), batch.labels, batch.weights) / counts["tokens"]}


def verified(runs: Sequence[Run], setup: Setup) -> Selection:
    """The trajectory of every run that passes rejection sampling, see `data.select`."""
    return select(runs, setup.tokenizer, check_steps=setup.check_steps, mode=setup.mode, max_length=setup.max_length)


METHOD = Method(select=verified, objective=lambda _student, _setup: CrossEntropy())

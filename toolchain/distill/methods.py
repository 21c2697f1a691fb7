"""How a student learns: each method is a loss over packed batches, and nothing else.

`loss(student, batch)` returns the sum over the batch's trained tokens; the loop in `train.py` divides by
how many there are in the whole step, so that splitting a batch never changes its gradient. A further
method is one file with one such function and one entry in METHODS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from soloist.toolchain.distill.packing import Batch
from soloist.toolchain.distill.student import Student

Loss = Callable[[Student, Batch], Tensor]


@dataclass(frozen=True)
class Method:
    """A way to distill: its name, one sentence about it, its loss."""

    name: str
    description: str
    loss: Loss


class _SummedCrossEntropy(torch.autograd.Function):  # type: ignore[misc]  # torch's types are not followed
    """sum_i logsumexp(z_i) - z_i[y_i], and its gradient softmax(z_i) - onehot(y_i), in one pass.

    Both are made a few rows at a time in fp32 while the rows are in cache; torch's own needs five
    passes over an fp32 copy of all logits.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:  # noqa: ANN401 - torch's context
        gradient = torch.empty_like(logits)
        precise = torch.float64 if logits.dtype == torch.float64 else torch.float32
        total = torch.zeros((), dtype=precise, device=logits.device)
        rows = 16 if logits.device.type == "cpu" else 1024
        for start in range(0, len(labels), rows):
            z = logits[start : start + rows].to(precise)
            y = labels[start : start + rows, None]
            z = z - torch.logsumexp(z, dim=-1, keepdim=True)
            total -= z.gather(1, y).sum()
            z.exp_().scatter_add_(1, y, torch.full_like(y, -1, dtype=precise))
            gradient[start : start + rows] = z
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        (gradient,) = ctx.saved_tensors
        return gradient * upstream.to(gradient.dtype), None


def summed_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of `labels` (R,) under `logits` (R, V), summed."""
    total: Tensor = _SummedCrossEntropy.apply(logits, labels)
    return total


def sft_loss(student: Student, batch: Batch) -> Tensor:
    """Supervised fine-tuning: cross-entropy of the student's own tokens."""
    return summed_cross_entropy(student.logits(batch), batch.labels)


METHODS: Mapping[str, Method] = {
    "sft": Method("sft", "supervised fine-tuning on verified trajectories", sft_loss),
}

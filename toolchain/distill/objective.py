"""What a method optimizes: a loss as named terms, and the cross-entropy that most methods are made of.

    Objective      names, counts and terms; what the trainer (`train.py`) runs
    Refreshing     an objective that replaces a step's groups, by samples of the student for instance
    Observing      an objective whose terms hold numbers that are logged and not optimized
    CrossEntropy   -sum w log p(y) / sum w over a step's trained tokens

Cross-entropy has its own autograd function, because on a CPU it is memory traffic that costs, not arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from soloist.toolchain.distill.data import Group, total_weight
from soloist.toolchain.distill.model import Student
from soloist.toolchain.distill.packing import Batch


class Objective(Protocol):
    """A loss as a sum of named terms.

    A step is split into parts that fit in memory and over processes, and what is averaged is averaged over
    the whole step: `counts` is asked once, with all groups of the step, and `terms` of each part divides by
    it. So a split never changes a gradient.
    """

    @property
    def names(self) -> Sequence[str]:
        """The terms, always the same ones."""
        ...

    @property
    def parameters(self) -> Sequence[tuple[str, nn.Parameter]]:
        """Weights beside the student's that are trained along and thrown away (a graph network, a head)."""
        ...

    def counts(self, groups: Sequence[Group]) -> Mapping[str, float]:
        """What the terms of a step are divided by, from all groups of that step."""
        ...

    def terms(self, student: Student, batch: Batch, counts: Mapping[str, float]) -> Mapping[str, Tensor]:
        """This part's share of each term, a scalar."""
        ...


@runtime_checkable
class Refreshing(Protocol):
    """What an objective also is if it replaces the groups of a step, by the student's own samples for instance."""

    def refresh(self, student: Student, groups: Sequence[Group], step: int) -> Sequence[Group]:
        """The groups to take instead: a function of the student and the step, because a resumed run asks again.

        torch's random numbers are seeded for the step before.
        """
        ...


@runtime_checkable
class Observing(Protocol):
    """What an objective also is if its `terms` hold more than the loss: shares that are added up and logged only."""

    @property
    def observed(self) -> Sequence[str]:
        """Their names, as they stand in a step's record."""
        ...


class SelfContained:
    """For objectives that train nothing beside the student."""

    @property
    def parameters(self) -> Sequence[tuple[str, nn.Parameter]]:
        return ()


class _SummedCrossEntropy(torch.autograd.Function):  # type: ignore[misc]  # torch's types are not followed
    """sum_i w_i (logsumexp(z_i) - z_i[y_i]), and its gradient w_i (softmax(z_i) - onehot(y_i)), in one pass.

    Both are made a few rows at a time in fp32 while the rows are in cache; torch's own needs five
    passes over an fp32 copy of all logits.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
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
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream.to(gradient.dtype), None, None


def summed_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy of `labels` (R,) under `logits` (R, V), summed, each row times its weight (R,)."""
    total: Tensor = _SummedCrossEntropy.apply(logits, labels, weights)
    return total


class CrossEntropy(SelfContained):
    """Mean cross-entropy over a step's trained tokens, each with its own weight (1 unless the example has others)."""

    names = ("lm",)

    def counts(self, groups: Sequence[Group]) -> Mapping[str, float]:
        return {"tokens": total_weight(groups)}

    def terms(self, student: Student, batch: Batch, counts: Mapping[str, float]) -> Mapping[str, Tensor]:
        return {"lm": summed_cross_entropy(student.logits(batch), batch.labels, batch.weights) / counts["tokens"]}

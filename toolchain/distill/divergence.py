"""How far a student's next-token distributions are from a teacher's, row by row, with the gradient in one pass.

P is the teacher's distribution, Q the student's, M = beta P + (1 - beta) Q:

    forward   KL(P || Q) = sum P log(P / Q)                      gradient by the student's logits   Q - P
    reverse   KL(Q || P) = sum Q log(Q / P)                      Q (log(Q / P) - KL(Q || P))
    jsd       beta KL(P || M) + (1 - beta) KL(Q || M)            (1 - beta) Q (log(Q / M) - KL(Q || M))
    hard      -log Q[y], which is forward KL to a teacher sure of y      Q - onehot(y)

`jsd` is the generalized Jensen-Shannon divergence of GKD (arXiv 2306.13649, equation 1) as TRL's GKDTrainer
computes it. It vanishes at both ends: near beta 0 it is beta times the forward KL, near 1 it is (1 - beta)
times the reverse one. TRL therefore takes beta 0 and 1 to mean those two KLs; here they have their own names.

Values and gradient are made a few rows at a time in fp32 (fp64 for fp64 logits), so that no second copy of
all logits in fp32 ever exists; the gradient has the logits' own dtype, and its memory may be that of the teacher's
logits (`consume`). Left out: temperatures (divide the logits), teachers of another vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from soloist.kernels.errors import UsageError

Kind = Literal["forward", "reverse", "jsd"]
Rule = Callable[[Tensor, slice], tuple[Tensor, Tensor]]  # log Q of some rows, which -> their values, their gradient

_CPU_ROWS, _OTHER_ROWS = 16, 1024  # what stays in a cache; what fills an accelerator


def _precise(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _pieces(logits: Tensor) -> list[slice]:
    rows = _CPU_ROWS if logits.device.type == "cpu" else _OTHER_ROWS
    return [slice(start, start + rows) for start in range(0, len(logits), rows)]


def _log_softmax(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits.to(_precise(logits)), dim=-1)


class _ByRows(torch.autograd.Function):  # type: ignore[misc]  # torch's types are not followed
    """Applies a rule to each row of the student's logits. `space` is where the gradient is written."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, rule: Rule, space: list[Tensor]) -> Tensor:  # noqa: ANN401
        gradient = space.pop()
        values = torch.empty(len(logits), dtype=_precise(logits), device=logits.device)
        for piece in _pieces(logits):
            values[piece], gradient[piece] = rule(_log_softmax(logits[piece]), piece)
        ctx.save_for_backward(gradient)
        return values

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        (gradient,) = ctx.saved_tensors
        return gradient.mul_(upstream.to(gradient.dtype)[:, None]), None, None


def row_divergence(
    student: Tensor, teacher: Tensor, kind: Kind = "forward", beta: float = 0.5, *, consume: bool = False
) -> Tensor:
    """The divergence of each row of logits (R, V), as (R,); only the student gets a gradient.

    Args:
        beta: the teacher's share in the mixture of `jsd`, between 0 and 1.
        consume: the teacher's logits are not needed afterwards; their memory is used for the gradient.

    Raises:
        UsageError: logits of different shapes, or a beta that leaves no mixture.
    """
    if student.shape != teacher.shape:
        raise UsageError(
            f"divergence: the student's logits are {tuple(student.shape)}, the teacher's {tuple(teacher.shape)}; "
            "both must score the same tokens of one vocabulary"
        )
    if kind == "jsd" and not 0 < beta < 1:
        raise UsageError(f"divergence: beta {beta} is no mixture; for 0 choose 'forward', for 1 'reverse'")
    source = teacher.detach()
    space = source if consume and source.dtype == student.dtype else torch.empty_like(student)

    def rule(log_q: Tensor, piece: slice) -> tuple[Tensor, Tensor]:
        log_p = _log_softmax(source[piece])
        if kind == "forward":
            p = log_p.exp()
            return (p * (log_p - log_q)).sum(-1), log_q.exp() - p
        q = log_q.exp()
        if kind == "reverse":
            return _pulled(q, log_q - log_p)
        log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
        of_q, gradient = _pulled(q, log_q - log_m)
        of_p = (log_p.exp() * (log_p - log_m)).sum(-1)
        return beta * of_p + (1 - beta) * of_q, gradient.mul_(1 - beta)

    values: Tensor = _ByRows.apply(student, rule, [space])
    return values


def _pulled(q: Tensor, ratio: Tensor) -> tuple[Tensor, Tensor]:
    """sum Q log(Q / .) and its gradient by the logits of Q, the other distribution held (or its pull cancelling)."""
    value = (q * ratio).sum(-1)
    return value, q * (ratio - value[:, None])


def row_cross_entropy(student: Tensor, labels: Tensor) -> Tensor:
    """-log Q[y] of each row of logits (R, V) with labels (R,)."""

    def rule(log_q: Tensor, piece: slice) -> tuple[Tensor, Tensor]:
        y = labels[piece, None]
        values = -log_q.gather(1, y)[:, 0]
        return values, log_q.exp().scatter_add_(1, y, torch.full_like(y, -1, dtype=log_q.dtype))

    values: Tensor = _ByRows.apply(student, rule, [torch.empty_like(student)])
    return values


def row_entropy(logits: Tensor) -> Tensor:
    """The entropy of each row in nats, without a gradient."""
    found = torch.empty(len(logits), dtype=_precise(logits), device=logits.device)
    with torch.no_grad():
        for piece in _pieces(logits):
            log_p = _log_softmax(logits[piece])
            found[piece] = -(log_p.exp() * log_p).sum(-1)
    return found

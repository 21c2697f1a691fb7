"""How far a student's next-token distributions are from a teacher's or from given tokens, row by row.

P is the teacher's distribution, Q the student's, M = beta P + (1 - beta) Q (`soloist.kernels.divergences`):

    forward   KL(P || Q) = sum P log(P / Q)                      gradient by the student's logits   Q - P
    reverse   KL(Q || P) = sum Q log(Q / P)                      Q (log(Q / P) - KL(Q || P))
    jsd       beta KL(P || M) + (1 - beta) KL(Q || M)            (1 - beta) Q (log(Q / M) - KL(Q || M))
    hard      -log Q[y], which is forward KL to a teacher sure of y      Q - onehot(y)

There are two ways to the same numbers. On a GPU the loss is made from hidden states by `soloist.kernels.linear_kl`,
and neither student's nor teacher's logits are ever whole; what that costs is making them two or three times. On a CPU
those products are most of the time (benchmarks/LOG.md), so there both models' logits are made once, and values and
gradient a few rows at a time in fp32 (fp64 for fp64 logits): no second copy in fp32 ever exists, the gradient has the
logits' own dtype, and its memory may be that of the teacher's logits (`consume`). That is also the way where a model
does more to its logits than one matrix product. Left out: temperatures, teachers of another vocabulary.
"""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from soloist.kernels.choose import choose
from soloist.kernels.divergences import Head, Kind, TopK
from soloist.kernels.errors import UsageError
from soloist.kernels.linear_kl import linear_kl
from soloist.toolchain.distill.model import Student
from soloist.toolchain.distill.packing import Batch
from soloist.toolchain.distill.teacher import teacher_logits

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
    def forward(ctx: Any, logits: Tensor, rule: Rule, space: list[Tensor]) -> Tensor:
        gradient = space.pop()
        values = torch.empty(len(logits), dtype=_precise(logits), device=logits.device)
        for piece in _pieces(logits):
            values[piece], gradient[piece] = rule(_log_softmax(logits[piece]), piece)
        ctx.save_for_backward(gradient)
        return values

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
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
    entropy = torch.empty(len(logits), dtype=_precise(logits), device=logits.device)
    with torch.no_grad():
        for piece in _pieces(logits):
            log_p = _log_softmax(logits[piece])
            entropy[piece] = -(log_p.exp() * log_p).sum(-1)
    return entropy


# ---------------------------------------------------------------- of a student and its teacher


def divergences(
    student: Student, teacher: Student, batch: Batch, kind: Kind, beta: float = 0.5, weights: Tensor | None = None
) -> Tensor:
    """The divergence of each trained token's row, times its weight if there are any, (R,)."""
    own = head_of(student, batch) if in_chunks(student) else None
    if own is None:
        rows = row_divergence(student.logits(batch), teacher_logits(teacher, batch), kind, beta, consume=True)
        return rows if weights is None else rows * weights
    with torch.no_grad():
        target = head_of(teacher, batch) or teacher_logits(teacher, batch)
    return _linear_kl(own, target, kind, beta, weights)


def cross_entropies(student: Student, batch: Batch, weights: Tensor | None = None) -> Tensor:
    """The cross-entropy of each trained token, times its weight if there are any, (R,)."""
    own = head_of(student, batch) if in_chunks(student) else None
    if own is None:
        rows = row_cross_entropy(student.logits(batch), batch.labels)
        return rows if weights is None else rows * weights
    sure = TopK(batch.labels[:, None], torch.zeros_like(batch.labels[:, None], dtype=torch.float32))
    return _linear_kl(own, sure, "forward", 0.5, weights)


def in_chunks(student: Student) -> bool:
    """Whether products are cheap enough here to make logits anew rather than keep them."""
    return bool(student.device.type != "cpu")


def _linear_kl(own: Head, target: Head | TopK | Tensor, kind: Kind, beta: float, weights: Tensor | None) -> Tensor:
    plain = choose("linear_kl", own.states.device).impl != "triton"
    return linear_kl(own.states, own.weight, target, bias=own.bias, kind=kind, beta=beta, weights=weights, plain=plain)


def head_of(model: Student, batch: Batch) -> Head | None:
    """A model's last states at the trained positions, and the matrix that would make logits of them.

    None where that matrix does not make the model's logits alone: it is wrapped (LoRA), watched by hooks, or what it
    makes is scaled or capped afterwards. That shows when the matrix hands its input through: what the model returns
    is then no longer the very tensor.
    """
    matrix = model.model.get_output_embeddings()
    if type(matrix) is not nn.Linear or "forward" in vars(matrix) or matrix in _DRESSED:
        return None
    with _handing_through(matrix) as seen:
        states = model.logits(batch)
    given, version = seen[-1]
    if states.data_ptr() != given.data_ptr() or states.numel() != given.numel() or given._version != version:
        _DRESSED.add(matrix)  # not to be tried at every step
        return None
    return Head(states, matrix.weight, matrix.bias)


_DRESSED: weakref.WeakSet[nn.Linear] = weakref.WeakSet()


@contextlib.contextmanager
def _handing_through(matrix: nn.Linear) -> Iterator[list[tuple[Tensor, int]]]:
    """The layer returns its input, and remembers it with the number of times it had been written to."""
    seen: list[tuple[Tensor, int]] = []

    def forward(states: Tensor) -> Tensor:
        seen.append((states, states._version))
        return states

    vars(matrix)["forward"] = forward
    try:
        yield seen
    finally:
        del vars(matrix)["forward"]

"""Products with a matrix as tall as the vocabulary, a chunk of tokens at a time, and the gradients through them.

    Divergence.apply(h, W, b, steps, rows, *teacher)    D (T,) by the formulas of `linear_kl.py`
    Picked.apply(h, W, b, steps, indices)               log sum exp z over all other tokens (T,), z at indices (T, k)

z = (h W^T + b) / temperature lives in one buffer of a chunk's width that every sweep over the vocabulary reuses. What
is done to a chunk is either a Triton kernel of `linear_kl.py` or, in `Steps` itself, the same in torch. dz is made
without its row's weight and rounded to h's dtype for the products; the weight goes into dh afterwards, and into dW
through h, relative to the largest: in fp16 it would underflow. Left out: second derivatives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

SPARE = 16  # columns behind a chunk: where writes of other chunks' tokens go; a multiple keeps rows on 16 bytes


@dataclass(frozen=True)
class Steps:
    """A divergence by chunks of the vocabulary: its settings, and what is done to each chunk, here in torch.

    z (T, C) holds the student's logits of a chunk, t the teacher's, whose row for z's row i is rows[i].

    Args:
        kind: that of linear_kl, or `lse` where only the student counts.
        chunk: tokens at a time.
        empty: allocates buffers and gradients.
    """

    kind: str
    beta: float
    temperature: float
    chunk: int
    empty: Callable[..., Tensor] = torch.empty

    @property
    def exact(self) -> bool:
        """Whether products of fp16 and bf16 must come out in fp32, even where that means converting them first."""
        return False

    @property
    def inverse(self) -> float:
        """What logits are multiplied by."""
        return 1.0 / self.temperature

    def buffer(self, count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """An uninitialized buffer for a chunk of `count` rows."""
        return self.empty((count, self.chunk + SPARE), dtype=dtype, device=device)

    def statistics(self, z: Tensor, t: Tensor | None, rows: Tensor, state: Tensor) -> None:
        """Update state (5, T): peak and sum of exp of the student, of the teacher, and the kind's expectation."""
        mass_q, rescale_q = _online(z, state[0], state[1])
        if self.kind == "lse":
            return
        log_p = self._teacher(t, rows, z)
        mass_p, rescale_p = _online(log_p, state[2], state[3])
        if self.kind == "forward":  # a token without mass may lie infinitely far: 0 times that is left out
            state[4].mul_(rescale_p).add_(mass_p.mul_(log_p.sub_(z)).nansum(1))
        elif self.kind == "reverse":
            state[4].mul_(rescale_q).add_(mass_q.mul_(log_p.sub_(z).neg_()).nansum(1))

    def mixture(self, z: Tensor, t: Tensor | None, rows: Tensor, lse: Tensor, sums: Tensor) -> None:
        """Add to sums (2, T): KL(P || M), KL(Q || M), given lse, the log-sum-exps of student and teacher."""
        log_q, log_p = z.sub_(lse[0, :, None]), self._teacher(t, rows, z).sub_(lse[1, :, None])
        log_ratio, log_q_m = _log_ratios(log_q, log_p, self.beta)
        sums[0] += log_ratio.add_(log_q_m).mul_(log_p.exp_()).sum(1)
        sums[1] += log_q_m.mul_(log_q.exp_()).sum(1)

    def gradient(self, z: Tensor, t: Tensor | None, rows: Tensor, lse: Tensor, out: Tensor) -> None:
        """Write dz, given lse (3, T): both log-sum-exps and the row's term of dz. z may be overwritten."""
        log_q, row_term = z.sub_(lse[0, :, None]), lse[2, :, None]
        if self.kind == "lse":
            out.copy_(log_q.exp_().mul_(row_term))
            return
        log_p = self._teacher(t, rows, z).sub_(lse[1, :, None])
        if self.kind == "forward":
            out.copy_(log_q.exp_().sub_(log_p.exp_()))
        elif self.kind == "reverse":
            ratio = log_p.sub_(log_q).neg_().sub_(row_term)
            out.copy_(ratio.mul_(log_q.exp_()))
        else:
            log_q_m = _log_ratios(log_q, log_p, self.beta)[1]
            out.copy_(log_q_m.sub_(row_term).mul_(log_q.exp_()).mul_(1 - self.beta))

    def _teacher(self, t: Tensor | None, rows: Tensor, z: Tensor) -> Tensor:
        """A new tensor: the teacher's logits beside z's."""
        assert t is not None
        chosen = t if len(t) == len(rows) else t.index_select(0, rows)
        logits = chosen.to(z.dtype, copy=True)
        return logits if self.temperature == 1 else logits.mul_(self.inverse)


def _online(x: Tensor, peak: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """exp(x - new peak) and the factor of older sums; peak and total are updated in place."""
    top = torch.maximum(peak, x.amax(1))
    base = torch.where(top == -torch.inf, 0.0, top)
    mass, rescale = (x - base[:, None]).exp_(), (peak - base).exp_()
    total.mul_(rescale).add_(mass.sum(1))
    peak.copy_(top)
    return mass, rescale


def _log_ratios(log_q: Tensor, log_p: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """log(P / Q), limited to where both have mass, and log(Q / M)."""
    log_ratio = (log_p - log_q).clamp_(-80.0, 80.0)
    return log_ratio, log_ratio.exp().mul_(beta).add_(1 - beta).log_().neg_()


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which values of this dtype are summed: fp32, or fp64."""
    return torch.promote_types(dtype, torch.float32)


def product(left: Tensor, right: Tensor, steps: Steps) -> Tensor:
    """left @ right in fp32 (or fp64). torch's CPU products round to their operands' dtype."""
    wanted = sum_dtype(left.dtype)
    if left.dtype == wanted:
        return left @ right
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=wanted)
    return left.to(wanted) @ right.to(wanted) if steps.exact else (left @ right).to(wanted)


class _Sweep:
    """Iterates over the vocabulary: which tokens, the student's logits, the teacher's undivided by the temperature.

    `teacher` is nothing, its logits, or its states, matrix and bias.
    """

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        steps: Steps,
        teacher: tuple[Tensor | None, ...] = (),
    ) -> None:
        self.student = (hidden, weight, bias)
        self.steps = steps
        self.teacher = teacher
        self.space = steps.buffer(len(hidden), sum_dtype(hidden.dtype), hidden.device)
        if len(teacher) > 1:
            assert teacher[0] is not None
            self.other = steps.buffer(len(hidden), sum_dtype(teacher[0].dtype), hidden.device)

    def __iter__(self) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
        vocabulary = len(self.student[1])
        for start in range(0, vocabulary, self.steps.chunk):
            piece = slice(start, min(start + self.steps.chunk, vocabulary))
            z = self._logits(self.space, *self.student, piece)
            if self.steps.temperature != 1:
                z.mul_(self.steps.inverse)
            yield piece, z, self._teacher_logits(piece)

    def _teacher_logits(self, piece: slice) -> Tensor | None:
        if len(self.teacher) > 1:
            states, weight, bias = self.teacher
            assert states is not None
            assert weight is not None
            return self._logits(self.other, states, weight, bias, piece)
        whole = self.teacher[0] if self.teacher else None
        return None if whole is None else whole[:, piece]

    def _logits(self, space: Tensor, states: Tensor, weight: Tensor, bias: Tensor | None, piece: slice) -> Tensor:
        matrix = weight[piece].to(states.dtype).T
        logits = space[:, : matrix.shape[1]]
        if states.dtype == space.dtype:
            torch.mm(states, matrix, out=logits)
        elif states.is_cuda:
            torch.mm(states, matrix, out_dtype=space.dtype, out=logits)
        else:
            logits.copy_(product(states, matrix, self.steps))
        return logits if bias is None else logits.add_(bias[piece])


class _Gradients:
    """Collects dh, dW and db, those that are needed, from dz of one chunk after the other.

    `factor` (T,) is what each row of dz is still to be multiplied by.
    """

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        factor: Tensor,
        needs: tuple[bool, ...],
        steps: Steps,
    ) -> None:
        self.steps, self.dtype, self.matrix, self.factor = steps, hidden.dtype, weight, factor
        wide = sum_dtype(hidden.dtype)
        self.hidden = torch.zeros_like(hidden, dtype=wide) if needs[0] else None
        self.weight = steps.empty(weight.shape, dtype=weight.dtype, device=weight.device) if needs[1] else None
        self.bias = None
        if needs[2] and bias is not None:
            self.bias = steps.empty(bias.shape, dtype=bias.dtype, device=bias.device)
        self.peak = factor.abs().amax().clamp(min=torch.finfo(factor.dtype).tiny)
        self.share = (factor / self.peak)[:, None]
        self.scaled = (hidden * self.share).to(hidden.dtype) if needs[1] else hidden

    def add(self, piece: slice, dz: Tensor) -> None:
        """Add what dz (T, C) of these tokens gives."""
        if self.hidden is not None:
            self.hidden += product(dz, self.matrix[piece].to(self.dtype), self.steps)
        if self.weight is not None:
            self.weight[piece] = product(dz.T, self.scaled, self.steps) * self.peak
        if self.bias is not None:
            self.bias[piece] = (dz * self.share).sum(0) * self.peak

    def result(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """dh, dW, db in the dtypes of h, W and b."""
        hidden = None if self.hidden is None else self.hidden.mul_(self.factor[:, None]).to(self.dtype)
        return hidden, self.weight, self.bias


def _initial_state(hidden: Tensor) -> Tensor:
    state = torch.zeros((5, len(hidden)), dtype=sum_dtype(hidden.dtype), device=hidden.device)
    state[0], state[2] = -torch.inf, -torch.inf
    return state


class Divergence(torch.autograd.Function):  # type: ignore[misc]  # torch's types are not followed
    """The divergence of each row from a teacher that is logits, or states with a matrix and a bias."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        steps: Steps,
        rows: Tensor,
        *teacher: Tensor | None,
    ) -> Tensor:
        sweep, state = _Sweep(hidden, weight, bias, steps, teacher), _initial_state(hidden)
        for _, z, t in sweep:
            steps.statistics(z, t, rows, state)
        lse_q, lse_p = state[0] + state[1].log(), state[2] + state[3].log()
        if steps.kind == "forward":
            values = row_term = state[4] / state[3] + (lse_q - lse_p)
        elif steps.kind == "reverse":
            values = row_term = state[4] / state[1] + (lse_p - lse_q)
        else:
            lse, sums = torch.stack([lse_q, lse_p]), torch.zeros_like(state[:2])
            for _, z, t in sweep:
                steps.mixture(z, t, rows, lse, sums)
            values, row_term = steps.beta * sums[0] + (1 - steps.beta) * sums[1], sums[1]
        ctx.steps = steps
        ctx.save_for_backward(hidden, weight, bias, rows, torch.stack([lse_q, lse_p, row_term]), *teacher)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, rows, lse, *teacher = ctx.saved_tensors
        steps: Steps = ctx.steps
        with torch.autocast(hidden.device.type, enabled=False):
            out = steps.buffer(len(hidden), hidden.dtype, hidden.device)
            gradients = _Gradients(hidden, weight, bias, upstream * steps.inverse, ctx.needs_input_grad, steps)
            for piece, z, t in _Sweep(hidden, weight, bias, steps, tuple(teacher)):
                dz = out[:, : z.shape[1]]
                steps.gradient(z, t, rows, lse, dz)
                gradients.add(piece, dz)
        return (*gradients.result(), None, None, *[None] * len(teacher))


class Picked(torch.autograd.Function):  # type: ignore[misc]  # torch's types are not followed
    """Some logits of each row, and the log-sum-exp of all others. The indices of a row are distinct."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        steps: Steps,
        indices: Tensor,
    ) -> tuple[Tensor, Tensor]:
        sweep, state = _Sweep(hidden, weight, bias, steps), _initial_state(hidden)
        picked = torch.zeros(indices.shape, dtype=state.dtype, device=hidden.device)
        for piece, z, _ in sweep:
            places = _places(indices, piece, steps.chunk)
            picked = torch.where(places < steps.chunk, sweep.space.gather(1, places), picked)
            sweep.space.scatter_(1, places, -torch.inf)
            steps.statistics(z, None, indices, state)
        rest = state[0] + state[1].log()
        ctx.steps = steps
        ctx.save_for_backward(hidden, weight, bias, indices, rest)
        return rest, picked

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_rest: Tensor, of_picked: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, indices, rest = ctx.saved_tensors
        steps: Steps = ctx.steps
        with torch.autocast(hidden.device.type, enabled=False):
            size = torch.cat([of_rest[:, None], of_picked], 1).abs().amax(1)
            unit = size.clamp(min=torch.finfo(size.dtype).tiny)
            lse, few = torch.stack([rest, rest, of_rest / unit]), (of_picked / unit[:, None]).to(hidden.dtype)
            out = steps.buffer(len(hidden), hidden.dtype, hidden.device)
            sweep = _Sweep(hidden, weight, bias, steps)
            gradients = _Gradients(hidden, weight, bias, size * steps.inverse, ctx.needs_input_grad, steps)
            for piece, z, _ in sweep:
                places = _places(indices, piece, steps.chunk)
                sweep.space.scatter_(1, places, -torch.inf)
                steps.gradient(z, None, indices, lse, out[:, : z.shape[1]])
                out.scatter_(1, places, few)
                gradients.add(piece, out[:, : z.shape[1]])
        return (*gradients.result(), None, None)


def _places(indices: Tensor, piece: slice, chunk: int) -> Tensor:
    """Columns of the buffer that hold these tokens: a spare one for those of other chunks."""
    inside = (indices >= piece.start) & (indices < piece.stop)
    return torch.where(inside, indices - piece.start, chunk)

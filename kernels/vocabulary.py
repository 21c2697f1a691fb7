"""Products with a matrix as tall as the vocabulary, a chunk of tokens at a time, and the gradients through them.

    Divergence.apply(h, W, b, plan, rows, *teacher)   -> D (T,)                     soloist.kernels.linear_kl's formulas
    Picked.apply(h, W, b, plan, indices)              -> log sum exp z over all other tokens (T,), z at indices (T, k)

z = (h W^T + b) / temperature lives in one buffer of a chunk's width that every sweep over the vocabulary reuses. What
is done to a chunk (`Steps`) is either a Triton kernel of `linear_kl.py` or `Plain`, the same in torch. dz is made
without its row's weight and rounded to h's dtype for the products; the weight goes into dh afterwards, and into dW
through h, relative to the largest: in fp16 it would underflow. Left out: second derivatives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

SPARE = 16  # columns behind a chunk: where writes of other chunks' tokens go; a multiple keeps rows on 16 bytes


class Steps(Protocol):
    """What is done to a chunk of logits z (T, C); t holds the teacher's chunk, whose row of z's row i is rows[i].

    `exact` says that products of fp16 and bf16 must come out in fp32 even where that means converting them first.
    """

    exact: bool

    def statistics(self, z: Tensor, t: Tensor | None, rows: Tensor, state: Tensor, plan: Plan) -> None:
        """Go on with state (5, T): peak and sum of exp of the student, of the teacher, and the kind's expectation."""

    def mixture(self, z: Tensor, t: Tensor | None, rows: Tensor, lse: Tensor, sums: Tensor, plan: Plan) -> None:
        """Add to sums (2, T): KL(P || M), KL(Q || M), given lse, the log-sum-exps of student and teacher."""

    def gradient(self, z: Tensor, t: Tensor | None, rows: Tensor, lse: Tensor, out: Tensor, plan: Plan) -> None:
        """Write dz, given lse (3, T): both log-sum-exps and the row's term of dz. z may be overwritten."""


@dataclass(frozen=True)
class Plan:
    """How to sweep. `kind` is that of linear_kl, or `lse` where only the student counts."""

    kind: str
    beta: float
    temperature: float
    chunk: int
    steps: Steps
    empty: Callable[..., Tensor] = torch.empty

    @property
    def inverse(self) -> float:
        """What logits are multiplied by."""
        return 1.0 / self.temperature

    def buffer(self, count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Room for a chunk of `count` rows."""
        return self.empty((count, self.chunk + SPARE), dtype=dtype, device=device)


def precise(dtype: torch.dtype) -> torch.dtype:
    """What sums over this dtype are made in."""
    return torch.promote_types(dtype, torch.float32)


def product(left: Tensor, right: Tensor, steps: Steps) -> Tensor:
    """left @ right in fp32 (or fp64). torch's CPU products round to their operands' dtype."""
    wanted = precise(left.dtype)
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
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan, teacher: tuple[Tensor | None, ...] = ()
    ) -> None:
        self.student = (hidden, weight, bias)
        self.plan = plan
        self.teacher = teacher
        self.space = plan.buffer(len(hidden), precise(hidden.dtype), hidden.device)
        if len(teacher) > 1:
            assert teacher[0] is not None
            self.other = plan.buffer(len(hidden), precise(teacher[0].dtype), hidden.device)

    def __iter__(self) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
        vocabulary = len(self.student[1])
        for start in range(0, vocabulary, self.plan.chunk):
            piece = slice(start, min(start + self.plan.chunk, vocabulary))
            z = self._logits(self.space, *self.student, piece)
            if self.plan.temperature != 1:
                z.mul_(self.plan.inverse)
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
            logits.copy_(product(states, matrix, self.plan.steps))
        return logits if bias is None else logits.add_(bias[piece])


class _Gradients:
    """Collects dh, dW and db, those that are needed, from dz of one chunk after the other.

    `factor` (T,) is what each row of dz is still to be multiplied by.
    """

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, factor: Tensor, needs: tuple[bool, ...], plan: Plan
    ) -> None:
        self.plan, self.dtype, self.matrix, self.factor = plan, hidden.dtype, weight, factor
        wide = precise(hidden.dtype)
        self.hidden = torch.zeros_like(hidden, dtype=wide) if needs[0] else None
        self.weight = plan.empty(weight.shape, dtype=weight.dtype, device=weight.device) if needs[1] else None
        self.bias = None
        if needs[2] and bias is not None:
            self.bias = plan.empty(bias.shape, dtype=bias.dtype, device=bias.device)
        self.peak = factor.abs().amax().clamp(min=torch.finfo(factor.dtype).tiny)
        self.share = (factor / self.peak)[:, None]
        self.scaled = (hidden * self.share).to(hidden.dtype) if needs[1] else hidden

    def add(self, piece: slice, dz: Tensor) -> None:
        """Take in dz (T, C) of these tokens."""
        if self.hidden is not None:
            self.hidden += product(dz, self.matrix[piece].to(self.dtype), self.plan.steps)
        if self.weight is not None:
            self.weight[piece] = product(dz.T, self.scaled, self.plan.steps) * self.peak
        if self.bias is not None:
            self.bias[piece] = (dz * self.share).sum(0) * self.peak

    def result(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """dh, dW, db in the dtypes of h, W and b."""
        hidden = None if self.hidden is None else self.hidden.mul_(self.factor[:, None]).to(self.dtype)
        return hidden, self.weight, self.bias


def _initial_state(hidden: Tensor) -> Tensor:
    state = torch.zeros((5, len(hidden)), dtype=precise(hidden.dtype), device=hidden.device)
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
        plan: Plan,
        rows: Tensor,
        *teacher: Tensor | None,
    ) -> Tensor:
        sweep, state = _Sweep(hidden, weight, bias, plan, teacher), _initial_state(hidden)
        for _, z, t in sweep:
            plan.steps.statistics(z, t, rows, state, plan)
        lse_q, lse_p = state[0] + state[1].log(), state[2] + state[3].log()
        if plan.kind == "forward":
            values = row_term = state[4] / state[3] + (lse_q - lse_p)
        elif plan.kind == "reverse":
            values = row_term = state[4] / state[1] + (lse_p - lse_q)
        else:
            lse, sums = torch.stack([lse_q, lse_p]), torch.zeros_like(state[:2])
            for _, z, t in sweep:
                plan.steps.mixture(z, t, rows, lse, sums, plan)
            values, row_term = plan.beta * sums[0] + (1 - plan.beta) * sums[1], sums[1]
        ctx.plan = plan
        ctx.save_for_backward(hidden, weight, bias, rows, torch.stack([lse_q, lse_p, row_term]), *teacher)
        return values

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]  # as above
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, rows, lse, *teacher = ctx.saved_tensors
        plan: Plan = ctx.plan
        with torch.autocast(hidden.device.type, enabled=False):
            out = plan.buffer(len(hidden), hidden.dtype, hidden.device)
            gradients = _Gradients(hidden, weight, bias, upstream * plan.inverse, ctx.needs_input_grad, plan)
            for piece, z, t in _Sweep(hidden, weight, bias, plan, tuple(teacher)):
                dz = out[:, : z.shape[1]]
                plan.steps.gradient(z, t, rows, lse, dz, plan)
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
        plan: Plan,
        indices: Tensor,
    ) -> tuple[Tensor, Tensor]:
        sweep, state = _Sweep(hidden, weight, bias, plan), _initial_state(hidden)
        picked = torch.zeros(indices.shape, dtype=state.dtype, device=hidden.device)
        for piece, z, _ in sweep:
            places = _places(indices, piece, plan)
            picked = torch.where(places < plan.chunk, sweep.space.gather(1, places), picked)
            sweep.space.scatter_(1, places, -torch.inf)
            plan.steps.statistics(z, None, indices, state, plan)
        rest = state[0] + state[1].log()
        ctx.plan = plan
        ctx.save_for_backward(hidden, weight, bias, indices, rest)
        return rest, picked

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]  # as above
    def backward(ctx: Any, of_rest: Tensor, of_picked: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, indices, rest = ctx.saved_tensors
        plan: Plan = ctx.plan
        with torch.autocast(hidden.device.type, enabled=False):
            size = torch.cat([of_rest[:, None], of_picked], 1).abs().amax(1)
            unit = size.clamp(min=torch.finfo(size.dtype).tiny)
            lse, few = torch.stack([rest, rest, of_rest / unit]), (of_picked / unit[:, None]).to(hidden.dtype)
            out = plan.buffer(len(hidden), hidden.dtype, hidden.device)
            sweep = _Sweep(hidden, weight, bias, plan)
            gradients = _Gradients(hidden, weight, bias, size * plan.inverse, ctx.needs_input_grad, plan)
            for piece, z, _ in sweep:
                places = _places(indices, piece, plan)
                sweep.space.scatter_(1, places, -torch.inf)
                plan.steps.gradient(z, None, indices, lse, out[:, : z.shape[1]], plan)
                out.scatter_(1, places, few)
                gradients.add(piece, out[:, : z.shape[1]])
        return (*gradients.result(), None, None)


def _places(indices: Tensor, piece: slice, plan: Plan) -> Tensor:
    """Columns of the buffer that hold these tokens: a spare one for those of other chunks."""
    inside = (indices >= piece.start) & (indices < piece.stop)
    return torch.where(inside, indices - piece.start, plan.chunk)


class Plain:
    """The steps in torch."""

    exact = False

    def statistics(self, z: Tensor, t: Tensor | None, rows: Tensor, state: Tensor, plan: Plan) -> None:
        mass_q, rescale_q = _online(z, state[0], state[1])
        if plan.kind == "lse":
            return
        log_p = _rows_of(t, rows, z, plan)
        mass_p, rescale_p = _online(log_p, state[2], state[3])
        if plan.kind == "forward":  # a token without mass may lie infinitely far: 0 times that is left out
            state[4].mul_(rescale_p).add_(mass_p.mul_(log_p.sub_(z)).nansum(1))
        elif plan.kind == "reverse":
            state[4].mul_(rescale_q).add_(mass_q.mul_(log_p.sub_(z).neg_()).nansum(1))

    def mixture(self, z: Tensor, t: Tensor | None, rows: Tensor, lse: Tensor, sums: Tensor, plan: Plan) -> None:
        log_q, log_p = z.sub_(lse[0, :, None]), _rows_of(t, rows, z, plan).sub_(lse[1, :, None])
        log_ratio, log_q_m = _log_ratios(log_q, log_p, plan.beta)
        sums[0] += log_ratio.add_(log_q_m).mul_(log_p.exp_()).sum(1)
        sums[1] += log_q_m.mul_(log_q.exp_()).sum(1)

    def gradient(self, z: Tensor, t: Tensor | None, rows: Tensor, lse: Tensor, out: Tensor, plan: Plan) -> None:
        log_q, row_term = z.sub_(lse[0, :, None]), lse[2, :, None]
        if plan.kind == "lse":
            out.copy_(log_q.exp_().mul_(row_term))
            return
        log_p = _rows_of(t, rows, z, plan).sub_(lse[1, :, None])
        if plan.kind == "forward":
            out.copy_(log_q.exp_().sub_(log_p.exp_()))
        elif plan.kind == "reverse":
            ratio = log_p.sub_(log_q).neg_().sub_(row_term)
            out.copy_(ratio.mul_(log_q.exp_()))
        else:
            log_q_m = _log_ratios(log_q, log_p, plan.beta)[1]
            out.copy_(log_q_m.sub_(row_term).mul_(log_q.exp_()).mul_(1 - plan.beta))


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


def _rows_of(t: Tensor | None, rows: Tensor, z: Tensor, plan: Plan) -> Tensor:
    """A new tensor: the teacher's logits beside z's."""
    assert t is not None
    chosen = t if len(t) == len(rows) else t.index_select(0, rows)
    logits = chosen.to(z.dtype, copy=True)
    return logits if plan.temperature == 1 else logits.mul_(plan.inverse)

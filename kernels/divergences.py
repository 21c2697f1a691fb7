"""The divergences of distillation on log-probabilities, and the forms in which a teacher is given.

    forward   KL(P || Q) = sum P log(P / Q)        reverse   KL(Q || P)
    jsd       beta KL(P || M) + (1 - beta) KL(Q || M),   M = beta P + (1 - beta) Q

P is the teacher's distribution, Q the student's. `jsd` is the generalized Jensen-Shannon divergence of GKD
(arXiv 2306.13649, equation 1) as TRL's GKDTrainer computes it. It vanishes at both ends: near beta 0 it is beta times
the forward KL, near 1 it is (1 - beta) times the reverse one. TRL therefore takes beta 0 and 1 to mean those two KLs;
here they have their own names. Left out: teachers of another vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from soloist.kernels.errors import UsageError

Kind = Literal["forward", "reverse", "jsd"]
_FLOOR = 1e-7  # of the teacher's remaining mass, so that the reverse KL stays finite


@dataclass(frozen=True)
class Head:
    """A teacher as its last states (T, D') and its matrix (V, D')."""

    states: Tensor
    weight: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True)
class TopK:
    """A teacher as its k < V likeliest tokens.

    Args:
        indices: (T, k), distinct in each row.
        values: their logits or log-probabilities (T, k); for `bucket` log-probabilities at the loss's temperature.
        rest: the mass of all other tokens: none, or what the k leave.
    """

    indices: Tensor
    values: Tensor
    rest: Literal["renormalized", "bucket"] = "renormalized"


def divergence_ref(log_q: Tensor, log_p: Tensor, kind: Kind, beta: float = 0.5) -> Tensor:
    """The divergence of each row of log-probabilities; outcomes without mass count nothing."""

    def expected(log_mass: Tensor, ratio: Tensor) -> Tensor:
        return torch.where(log_mass > -torch.inf, log_mass.exp() * ratio, 0.0).sum(-1)

    if kind == "forward":
        return expected(log_p, log_p - log_q)
    if kind == "reverse":
        return expected(log_q, log_q - log_p)
    log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
    return beta * expected(log_p, log_p - log_m) + (1 - beta) * expected(log_q, log_q - log_m)


def of_few(log_q: Tensor, rest_q: Tensor, teacher: TopK, kind: Kind, beta: float, temperature: float) -> Tensor:
    """The divergence over k tokens, log Q of which is given, and the outcome "any other"."""
    values = teacher.values.detach().to(log_q.dtype)
    if teacher.rest == "bucket":
        log_p, rest_p = values, (1 - values.exp().sum(-1)).clamp(min=_FLOOR).log()
    else:
        log_p, rest_p = (values / temperature).log_softmax(-1), torch.full_like(rest_q, -torch.inf)
    log_q = torch.cat([log_q, rest_q[:, None]], -1)
    log_p = torch.cat([log_p, rest_p[:, None]], -1)
    return divergence_ref(log_q, log_p, kind, beta)


def refuse_misfit(
    hidden: Tensor, weight: Tensor, teacher: Tensor | Head | TopK, kind: str, beta: float, temperature: float
) -> None:
    """Raise UsageError for shapes that do not fit, or a divergence that is not defined."""
    rows, tokens = len(hidden), len(weight)
    if isinstance(teacher, TopK):
        given, k = teacher.indices.shape
        if teacher.values.shape != teacher.indices.shape or not 0 < k < tokens:
            raise UsageError(f"divergence: a top k of {k} tokens of {tokens}: give values for each, and fewer than all")
        scored: tuple[int, ...] = (given, tokens)
    else:
        scored = tuple(teacher.shape) if isinstance(teacher, Tensor) else (len(teacher.states), len(teacher.weight))
    if scored != (rows, tokens):
        raise UsageError(
            f"divergence: the student's logits are {(rows, tokens)}, the teacher's {scored}; "
            "both must score the same tokens of one vocabulary"
        )
    if hidden.shape[1] != weight.shape[1]:
        raise UsageError(f"divergence: states of {hidden.shape[1]} do not fit a matrix of {weight.shape[1]} columns")
    if kind not in ("forward", "reverse", "jsd") or temperature <= 0:
        raise UsageError(f"divergence '{kind}' at temperature {temperature}: choose forward, reverse or jsd, above 0")
    if kind == "jsd" and not 0 < beta < 1:
        raise UsageError(f"divergence: beta {beta} is no mixture; for 0 choose 'forward', for 1 'reverse'")
    if kind == "reverse" and isinstance(teacher, TopK) and teacher.rest == "renormalized":
        raise UsageError("divergence: reverse KL to a renormalized top k is infinite; choose rest 'bucket'")

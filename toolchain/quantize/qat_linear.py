"""Linear layers that are trained through the rounding of the very format they will be shipped in.

    forward    y = x W_q^T,   W_q = v s,   v = clamp(rint(w / s), low, high),   s = fp16(s0 (1 + f gain))
    backward   straight through the rounding (arXiv 1308.3432): with inside := |v - w / s| <= 1/2,
               dL/dw = dL/dW_q inside, 0 where the weight is clipped;
               dL/ds = sum over the group of dL/dW_q (v - w / s) inside, dL/dW_q v where clipped (LSQ, arXiv
               1902.08153); fp16's rounding of s is passed straight through too

LSQ cuts at low and high; here a weight within half a step beyond is still inside, for it is rounded there and not
clipped, and a quantizer that gives the extreme of every group its last code puts it exactly there.

w is kept in `steps` of the first scale s0, and f = 1 / sqrt(group high) is LSQ's factor: an optimizer that moves every
parameter equally far moves every weight by the same part of its code's cell, whatever the layer and its bits, and one
learning rate serves all. A weight d steps from the code that the quantizer chose starts d / (1 + 2 |d|) from it: inside
the code's cell, so that the first step computes exactly what the quantized student computes, the nearer to the border
the closer the call was, but never so near, nor so many at one place, that the first noisy updates would take GPTQ's
choices back, many of which are not the nearest code (benchmarks/LOG.md).

Everything is float32, so that the integers and scales of `codes` multiply to the very weights that were trained. Zero
points stay as they are. Left out: learned zero points, rounded activations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soloist.kernels.errors import ArtifactError
from soloist.kernels.layout import (
    MIDDLE,
    Quantized,
    dequantize,
    narrow_of,
    pack_nibbles,
    per_column,
    top_of,
    unpack_nibbles,
    zero_of,
)

Bound: TypeAlias = Tensor | float


class _Rounded(torch.autograd.Function):  # type: ignore[misc]  # torch's types are not followed
    """clamp(rint(t r), low, high) s of steps t (N, groups, G), and r = s0 / s and s (N, groups, 1); s gets LSQ's part.

    The codes are made twice: kept, they would be another model in memory.
    """

    @staticmethod
    def forward(ctx: Any, t: Tensor, s: Tensor, s0: Tensor, low: Bound, high: Bound) -> Tensor:
        ctx.save_for_backward(t, s, s0)
        ctx.bounds = low, high
        return _nearest(t * _ratio(s0, s), low, high).mul_(s)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        t, s, s0 = ctx.saved_tensors
        exact = t * _ratio(s0, s)
        v = _nearest(exact, *ctx.bounds)
        gap = v - exact
        inside = gap.abs() <= 0.5
        by_scale = torch.where(inside, gap, v).mul_(upstream).sum(-1, keepdim=True)
        return (upstream * s0).mul_(inside), by_scale, None, None, None


def _ratio(s0: Tensor, s: Tensor) -> Tensor:
    """s0 / s; where the scale is zero all codes mean zero, and none is looked for."""
    return s0 / torch.where(s == 0, 1.0, s)


def _nearest(exact: Tensor, low: Bound, high: Bound) -> Tensor:
    return exact.round().clamp_(low, high)


class _Half(torch.autograd.Function):  # type: ignore[misc]
    """Rounded to what fp16 can hold, straight through."""

    @staticmethod
    def forward(ctx: Any, scale: Tensor) -> Tensor:
        return scale.half().to(scale.dtype)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        return upstream


class QATLinear(nn.Module):  # type: ignore[misc]
    """A linear layer whose weight is rounded in every forward pass. Trained: `steps` (N, K) and `gain` (N, groups).

    Args:
        linear: the float layer in float32; its bias is taken over.
        codes: what the quantizer made of it: where training starts.
    """

    def __init__(self, linear: nn.Linear, codes: Quantized) -> None:
        super().__init__()
        self.bits, self.group, self.columns = codes.bits, codes.group, linear.in_features
        self.bias = linear.bias
        self.register_buffer("scale", codes.scales.float(), persistent=False)
        self.register_buffer("zeros", codes.zeros, persistent=False)
        v = values(codes)
        wide = per_column(self.scale, self.group, self.columns)
        own = linear.weight.detach().float() / torch.where(wide == 0, 1.0, wide)
        away = own - v
        self.steps = nn.Parameter(v + away / (1 + 2 * away.abs()))
        self.gain = nn.Parameter(torch.zeros_like(self.scale))
        self._kept: tuple[tuple[int, int], Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self._now(), self.bias)

    def _now(self) -> Tensor:
        """W_q; without gradients it is kept until the weights change, since sampling asks for it at every token."""
        if torch.is_grad_enabled():
            self._kept = None
            return self.rounded()
        version = (self.steps._version, self.gain._version)
        if self._kept is None or self._kept[0] != version:
            self._kept = (version, self.rounded())
        return self._kept[1]

    def rounded(self) -> Tensor:
        """W_q (N, K)."""
        parts = (self._grouped(self.steps), self._scale(self.gain)[..., None], self.scale[..., None])
        weight: Tensor = _Rounded.apply(*parts, *self._bounds())
        return weight.view(len(weight), -1)[:, : self.columns]

    def codes(self, steps: Tensor, gain: Tensor) -> Quantized:
        """The integers and scales that `rounded` computes with if its parameters are these."""
        steps, scale = self._grouped(steps.detach()), self._scale(gain.detach())
        exact = steps * _ratio(self.scale, scale)[..., None]
        v = _nearest(exact, *self._bounds()).view(len(exact), -1)[:, : self.columns]
        if self.bits != 4:
            return Quantized(v.to(torch.int8), scale.half(), self.group, narrow=narrow_of(self.bits))
        middle = MIDDLE if self.zeros is None else per_column(self.zeros.float(), self.group, self.columns)
        return Quantized(pack_nibbles(v + middle), scale.half(), self.group, self.zeros)

    def _scale(self, gain: Tensor) -> Tensor:
        factor = (self.group * (top_of(self.bits) // 2)) ** -0.5
        scale: Tensor = _Half.apply(self.scale * (1 + factor * gain))
        return scale

    def _grouped(self, steps: Tensor) -> Tensor:
        """(N, groups, G), a short last group filled with zeros."""
        missing = -self.columns % self.group
        return (F.pad(steps, (0, missing)) if missing else steps).view(len(steps), -1, self.group)

    def _bounds(self) -> tuple[Bound, Bound]:
        """The smallest and the largest value of a code, of every group (N, groups, 1) where there are zero points."""
        zero: Bound = zero_of(self.bits) if self.zeros is None else self.zeros.float()[..., None]
        return -zero, top_of(self.bits) - zero


def values(codes: Quantized) -> Tensor:
    """What the codes of a matrix stand for, in steps of its scales: whole numbers (N, K) in float32."""
    if codes.bits != 4:
        return codes.codes.float()
    middle = MIDDLE if codes.zeros is None else per_column(codes.zeros.float(), codes.group, codes.shape[1])
    return unpack_nibbles(codes.codes).float() - middle


def swap_linears(model: Any, matrices: Mapping[str, Quantized]) -> dict[str, QATLinear]:
    """Make a float32 model compute what its quantized matrices say, linear layers ready to be trained.

    Embedding and head get the values of their codes and are frozen, tied or not, like everything that is not quantized.

    Returns:
        The layers to train by the name of the weight they hold.

    Raises:
        ArtifactError: a matrix that the model does not have.
    """
    model.requires_grad_(False)
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    tables = [module.weight for module in ends if module is not None]
    layers: dict[str, QATLinear] = {}
    for name, codes in matrices.items():
        path = name.removesuffix(".weight")
        try:
            module = model.get_submodule(path)
        except AttributeError:
            module = None
        weight = getattr(module, "weight", None)
        is_table = any(weight is table for table in tables)
        if weight is None or not (is_table or type(module) is nn.Linear) or tuple(weight.shape) != codes.shape:
            shape = " x ".join(map(str, codes.shape))
            raise ArtifactError(f"{name}: quantized as {shape}, and {type(model).__name__} has no such matrix")
        if is_table:
            weight.data.copy_(dequantize(codes))
            continue
        layers[name] = QATLinear(module, codes)
        model.set_submodule(path, layers[name])
    return layers

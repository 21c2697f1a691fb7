"""What may be asked of `pack`: bits, groups, the scales a search tries, and what is refused."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from soloist.kernels.errors import DataError, UsageError
from soloist.kernels.layout import BITS, BLOCK, GROUPS

Bits = Literal[4, 5, 6, 8]
SCALE_CANDIDATES = {
    "4": (-8.0, -7.0, -7.25, -7.5, -7.75, -8.25, -8.5, -8.75, -9.0, -9.5, -10.0, 7.0, 7.25, 7.5, 7.75, 8.0, 8.5),
    "zeros": (15.0, 14.5, 15.5, 16.0, 16.5, 17.0, 17.5, 18.0, 19.0),
    "5": (-16.0, -15.0, -15.5, -15.75, -16.25, -16.5, -17.0, -18.0, 15.0, 15.5, 15.75, 16.0, 16.5),
    "6": (-32.0, -31.0, -31.5, -32.5, -33.0, -34.0, 31.0, 31.5, 32.0, 33.0),
    "8": (127.0, 126.5, 127.5, 128.0, 129.0, 130.0, 132.0),
}
LARGEST = 65504.0  # of fp16: no scale can overflow


def scale_candidates(bits: int, zeros: bool, search: bool) -> tuple[float, ...]:
    """The scales a search tries, as divisors of a group's extreme; the unsearched one first."""
    table = SCALE_CANDIDATES["zeros" if zeros else str(bits)]
    return table if search else table[:1]


def checked(weight: Tensor, bits: int, group: int, zeros: bool, search: bool, importance: Tensor | None) -> Tensor:
    """The importance of each column in fp32, its largest 1."""
    if bits not in BITS or (zeros and bits != 4):
        raise UsageError(f"{bits} bits{' with zero points' * zeros}: choose 4, 5, 6 or 8; zero points are for 4")
    if group not in GROUPS:
        raise UsageError(f"group size {group}: choose one of {', '.join(map(str, GROUPS))}")
    if weight.dim() != 2 or weight.shape[1] % BLOCK or 0 in weight.shape:
        raise UsageError(
            f"shape {tuple(weight.shape)}: the layout takes (rows, columns), columns a multiple of {BLOCK}"
        )
    largest = float(weight.abs().amax())
    if not largest <= LARGEST:  # NaN is not either
        raise DataError(f"the largest weight is {largest:g}: weights must be finite and at most {LARGEST:g}")
    if importance is None:
        return torch.ones(weight.shape[1], device=weight.device)
    if not search:
        raise UsageError("importance weighs the error of a search: ask for search=True, or leave importance out")
    h = importance.float()
    if h.shape != weight.shape[1:] or not bool(torch.isfinite(h).all()) or float(h.min()) < 0:
        raise DataError(f"importance must be {weight.shape[1]} finite numbers, none below 0, one for each column")
    return h / torch.where(h.max() == 0, 1.0, h.max())

"""The one layout of quantized weights: integers and scales, from which every format is a re-packing.

A matrix W (N, K) of a layer y = x W^T is cut along K into groups of G columns (32, 64 or 128; the last group of a row
is shorter where G does not divide K; K is a multiple of 32):

    4 bit   W[n, k] = (u[n, k] - z[n, g]) * s[n, g],   u in 0..15,  z = 8 unless there are zero points,  g = k // G
    8 bit   W[n, k] = q[n, k] * s[n, g],               q in -128..127
    5, 6    the same, q in -16..15, -32..31

Codes of 5 to 8 bits are stored row by row as int8 (N, K); whoever multiplies sees 8 bits, whoever writes a file the
`bits`. 4-bit codes are stored as int32 words (N, K / 8): 32 columns are one
block of four words, 16 bytes, what a GPU thread loads at once, and

    nibble i (bits 4i .. 4i+3) of word j of block b   holds column   32 b + 4 i + j

so that for each i a thread's four words meet four neighboring activations. GGUF's Q4_0, ONNX Runtime's MatMulNBits and
the INT4 tensors that TensorRT reads order the same nibbles otherwise inside a block: `soloist.targets.repack`.
Scales are float16 (N, ceil(K / G)), zero points uint8 of the same shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from soloist.kernels.errors import UsageError

BLOCK = 32  # columns
GROUPS = (32, 64, 128)
MIDDLE = 8  # the code of zero where there are no zero points
BITS = (4, 5, 6, 8)  # that a code may need


@dataclass(frozen=True)
class Quantized:
    """A quantized matrix in the layout above.

    Args:
        codes: int32 words (N, K / 8) of 4-bit codes, or int8 (N, K).
        scales: float16 (N, ceil(K / group)).
        group: columns that share a scale.
        zeros: uint8 (N, ceil(K / group)), of 4-bit codes only.
        narrow: 5 or 6 where codes in int8 keep to the range of so many bits.
    """

    codes: Tensor
    scales: Tensor
    group: int
    zeros: Tensor | None = None
    narrow: Literal[5, 6] | None = None

    def __post_init__(self) -> None:
        if self.group not in GROUPS:
            raise UsageError(f"group size {self.group}: choose one of {', '.join(map(str, GROUPS))}")
        if self.codes.dtype not in (torch.int32, torch.int8):
            raise UsageError(f"codes are int32 words of 4 bits or int8, not {self.codes.dtype}")
        rows, columns = self.shape
        if columns % BLOCK:
            raise UsageError(f"{columns} columns: the layout takes multiples of {BLOCK}")
        expected = (rows, -(-columns // self.group))
        if tuple(self.scales.shape) != expected or self.scales.dtype != torch.float16:
            raise UsageError(f"scales must be float16 {expected}, not {self.scales.dtype} {tuple(self.scales.shape)}")
        if self.zeros is not None and (self.stored_bits != 4 or tuple(self.zeros.shape) != expected):
            raise UsageError(f"zero points are for 4 bits, uint8 {expected}, not {tuple(self.zeros.shape)}")
        if self.narrow is not None and (self.stored_bits != 8 or self.narrow not in (5, 6)):
            raise UsageError(f"codes of {self.narrow} bits: int8 holds 5, 6 or 8, words hold 4")

    @property
    def stored_bits(self) -> Literal[4, 8]:
        """Bits a code is stored in."""
        return 4 if self.codes.dtype == torch.int32 else 8

    @property
    def bits(self) -> Literal[4, 5, 6, 8]:
        """Bits a code needs."""
        return self.narrow or self.stored_bits

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        rows, stored = self.codes.shape
        return rows, stored * (8 if self.codes.dtype == torch.int32 else 1)

    @property
    def bytes(self) -> int:
        """Bytes of codes, scales and zero points."""
        parts = (self.codes, self.scales, *([] if self.zeros is None else [self.zeros]))
        return sum(part.numel() * part.element_size() for part in parts)

    def to(self, device: torch.device | str) -> Quantized:
        """The same on another device."""
        zeros = None if self.zeros is None else self.zeros.to(device)
        return Quantized(self.codes.to(device), self.scales.to(device), self.group, zeros, self.narrow)


def top_of(bits: int) -> int:
    """Codes run from 0 to here, if zero is stored as `zero_of`. 8 bits leave -128 out, as GGUF's Q8_0 does."""
    return 254 if bits == 8 else (1 << bits) - 1


def zero_of(bits: int) -> int:
    """The code of zero, counted from the smallest."""
    return 127 if bits == 8 else 1 << (bits - 1)


def narrow_of(bits: int) -> Literal[5, 6] | None:
    """The field `narrow` of codes that need this many bits."""
    return 5 if bits == 5 else 6 if bits == 6 else None


def pack_nibbles(codes: Tensor) -> Tensor:
    """Codes 0..15 (N, K) of any integer dtype as int32 words (N, K / 8)."""
    rows, columns = codes.shape
    nibbles = codes.to(torch.int64).reshape(rows, columns // BLOCK, 8, 4)
    shifts = (4 * torch.arange(8, device=codes.device)).reshape(8, 1)
    words = (nibbles << shifts).sum(dim=2)  # disjoint bits: the sum is the union
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32).reshape(rows, columns // 8)


def unpack_nibbles(words: Tensor) -> Tensor:
    """Codes 0..15, uint8 (N, K), of int32 words (N, K / 8)."""
    rows, stored = words.shape
    shifts = (4 * torch.arange(8, device=words.device, dtype=torch.int32)).reshape(8, 1)
    return ((words.reshape(rows, stored // 4, 1, 4) >> shifts) & 15).to(torch.uint8).reshape(rows, stored * 8)


def per_column(values: Tensor, group: int, columns: int) -> Tensor:
    """Values of groups (N, groups) repeated for each column, (N, columns)."""
    return values.repeat_interleave(group, dim=1)[:, :columns]


def dequantize(weight: Quantized, dtype: torch.dtype = torch.float32) -> Tensor:
    """W (N, K): products in float32 (float64 if asked for), rounded once to `dtype`."""
    columns = weight.shape[1]
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    scales = per_column(weight.scales.to(exact), weight.group, columns)
    if weight.stored_bits == 8:
        return (weight.codes.to(exact) * scales).to(dtype)
    codes = unpack_nibbles(weight.codes).to(exact)
    if weight.zeros is None:
        return ((codes - MIDDLE) * scales).to(dtype)
    return ((codes - per_column(weight.zeros.to(exact), weight.group, columns)) * scales).to(dtype)

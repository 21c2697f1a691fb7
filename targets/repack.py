"""One set of integers and scales in every format: pure re-packings, no value is ever computed anew.

    ours              4 bit   int32 (N, K/8): nibble i of word j of block b holds column 32 b + 4 i + j   (layout.py)
    GGUF Q4_0         18 bytes for 32 columns: fp16 scale; byte t = column t | column t+16 << 4
    GGUF Q5_0         22 bytes for 32 columns: fp16 scale; 4 bytes of fifth bits, column t at bit t; low bits as Q4_0
    GGUF Q8_0         34 bytes for 32 columns: fp16 scale; 32 signed bytes
    MatMulNBits       B uint8 (N, groups, G * bits / 8), two columns a byte, low first; 8 bit: v + 128;
                      scales (N, groups); zero points two a byte along the groups, only if there are any
    DequantizeLinear  INT4 v = u - 8 in two's complement, two a byte along the last axis, low first; INT8 as it is;
                      block_size G on `axis` 1 of (N, K), or on axis 0 of the transposed (K, N), as a MatMul takes it

GGUF knows groups of 32 only: a scale of 64 or 128 columns is repeated, which changes no value. Zero points have no
place in Q4_0 and none in TensorRT's INT4; such a matrix is refused there. The last group of a row may be short:
MatMulNBits wants whole groups and gets codes of zero. numpy only, so that a target needs no torch. Left out: GGUF's
K-quants.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from soloist.kernels.errors import ArtifactError, UsageError

Bytes = npt.NDArray[np.uint8]
BLOCK = 32
_SHIFTS = 4 * np.arange(8, dtype=np.int32).reshape(8, 1)


@dataclass(frozen=True)
class Matrix:
    """A quantized matrix in numpy; the fields of `soloist.kernels.layout.Quantized`.

    Args:
        codes: int32 words (N, K / 8) of 4-bit codes, or int8 (N, K).
        scales: float16 (N, ceil(K / group)).
        zeros: uint8 of the shape of `scales`, of 4-bit codes only.
        narrow: 5 or 6 where codes in int8 keep to the range of so many bits.
    """

    codes: npt.NDArray[Any]
    scales: npt.NDArray[np.float16]
    group: int
    zeros: Bytes | None = None
    narrow: int | None = None

    @classmethod
    def of(cls, weight: Any) -> Matrix:
        """The same of a `Quantized`."""
        zeros = None if weight.zeros is None else weight.zeros.cpu().numpy()
        return cls(weight.codes.cpu().numpy(), weight.scales.cpu().numpy(), weight.group, zeros, weight.narrow)

    @property
    def stored_bits(self) -> int:
        """Bits a code is stored in."""
        return 4 if self.codes.dtype == np.int32 else 8

    @property
    def bits(self) -> int:
        """Bits a code needs."""
        return self.narrow or self.stored_bits

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        rows, stored = self.codes.shape
        return rows, stored * (8 if self.bits == 4 else 1)

    def rows(self, order: npt.NDArray[np.intp]) -> Matrix:
        """The rows in another order: a row's codes, scales and zero points go together."""
        zeros = None if self.zeros is None else self.zeros[order]
        return replace(self, codes=self.codes[order], scales=self.scales[order], zeros=zeros)

    def dequantized(self) -> npt.NDArray[np.float32]:
        """W (N, K)."""
        columns = self.shape[1]
        scales = _per_column(self.scales.astype(np.float32), self.group, columns)
        if self.stored_bits == 8:
            return np.asarray(self.codes.astype(np.float32) * scales, np.float32)
        codes = unpack(self.codes).astype(np.float32)
        if self.zeros is None:
            return np.asarray((codes - np.float32(8)) * scales, np.float32)
        zeros = _per_column(self.zeros.astype(np.float32), self.group, columns)
        return np.asarray((codes - zeros) * scales, np.float32)


def stack(parts: list[Matrix]) -> Matrix:
    """Matrices of equal stored bits above each other. Raises UsageError where those or their groups differ."""
    kinds = {(part.stored_bits, part.group, part.zeros is None) for part in parts}
    if len(kinds) != 1:
        raise UsageError("matrices of different bits or groups cannot become one")
    zeros = None if parts[0].zeros is None else np.concatenate([part.zeros for part in parts if part.zeros is not None])
    codes = np.concatenate([part.codes for part in parts])
    scales = np.concatenate([part.scales for part in parts])
    bits = max(part.bits for part in parts)
    narrow = bits if bits in (5, 6) else None
    return Matrix(codes, scales, parts[0].group, zeros, narrow)


def unpack(words: npt.NDArray[np.int32]) -> Bytes:
    """Codes 0..15 (N, K) of our words."""
    rows, stored = words.shape
    codes: Bytes = ((words.reshape(rows, stored // 4, 1, 4) >> _SHIFTS) & 15).astype(np.uint8)
    return codes.reshape(rows, stored * 8)


def pack(codes: Bytes) -> npt.NDArray[np.int32]:
    """Our words of codes 0..15 (N, K)."""
    rows, columns = codes.shape
    nibbles = codes.astype(np.uint32).reshape(rows, columns // BLOCK, 8, 4) << _SHIFTS.astype(np.uint32)
    words = np.bitwise_or.reduce(nibbles, axis=2).reshape(rows, columns // 8)
    return np.ascontiguousarray(words).view(np.int32)


def _per_column(values: npt.NDArray[Any], group: int, columns: int) -> npt.NDArray[Any]:
    return np.repeat(values, group, axis=1)[:, :columns]


def _pairs(nibbles: Bytes) -> Bytes:
    """Two a byte along the last axis, low first; an odd end is filled with 0."""
    if nibbles.shape[-1] % 2:
        nibbles = np.concatenate([nibbles, np.zeros((*nibbles.shape[:-1], 1), np.uint8)], axis=-1)
    return np.asarray(nibbles[..., 0::2] | (nibbles[..., 1::2] << 4), np.uint8)


def _nibbles(pairs: Bytes, count: int) -> Bytes:
    nibbles = np.stack([pairs & 15, pairs >> 4], axis=-1).reshape(*pairs.shape[:-1], -1)
    return nibbles[..., :count]


# --- GGUF ---


def _blocks(matrix: Matrix, bits: int, name: str) -> npt.NDArray[np.float16]:
    """The scale of every 32 columns (N, K / 32)."""
    if (matrix.bits if bits < 8 else matrix.stored_bits) != bits:
        raise ArtifactError(f"{matrix.bits}-bit codes cannot become {name}, which holds {bits}")
    if matrix.zeros is not None:
        raise ArtifactError(f"zero points have no place in {name}; quantize without them")
    return np.ascontiguousarray(_per_column(matrix.scales, matrix.group // BLOCK, matrix.shape[1] // BLOCK))


def to_q4_0(matrix: Matrix) -> Bytes:
    """GGUF bytes (N, K / 32 * 18). Raises ArtifactError."""
    scales = _blocks(matrix, 4, "Q4_0")
    rows, columns = matrix.shape
    codes = unpack(matrix.codes).reshape(rows, -1, 2, 16)
    raw = np.concatenate([scales[..., None].view(np.uint8), codes[:, :, 0] | (codes[:, :, 1] << 4)], axis=-1)
    return raw.reshape(rows, columns // BLOCK * 18)


def to_q5_0(matrix: Matrix) -> Bytes:
    """GGUF bytes (N, K / 32 * 22). Raises ArtifactError."""
    scales = _blocks(matrix, 5, "Q5_0")
    rows, columns = matrix.shape
    codes = (matrix.codes.astype(np.int16) + 16).astype(np.uint8).reshape(rows, -1, BLOCK)
    fifth = np.packbits(codes >> 4, axis=-1, bitorder="little")
    low, high = codes[..., :16] & 15, codes[..., 16:] & 15
    raw = np.concatenate([scales[..., None].view(np.uint8), fifth, low | (high << 4)], axis=-1)
    return raw.reshape(rows, columns // BLOCK * 22)


def to_q8_0(matrix: Matrix) -> Bytes:
    """GGUF bytes (N, K / 32 * 34). Raises ArtifactError."""
    scales = _blocks(matrix, 8, "Q8_0")
    rows, columns = matrix.shape
    codes = matrix.codes.view(np.uint8).reshape(rows, -1, BLOCK)
    return np.concatenate([scales[..., None].view(np.uint8), codes], axis=-1).reshape(rows, columns // BLOCK * 34)


# --- ONNX Runtime: com.microsoft.MatMulNBits and GatherBlockQuantized ---


@dataclass(frozen=True)
class NBits:
    """The constant inputs of a MatMulNBits node: `weight` (N, groups, G * bits / 8), `scales` and `zeros` (N, …)."""

    weight: Bytes
    scales: npt.NDArray[np.float32]
    zeros: Bytes | None


def to_matmul_nbits(matrix: Matrix) -> NBits:
    """fp32 scales of fp16 value: the runtime wants the type of the activations, which on a CPU is fp32."""
    rows, columns = matrix.shape
    groups = matrix.scales.shape[1]
    pad = ((0, 0), (0, groups * matrix.group - columns))
    scales = matrix.scales.astype(np.float32)
    if matrix.stored_bits == 8:
        shifted = matrix.codes.view(np.uint8) ^ 128  # v + 128
        return NBits(np.pad(shifted, pad, constant_values=128).reshape(rows, groups, matrix.group), scales, None)
    codes: Bytes = np.pad(unpack(matrix.codes), pad, constant_values=8).astype(np.uint8)
    zeros = None if matrix.zeros is None else _pairs(matrix.zeros)
    return NBits(_pairs(codes).reshape(rows, groups, matrix.group // 2), scales, zeros)


def from_matmul_nbits(inputs: NBits, bits: int, columns: int) -> Matrix:
    """`columns` is the node's attribute K. Raises ArtifactError for scales that are no fp16 values."""
    rows, groups, stored = inputs.weight.shape
    scales = inputs.scales.reshape(rows, groups).astype(np.float16)
    if not np.array_equal(scales.astype(np.float32), inputs.scales.reshape(rows, groups)):
        raise ArtifactError("the scales of this MatMulNBits node are finer than fp16; they are not ours")
    flat = inputs.weight.reshape(rows, -1)
    if bits == 8:
        return Matrix(np.ascontiguousarray(flat[:, :columns] ^ 128).view(np.int8), scales, stored)
    zeros = None if inputs.zeros is None else _nibbles(inputs.zeros.reshape(rows, -1), groups)
    return Matrix(pack(_nibbles(flat, columns)), scales, stored * 2, zeros)


# --- ONNX DequantizeLinear with blocks, as ONNX Runtime and TensorRT read it ---


@dataclass(frozen=True)
class BlockDQ:
    """Constant inputs of a block-wise DequantizeLinear.

    Args:
        data: raw bytes: two INT4 a byte (one row after the other, without padding between rows), or INT8.
        shape: of the tensor in elements: (N, K) for axis 1, (K, N) for axis 0.
        scales: (N, groups) for axis 1, (groups, N) for axis 0.
    """

    data: Bytes
    shape: tuple[int, int]
    scales: npt.NDArray[np.float16]
    axis: int
    block_size: int
    bits: int


def to_block_dq(matrix: Matrix, axis: int = 0) -> BlockDQ:
    """Axis 0: (K, N), the right operand of a MatMul. Axis 1: (N, K), a Gemm's with transB. Raises ArtifactError."""
    if matrix.zeros is not None:
        raise ArtifactError("zero points have no place in TensorRT's INT4; quantize without them")
    if axis not in (0, 1):
        raise UsageError(f"axis {axis}: blocks lie along axis 0 of (K, N) or axis 1 of (N, K)")
    values: Bytes = matrix.codes.view(np.uint8)
    if matrix.bits == 4:
        values = np.bitwise_xor(unpack(matrix.codes), np.uint8(8))  # u - 8 in 4 bits
    scales = matrix.scales
    if axis == 0:
        values, scales = np.ascontiguousarray(values.T), np.ascontiguousarray(scales.T)
    shape = (int(values.shape[0]), int(values.shape[1]))
    data = values.reshape(-1) if matrix.stored_bits == 8 else _pairs(values.reshape(-1))
    return BlockDQ(data, shape, scales, axis, matrix.group, matrix.stored_bits)


def from_block_dq(tensor: BlockDQ) -> Matrix:
    """The inverse of `to_block_dq`."""
    count = tensor.shape[0] * tensor.shape[1]
    values = tensor.data if tensor.bits == 8 else np.bitwise_xor(_nibbles(tensor.data, count), np.uint8(8))
    values = values.reshape(tensor.shape)
    scales = tensor.scales
    if tensor.axis == 0:
        values, scales = np.ascontiguousarray(values.T), np.ascontiguousarray(scales.T)
    return Matrix(values.view(np.int8) if tensor.bits == 8 else pack(values), scales, tensor.block_size)


def dequantize_linear(matrix: Matrix, name: str, axis: int = 0, dtype: str = "float32") -> tuple[list[Any], Any]:
    """ONNX initializers (`name`.codes, `name`.scales) and the DequantizeLinear node whose output is `name`.

    `dtype` is that of the scales and so of the output: float32 or float16. Needs opset 21.
    """
    from soloist.targets.base import require

    onnx = require("onnx", "compile")
    tensor = to_block_dq(matrix, axis)
    kind = onnx.TensorProto.INT4 if tensor.bits == 4 else onnx.TensorProto.INT8
    codes = onnx.helper.make_tensor(f"{name}.codes", kind, tensor.shape, tensor.data.tobytes(), raw=True)
    scales = onnx.numpy_helper.from_array(tensor.scales.astype(dtype), f"{name}.scales")
    node = onnx.helper.make_node(
        "DequantizeLinear",
        [codes.name, scales.name],
        [name],
        name=f"{name}/DequantizeLinear",
        axis=axis,
        block_size=tensor.block_size,
    )
    return [codes, scales], node

"""Quantized matrices out of GGUF's bytes: what `repack` writes, read back."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from soloist.targets.repack import BLOCK, Bytes, Matrix, pack


def from_q4_0(raw: Bytes) -> Matrix:
    """Groups of 32."""
    blocks = raw.reshape(len(raw), -1, 18)
    codes = np.concatenate([blocks[..., 2:] & 15, blocks[..., 2:] >> 4], axis=-1)
    return Matrix(pack(codes.reshape(len(raw), -1)), _scales_of(blocks), BLOCK)


def from_q5_0(raw: Bytes) -> Matrix:
    """Groups of 32."""
    blocks = raw.reshape(len(raw), -1, 22)
    low = np.concatenate([blocks[..., 6:] & 15, blocks[..., 6:] >> 4], axis=-1)
    fifth = np.unpackbits(np.ascontiguousarray(blocks[..., 2:6]), axis=-1, bitorder="little")
    codes = (low | (fifth << 4)).astype(np.int8) - 16
    return Matrix(codes.astype(np.int8).reshape(len(raw), -1), _scales_of(blocks), BLOCK, None, 5)


def from_q8_0(raw: Bytes) -> Matrix:
    """Groups of 32."""
    blocks = raw.reshape(len(raw), -1, 34)
    codes = np.ascontiguousarray(blocks[..., 2:]).view(np.int8).reshape(len(raw), -1)
    return Matrix(codes, _scales_of(blocks), BLOCK)


def _scales_of(blocks: Bytes) -> npt.NDArray[np.float16]:
    return np.ascontiguousarray(blocks[..., :2]).view(np.float16)[..., 0]

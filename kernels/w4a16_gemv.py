"""y = x W^T for 1 to 16 rows of x and 4-bit W: decoding, where the time is the reading of W.

    x (M, K) float16 or bfloat16, M 1..16;   W (N, K) as `soloist.kernels.layout.Quantized`, 4 bit;   y (M, N)
    y[m, n] = sum_g s[n, g] * sum_{k in g} (u[n, k] - z[n, g]) * x[m, k]   (+ bias[n])
    with `up`: y = silu(x W^T) * (x Up^T), both sums in one pass over x

One row runs on ordinary multiply-adds: a thread takes 16 bytes of BLOCK_N rows of W (32 columns: one block of the
layout), so that its 32 activations serve BLOCK_N times; CHUNKS = 32 * warps blocks side by side make a warp read 512
consecutive bytes. A weight costs one logic operation (a nibble into the mantissa of a float32 at its own place, which
counts 16^e), one subtraction (exact) and one multiply-add with x / 16^e (exact); scales enter once per block. Sums are
float32. Several rows take the same path by a program each where W is small enough to stay in the L2 cache, and tensor
cores otherwise (`w4a16_gemm`), the columns split over SPLITS programs so that enough of them read at once.

Split columns leave float32 parts that a second small kernel adds in fixed order: no atomics, the same bits each run.

After Marlin (Frantar et al., 2024) for the unpacking by exponent and the order of nibbles that makes loads 16 bytes
wide; the float32 form at the nibble's own place is ours. Left out: float32 activations, groups in another order than
the columns (GPTQ's act-order), a bias in the gated form.
"""

from __future__ import annotations

import functools

from soloist.kernels.jit import tl, triton
from soloist.kernels.matmul_builds import gemv_builds
from soloist.kernels.matmul_check import check_matmul, gemv_cases
from soloist.kernels.matmul_configs import GEMV, gemv_config
from soloist.kernels.matmul_host import Matmul, matmul_ref
from soloist.kernels.matmul_parts import as_fp32, load_words, magic_fp32, store_row
from soloist.kernels.spec import Kernel
from soloist.kernels.w4a16_gemm import _w4a16_gemm_kernel

MOST_ROWS = 16

w4a16_gemv_ref = matmul_ref  # dequantize, then torch's own product; in float64 if `inside` says so

CONFIGURATIONS = GEMV  # `gemv_config` picks one: multiply-adds for one row, tensor cores for several


@triton.jit  # type: ignore[untyped-decorator]  # triton is not typed
def _fma_nibble(
    part: tl.tensor, words: tl.tensor, x: tl.tensor, magic: tl.tensor, AT: tl.constexpr, MIDDLE: tl.constexpr
) -> tl.tensor:
    """part + (nibble AT - MIDDLE) * x."""
    E: tl.constexpr = AT if AT < 5 else AT - 4  # one shift for the upper three; by 20 it would be taken for bit fields
    bits = (words if AT < 5 else words >> 16) & (15 << (4 * E))
    return tl.fma(as_fp32(bits, magic) - (8388608.0 + (MIDDLE << (4 * E))), x * (1.0 / (1 << (4 * E))), part)


@triton.jit  # type: ignore[untyped-decorator]  # triton is not typed
def _block_sums(
    sums: tl.tensor,
    part: tl.tensor,
    x_sum: tl.tensor,
    scales_ptr: tl.tensor,
    zeros_ptr: tl.tensor,
    group: tl.tensor,
    inside: tl.tensor,
) -> tl.tensor:
    """sums + scale * (part - zero * x_sum), by blocks."""
    total = tl.sum(part, axis=2)
    if zeros_ptr is not None:
        zero = tl.load(zeros_ptr + group, mask=inside, other=0, eviction_policy="evict_first").to(tl.float32)
        total = tl.fma(-zero, tl.sum(x_sum, axis=2), total)
    scale = tl.load(scales_ptr + group, mask=inside, other=0.0, eviction_policy="evict_first").to(tl.float32)
    return tl.fma(total, scale, sums)


@triton.jit  # type: ignore[untyped-decorator]  # triton is not typed
def _w4a16_gemv_kernel(
    x_ptr: tl.tensor,
    words_ptr: tl.tensor,
    scales_ptr: tl.tensor,
    zeros_ptr: tl.tensor,
    up_words_ptr: tl.tensor,
    up_scales_ptr: tl.tensor,
    up_zeros_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    y_ptr: tl.tensor,
    M: tl.tensor,
    N: tl.tensor,
    K: tl.tensor,
    GROUP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CHUNKS: tl.constexpr,
    SPLITS: tl.constexpr,
) -> None:
    """Row program_id(2) of y, BLOCK_N outputs, over one of SPLITS parts of the columns."""
    MIDDLE: tl.constexpr = 8 if zeros_ptr is None else 0
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    split, row = tl.program_id(1), tl.program_id(2)
    blocks, magic = K // 32, magic_fp32(K)
    span = tl.cdiv(tl.cdiv(blocks, CHUNKS), SPLITS) * CHUNKS
    sums = tl.zeros((BLOCK_N, CHUNKS), tl.float32)
    sums_up = tl.zeros((BLOCK_N, CHUNKS), tl.float32)
    for start in range(split * span, tl.minimum(split * span + span, blocks), CHUNKS):
        b = start + tl.arange(0, CHUNKS)
        inside = (n < N)[:, None] & (b < blocks)[None, :]
        where = (n[:, None, None] * blocks + b[None, :, None]) * 4 + tl.arange(0, 4)[None, None, :]
        group = n[:, None] * tl.cdiv(K, GROUP) + (b // (GROUP // 32))[None, :]
        words = load_words(words_ptr + where, inside)
        part = tl.zeros((BLOCK_N, CHUNKS, 4), tl.float32)
        part_up = tl.zeros((BLOCK_N, CHUNKS, 4), tl.float32)
        if up_words_ptr is not None:
            words_up = load_words(up_words_ptr + where, inside)
        x_sum = tl.zeros((1, CHUNKS, 4), tl.float32)
        x_at = x_ptr + row * K + b[None, :, None] * 32 + tl.arange(0, 8)[None, None, :]
        for h in tl.static_range(4):
            x = tl.load(x_at + 8 * h, mask=(b < blocks)[None, :, None], other=0.0).to(tl.float32)
            even, odd = tl.split(tl.permute(tl.reshape(x, (1, CHUNKS, 2, 4)), (0, 1, 3, 2)))
            x_sum += even + odd
            part = _fma_nibble(part, words, even, magic, 2 * h, MIDDLE)
            part = _fma_nibble(part, words, odd, magic, 2 * h + 1, MIDDLE)
            if up_words_ptr is not None:
                part_up = _fma_nibble(part_up, words_up, even, magic, 2 * h, MIDDLE)
                part_up = _fma_nibble(part_up, words_up, odd, magic, 2 * h + 1, MIDDLE)
        sums = _block_sums(sums, part, x_sum, scales_ptr, zeros_ptr, group, inside)
        if up_words_ptr is not None:
            sums_up = _block_sums(sums_up, part_up, x_sum, up_scales_ptr, up_zeros_ptr, group, inside)
    store_row(sums, sums_up, up_words_ptr, bias_ptr, y_ptr, n, row, split, M, N, SPLITS)


w4a16_gemv = Matmul(
    name="w4a16_gemv",
    bits=4,
    most_rows=MOST_ROWS,
    configurations=CONFIGURATIONS,
    rule=gemv_config,
    gemm=_w4a16_gemm_kernel,
    gemv=_w4a16_gemv_kernel,
)


KERNEL = Kernel(
    name="w4a16_gemv",
    summary="y = x W^T, 4-bit W, 1 to 16 rows; split-K, bias, zero points, silu(gate) * up",
    run=w4a16_gemv,
    reference=w4a16_gemv_ref,
    configurations=CONFIGURATIONS,
    cases=tuple(gemv_cases(4)),
    check=functools.partial(check_matmul, w4a16_gemv),
    builds=functools.partial(gemv_builds, w4a16_gemv),
)

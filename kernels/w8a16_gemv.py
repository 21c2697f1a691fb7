"""y = x W^T for 1 to 16 rows of x and 8-bit W: decoding, where the time is the reading of W.

    x (M, K) float16 or bfloat16, M 1..16;   W (N, K) as `soloist.kernels.layout.Quantized`, 8 bit;   y (M, N)
    y[m, n] = sum_g s[n, g] * sum_{k in g} q[n, k] * x[m, k]   (+ bias[n])
    with `up`: y = silu(x W^T) * (x Up^T), both sums in one pass over x

One row runs on ordinary multiply-adds, as in `w4a16_gemv`: a thread takes 16 bytes of BLOCK_N rows of W (16 columns: a
chunk), and CHUNKS = 32 * warps chunks lie side by side. A code's top bit is flipped, which makes it q + 128, for four
codes at once; then a code costs one logic operation (a byte into the mantissa of a float32), one subtraction (exact)
and one multiply-add with x over a power of two (exact); scales enter once per chunk. Sums are float32. Several rows
take the same path by a program each where W is small enough to stay in the L2 cache, and tensor cores otherwise
(`w8a16_gemm`), the columns split over SPLITS programs so that enough of them read at once.

Split columns leave float32 parts that a second small kernel adds in fixed order: no atomics, the same bits each run.
The magic numbers of unpacking are those of FasterTransformer's int8 kernels (Kim et al., 2022), in float32. Left out:
float32 activations, zero points, a bias in the gated form.
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
from soloist.kernels.w8a16_gemm import _w8a16_gemm_kernel

MOST_ROWS = 16

w8a16_gemv_ref = matmul_ref  # dequantize, then torch's own product; in float64 if `inside` says so

CONFIGURATIONS = GEMV  # `gemv_config` picks one: multiply-adds for one row, tensor cores for several


@triton.jit  # type: ignore[untyped-decorator]  # triton is not typed
def _four_columns(low: tl.tensor, high: tl.tensor, CHUNKS: tl.constexpr) -> tuple[tl.tensor, ...]:
    """x of a chunk's 16 columns, given as two halves (1, CHUNKS, 8), by byte: four of (1, CHUNKS, 4 words)."""
    both = tl.reshape(tl.join(low, high), (1, CHUNKS, 2, 4, 2))  # word in half, byte, half
    bytes_last = tl.reshape(tl.permute(both, (0, 1, 4, 2, 3)), (1, CHUNKS, 4, 2, 2))
    even, odd = tl.split(bytes_last)
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit  # type: ignore[untyped-decorator]  # triton is not typed
def _fma_byte(part: tl.tensor, words: tl.tensor, x: tl.tensor, magic: tl.tensor, C: tl.constexpr) -> tl.tensor:
    """part + (signed code in byte C) * x; `words` with the top bit of each byte flipped."""
    E: tl.constexpr = (0, 8, 4, 12)[C]  # one shift for the upper two; by 16 it would be taken for a bit field
    bits = (words if C < 2 else words >> 12) & (255 << E)
    return tl.fma(as_fp32(bits, magic) - (8388608.0 + (128 << E)), x * (1.0 / (1 << E)), part)


@triton.jit  # type: ignore[untyped-decorator]  # triton is not typed
def _chunk_sums(
    sums: tl.tensor,
    words_ptr: tl.tensor,
    scales_ptr: tl.tensor,
    where: tl.tensor,
    group: tl.tensor,
    inside: tl.tensor,
    x0: tl.tensor,
    x1: tl.tensor,
    x2: tl.tensor,
    x3: tl.tensor,
    magic: tl.tensor,
    BLOCK_N: tl.constexpr,
    CHUNKS: tl.constexpr,
) -> tl.tensor:
    """sums + scale * (codes of each chunk times its x)."""
    words = load_words(words_ptr + where, inside) ^ 0x80808080
    part = tl.zeros((BLOCK_N, CHUNKS, 4), tl.float32)
    part = _fma_byte(_fma_byte(part, words, x0, magic, 0), words, x1, magic, 1)
    part = _fma_byte(_fma_byte(part, words, x2, magic, 2), words, x3, magic, 3)
    scale = tl.load(scales_ptr + group, mask=inside, other=0.0, eviction_policy="evict_first").to(tl.float32)
    return tl.fma(tl.sum(part, axis=2), scale, sums)


@triton.jit  # type: ignore[untyped-decorator]  # triton is not typed
def _w8a16_gemv_kernel(
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
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    split, row = tl.program_id(1), tl.program_id(2)
    chunks, magic = K // 16, magic_fp32(K)
    span = tl.cdiv(tl.cdiv(chunks, CHUNKS), SPLITS) * CHUNKS
    sums = tl.zeros((BLOCK_N, CHUNKS), tl.float32)
    sums_up = tl.zeros((BLOCK_N, CHUNKS), tl.float32)
    for start in range(split * span, tl.minimum(split * span + span, chunks), CHUNKS):
        b = start + tl.arange(0, CHUNKS)
        inside = (n < N)[:, None] & (b < chunks)[None, :]
        where = (n[:, None, None] * chunks + b[None, :, None]) * 4 + tl.arange(0, 4)[None, None, :]
        group = n[:, None] * tl.cdiv(K, GROUP) + (b // (GROUP // 16))[None, :]
        x_at = x_ptr + row * K + b[None, :, None] * 16 + tl.arange(0, 8)[None, None, :]
        near = (b < chunks)[None, :, None]
        low = tl.load(x_at, mask=near, other=0.0).to(tl.float32)
        high = tl.load(x_at + 8, mask=near, other=0.0).to(tl.float32)
        x0, x1, x2, x3 = _four_columns(low, high, CHUNKS)
        sums = _chunk_sums(sums, words_ptr, scales_ptr, where, group, inside, x0, x1, x2, x3, magic, BLOCK_N, CHUNKS)
        if up_words_ptr is not None:
            sums_up = _chunk_sums(
                sums_up, up_words_ptr, up_scales_ptr, where, group, inside, x0, x1, x2, x3, magic, BLOCK_N, CHUNKS
            )
    store_row(sums, sums_up, up_words_ptr, bias_ptr, y_ptr, n, row, split, M, N, SPLITS)


w8a16_gemv = Matmul(
    name="w8a16_gemv",
    bits=8,
    most_rows=MOST_ROWS,
    configurations=CONFIGURATIONS,
    rule=gemv_config,
    gemm=_w8a16_gemm_kernel,
    gemv=_w8a16_gemv_kernel,
)


KERNEL = Kernel(
    name="w8a16_gemv",
    summary="y = x W^T, 8-bit W, 1 to 16 rows; split-K, bias, silu(gate) * up",
    run=w8a16_gemv,
    reference=w8a16_gemv_ref,
    configurations=CONFIGURATIONS,
    cases=tuple(gemv_cases(8)),
    check=functools.partial(check_matmul, w8a16_gemv),
    builds=functools.partial(gemv_builds, w8a16_gemv),
)

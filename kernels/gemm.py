"""y = x W^T for any number of rows of x and 4-bit or 8-bit W, on tensor cores: prefill, and several rows of decoding.

    x (M, K) float16 or bfloat16;   W (N, K) as `soloist.kernels.layout.Quantized`;   y (M, N)
    y[m, n] = sum_k x[m, k] * round((u[n, k] - z[n, g]) * s[n, g])   (+ bias[n]),   rounded to the type of x
    with `up`: y = silu(x W^T) * (x Up^T)

A program takes BLOCK_N outputs of BLOCK_M rows, 128 columns (8 bit: 64) at a time. Sums are float32. The scale is
applied before the product, so any group size goes, at the price of one rounding per weight, the same as a dequantized
matrix of that type has. W is unpacked in registers (`matmul.py` says how; float16 takes two codes at once, in the
halves of a word: (bits | 0x6400) - 1024) and multiplied by x^T, so that the long side of W meets the 16 rows of an
`mma` and a few activations its 8 columns.

A thread loads 16 bytes of one row: 32 (8 bit: 16) columns that the `mma` wants spread over four threads. A sum does not
mind the order of its terms, so columns are renamed instead of moved, in W and in x alike. With the bits of a column's
number named from high to low

    4 bit   column = b b p i i j j   (block, high half of a word, nibble, word)     slot = j1 i1 i0 j0 b b p
    8 bit   column = b b j j p c     (16 columns, word, high half, byte)            slot = j1 c j0 b b p

a thread's slots are those of its own block b, and the two codes of a pair p share a register. Rows are renamed the same
way (`_row_order`), so weights go from their load to the tensor core without crossing threads.

The arithmetic of bfloat16 is float32's: the interpreter keeps bfloat16 as bits and has no operation on it.

Sources: Marlin (Frantar et al., 2024) for keeping dequantized weights in registers; FasterTransformer's int8 kernels
(Kim et al., 2022) for the magic numbers of unpacking. Left out: float32 activations, an order of programs that favors
the L2 cache at many rows, and tensor-memory-access loads.
"""

from __future__ import annotations

from collections.abc import Iterator

from soloist.kernels.choose import interpreting
from soloist.kernels.jit import tl, triton
from soloist.kernels.matmul import Matmul, as_fp32, magic_fp32, matmul_builds, matmul_case, matmul_kernel, silu_times
from soloist.kernels.spec import Build, Case, Configuration

INTERPRETED = tl.constexpr(interpreting())


def gemm_configuration(block_n: int, block_m: int, splits: int, warps: int, stages: int) -> Configuration:
    """BLOCK_N rows of W by BLOCK_M rows of x a program, the columns over SPLITS of them."""
    return Configuration({"BLOCK_N": block_n, "BLOCK_M": block_m, "SPLITS": splits}, warps, stages)


CONFIGURATIONS = (
    gemm_configuration(128, 16, 1, warps=4, stages=3),
    gemm_configuration(64, 32, 1, warps=4, stages=4),
    gemm_configuration(64, 64, 1, warps=4, stages=3),
    gemm_configuration(128, 64, 1, warps=8, stages=3),
)


def _rule(m: int, n: int, k: int, bits: int, gated: bool) -> Configuration:
    """By M and N (K and bits do not matter): as many rows as there are, then more outputs."""
    if m <= 16:
        return CONFIGURATIONS[0]
    if m <= 32 or gated:  # two matrices at once: more of each would spill
        return CONFIGURATIONS[1]
    return CONFIGURATIONS[2 if m <= 64 or n < 2048 else 3]


@triton.jit
def _pair_fp16(bits: tl.tensor, magic: tl.tensor) -> tl.tensor:
    """Two integers below 1024 in the halves of a word as float16 1024 + integer, (..., 2)."""
    pair = bits | (magic + 0x19006400)  # 0x64006400
    low = pair.to(tl.int16).to(tl.float16, bitcast=True)
    high = (pair >> 16).to(tl.int16).to(tl.float16, bitcast=True)
    return tl.join(low, high)


@triton.jit
def _pair_of(
    words: tl.tensor,
    scale: tl.tensor,
    zero: tl.tensor,
    magic: tl.tensor,
    AT: tl.constexpr,
    BITS: tl.constexpr,
    DTYPE: tl.constexpr,
) -> tl.tensor:
    """Weights of the AT-th pair of codes in each word, (rows, 4, 4, 2), in the activations' type.

    Args:
        scale: (rows, 4, 1), float32.
        zero: the code of zero, likewise.
    """
    MASK: tl.constexpr = 15 if BITS == 4 else 255
    E: tl.constexpr = BITS * AT
    if tl.float16 == DTYPE:
        pair = _pair_fp16((words >> E) & (MASK * 0x10001), magic)
        weights = (pair - (zero + 1024.0).to(tl.float16)[:, :, :, None]) * scale.to(tl.float16)[:, :, :, None]
    else:  # where they stand, which counts 2^E; the upper half comes down by 12, as by 16 it would be a bit field
        low = as_fp32(words & (MASK << E), magic) - (zero * (1 << E) + 8388608.0)
        high = as_fp32((words >> 12) & (MASK << (E + 4)), magic) - (zero * (1 << (E + 4)) + 8388608.0)
        weights = tl.join((low * (scale / (1 << E))).to(DTYPE), (high * (scale / (1 << (E + 4)))).to(DTYPE))
    return weights


@triton.jit
def _row_order(BLOCK_N: tl.constexpr, WARPS: tl.constexpr) -> tl.tensor:
    """Which row of the block each loaded row is: a warp's eight lanes of rows, twice, are the 16 rows of its `mma`."""
    r = tl.arange(0, BLOCK_N)
    return r // (16 * WARPS) * (16 * WARPS) + (r // 8) % WARPS * 16 + (r // (8 * WARPS)) % 2 * 8 + r % 8


@triton.jit
def _load_groups(
    scales_ptr: tl.tensor,
    zeros_ptr: tl.tensor,
    start: tl.tensor,
    step: tl.tensor,
    N: tl.tensor,
    K: tl.tensor,
    GROUP: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WARPS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Scales and zero points (where there are any) of a step, (BLOCK_N, 4) as they are stored; past the end, zero."""
    n = start + _row_order(BLOCK_N, WARPS)
    chunk = step * 4 + tl.arange(0, 4)
    inside = (n < N)[:, None] & (chunk < K // (128 // BITS))[None, :]
    group = n[:, None] * ((K + GROUP - 1) // GROUP) + (chunk // (GROUP * BITS // 128))[None, :]
    scale = tl.load(scales_ptr + group, mask=inside, other=0.0)
    zero = scale if zeros_ptr is None else tl.load(zeros_ptr + group, mask=inside, other=0)
    return scale, zero


@triton.jit
def _load_weights(
    words_ptr: tl.tensor,
    scale: tl.tensor,
    zero: tl.tensor,
    start: tl.tensor,
    step: tl.tensor,
    N: tl.tensor,
    K: tl.tensor,
    ZEROS: tl.constexpr,
    BITS: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WARPS: tl.constexpr,
) -> tl.tensor:
    """W of rows start .. start + BLOCK_N and of the step's columns, columns renamed: (BLOCK_N, 128 or 64)."""
    n = start + _row_order(BLOCK_N, WARPS)
    chunks, magic = K // (128 // BITS), magic_fp32(K)  # a chunk is 16 bytes of codes
    chunk = step * 4 + tl.arange(0, 4)
    inside = (n < N)[:, None] & (chunk < chunks)[None, :]
    where = (n[:, None, None] * chunks + chunk[None, :, None]) * 4 + tl.arange(0, 4)[None, None, :]
    words = tl.load(words_ptr + where, mask=inside[:, :, None]).to(tl.uint32, bitcast=True)
    scale = scale.to(tl.float32)[:, :, None]
    if BITS == 8:
        words = words ^ 0x80808080  # flips the top bit of each byte: 0 .. 255 with 128 for zero
        zero = tl.full((1, 1, 1), 128.0, tl.float32)
    else:
        zero = zero.to(tl.float32)[:, :, None] if ZEROS else tl.full((1, 1, 1), 8.0, tl.float32)
    two = tl.join(
        _pair_of(words, scale, zero, magic, 0, BITS, DTYPE), _pair_of(words, scale, zero, magic, 1, BITS, DTYPE)
    )
    if BITS == 8:  # row, b, j, p, c
        split = tl.reshape(two, (BLOCK_N // (16 * WARPS), 2, WARPS, 8, 4, 2, 2, 2, 2))
        weights = tl.reshape(tl.permute(split, (0, 2, 1, 3, 5, 8, 6, 4, 7)), (BLOCK_N, 64))
    else:  # row, b, j, p, i0, i1
        more = tl.join(
            _pair_of(words, scale, zero, magic, 2, BITS, DTYPE), _pair_of(words, scale, zero, magic, 3, BITS, DTYPE)
        )
        split = tl.reshape(tl.join(two, more), (BLOCK_N // (16 * WARPS), 2, WARPS, 8, 4, 2, 2, 2, 2, 2))
        weights = tl.reshape(tl.permute(split, (0, 2, 1, 3, 5, 9, 8, 6, 4, 7)), (BLOCK_N, 128))
    return weights


@triton.jit
def _load_activations(
    x_ptr: tl.tensor,
    m: tl.tensor,
    step: tl.tensor,
    M: tl.tensor,
    K: tl.tensor,
    BITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
) -> tl.tensor:
    """x of the step's columns, renamed as in `_load_weights`, transposed: (128 or 64, BLOCK_M)."""
    k = step * (512 // BITS) + tl.arange(0, 512 // BITS)
    inside = (m < M)[:, None] & (k < K)[None, :]
    x = tl.load(x_ptr + m[:, None] * K + k[None, :], mask=inside, other=0.0)
    if BITS == 4:
        split = tl.permute(tl.reshape(x, (BLOCK_M, 4, 2, 2, 2, 2, 2)), (0, 5, 3, 4, 6, 1, 2))
    else:
        split = tl.permute(tl.reshape(x, (BLOCK_M, 4, 2, 2, 2, 2)), (0, 2, 5, 3, 1, 4))
    return tl.trans(tl.reshape(split, (BLOCK_M, 512 // BITS)))


@triton.jit
def _multiply(a: tl.tensor, b: tl.tensor, acc: tl.tensor) -> tl.tensor:
    """acc + a b on tensor cores. The interpreter keeps bfloat16 as raw bits and would _multiply those."""
    if INTERPRETED:  # noqa: SIM108 - a statement reads better
        acc = tl.dot(a.to(tl.float32), b.to(tl.float32), acc)
    else:
        acc = tl.dot(a, b, acc)
    return acc


@triton.jit
def _store(
    acc: tl.tensor,
    acc_up: tl.tensor,
    up_words_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    y_ptr: tl.tensor,
    n: tl.tensor,
    m: tl.tensor,
    split: tl.tensor,
    M: tl.tensor,
    N: tl.tensor,
    SPLITS: tl.constexpr,
) -> None:
    """Sums (BLOCK_N, BLOCK_M) into y, or into its float32 parts."""
    inside = (n < N)[:, None] & (m < M)[None, :]
    at = m.to(tl.int64)[None, :] * N + n[:, None]
    if SPLITS == 1:
        if up_words_ptr is not None:
            acc = silu_times(acc, acc_up)
        if bias_ptr is not None:
            acc += tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)[:, None]
        tl.store(y_ptr + at, acc.to(y_ptr.dtype.element_ty), mask=inside)
    else:
        PARTS: tl.constexpr = 1 if up_words_ptr is None else 2
        tl.store(y_ptr + split * PARTS * M * N + at, acc, mask=inside)
        if up_words_ptr is not None:
            tl.store(y_ptr + (split * PARTS + 1) * M * N + at, acc_up, mask=inside)


@triton.jit
def gemm_kernel(
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
    BITS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    SPLITS: tl.constexpr,
    WARPS: tl.constexpr,
) -> None:
    """One program of a tensor-core matmul: BLOCK_N outputs of BLOCK_M rows over one of SPLITS parts of the columns.

    y is the result where SPLITS is 1, else float32 parts (SPLITS, 2 if gated else 1, M, N).
    """
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    start, split = tl.program_id(0) * BLOCK_N, tl.program_id(1)
    m = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    steps = tl.cdiv(K, 512 // BITS)
    span = tl.cdiv(steps, SPLITS)
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    acc_up = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    first, last = split * span, tl.minimum(split * span + span, steps)
    ZEROS: tl.constexpr = zeros_ptr is not None
    scale, zero = _load_groups(scales_ptr, zeros_ptr, start, first, N, K, GROUP, BITS, BLOCK_N, WARPS)
    if up_words_ptr is not None:
        scale_up, zero_up = _load_groups(up_scales_ptr, up_zeros_ptr, start, first, N, K, GROUP, BITS, BLOCK_N, WARPS)
    for step in range(first, last):  # scales are too narrow for the asynchronous copies of the pipeline: a step ahead
        weights = _load_weights(words_ptr, scale, zero, start, step, N, K, ZEROS, BITS, DTYPE, BLOCK_N, WARPS)
        scale, zero = _load_groups(scales_ptr, zeros_ptr, start, step + 1, N, K, GROUP, BITS, BLOCK_N, WARPS)
        x = _load_activations(x_ptr, m, step, M, K, BITS, BLOCK_M)
        acc = _multiply(weights, x, acc)
        if up_words_ptr is not None:
            weights = _load_weights(
                up_words_ptr, scale_up, zero_up, start, step, N, K, ZEROS, BITS, DTYPE, BLOCK_N, WARPS
            )
            scale_up, zero_up = _load_groups(
                up_scales_ptr, up_zeros_ptr, start, step + 1, N, K, GROUP, BITS, BLOCK_N, WARPS
            )
            acc_up = _multiply(weights, x, acc_up)
    n = start + tl.arange(0, BLOCK_N)
    _store(acc, acc_up, up_words_ptr, bias_ptr, y_ptr, n, m, split, M, N, SPLITS)


def _cases(run: Matmul) -> Iterator[Case]:
    """Every configuration, students' shapes."""
    half, brain = "float16", "bfloat16"
    for at in range(len(CONFIGURATIONS)):
        group, extra = (32, 64, 128)[at % 3], ("", "zeros")[at % 2]
        yield matmul_case(run, 19 + at, 67, 352, (half, brain)[at % 2], group, extra, config=at)
    yield matmul_case(run, 17, 191, 160, half, 32, "bias")
    yield matmul_case(run, 33, 577, 352, brain, 128, "gated", coarse=True)
    yield matmul_case(run, 130, 576, 1536, half, 32, coarse=True)
    yield matmul_case(run, 33, 576, 192, half, 64, "zeros bias")
    yield matmul_case(run, 17, 192, 576, brain, 32, "gated zeros")
    yield matmul_case(run, 1, 1536, 576, half, 128, coarse=True)
    yield matmul_case(run, 17, 896, 4864, brain, 64, coarse=True, slow=True)
    yield matmul_case(run, 17, 2048, 5632, half, 128, coarse=True, slow=True)
    yield matmul_case(run, 70, 5632, 2048, brain, 32, "gated", coarse=True, slow=True)


def _builds(run: Matmul) -> Iterator[Build]:
    """Every configuration in both types; what may be added in float16, where the rule takes it."""
    return matmul_builds(
        run,
        [
            (CONFIGURATIONS, "fp16", (32, 128), ""),
            (CONFIGURATIONS, "bf16", (32, 128), ""),
            (CONFIGURATIONS[1:], "fp16", (32,), "bias"),
            (CONFIGURATIONS[1:], "fp16", (32,), "zeros"),
            (CONFIGURATIONS[:2], "fp16", (32,), "gated"),
        ],
    )


w4a16_gemm = Matmul("w4a16_gemm", 4, 0, CONFIGURATIONS, _rule, gemm_kernel)
w8a16_gemm = Matmul("w8a16_gemm", 8, 0, CONFIGURATIONS, _rule, gemm_kernel)

W4A16 = matmul_kernel(
    w4a16_gemm,
    "y = x W^T, 4-bit W, any number of rows, tensor cores; bias, zero points, silu(gate) * up",
    _cases,
    _builds,
)
W8A16 = matmul_kernel(
    w8a16_gemm, "y = x W^T, 8-bit W, any number of rows, tensor cores; bias, silu(gate) * up", _cases, _builds
)

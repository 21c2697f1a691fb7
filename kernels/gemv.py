"""y = x W^T for 1 to 16 rows of x and 4-bit or 8-bit W: decoding, where the time is the reading of W.

    x (M, K) float16 or bfloat16, M 1..16;   W (N, K) as `soloist.kernels.layout.Quantized`;   y (M, N)
    y[m, n] = sum_g s[n, g] * sum_{k in g} (u[n, k] - z[n, g]) * x[m, k]   (+ bias[n])
    with `up`: y = silu(x W^T) * (x Up^T), both sums in one pass over x

One row runs on ordinary multiply-adds: a thread takes a chunk, 16 bytes of codes, of BLOCK_N rows of W, so that its
activations (4 bit: 32, one block of the layout; 8 bit: 16) serve BLOCK_N times; CHUNKS = 32 * warps chunks side by side
make a warp read 512 consecutive bytes. A weight costs one logic operation (its code into the mantissa of a float32 at
the code's own place in the word, which counts 2^e), one subtraction (exact) and one multiply-add with x / 2^e (exact);
scales enter once per chunk. Codes of 8 bits first become q + 128, by flipping the top bit of four at once. Sums are
float32. Several rows take the same path by a program each where W is small enough to stay in the L2 cache, and tensor
cores otherwise (`gemm.py`). What is right for 4 bits is right for 8 once rows of W are counted in bytes.

The columns may be split over SPLITS programs, so that a small W keeps enough of them reading;
`matmul.py` adds the parts.

After Marlin (Frantar et al., 2024) for the unpacking by exponent and the order of nibbles that makes loads 16 bytes
wide, and FasterTransformer's int8 kernels (Kim et al., 2022) for bytes; the float32 form at the code's own place is
ours. Left out: float32 activations, groups in another order than the columns (GPTQ's act-order), zero points of 8 bits,
a bias in the gated form.
"""

from __future__ import annotations

from collections.abc import Iterator

from soloist.kernels.gemm import gemm_configuration, gemm_kernel
from soloist.kernels.jit import tl, triton
from soloist.kernels.matmul import (
    Matmul,
    as_fp32,
    magic_fp32,
    matmul_builds,
    matmul_case,
    matmul_kernel,
    silu_times,
    sum_build,
)
from soloist.kernels.spec import Build, Case, Configuration

MAX_ROWS = 16
_CACHED = 1 << 21  # bytes of a W that several rows may read each for itself: it stays in the L2 cache


def _one_row(block_n: int, warps: int, splits: int = 1) -> Configuration:
    """For sm_120 ptxas holds eight rows of 8 bits to 72 registers and spills; with a ceiling it takes what it needs."""
    ceiling = 168 if block_n == 8 and warps > 1 else None
    return Configuration({"BLOCK_N": block_n, "CHUNKS": 32 * warps, "SPLITS": splits}, warps, 1, registers=ceiling)


def _several_rows(block_m: int, splits: int, gated: bool = False) -> Configuration:
    """64 outputs for few rows of one matrix, else 128: near 90 registers ptxas spills rather than lose a program."""
    if block_m == 8 and not gated:
        return gemm_configuration(64, 8, splits, warps=4, stages=4)
    return gemm_configuration(128, block_m, splits, warps=4, stages=3)


ONE_ROW = (
    *(_one_row(4, warps) for warps in (1, 2, 4)),
    *(_one_row(8, warps) for warps in (1, 2, 4)),
    _one_row(8, warps=4, splits=4),
)
SEVERAL_ROWS = (
    *(_several_rows(8, splits) for splits in (1, 2, 4, 8)),
    *(_several_rows(16, splits) for splits in (1, 2, 4, 8)),
)
GATED_ROWS = tuple(_several_rows(8, splits, gated=True) for splits in (1, 2, 4, 8))
CONFIGURATIONS = (*ONE_ROW, *SEVERAL_ROWS, *GATED_ROWS)


def _rule(m: int, n: int, k: int, bits: int, gated: bool) -> Configuration:
    """Multiply-adds for one row or a W that stays in the cache, else tensor cores."""
    row = k * bits // 8  # bytes of one of W
    if m == 1 or (m <= 4 and n * row <= _CACHED):
        if n <= 1024 and k >= 8192:
            return _one_row(8, warps=4, splits=4)
        return _one_row(4 if n <= 2048 or gated else 8, warps=1 if row <= 512 else 2 if row <= 1024 else 4)
    block_m, splits = 8 if m <= 8 else 16, 1
    programs = -(-n // _several_rows(block_m, 1, gated).constants["BLOCK_N"])
    while splits < 8 and programs * splits < 256 and k >= 512 * splits:
        splits *= 2
    return _several_rows(block_m, splits, gated)


@triton.jit
def _load_words(at: tl.tensor, inside: tl.tensor) -> tl.tensor:
    """Words (rows, chunks, 4) that are read once: 16 bytes of a row by each thread."""
    words = tl.load(at, mask=inside[:, :, None], eviction_policy="evict_first")
    return words.to(tl.uint32, bitcast=True)


@triton.jit
def _store_row(
    sums: tl.tensor,
    sums_up: tl.tensor,
    up_words_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    y_ptr: tl.tensor,
    n: tl.tensor,
    row: tl.tensor,
    split: tl.tensor,
    M: tl.tensor,
    N: tl.tensor,
    SPLITS: tl.constexpr,
) -> None:
    """End of a one-row program: sums (BLOCK_N, CHUNKS) into y, or into the float32 parts (as in `gemm_kernel`)."""
    acc = tl.sum(sums, axis=1)
    at = row * N + n
    if SPLITS == 1:
        if up_words_ptr is not None:
            acc = silu_times(acc, tl.sum(sums_up, axis=1))
        if bias_ptr is not None:
            acc += tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)
        tl.store(y_ptr + at, acc.to(y_ptr.dtype.element_ty), mask=n < N)
    elif up_words_ptr is None:
        tl.store(y_ptr + split * M * N + at, acc, mask=n < N)
    else:
        tl.store(y_ptr + split * 2 * M * N + at, acc, mask=n < N)
        tl.store(y_ptr + (split * 2 + 1) * M * N + at, tl.sum(sums_up, axis=1), mask=n < N)


# --- 4 bit ------------------------------------------------------------------------------------------------------------


@triton.jit
def _fma_nibble(
    part: tl.tensor, words: tl.tensor, x: tl.tensor, magic: tl.tensor, AT: tl.constexpr, MIDDLE: tl.constexpr
) -> tl.tensor:
    """part + (nibble AT - MIDDLE) * x."""
    E: tl.constexpr = AT if AT < 5 else AT - 4  # one shift for the upper three; by 20 it would be taken for bit fields
    bits = (words if AT < 5 else words >> 16) & (15 << (4 * E))
    return tl.fma(as_fp32(bits, magic) - (8388608.0 + (MIDDLE << (4 * E))), x * (1.0 / (1 << (4 * E))), part)


@triton.jit
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


@triton.jit
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
        words = _load_words(words_ptr + where, inside)
        part = tl.zeros((BLOCK_N, CHUNKS, 4), tl.float32)
        part_up = tl.zeros((BLOCK_N, CHUNKS, 4), tl.float32)
        if up_words_ptr is not None:
            words_up = _load_words(up_words_ptr + where, inside)
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
    _store_row(sums, sums_up, up_words_ptr, bias_ptr, y_ptr, n, row, split, M, N, SPLITS)


# --- 8 bit ------------------------------------------------------------------------------------------------------------


@triton.jit
def _four_columns(low: tl.tensor, high: tl.tensor, CHUNKS: tl.constexpr) -> tuple[tl.tensor, ...]:
    """x of a chunk's 16 columns, given as two halves (1, CHUNKS, 8), by byte: four of (1, CHUNKS, 4 words)."""
    both = tl.reshape(tl.join(low, high), (1, CHUNKS, 2, 4, 2))  # word in half, byte, half
    bytes_last = tl.reshape(tl.permute(both, (0, 1, 4, 2, 3)), (1, CHUNKS, 4, 2, 2))
    even, odd = tl.split(bytes_last)
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def _fma_byte(part: tl.tensor, words: tl.tensor, x: tl.tensor, magic: tl.tensor, C: tl.constexpr) -> tl.tensor:
    """part + (signed code in byte C) * x; `words` with the top bit of each byte flipped."""
    E: tl.constexpr = (0, 8, 4, 12)[C]  # one shift for the upper two; by 16 it would be taken for a bit field
    bits = (words if C < 2 else words >> 12) & (255 << E)
    return tl.fma(as_fp32(bits, magic) - (8388608.0 + (128 << E)), x * (1.0 / (1 << E)), part)


@triton.jit
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
    words = _load_words(words_ptr + where, inside) ^ 0x80808080
    part = tl.zeros((BLOCK_N, CHUNKS, 4), tl.float32)
    part = _fma_byte(_fma_byte(part, words, x0, magic, 0), words, x1, magic, 1)
    part = _fma_byte(_fma_byte(part, words, x2, magic, 2), words, x3, magic, 3)
    scale = tl.load(scales_ptr + group, mask=inside, other=0.0, eviction_policy="evict_first").to(tl.float32)
    return tl.fma(tl.sum(part, axis=2), scale, sums)


@triton.jit
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
    _store_row(sums, sums_up, up_words_ptr, bias_ptr, y_ptr, n, row, split, M, N, SPLITS)


# --- checks and builds ------------------------------------------------------------------------------------------------


def _cases(run: Matmul) -> Iterator[Case]:
    """Every configuration, split columns with all that may be added, students' shapes."""
    half, brain = "float16", "bfloat16"
    for at, config in enumerate(CONFIGURATIONS):
        m, dtype = 2 + at % 15 if "BLOCK_M" in config.constants else 1, (half, brain)[(at + at // 4) % 2]
        extra = "gated" if config in GATED_ROWS else ("", "bias", "zeros", "gated")[at % 4]
        yield matmul_case(run, m, 43, 352, dtype, (32, 64, 128)[at % 3], extra, config=at)
    one, several = 6, 9  # configurations with four parts
    yield matmul_case(run, 1, 19, 5632, half, 32, config=one)
    yield matmul_case(run, 1, 19, 5632, brain, 32, "bias", config=one)
    yield matmul_case(run, 1, 19, 5632, half, 32, "gated zeros", config=one)
    yield matmul_case(run, 8, 19, 5632, brain, 32, "bias", config=several)
    if run.bits == 4:
        yield matmul_case(run, 1, 19, 5632, half, 32, "zeros", config=one)
        yield matmul_case(run, 8, 19, 5632, brain, 32, "zeros", config=several)
    for m, n, k, dtype, group, extra in (
        (1, 576, 1536, half, 32, ""),
        (1, 1536, 576, brain, 64, "gated"),
        (1, 576, 192, half, 128, "zeros"),
        (1, 192, 576, brain, 32, "bias"),
        (1, 896, 4864, half, 128, "zeros bias"),
        (1, 4864, 896, half, 64, "gated zeros"),
        (1, 2048, 5632, brain, 32, "zeros"),
        (1, 5632, 2048, half, 32, ""),
        (1, 191, 160, half, 128, ""),
        (1, 577, 352, brain, 128, "gated zeros"),
        (3, 191, 1184, half, 64, ""),
        (2, 577, 352, half, 32, ""),
        (6, 191, 160, brain, 64, "zeros"),
        (16, 576, 1536, half, 32, ""),
    ):
        yield matmul_case(run, m, n, k, dtype, group, extra, coarse=True)
    yield matmul_case(run, 16, 896, 4864, half, 128, "zeros", coarse=True, slow=True)
    yield matmul_case(run, 5, 2048, 5632, brain, 64, coarse=True, slow=True)
    yield matmul_case(run, 7, 576, 192, half, 128, "bias")
    yield matmul_case(run, 16, 192, 576, brain, 32, "gated")


def _builds(run: Matmul) -> Iterator[Build]:
    """Every configuration in float16 for the usual groups; all else for those that students' shapes take most."""
    narrow, middle, wide = ONE_ROW[0], ONE_ROW[4], ONE_ROW[5]  # 4 rows of W by 1 warp, 8 by 2, 8 by 4
    eight, eight_split, sixteen, sixteen_split = (SEVERAL_ROWS[at] for at in (0, 2, 4, 6))  # in one part or four
    several = (eight, eight_split, sixteen, sixteen_split)
    yield from matmul_builds(
        run,
        [
            (ONE_ROW, "fp16", (32, 128), ""),
            (SEVERAL_ROWS, "fp16", (128,), ""),
            (several, "fp16", (32,), ""),
            ((narrow, middle, wide, *several), "bf16", (32,), ""),
            ((narrow, middle, wide), "fp16", (64,), ""),
            ((narrow, wide), "fp16", (32, 128), "bias"),
            ((sixteen,), "fp16", (32,), "bias"),
            ((narrow, wide), "fp16", (32, 128), "zeros"),
            ((sixteen,), "fp16", (32,), "zeros"),
            (ONE_ROW[:3], "fp16", (32, 128), "gated"),
            ((*GATED_ROWS, sixteen, sixteen_split), "fp16", (32,), "gated"),
        ],
    )
    for splits in (2, 4, 8):
        yield sum_build(run, "fp16", splits)
    yield sum_build(run, "bf16", 4)
    yield sum_build(run, "fp16", 4, "gated")
    yield sum_build(run, "fp16", 4, "bias")


w4a16_gemv = Matmul("w4a16_gemv", 4, MAX_ROWS, CONFIGURATIONS, _rule, gemm_kernel, _w4a16_gemv_kernel)
w8a16_gemv = Matmul("w8a16_gemv", 8, MAX_ROWS, CONFIGURATIONS, _rule, gemm_kernel, _w8a16_gemv_kernel)

W4A16 = matmul_kernel(
    w4a16_gemv,
    "y = x W^T, 4-bit W, 1 to 16 rows; split-K, bias, zero points, silu(gate) * up",
    _cases,
    _builds,
)
W8A16 = matmul_kernel(w8a16_gemv, "y = x W^T, 8-bit W, 1 to 16 rows; split-K, bias, silu(gate) * up", _cases, _builds)

"""What the four low-bit matmuls share inside their kernels: unpacking, the tensor-core program, the sum of split parts.

Unpacking never converts an integer: a code is put into the mantissa of a float whose exponent makes its last bit worth
one, and the constant is taken off again, exactly:

    float32   (bits | 0x4B000000) - 2^23     24 bits of room: a nibble at bit 4 e counts 16^e, no shift is needed
    float16   (bits | 0x6400) - 1024         two codes at once in the halves of a word

The tensor-core program multiplies W (BLOCK_N, columns) by x^T, so that the long side of W meets the 16 rows of an `mma`
and a few activations its 8 columns. A thread loads 16 bytes of one row: 32 (8 bit: 16) columns that the `mma` wants
spread over four threads. A sum does not mind the order of its terms, so columns are renamed instead of moved, in W and
in x alike. With bits of a column's number named from high to low

    4 bit   column = b b p i i j j   (block, high half of a word, nibble, word)     slot = j1 i1 i0 j0 b b p
    8 bit   column = b b j j p c     (16 columns, word, high half, byte)            slot = j1 c j0 b b p

a thread's slots are those of its own block b, and the two codes of a pair p share a register. Rows are renamed the same
way (`row_order`), so weights go from their load to the tensor core without crossing threads.

The arithmetic of bfloat16 is float32's: the interpreter keeps bfloat16 as bits and has no operation on it.
Left out: float32 activations; sums whose order depends on which program finishes first.
"""

from __future__ import annotations

from soloist.kernels.choose import interpreting
from soloist.kernels.jit import tl, triton

INTERPRETED = tl.constexpr(interpreting())


@triton.jit  # type: ignore[untyped-decorator]  # triton is not typed
def magic_fp32(K: tl.tensor) -> tl.tensor:
    """0x4B000000, the bits of 2^23, as a value the compiler cannot know (K is a multiple of 32).

    A logic operation takes one constant: were both known, each would first move the other into a register.
    """
    return (0x4B000000 + (K & 31)).to(tl.uint32, bitcast=True)


@triton.jit  # type: ignore[untyped-decorator]  # triton is not typed
def as_fp32(bits: tl.tensor, magic: tl.tensor) -> tl.tensor:
    """The integer `bits` (uint32, below 2^23) plus 2^23, as float32."""
    return (bits | magic).to(tl.float32, bitcast=True)


@triton.jit  # type: ignore[untyped-decorator]  # triton is not typed
def load_words(at: tl.tensor, inside: tl.tensor) -> tl.tensor:
    """Words (rows, chunks, 4) that are read once: 16 bytes of a row by each thread."""
    words = tl.load(at, mask=inside[:, :, None], eviction_policy="evict_first")
    return words.to(tl.uint32, bitcast=True)


@triton.jit  # type: ignore[untyped-decorator]  # triton is not typed
def pair_fp16(bits: tl.tensor, magic: tl.tensor) -> tl.tensor:
    """Two integers below 1024 in the halves of a word as float16 1024 + integer, (..., 2)."""
    pair = bits | (magic + 0x19006400)  # 0x64006400
    low = pair.to(tl.int16).to(tl.float16, bitcast=True)
    high = (pair >> 16).to(tl.int16).to(tl.float16, bitcast=True)
    return tl.join(low, high)


@triton.jit  # type: ignore[untyped-decorator]  # triton is not typed
def pair_of(
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
        pair = pair_fp16((words >> E) & (MASK * 0x10001), magic)
        weights = (pair - (zero + 1024.0).to(tl.float16)[:, :, :, None]) * scale.to(tl.float16)[:, :, :, None]
    else:  # where they stand, which counts 2^E; the upper half comes down by 12, as by 16 it would be a bit field
        low = as_fp32(words & (MASK << E), magic) - (zero * (1 << E) + 8388608.0)
        high = as_fp32((words >> 12) & (MASK << (E + 4)), magic) - (zero * (1 << (E + 4)) + 8388608.0)
        weights = tl.join((low * (scale / (1 << E))).to(DTYPE), (high * (scale / (1 << (E + 4)))).to(DTYPE))
    return weights


@triton.jit  # type: ignore[untyped-decorator]  # triton is not typed
def row_order(BLOCK_N: tl.constexpr, WARPS: tl.constexpr) -> tl.tensor:
    """Which row of the block each loaded row is: a warp's eight lanes of rows, twice, are the 16 rows of its `mma`."""
    r = tl.arange(0, BLOCK_N)
    return r // (16 * WARPS) * (16 * WARPS) + (r // 8) % WARPS * 16 + (r // (8 * WARPS)) % 2 * 8 + r % 8


@triton.jit  # type: ignore[untyped-decorator]  # triton is not typed
def group_values(
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
    n = start + row_order(BLOCK_N, WARPS)
    chunk = step * 4 + tl.arange(0, 4)
    inside = (n < N)[:, None] & (chunk < K // (128 // BITS))[None, :]
    group = n[:, None] * ((K + GROUP - 1) // GROUP) + (chunk // (GROUP * BITS // 128))[None, :]
    scale = tl.load(scales_ptr + group, mask=inside, other=0.0)
    zero = scale if zeros_ptr is None else tl.load(zeros_ptr + group, mask=inside, other=0)
    return scale, zero


@triton.jit  # type: ignore[untyped-decorator]  # triton is not typed
def load_weights(
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
    n = start + row_order(BLOCK_N, WARPS)
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
        pair_of(words, scale, zero, magic, 0, BITS, DTYPE), pair_of(words, scale, zero, magic, 1, BITS, DTYPE)
    )
    if BITS == 8:  # row, b, j, p, c
        split = tl.reshape(two, (BLOCK_N // (16 * WARPS), 2, WARPS, 8, 4, 2, 2, 2, 2))
        weights = tl.reshape(tl.permute(split, (0, 2, 1, 3, 5, 8, 6, 4, 7)), (BLOCK_N, 64))
    else:  # row, b, j, p, i0, i1
        more = tl.join(
            pair_of(words, scale, zero, magic, 2, BITS, DTYPE), pair_of(words, scale, zero, magic, 3, BITS, DTYPE)
        )
        split = tl.reshape(tl.join(two, more), (BLOCK_N // (16 * WARPS), 2, WARPS, 8, 4, 2, 2, 2, 2, 2))
        weights = tl.reshape(tl.permute(split, (0, 2, 1, 3, 5, 9, 8, 6, 4, 7)), (BLOCK_N, 128))
    return weights


@triton.jit  # type: ignore[untyped-decorator]  # triton is not typed
def load_activations(
    x_ptr: tl.tensor,
    m: tl.tensor,
    step: tl.tensor,
    M: tl.tensor,
    K: tl.tensor,
    BITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
) -> tl.tensor:
    """x of the step's columns, renamed as in `load_weights`, transposed: (128 or 64, BLOCK_M)."""
    k = step * (512 // BITS) + tl.arange(0, 512 // BITS)
    inside = (m < M)[:, None] & (k < K)[None, :]
    x = tl.load(x_ptr + m[:, None] * K + k[None, :], mask=inside, other=0.0)
    if BITS == 4:
        split = tl.permute(tl.reshape(x, (BLOCK_M, 4, 2, 2, 2, 2, 2)), (0, 5, 3, 4, 6, 1, 2))
    else:
        split = tl.permute(tl.reshape(x, (BLOCK_M, 4, 2, 2, 2, 2)), (0, 2, 5, 3, 1, 4))
    return tl.trans(tl.reshape(split, (BLOCK_M, 512 // BITS)))


@triton.jit  # type: ignore[untyped-decorator]  # triton is not typed
def multiply(a: tl.tensor, b: tl.tensor, acc: tl.tensor) -> tl.tensor:
    """acc + a b on tensor cores. The interpreter keeps bfloat16 as raw bits and would multiply those."""
    if INTERPRETED:  # noqa: SIM108 - a statement reads better
        acc = tl.dot(a.to(tl.float32), b.to(tl.float32), acc)
    else:
        acc = tl.dot(a, b, acc)
    return acc


@triton.jit  # type: ignore[untyped-decorator]  # triton is not typed
def matmul_program(
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
    scale, zero = group_values(scales_ptr, zeros_ptr, start, first, N, K, GROUP, BITS, BLOCK_N, WARPS)
    if up_words_ptr is not None:
        scale_up, zero_up = group_values(up_scales_ptr, up_zeros_ptr, start, first, N, K, GROUP, BITS, BLOCK_N, WARPS)
    for step in range(first, last):  # scales are too narrow for the asynchronous copies of the pipeline: a step ahead
        weights = load_weights(words_ptr, scale, zero, start, step, N, K, ZEROS, BITS, DTYPE, BLOCK_N, WARPS)
        scale, zero = group_values(scales_ptr, zeros_ptr, start, step + 1, N, K, GROUP, BITS, BLOCK_N, WARPS)
        x = load_activations(x_ptr, m, step, M, K, BITS, BLOCK_M)
        acc = multiply(weights, x, acc)
        if up_words_ptr is not None:
            weights = load_weights(
                up_words_ptr, scale_up, zero_up, start, step, N, K, ZEROS, BITS, DTYPE, BLOCK_N, WARPS
            )
            scale_up, zero_up = group_values(
                up_scales_ptr, up_zeros_ptr, start, step + 1, N, K, GROUP, BITS, BLOCK_N, WARPS
            )
            acc_up = multiply(weights, x, acc_up)
    n = start + tl.arange(0, BLOCK_N)
    inside = (n < N)[:, None] & (m < M)[None, :]
    at = m.to(tl.int64)[None, :] * N + n[:, None]
    if SPLITS == 1:
        if up_words_ptr is not None:
            acc = silu_times(acc, acc_up)
        if bias_ptr is not None:
            acc += tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)[:, None]
        tl.store(y_ptr + at, acc.to(DTYPE), mask=inside)
    else:
        PARTS: tl.constexpr = 1 if up_words_ptr is None else 2
        tl.store(y_ptr + split * PARTS * M * N + at, acc, mask=inside)
        if up_words_ptr is not None:
            tl.store(y_ptr + (split * PARTS + 1) * M * N + at, acc_up, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]  # triton is not typed
def silu_times(gate: tl.tensor, up: tl.tensor) -> tl.tensor:
    """silu(gate) * up."""
    return gate / (1.0 + tl.exp(-gate)) * up


@triton.jit  # type: ignore[untyped-decorator]  # triton is not typed
def sum_parts_kernel(
    parts_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    y_ptr: tl.tensor,
    size: tl.tensor,
    N: tl.tensor,
    GATED: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """y = the parts, added in the order of their columns: the same bits in every run."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    acc = tl.zeros((BLOCK,), tl.float32)
    acc_up = tl.zeros((BLOCK,), tl.float32)
    PARTS: tl.constexpr = 2 if GATED else 1
    for split in tl.static_range(SPLITS):
        acc += tl.load(parts_ptr + split * PARTS * size + at, mask=inside, other=0.0)
        if GATED:
            acc_up += tl.load(parts_ptr + (split * PARTS + 1) * size + at, mask=inside, other=0.0)
    if GATED:
        acc = silu_times(acc, acc_up)
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + at % N, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + at, acc.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]  # triton is not typed
def store_row(
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
    """End of a one-row program: sums (BLOCK_N, CHUNKS) into y, or into the float32 parts (as in `matmul_program`)."""
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

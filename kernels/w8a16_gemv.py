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

from collections.abc import Iterator

import torch
from torch import Tensor

from soloist.kernels.jit import tl, triton
from soloist.kernels.layout import Quantized
from soloist.kernels.matmul_check import check_matmul, row
from soloist.kernels.matmul_host import build, launch, matmul_ref, sizes_of, sum_build
from soloist.kernels.matmul_parts import as_fp32, load_words, magic_fp32, store_row
from soloist.kernels.spec import Build, Case, Configuration, Kernel, Outcome
from soloist.kernels.w8a16_gemm import _w8a16_gemm_kernel

MOST_ROWS = 16
CACHED = 1 << 21  # weights (2 MiB) of a matrix that several rows may read each for itself: it stays in L2


def w8a16_gemv_ref(
    x: Tensor,
    weight: Quantized,
    *,
    up: Quantized | None = None,
    bias: Tensor | None = None,
    inside: torch.dtype | None = None,
) -> Tensor:
    """The same in plain torch: dequantize, then multiply; in float64 if `inside` says so."""
    return matmul_ref(x, weight, up, bias, inside)


def _one(block_n: int, warps: int, splits: int = 1) -> Configuration:
    return Configuration({"BLOCK_N": block_n, "CHUNKS": 32 * warps, "SPLITS": splits}, warps, 1)


def _several(block_m: int, splits: int, gated: bool = False) -> Configuration:
    """64 outputs for few rows of one matrix, else 128: near 90 registers ptxas spills rather than lose a program."""
    block_n, stages = (64, 4) if block_m == 8 and not gated else (128, 3)
    return Configuration({"BLOCK_N": block_n, "BLOCK_M": block_m, "SPLITS": splits}, 4, stages)


ONE_ROW = (*(_one(block_n, warps) for block_n in (4, 8) for warps in (1, 2, 4)), _one(8, 4, splits=4))
SEVERAL_ROWS = tuple(_several(block_m, splits) for block_m in (8, 16) for splits in (1, 2, 4, 8))
GATED_ROWS = tuple(_several(8, splits, gated=True) for splits in (1, 2, 4, 8))
CONFIGURATIONS = (*ONE_ROW, *SEVERAL_ROWS, *GATED_ROWS)
COARSE = {  # few programs: for the interpreter
    "lanes": Configuration({"BLOCK_N": 128, "CHUNKS": 64, "SPLITS": 1}, 4, 1),
    "tile": Configuration({"BLOCK_N": 256, "BLOCK_M": 16, "SPLITS": 1}, 4, 1),
}


def choose_configuration(m: int, n: int, k: int, group: int, gated: bool = False) -> Configuration:
    """The configuration for a shape, where no tuned table knows better."""
    if m == 1 or (m <= 4 and n * k <= CACHED):
        if n <= 1024 and k >= 8192:
            return _one(8, 4, splits=4)
        return _one(4 if n <= 2048 or gated else 8, 1 if k <= 512 else 2 if k <= 1024 else 4)
    rows = 8 if m <= 8 else 16
    programs, splits = -(-n // _several(rows, 1, gated).constants["BLOCK_N"]), 1
    while splits < 8 and programs * splits < 256 and k >= 512 * splits:
        splits *= 2
    return _several(rows, splits, gated)


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
    sums: tl.tensor, words_ptr: tl.tensor, scales_ptr: tl.tensor, where: tl.tensor, group: tl.tensor,
    inside: tl.tensor, x0: tl.tensor, x1: tl.tensor, x2: tl.tensor, x3: tl.tensor, magic: tl.tensor,
    BLOCK_N: tl.constexpr, CHUNKS: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """sums + scale * (codes of each chunk times its x)."""
    words = load_words(words_ptr + where, inside) ^ 0x80808080
    part = tl.zeros((BLOCK_N, CHUNKS, 4), tl.float32)
    part = _fma_byte(_fma_byte(part, words, x0, magic, 0), words, x1, magic, 1)
    part = _fma_byte(_fma_byte(part, words, x2, magic, 2), words, x3, magic, 3)
    scale = tl.load(scales_ptr + group, mask=inside, other=0.0, eviction_policy="evict_first").to(tl.float32)
    return tl.fma(tl.sum(part, axis=2), scale, sums)


@triton.jit  # type: ignore[untyped-decorator]  # triton is not typed
def _w8a16_gemv_kernel(
    x_ptr: tl.tensor, words_ptr: tl.tensor, scales_ptr: tl.tensor, zeros_ptr: tl.tensor, up_words_ptr: tl.tensor,
    up_scales_ptr: tl.tensor, up_zeros_ptr: tl.tensor, bias_ptr: tl.tensor, y_ptr: tl.tensor, M: tl.tensor,
    N: tl.tensor, K: tl.tensor, GROUP: tl.constexpr, BLOCK_N: tl.constexpr, CHUNKS: tl.constexpr,
    SPLITS: tl.constexpr,
) -> None:  # fmt: skip
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


def w8a16_gemv(
    x: Tensor,
    weight: Quantized,
    *,
    up: Quantized | None = None,
    bias: Tensor | None = None,
    out: Tensor | None = None,
    workspace: Tensor | None = None,
    configuration: Configuration | None = None,
) -> Tensor:
    """y (M, N) = x W^T + bias, or silu(x W^T) * (x Up^T).

    Args:
        x: (M, K), 1 to 16 rows.
        weight: W (N, K), 8 bit.
        up: the second matrix of a gated layer; `weight` is the gate.
        bias: (N,), of the activations' type.
        out: where y goes.
        workspace: float32 for the parts of split columns, `matmul_parts.workspace_size` elements.
        configuration: one of CONFIGURATIONS; chosen by shape where none is given.

    Raises:
        UsageError: arguments that do not fit.
    """
    m, n, k = sizes_of(x, weight, up, bias, out, bits=8, most=MOST_ROWS)
    cut = configuration or choose_configuration(m, n, k, weight.group, up is not None)
    kernel = _w8a16_gemm_kernel if "BLOCK_M" in cut.constants else _w8a16_gemv_kernel
    return launch(kernel, cut, x, weight, up, bias, out, workspace)


def _builds() -> Iterator[Build]:
    """Every configuration in float16; the common ones in bfloat16, in groups of 64, and with what may be added."""
    one, several = (
        (_one(4, 1), _one(8, 2), _one(8, 4)),
        [_several(rows, splits) for rows in (8, 16) for splits in (1, 4)],
    )
    plans = [(cut, "fp16", group, "") for cut in ONE_ROW for group in (32, 128)]
    plans += [(cut, "fp16", 128, "") for cut in SEVERAL_ROWS] + [(cut, "fp16", 32, "") for cut in several]
    plans += [(cut, "bf16", 32, "") for cut in (*one, *several)] + [(cut, "fp16", 64, "") for cut in one]
    for extra in ("bias",):
        plans += [(cut, "fp16", group, extra) for cut in (_one(4, 1), _one(8, 4)) for group in (32, 128)]
        plans += [(_several(16, 1), "fp16", 32, extra)]
    plans += [(cut, "fp16", group, "gated") for cut in ONE_ROW[:3] for group in (32, 128)]
    plans += [(cut, "fp16", 32, "gated") for cut in (*GATED_ROWS, _several(16, 1), _several(16, 4))]
    for cut, dtype, group, extra in plans:
        kernel = _w8a16_gemm_kernel if "BLOCK_M" in cut.constants else _w8a16_gemv_kernel
        yield build("w8a16_gemv", kernel, cut, dtype, group, extra)
    for splits in (2, 4, 8):
        yield sum_build("w8a16_gemv", "fp16", splits, gated=False, bias=False)
    yield sum_build("w8a16_gemv", "bf16", 4, gated=False, bias=False)
    yield sum_build("w8a16_gemv", "fp16", 4, gated=True, bias=False)
    yield sum_build("w8a16_gemv", "fp16", 4, gated=False, bias=True)


def _cases() -> Iterator[Case]:
    half, brain = "float16", "bfloat16"
    for cut, shape in enumerate(CONFIGURATIONS):
        several = "BLOCK_M" in shape.constants
        dtype, extra = (half, brain)[cut % 2], ({}, {"bias": True}, {"gated": True})[cut % 3]
        extra = {"gated": True} if shape in GATED_ROWS else extra
        yield row(
            2 + cut % 15 if several else 1,
            43,
            352,
            dtype,
            (32, 64, 128)[cut % 3],
            tensor_cores=several,
            cut=cut,
            **extra,
        )
    one, more = {"tensor_cores": False}, {"tensor_cores": True}
    yield row(1, 576, 1536, half, 32, **one, coarse="lanes")
    yield row(1, 1536, 576, brain, 64, **one, coarse="lanes", gated=True)
    yield row(1, 576, 192, half, 128, **one, coarse="lanes")
    yield row(1, 192, 576, brain, 32, **one, coarse="lanes", bias=True)
    yield row(1, 896, 4864, half, 128, **one, coarse="lanes", bias=True)
    yield row(1, 4864, 896, half, 64, **one, coarse="lanes")
    yield row(1, 2048, 5632, brain, 32, **one, coarse="lanes", slow=True)
    yield row(1, 5632, 2048, half, 32, **one, coarse="lanes", slow=True)
    yield row(1, 191, 160, half, 128, **one, coarse="lanes")
    yield row(1, 577, 352, brain, 128, **one, coarse="lanes", gated=True)
    yield row(3, 191, 1184, half, 64, **one, coarse="lanes")
    yield row(2, 577, 352, half, 32, **one, coarse="lanes")
    yield row(3, 191, 160, brain, 64, **more, coarse="tile")
    yield row(7, 576, 192, half, 128, **more, bias=True)
    yield row(16, 192, 576, brain, 32, **more, gated=True)
    yield row(16, 576, 1536, half, 32, **more, coarse="tile", slow=True)
    yield row(16, 896, 4864, half, 128, **more, coarse="tile", slow=True)
    yield row(5, 2048, 5632, brain, 64, **more, coarse="tile", slow=True)


def check(case: Case, device: str, seed: int) -> Outcome:
    """One case: see `matmul_check`."""
    m, n, k = (case.sizes[name] for name in ("M", "N", "K"))
    cut = choose_configuration(m, n, k, case.options["group"], bool(case.options.get("gated")))
    if "cut" in case.options:
        cut = CONFIGURATIONS[case.options["cut"]]
    elif "coarse" in case.options and device == "cpu":
        cut = COARSE[case.options["coarse"]]
    return check_matmul(w8a16_gemv, 8, cut, case, device, seed)


KERNEL = Kernel(
    name="w8a16_gemv",
    summary="y = x W^T, 8-bit W, 1 to 16 rows; split-K, bias, silu(gate) * up",
    run=w8a16_gemv,
    reference=w8a16_gemv_ref,
    configurations=CONFIGURATIONS,
    cases=tuple(_cases()),
    check=check,
    builds=_builds,
)

"""y = x W^T for any number of rows of x and 8-bit W, on tensor cores: prefill, and several rows of decoding.

    x (M, K) float16 or bfloat16;   W (N, K) as `soloist.kernels.layout.Quantized`, 8 bit;   y (M, N)
    y[m, n] = sum_k x[m, k] * round(q[n, k] * s[n, g])   (+ bias[n]),   rounded to the type of x
    with `up`: y = silu(x W^T) * (x Up^T)

A program takes BLOCK_N outputs of BLOCK_M rows, 64 columns at a time. W is unpacked in registers in the order in which
the tensor core wants it (`matmul_parts` says how: columns are renamed, not moved); x is loaded as it lies. Sums are
float32. The scale is applied before the product, so any group size goes, at the price of one rounding per weight, the
same as a dequantized matrix of that type has.

The magic numbers of unpacking are those of FasterTransformer's int8 kernels (Kim et al., 2022). Left out: float32
activations, an order of programs that favors the L2 cache at many rows, and tensor-memory-access loads.
"""

from __future__ import annotations

import functools

from soloist.kernels.jit import tl, triton
from soloist.kernels.matmul_builds import gemm_builds
from soloist.kernels.matmul_check import check_matmul, gemm_cases
from soloist.kernels.matmul_configs import GEMM, gemm_config
from soloist.kernels.matmul_host import Matmul, matmul_ref
from soloist.kernels.matmul_parts import matmul_program
from soloist.kernels.spec import Kernel

w8a16_gemm_ref = matmul_ref  # dequantize, then torch's own product; in float64 if `inside` says so

CONFIGURATIONS = GEMM  # `gemm_config` picks one


@triton.jit  # type: ignore[untyped-decorator]  # triton is not typed
def _w8a16_gemm_kernel(
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
    BLOCK_M: tl.constexpr,
    SPLITS: tl.constexpr,
    WARPS: tl.constexpr,
) -> None:
    """`matmul_program` over 8-bit codes; also what `w8a16_gemv` runs for several rows."""
    matmul_program(
        x_ptr,
        words_ptr,
        scales_ptr,
        zeros_ptr,
        up_words_ptr,
        up_scales_ptr,
        up_zeros_ptr,
        bias_ptr,
        y_ptr,
        M,
        N,
        K,
        GROUP,
        8,
        BLOCK_N,
        BLOCK_M,
        SPLITS,
        WARPS,
    )


w8a16_gemm = Matmul(
    name="w8a16_gemm",
    bits=8,
    most_rows=0,
    configurations=CONFIGURATIONS,
    rule=gemm_config,
    gemm=_w8a16_gemm_kernel,
)


KERNEL = Kernel(
    name="w8a16_gemm",
    summary="y = x W^T, 8-bit W, any number of rows, tensor cores; bias, silu(gate) * up",
    run=w8a16_gemm,
    reference=w8a16_gemm_ref,
    configurations=CONFIGURATIONS,
    cases=tuple(gemm_cases(8)),
    check=functools.partial(check_matmul, w8a16_gemm),
    builds=functools.partial(gemm_builds, w8a16_gemm),
)

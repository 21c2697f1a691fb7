"""y = x W^T for any number of rows of x and 4-bit W, on tensor cores: prefill, and several rows of decoding.

    x (M, K) float16 or bfloat16;   W (N, K) as `soloist.kernels.layout.Quantized`, 4 bit;   y (M, N)
    y[m, n] = sum_k x[m, k] * round((u[n, k] - z[n, g]) * s[n, g])   (+ bias[n]),   rounded to the type of x
    with `up`: y = silu(x W^T) * (x Up^T)

A program takes BLOCK_N outputs of BLOCK_M rows, 128 columns at a time. W is unpacked in registers in the order in which
the tensor core wants it (`matmul_parts` says how: columns are renamed, not moved); x is loaded as it lies. Sums are
float32. The scale is applied before the product, so any group size goes, at the price of one rounding per weight, the
same as a dequantized matrix of that type has.

Sources: Marlin (Frantar et al., 2024) for keeping dequantized weights in registers. Left out: float32 activations, an
order of programs that favors the L2 cache at many rows, and tensor-memory-access loads.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from soloist.kernels.jit import tl, triton
from soloist.kernels.layout import Quantized
from soloist.kernels.matmul_check import check_matmul, row
from soloist.kernels.matmul_host import build, launch, matmul_ref, sizes_of
from soloist.kernels.matmul_parts import matmul_program
from soloist.kernels.spec import Build, Case, Configuration, Kernel, Outcome


def w4a16_gemm_ref(
    x: Tensor,
    weight: Quantized,
    *,
    up: Quantized | None = None,
    bias: Tensor | None = None,
    inside: torch.dtype | None = None,
) -> Tensor:
    """The same in plain torch: dequantize, then multiply; in float64 if `inside` says so."""
    return matmul_ref(x, weight, up, bias, inside)


def _cut(block_n: int, block_m: int, warps: int, stages: int) -> Configuration:
    return Configuration({"BLOCK_N": block_n, "BLOCK_M": block_m, "SPLITS": 1}, warps, stages)


CONFIGURATIONS = (_cut(128, 16, 4, 3), _cut(64, 32, 4, 4), _cut(64, 64, 4, 3), _cut(128, 64, 8, 3))
COARSE = _cut(256, 128, 4, 1)  # few programs: for the interpreter


def choose_configuration(m: int, n: int, k: int, group: int, gated: bool = False) -> Configuration:
    """The configuration for a shape, where no tuned table knows better: as many rows as there are, then wide tiles."""
    if m <= 16:
        return CONFIGURATIONS[0]
    if m <= 32 or gated:  # two matrices at once: wider tiles would spill
        return CONFIGURATIONS[1]
    return CONFIGURATIONS[2 if m <= 64 or n < 2048 else 3]


@triton.jit  # type: ignore[untyped-decorator]  # triton is not typed
def _w4a16_gemm_kernel(
    x_ptr: tl.tensor, words_ptr: tl.tensor, scales_ptr: tl.tensor, zeros_ptr: tl.tensor, up_words_ptr: tl.tensor,
    up_scales_ptr: tl.tensor, up_zeros_ptr: tl.tensor, bias_ptr: tl.tensor, y_ptr: tl.tensor, M: tl.tensor,
    N: tl.tensor, K: tl.tensor, GROUP: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
    SPLITS: tl.constexpr, WARPS: tl.constexpr,
) -> None:  # fmt: skip
    """`matmul_program` over 4-bit codes; also what `w4a16_gemv` runs for several rows."""
    matmul_program(
        x_ptr, words_ptr, scales_ptr, zeros_ptr, up_words_ptr, up_scales_ptr, up_zeros_ptr, bias_ptr, y_ptr, M, N, K,
        GROUP, 4, BLOCK_N, BLOCK_M, SPLITS, WARPS,
    )  # fmt: skip


def w4a16_gemm(
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
        x: (M, K), any number of rows.
        weight: W (N, K), 4 bit.
        up: the second matrix of a gated layer; `weight` is the gate.
        bias: (N,), of the activations' type.
        out: where y goes.
        workspace: float32 for the parts of a configuration with SPLITS over 1.
        configuration: one of CONFIGURATIONS; chosen by shape where none is given.

    Raises:
        UsageError: arguments that do not fit.
    """
    m, n, k = sizes_of(x, weight, up, bias, out, bits=4, most=0)
    cut = configuration or choose_configuration(m, n, k, weight.group, up is not None)
    return launch(_w4a16_gemm_kernel, cut, x, weight, up, bias, out, workspace)


def _cases() -> Iterator[Case]:
    half, brain = "float16", "bfloat16"
    for cut in range(len(CONFIGURATIONS)):
        dtype = (half, brain)[cut % 2]
        yield row(19 + cut, 67, 352, dtype, (32, 64, 128)[cut % 3], tensor_cores=True, cut=cut, zeros=cut % 2 == 1)
    yield row(17, 191, 160, half, 32, tensor_cores=True, bias=True)
    yield row(33, 577, 352, brain, 128, tensor_cores=True, gated=True, coarse=True)
    yield row(130, 576, 1536, half, 32, tensor_cores=True, coarse=True)
    yield row(33, 576, 192, half, 64, tensor_cores=True, zeros=True, bias=True)
    yield row(17, 192, 576, brain, 32, tensor_cores=True, gated=True, zeros=True)
    yield row(1, 1536, 576, half, 128, tensor_cores=True, coarse=True)
    yield row(17, 896, 4864, brain, 64, tensor_cores=True, coarse=True, slow=True)
    yield row(17, 2048, 5632, half, 128, tensor_cores=True, coarse=True, slow=True)
    yield row(130, 5632, 2048, brain, 32, tensor_cores=True, gated=True, coarse=True, slow=True)


def check(case: Case, device: str, seed: int) -> Outcome:
    """One case: see `matmul_check`."""
    m, n, k = (case.sizes[name] for name in ("M", "N", "K"))
    cut = choose_configuration(m, n, k, case.options["group"], bool(case.options.get("gated")))
    if "cut" in case.options:
        cut = CONFIGURATIONS[case.options["cut"]]
    elif case.options.get("coarse") and device == "cpu":
        cut = COARSE
    return check_matmul(w4a16_gemm, 4, cut, case, device, seed)


def _builds() -> Iterator[Build]:
    for cut in CONFIGURATIONS:
        for dtype in ("fp16", "bf16"):
            for group in (32, 128):
                yield build("w4a16_gemm", _w4a16_gemm_kernel, cut, dtype, group)
    for extra in ("bias", "zeros", "gated"):
        for cut in CONFIGURATIONS[:2] if extra == "gated" else CONFIGURATIONS[1:]:
            yield build("w4a16_gemm", _w4a16_gemm_kernel, cut, "fp16", 32, extra)


KERNEL = Kernel(
    name="w4a16_gemm",
    summary="y = x W^T, 4-bit W, any number of rows, tensor cores; bias, zero points, silu(gate) * up",
    run=w4a16_gemm,
    reference=w4a16_gemm_ref,
    configurations=CONFIGURATIONS,
    cases=tuple(_cases()),
    check=check,
    builds=_builds,
)

"""What the four low-bit matmuls share on the host: the reference, checks of arguments, launches, ahead-of-time builds.

All of them take the same arguments in the same order, so one function launches any of them. Left out: choosing by
device (`choose`), tuning.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from soloist.kernels.choose import interpreting
from soloist.kernels.errors import UsageError
from soloist.kernels.layout import Quantized, dequantize
from soloist.kernels.matmul_parts import sum_parts_kernel
from soloist.kernels.spec import Build, Configuration

TYPES: Mapping[torch.dtype, str] = {torch.float16: "fp16", torch.bfloat16: "bf16"}  # of activations

SUM_BLOCK = 256  # outputs per program of the sum over parts


def matmul_ref(
    x: Tensor, weight: Quantized, up: Quantized | None, bias: Tensor | None, inside: torch.dtype | None
) -> Tensor:
    """Dequantize, then multiply.

    Args:
        inside: type of the arithmetic; float64 also keeps the result in float64. The activations' own by default.
    """
    inside = inside or x.dtype
    y = x.to(inside) @ dequantize(weight, inside).T
    if up is not None:
        y = torch.nn.functional.silu(y) * (x.to(inside) @ dequantize(up, inside).T)
    if bias is not None:
        y = y + bias.to(inside)
    return y if inside == torch.float64 else y.to(x.dtype)


def sizes_of(
    x: Tensor, weight: Quantized, up: Quantized | None, bias: Tensor | None, out: Tensor | None, bits: int, most: int
) -> tuple[int, int, int]:
    """(M, N, K) of y = x W^T.

    Args:
        bits: width of the codes this kernel reads.
        most: largest M; 0 for any.

    Raises:
        UsageError: what does not fit, in one line.
    """
    (n, k), device = weight.shape, x.device
    if x.dtype not in TYPES:
        raise UsageError(f"activations are float16 or bfloat16, not {x.dtype}")
    if x.ndim != 2 or x.shape[1] != k or not x.is_contiguous():
        raise UsageError(f"x is {tuple(x.shape)}: a matrix of {n} x {k} takes contiguous (M, {k})")
    m = x.shape[0]
    if x.numel() >= 1 << 31:
        raise UsageError(f"x has {x.numel()} elements: places are counted in 32 bits, hand it over in parts")
    if not 1 <= m <= (most or m):
        raise UsageError(f"{m} rows: this kernel takes 1 to {most}, more are for gemm" if m else "x has no rows")
    for name, matrix in (("weight", weight), ("up", up)):
        if matrix is not None:
            _check_matrix(name, matrix, bits, device)
    if up is not None:
        if up.shape != weight.shape or up.group != weight.group or (up.zeros is None) != (weight.zeros is None):
            raise UsageError("gate and up must agree in shape, group size and whether they have zero points")
        if bias is not None:
            raise UsageError("a bias together with up is not supported: gated layers have none")
    for name, given, shape in (("bias", bias, (n,)), ("out", out, (m, n))):
        if given is not None and (
            given.shape != shape or given.dtype != x.dtype or given.device != device or not given.is_contiguous()
        ):
            raise UsageError(f"{name} must be contiguous {x.dtype} {shape} on {device}")
    if device.type == "cpu" and not interpreting():
        raise UsageError("tensors are on the CPU: use the reference, or set TRITON_INTERPRET=1 before the first import")
    return m, n, k


def _check_matrix(name: str, matrix: Quantized, bits: int, device: torch.device) -> None:
    if matrix.bits != bits:
        raise UsageError(f"{name} has {matrix.bits}-bit codes, this kernel reads {bits}")
    parts = [matrix.codes, matrix.scales, *([] if matrix.zeros is None else [matrix.zeros])]
    if any(part.device != device for part in parts):
        raise UsageError(f"{name} is on {matrix.codes.device}, x on {device}: use .to(...)")
    if not all(part.is_contiguous() for part in parts) or matrix.codes.data_ptr() % 16:
        raise UsageError(f"{name} must be contiguous, its codes at a multiple of 16 bytes")


def _pointers(weight: Quantized | None) -> list[Tensor | None]:
    """Words, scales and zero points as the kernels take them; 8-bit codes in words of four."""
    if weight is None:
        return [None, None, None]
    return [weight.codes.view(torch.int32), weight.scales, weight.zeros]


def _cdiv(a: int, b: int) -> int:
    return -(-a // b)


def workspace_size(configuration: Configuration, rows: int, outputs: int, gated: bool) -> int:
    """Elements of float32 that a split-K launch writes its parts to; 0 where it needs none."""
    splits = configuration.constants["SPLITS"]
    return 0 if splits == 1 else splits * (2 if gated else 1) * rows * outputs


def launch(
    kernel: Any,  # noqa: ANN401 - triton is not typed
    configuration: Configuration,
    x: Tensor,
    weight: Quantized,
    up: Quantized | None,
    bias: Tensor | None,
    out: Tensor | None,
    workspace: Tensor | None,
) -> Tensor:
    """Run a kernel of the common signature, and the sum over its parts if it leaves any."""
    (m, k), n = x.shape, weight.shape[0]
    cut = dict(configuration.constants)
    splits, rows, size = cut["SPLITS"], cut.get("BLOCK_M"), workspace_size(configuration, m, n, up is not None)
    y = torch.empty((m, n), dtype=x.dtype, device=x.device) if out is None else out
    if workspace is None:
        workspace = torch.empty(size, dtype=torch.float32, device=x.device)
    elif workspace.numel() < size or workspace.dtype != torch.float32 or workspace.device != x.device:
        raise UsageError(f"workspace must be float32 on {x.device} with at least {size} elements")
    if rows is not None:
        cut["WARPS"] = configuration.warps
    grid = (_cdiv(n, cut["BLOCK_N"]), splits, m if rows is None else _cdiv(m, rows))
    with torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext():
        kernel[grid](
            x, *_pointers(weight), *_pointers(up), bias if splits == 1 else None, y if splits == 1 else workspace,
            m, n, k, GROUP=weight.group, **cut, num_warps=configuration.warps, num_stages=configuration.stages,
        )  # fmt: skip
        if splits > 1:
            sum_parts_kernel[(_cdiv(m * n, SUM_BLOCK),)](
                workspace, bias, y, m * n, n, GATED=up is not None, SPLITS=splits, BLOCK=SUM_BLOCK
            )
    return y


def build(
    kernel: str,
    function: Any,  # noqa: ANN401 - triton is not typed
    configuration: Configuration,
    dtype: str,
    group: int,
    extra: str = "",
) -> Build:
    """One ahead-of-time build of a kernel of the common signature.

    Args:
        dtype: of activations, `fp16` or `bf16`.
        extra: "", "bias", "zeros" or "gated".
    """
    cut = dict(configuration.constants)
    split, rows = cut["SPLITS"] > 1, cut.get("BLOCK_M")
    types = {
        "x_ptr": f"*{dtype}", "words_ptr": "*i32", "scales_ptr": "*fp16", "zeros_ptr": "*u8", "up_words_ptr": "*i32",
        "up_scales_ptr": "*fp16", "up_zeros_ptr": "*u8", "bias_ptr": f"*{dtype}",
        "y_ptr": "*fp32" if split else f"*{dtype}", "M": "i32", "N": "i32", "K": "i32",
    }  # fmt: skip
    absent = {"up_words_ptr", "up_scales_ptr"} if extra != "gated" else set()
    absent |= {"up_zeros_ptr", *(("zeros_ptr",) if extra != "zeros" else ())}
    absent |= {"bias_ptr"} if extra != "bias" or split else set()
    constants = {**dict.fromkeys(sorted(absent)), **cut, "GROUP": group}
    if rows is not None:
        constants["WARPS"] = configuration.warps
    return Build(
        kernel=kernel,
        variant="-".join(filter(None, (dtype, f"g{group}", extra))),
        function=function,
        signature={name: kind for name, kind in types.items() if name not in absent},
        constants=constants,
        configuration=configuration,
        aligned=tuple(name for name in ("x_ptr", "words_ptr", "up_words_ptr", "scales_ptr", "y_ptr", "K")
                      if name not in absent),
        grid=("cdiv(N, BLOCK_N)", "SPLITS", "M" if rows is None else "cdiv(M, BLOCK_M)"),
    )  # fmt: skip


def sum_build(kernel: str, dtype: str, splits: int, gated: bool, bias: bool) -> Build:
    """The sum over parts that follows a split-K launch, ahead of time."""
    extra = "gated" if gated else "bias" if bias else ""
    signature = {"parts_ptr": "*fp32", "bias_ptr": f"*{dtype}", "y_ptr": f"*{dtype}", "size": "i32", "N": "i32"}
    if not bias:
        del signature["bias_ptr"]
    return Build(
        kernel=kernel,
        variant="-".join(filter(None, ("sum", dtype, extra))),
        function=sum_parts_kernel,
        signature=signature,
        constants={**({} if bias else {"bias_ptr": None}), "GATED": gated, "SPLITS": splits, "BLOCK": SUM_BLOCK},
        configuration=Configuration({"SPLITS": splits, "BLOCK": SUM_BLOCK}),
        aligned=("parts_ptr", "y_ptr"),
        grid=("cdiv(size, BLOCK)", "1", "1"),
    )

"""What the four low-bit matmuls share on the host: the reference, and the entry point with its checks and launches.

    y = w4a16_gemv(x, weight)           an instance of `Matmul`: checks, chooses a configuration, launches
    y = matmul_ref(x, weight)           the same in plain torch

All of them take the same arguments in the same order, so one class serves them all; what differs is the function on the
device, the bits of a code, the most rows and the configurations. Left out: which configurations there are
(`matmul_configs`), what is compiled ahead of time (`matmul_builds`), how it is checked (`matmul_check`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from soloist.kernels.choose import choose_config, interpreting
from soloist.kernels.errors import UsageError
from soloist.kernels.layout import Quantized, dequantize
from soloist.kernels.matmul_parts import sum_parts_kernel
from soloist.kernels.spec import Configuration

TYPES = (torch.float16, torch.bfloat16)  # of activations


def matmul_ref(
    x: Tensor,
    weight: Quantized,
    *,
    up: Quantized | None = None,
    bias: Tensor | None = None,
    inside: torch.dtype | None = None,
) -> Tensor:
    """y (M, N) = x W^T + bias, or silu(x W^T) * (x Up^T): dequantize, then multiply.

    Args:
        x: (M, K).
        weight: W (N, K).
        up: the second matrix of a gated layer; `weight` is the gate.
        bias: (N,).
        inside: type of the arithmetic; float64 also keeps the result in float64. The activations' own by default.
    """
    inside = inside or x.dtype
    y = x.to(inside) @ dequantize(weight, inside).T
    if up is not None:
        y = torch.nn.functional.silu(y) * (x.to(inside) @ dequantize(up, inside).T)
    if bias is not None:
        y = y + bias.to(inside)
    return y if inside == torch.float64 else y.to(x.dtype)


@dataclass(frozen=True)
class Matmul:
    """An entry point: y (M, N) = x W^T + bias, or silu(x W^T) * (x Up^T).

    Args:
        name: in the registry and in tuned tables.
        bits: of the codes it reads, as stored.
        most_rows: largest M; 0 for any.
        configurations: all that may be chosen.
        rule: the one for M, N, K, bits and whether gated, where no tuned table knows better.
        gemm: its function on tensor cores, for configurations with BLOCK_M.
        gemv: its function for one row, for the others.
    """

    name: str
    bits: Literal[4, 8]
    most_rows: int
    configurations: tuple[Configuration, ...]
    rule: Callable[[int, int, int, int, bool], Configuration]
    gemm: Any
    gemv: Any = None

    def __call__(
        self,
        x: Tensor,
        weight: Quantized,
        *,
        up: Quantized | None = None,
        bias: Tensor | None = None,
        out: Tensor | None = None,
        workspace: Tensor | None = None,
        configuration: Configuration | None = None,
    ) -> Tensor:
        """y (M, N).

        Args:
            x: (M, K), float16 or bfloat16.
            weight: W (N, K).
            up: the second matrix of a gated layer; `weight` is the gate.
            bias: (N,), of the activations' type.
            out: where y goes.
            workspace: float32 for the parts of split columns, `workspace_size` elements.
            configuration: one of `configurations`; by default the tuned one for sizes M, N and K and options `group`
                and, in the gated form, `gated`, else by `rule`.

        Raises:
            UsageError: arguments that do not fit.
        """
        m, n, k = sizes_of(x, weight, up, bias, out, self.bits, self.most_rows)
        gated = up is not None
        options = {"group": weight.group, **({"gated": True} if gated else {})}
        own = self.rule(m, n, k, self.bits, gated)
        config = choose_config(self.name, {"M": m, "N": n, "K": k}, options, x.device, own, configuration)
        return launch(self.function(config), config, x, weight, up, bias, out, workspace)

    def function(self, configuration: Configuration) -> Any:
        """The device's function that a configuration is of."""
        return self.gemm if "BLOCK_M" in configuration.constants else self.gemv


def sizes_of(
    x: Tensor, weight: Quantized, up: Quantized | None, bias: Tensor | None, out: Tensor | None, bits: int, most: int
) -> tuple[int, int, int]:
    """(M, N, K) of y = x W^T.

    Args:
        bits: of the codes this kernel reads, as stored.
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
    if matrix.stored_bits != bits:
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


def sum_config(splits: int) -> Configuration:
    """How the sum over the parts of split columns is launched: 256 outputs a program."""
    return Configuration({"SPLITS": splits, "BLOCK": 256})


def launch(
    kernel: Any,
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
    config = dict(configuration.constants)
    splits, rows, size = config["SPLITS"], config.get("BLOCK_M"), workspace_size(configuration, m, n, up is not None)
    y = torch.empty((m, n), dtype=x.dtype, device=x.device) if out is None else out
    if workspace is None:
        workspace = torch.empty(size, dtype=torch.float32, device=x.device)
    elif workspace.numel() < size or workspace.dtype != torch.float32 or workspace.device != x.device:
        raise UsageError(f"workspace must be float32 on {x.device} with at least {size} elements")
    if rows is not None:
        config["WARPS"] = configuration.warps
    grid = (_cdiv(n, config["BLOCK_N"]), splits, m if rows is None else _cdiv(m, rows))
    with torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext():
        kernel[grid](
            x,
            *_pointers(weight),
            *_pointers(up),
            bias if splits == 1 else None,
            y if splits == 1 else workspace,
            m,
            n,
            k,
            GROUP=weight.group,
            **config,
            **configuration.launch_options(),
        )
        if splits > 1:
            add = sum_config(splits)
            sum_parts_kernel[(_cdiv(m * n, add.constants["BLOCK"]),)](
                workspace, bias, y, m * n, n, GATED=up is not None, **add.constants, **add.launch_options()
            )
    return y

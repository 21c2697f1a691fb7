"""GPTQ: columns are rounded one after another, each one's error compensated in the columns not yet rounded.

    H = 2/T sum_t x_t x_t^T + damping * mean(diag H) * I       x_t (K): inputs of the layer y = x W^T, W (N, K)
    U = upper Cholesky factor of H^-1 (H^-1 = U^T U)
    for j = 0 .. K-1:   v_j = round(w_j / s_j),   e = (w_j - v_j s_j) / U[j, j],   w_k -= e U[j, k]  for k > j

(Frantar et al., arXiv 2210.17323; after each step U's row j is that of the remaining columns' inverse Hessian.) Columns
are taken in blocks: inside a block one program holds its rows and goes column by column, which is the kernel here; the
update of all later columns is one matrix product, W[:, later] -= E U[block, later], by torch.

    order="natural"      blocks are the groups; a group's scales are fixed when it begins, from its weights as they are
                         then, by `pack` (searched and weighted with diag(H) if `search`)
    order="activation"   columns by falling diag(H), in blocks of 128; all scales are fixed before

Rounding, codes and layout are `pack`'s, bit for bit. The column of an input that is always zero is set to zero. H is
factored in float64; if it is not positive definite the damping grows tenfold, at most five times. Left out: scales that
are fitted again afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from soloist.kernels.errors import DataError, UsageError
from soloist.kernels.jit import tl, triton
from soloist.kernels.layout import (
    BITS,
    MIDDLE,
    Quantized,
    dequantize,
    narrow_of,
    pack_nibbles,
    per_column,
    top_of,
    zero_of,
)
from soloist.kernels.pack import Bits, pack, pack_ref
from soloist.kernels.spec import Build, Case, Configuration, Kernel, Outcome

Order = Literal["natural", "activation"]
_BLOCK = 128  # columns of a block where it is not a group
_TRIES = 6
# (w, u, s, z, top) -> (values v, errors e): one block of columns
Inner = Callable[[Tensor, Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]


class Gram:
    """Sums x x^T of a layer's inputs, of which the Hessian is twice the mean."""

    def __init__(self, columns: int, device: torch.device | str = "cpu") -> None:
        self._sum = torch.zeros(columns, columns, device=device)
        self.rows = 0

    def add(self, inputs: Tensor) -> None:
        """Inputs (..., K)."""
        x = inputs.detach().reshape(-1, inputs.shape[-1]).float()
        self._sum.addmm_(x.T, x)
        self.rows += len(x)

    @property
    def mean_square(self) -> Tensor:
        """Mean square of each column: the importance that `pack` takes."""
        return self._sum.diagonal() / max(1, self.rows)

    @property
    def hessian(self) -> Tensor:
        """H without damping."""
        return self._sum * (2 / max(1, self.rows))


def gptq_ref(
    weight: Tensor,
    hessian: Tensor,
    *,
    bits: Bits = 4,
    group: int = 32,
    zeros: bool = False,
    search: bool = True,
    damping: float = 0.01,
    order: Order = "natural",
) -> Quantized:
    """Quantize `weight` (N, K) against `hessian` (K, K) in plain torch.

    Raises:
        UsageError: bits, group, shape or order that there is not.
        DataError: weights or Hessian that are no finite numbers, or a Hessian that cannot be factored.
    """
    return _solve(weight, hessian, _Options(bits, group, zeros, search, damping, order), pack_ref, _block_ref)


def _block_ref(w: Tensor, u: Tensor, s: Tensor, z: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Round the columns of one block in order. All (N, B) but `u` (B, B); `s` fp32, `z` what v's zero is stored as."""
    w = w.T.contiguous()  # a column is a row of memory
    divisible, scale = torch.where(s == 0, 1.0, s).T.contiguous(), s.T.contiguous()
    lowest, highest = (-z).T.contiguous(), (top - z).T.contiguous()
    values, errors = torch.empty_like(w), torch.empty_like(w)
    for j in range(len(w)):
        v = torch.div(w[j], divisible[j], out=values[j])
        torch.maximum(v, lowest[j], out=v)
        torch.minimum(v, highest[j], out=v)
        v.add_(12582912.0).sub_(12582912.0)  # rint, as in pack.py
        error = torch.sub(w[j], v * scale[j], out=errors[j]).div_(u[j, j])
        w[j + 1 :] -= u[j, j + 1 :, None] * error
    return values.T.contiguous(), errors.T.contiguous()


@dataclass(frozen=True)
class _Options:
    bits: Bits
    group: int
    zeros: bool
    search: bool
    damping: float
    order: Order

    @property
    def top(self) -> int:
        """Codes run from 0 to here before they are stored."""
        return top_of(self.bits)


def _solve(
    weight: Tensor, hessian: Tensor, options: _Options, pack: Callable[..., Quantized], inner: Inner
) -> Quantized:
    if options.order not in ("natural", "activation"):
        raise UsageError(f"order '{options.order}': choose natural or activation")
    if tuple(hessian.shape) != (weight.shape[1],) * 2 or not bool(torch.isfinite(hessian).all()):
        raise DataError(f"the Hessian of {weight.shape[1]} inputs must be so many finite numbers squared")
    w, h = weight.float().clone(), hessian.diagonal().float().clone()
    w[:, h == 0] = 0

    def scaled(columns: slice) -> tuple[Tensor, Tensor]:
        """Scales and zero points of groups, one for each of their columns."""
        packed = pack(
            w[:, columns].contiguous(),
            bits=options.bits,
            group=options.group,
            zeros=options.zeros,
            search=options.search,
            importance=h[columns] if options.search else None,
        )
        s = per_column(packed.scales.float(), options.group, h[columns].numel())
        if packed.zeros is None:
            return s, torch.full_like(s, zero_of(options.bits))
        return s, per_column(packed.zeros.float(), options.group, s.shape[1])

    if options.order == "natural":
        codes, s, z = _round_blocks(w, _factor(hessian, options.damping), options.group, options.top, scaled, inner)
    else:
        s, z = scaled(slice(None))
        order = torch.argsort(h, descending=True, stable=True)
        u = _factor(hessian[order][:, order], options.damping)
        s_by, z_by = s[:, order], z[:, order]
        values, _, _ = _round_blocks(
            w[:, order], u, _BLOCK, options.top, lambda columns: (s_by[:, columns], z_by[:, columns]), inner
        )
        codes = torch.empty_like(values)
        codes[:, order] = values
    scales, points = s[:, :: options.group].half(), z[:, :: options.group].to(torch.uint8)
    stored = pack_nibbles(codes + z) if options.bits == 4 else codes.to(torch.int8)
    return Quantized(stored, scales, options.group, points if options.zeros else None, narrow_of(options.bits))


def _round_blocks(
    w: Tensor, u: Tensor, block: int, top: int, scaled: Callable[[slice], tuple[Tensor, Tensor]], inner: Inner
) -> tuple[Tensor, Tensor, Tensor]:
    """Block by block; changes `w`. Returns values, scales and zeros of every column."""
    values, scales, zeros = torch.empty_like(w), torch.empty_like(w), torch.empty_like(w)
    for first in range(0, w.shape[1], block):
        here, later = slice(first, min(first + block, w.shape[1])), slice(first + block, None)
        scales[:, here], zeros[:, here] = scaled(here)
        part = w[:, here].contiguous()
        square = u[here, here].contiguous()
        values[:, here], errors = inner(part, square, scales[:, here].contiguous(), zeros[:, here].contiguous(), top)
        w[:, later] -= errors @ u[here, later]
    return values, scales, zeros


def _factor(hessian: Tensor, damping: float) -> Tensor:
    """U of the damped Hessian, float32."""
    exact = hessian.double()
    diagonal = exact.diagonal()
    exact = exact + torch.diag((diagonal == 0).double())
    mean = float(diagonal.mean()) or 1.0
    for _ in range(_TRIES):
        lower, failed = torch.linalg.cholesky_ex(exact + torch.eye(len(exact), device=exact.device) * (damping * mean))
        if not int(failed):
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
        if not int(failed):
            factor: Tensor = upper.float()
            return factor
        damping = max(10 * damping, 1e-6)
    raise DataError("the Hessian cannot be factored, however damped: calibrate on more, or more different, text")


CONFIGURATIONS = (Configuration({"ROWS": 16}, warps=4, stages=1),)
INTERPRETED = Configuration({"ROWS": 1024}, warps=4, stages=1)


@triton.jit
def _block_kernel(
    w_at: tl.tensor,
    u_at: tl.tensor,
    s_at: tl.tensor,
    z_at: tl.tensor,
    values: tl.tensor,
    errors: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    TOP: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    start = n.to(tl.int64) * columns
    inside = n < rows
    w = tl.load(w_at + start[:, None] + column[None, :], mask=inside[:, None] & (column < columns)[None, :], other=0.0)
    for j in range(columns):
        # one column out of registers: all but one term of the sum are zero
        here = tl.sum(tl.where((column == j)[None, :], w, 0.0), axis=1)
        s = tl.load(s_at + start + j, mask=inside, other=0.0)
        z = tl.load(z_at + start + j, mask=inside, other=0.0)
        x = tl.div_rn(here, tl.where(s == 0.0, 1.0, s))
        v = (tl.minimum(tl.maximum(x, -z), TOP - z) + 12582912.0) - 12582912.0  # rint, as in pack.py
        error = tl.div_rn(here - v * s, tl.load(u_at + j * columns + j) + tl.zeros_like(here))
        u = tl.load(u_at + j * columns + column, mask=(column > j) & (column < columns), other=0.0)
        w = w - error[:, None] * u[None, :]
        tl.store(values + start + j, v, mask=inside)
        tl.store(errors + start + j, error, mask=inside)


def _block(w: Tensor, u: Tensor, s: Tensor, z: Tensor, top: int) -> tuple[Tensor, Tensor]:
    values, errors = torch.empty_like(w), torch.empty_like(w)
    _launch(w, u, s, z, top, values, errors)
    return values, errors


def _launch(w: Tensor, u: Tensor, s: Tensor, z: Tensor, top: int, values: Tensor, errors: Tensor) -> None:
    rows, columns = w.shape
    configuration = INTERPRETED if w.device.type == "cpu" else CONFIGURATIONS[0]
    per = configuration.constants["ROWS"]
    _block_kernel[(triton.cdiv(rows, per),)](
        w,
        u,
        s,
        z,
        values,
        errors,
        rows,
        columns,
        TOP=top,
        COLUMNS=triton.next_power_of_2(columns),
        ROWS=per,
        **configuration.launch_options(fused=False),  # the reference rounds error * u before it subtracts
    )


def gptq(
    weight: Tensor,
    hessian: Tensor,
    *,
    bits: Bits = 4,
    group: int = 32,
    zeros: bool = False,
    search: bool = True,
    damping: float = 0.01,
    order: Order = "natural",
) -> Quantized:
    """Quantize `weight` (N, K) against `hessian` (K, K) on their device.

    On one device the same bits as `gptq_ref`: both leave the factor and the products between blocks to torch.

    Raises:
        UsageError: bits, group, shape or order that there is not.
        DataError: weights or Hessian that are no finite numbers, or a Hessian that cannot be factored.
    """
    return _solve(weight, hessian, _Options(bits, group, zeros, search, damping, order), pack, _block)


def _check(case: Case, device: str, seed: int) -> Outcome:
    """The block's bits are the reference's, in poisoned memory; the whole loses no more than rounding alone."""
    random = torch.Generator().manual_seed(seed)
    rows, columns = case.sizes["N"], case.sizes["K"]
    options: dict[str, Any] = {"bits": 4, "group": 32, "zeros": False, **case.options}
    mixed = torch.randn(columns, columns, generator=random) / columns**0.5 + torch.eye(columns)
    x = (torch.randn(4 * columns, columns, generator=random) @ mixed).to(device)
    weight = torch.randn(rows, columns, generator=random).to(getattr(torch, case.dtype)).to(device)
    gram = Gram(columns, device)
    gram.add(x)
    want, got = gptq_ref(weight, gram.hessian, **options), gptq(weight, gram.hessian, **options)
    same = torch.equal(want.codes, got.codes) and torch.equal(want.scales, got.scales) and _poisoned(weight, gram)
    plain = pack_ref(weight, bits=options["bits"], group=options["group"], zeros=options["zeros"])

    def loss(matrix: Quantized) -> float:
        return float(((dequantize(matrix, torch.float64) - weight.double()) @ x.double().T).square().mean())

    return Outcome(loss(got) / loss(plain) if same else float("inf"), loss(got) ** 0.5)


def _poisoned(weight: Tensor, gram: Gram) -> bool:
    """Whether the kernel writes all of its output, and the reference's bits."""
    columns = min(_BLOCK, weight.shape[1])
    w = weight[:, :columns].float().contiguous()
    u = _factor(gram.hessian, 0.01)[:columns, :columns].contiguous()
    s, z = torch.full_like(w, 0.25), torch.full_like(w, MIDDLE)
    values, errors = torch.full_like(w, float("nan")), torch.full_like(w, float("nan"))
    _launch(w, u, s, z, 15, values, errors)
    v, e = _block_ref(w, u, s, z, 15)
    return bool(torch.equal(values, v)) and bool(torch.equal(errors, e))


def _cases() -> Iterator[Case]:
    for (n, k), dtype, options in (
        ((64, 192), "float32", {}),
        ((37, 96), "bfloat16", {"search": False}),
        ((3, 32), "float32", {}),
        ((65, 224), "float16", {"group": 64, "order": "activation"}),
        ((33, 160), "float32", {"group": 128, "zeros": True, "search": False}),
        ((20, 96), "float32", {"bits": 8}),
        ((24, 96), "float32", {"bits": 5}),
        ((18, 64), "float32", {"bits": 6, "order": "activation"}),
    ):
        yield Case({"N": n, "K": k}, dtype, 0.0, 0.0, options)
    yield Case({"N": 576, "K": 1536}, "float32", 0.0, 0.0, {"search": False}, slow=True)


def _builds() -> Iterator[Build]:
    configuration = CONFIGURATIONS[0]
    pointers = ("w_at", "u_at", "s_at", "z_at", "values", "errors")
    for bits in BITS:
        for columns in (32, 64, 128):
            yield Build(
                "gptq",
                f"int{bits}-block{columns}",
                _block_kernel,
                {**dict.fromkeys(pointers, "*fp32"), "rows": "i32", "columns": "i32"},
                {"TOP": top_of(bits), "COLUMNS": columns, **configuration.constants},
                configuration,
                aligned=(*pointers, "columns"),
                grid=("cdiv(rows, ROWS)", "1", "1"),
                fused=False,
            )


KERNEL = Kernel(
    "gptq",
    "round columns in order, each error compensated in later ones",
    gptq,
    gptq_ref,
    CONFIGURATIONS,
    tuple(_cases()),
    _check,
    _builds,
)

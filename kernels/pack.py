"""Quantize a matrix and pack it into the one layout (`layout.py`), group by group.

    4 bit              v = clamp(rint(w / s), -8, 7)          stored u = v + 8
    4 bit with zeros   v = clamp(rint(w / s), -z, 15 - z)     stored u = v + z,  z = clamp(rint(-low / s), 0, 15)
    8 bit              v = clamp(rint(w / s), -127, 127)      stored v
    5, 6 bit           v = clamp(rint(w / s), -16, 15), (-32, 31)      stored v

w (N, K) fp32, fp16 or bf16; s (N, groups) fp16. A scale is the group's extreme over a divisor d, in fp32, rounded to
fp16 *before* the codes are computed, so that the integers fit the scale that is stored:

    4 bit    m = the entry of largest magnitude, with its sign (of two equal ones the negative);  s = m / -8
             as GGUF's Q4_0: the extreme gets the code -8, which the other side does not have; 5 and 6 bits alike
    zeros    m = max(high, 0) - min(low, 0);  s = m / 15
    8 bit    m = largest magnitude;  s = m / 127, as GGUF's Q8_0

Division is IEEE fp32, rint takes ties to even (ggml's own quantizers take ties away from zero). A group of zeros, or
one whose scale underflows, gets s = 0 and the codes of zero. Infinite and undefined weights are refused.

`search=True`: other divisors are tried, clipping the extreme a little or giving it the positive side; each one's codes
v get the scale that fits them best in the least-squares sense, s = sum(h w v) / sum(h v v), and new codes for it. Kept
is the scale with the smallest error sum(h (w - v s)^2), the first of equals; the unsearched one is the first candidate,
so a search never loses to it. `importance` h (K) is the mean square of each input channel over calibration text
(activation-weighted error: the output's squared error if channels were independent; AWQ's observation, arXiv
2306.00978, without its folding of scales into the layer before); none means h = 1.

Bit for bit the same everywhere: sums are added half onto half in one fixed order, v * s is exact in fp32 (at most
8 + 11 bits), and multiply-adds are not fused. Left out: scales shared by groups (K-quants).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from soloist.kernels.choose import choose_config
from soloist.kernels.errors import DataError, UsageError
from soloist.kernels.jit import tl, triton
from soloist.kernels.layout import (
    BITS,
    BLOCK,
    GROUPS,
    Quantized,
    dequantize,
    narrow_of,
    pack_nibbles,
    per_column,
    top_of,
    zero_of,
)
from soloist.kernels.spec import Build, Case, Configuration, Kernel, Outcome

Bits = Literal[4, 5, 6, 8]
SCALE_CANDIDATES = {
    "4": (-8.0, -7.0, -7.25, -7.5, -7.75, -8.25, -8.5, -8.75, -9.0, -9.5, -10.0, 7.0, 7.25, 7.5, 7.75, 8.0, 8.5),
    "zeros": (15.0, 14.5, 15.5, 16.0, 16.5, 17.0, 17.5, 18.0, 19.0),
    "5": (-16.0, -15.0, -15.5, -15.75, -16.25, -16.5, -17.0, -18.0, 15.0, 15.5, 15.75, 16.0, 16.5),
    "6": (-32.0, -31.0, -31.5, -32.5, -33.0, -34.0, 31.0, 31.5, 32.0, 33.0),
    "8": (127.0, 126.5, 127.5, 128.0, 129.0, 130.0, 132.0),
}
LARGEST = 65504.0  # of fp16: no scale can overflow
_CHUNK = 1 << 17  # weights that the reference works on at once: they stay in a core's cache, and outweigh torch's calls


def scale_candidates(bits: int, zeros: bool, search: bool) -> tuple[float, ...]:
    """The scales a search tries, as divisors of a group's extreme; the unsearched one first."""
    table = SCALE_CANDIDATES["zeros" if zeros else str(bits)]
    return table if search else table[:1]


def _checked(weight: Tensor, bits: int, group: int, zeros: bool, search: bool, importance: Tensor | None) -> Tensor:
    """The importance of each column in fp32, its largest 1."""
    if bits not in BITS or (zeros and bits != 4):
        raise UsageError(f"{bits} bits{' with zero points' * zeros}: choose 4, 5, 6 or 8; zero points are for 4")
    if group not in GROUPS:
        raise UsageError(f"group size {group}: choose one of {', '.join(map(str, GROUPS))}")
    if weight.dim() != 2 or weight.shape[1] % BLOCK or 0 in weight.shape:
        raise UsageError(
            f"shape {tuple(weight.shape)}: the layout takes (rows, columns), columns a multiple of {BLOCK}"
        )
    largest = float(weight.abs().amax())
    if not largest <= LARGEST:  # NaN is not either
        raise DataError(f"the largest weight is {largest:g}: weights must be finite and at most {LARGEST:g}")
    if importance is None:
        return torch.ones(weight.shape[1], device=weight.device)
    if not search:
        raise UsageError("importance weighs the error of a search: ask for search=True, or leave importance out")
    h = importance.float()
    if h.shape != weight.shape[1:] or not bool(torch.isfinite(h).all()) or float(h.min()) < 0:
        raise DataError(f"importance must be {weight.shape[1]} finite numbers, none below 0, one for each column")
    return h / torch.where(h.max() == 0, 1.0, h.max())


def pack_ref(
    weight: Tensor,
    *,
    bits: Bits = 4,
    group: int = 32,
    zeros: bool = False,
    search: bool = False,
    importance: Tensor | None = None,
) -> Quantized:
    """Quantize `weight` (N, K) in plain torch. `importance` (K) weighs the error of a search.

    Raises:
        UsageError: bits, group or shape that the layout does not have.
        DataError: weights that are infinite, no numbers, or too large for a scale in fp16.
    """
    h = _checked(weight, bits, group, zeros, search, importance)
    table = scale_candidates(bits, zeros, search)
    step = max(1, _CHUNK // weight.shape[1])
    parts = [_pack_rows(rows, h, table, bits, group, zeros) for rows in weight.split(step)]
    codes, scales, points = map(torch.cat, zip(*parts, strict=True))
    return Quantized(codes, scales, group, points if zeros else None, narrow_of(bits))


def _pack_rows(
    weight: Tensor, h: Tensor, table: tuple[float, ...], bits: int, group: int, zeros: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes as the layout stores them, scales and zero points of some rows."""
    columns = weight.shape[1]
    groups = -(-columns // group)
    pad = groups * group - columns
    # (G, rows, groups): what is done to a group's G weights is done to long rows of memory
    w = F.pad(weight.float(), (0, pad)).reshape(-1, groups, group).permute(2, 0, 1).contiguous()
    h = F.pad(h, (0, pad)).reshape(1, groups, group).permute(2, 0, 1)
    low, high = w.amin(0), w.amax(0)
    if zeros:
        extreme = high.clamp_min(0) - low.clamp_max(0)
    else:
        extreme = torch.maximum(high, -low) if bits == 8 else torch.where(high > -low, high, low)
    scale = _half(extreme / table[0])
    z = torch.full_like(scale, zero_of(bits))
    if zeros:
        z = torch.where(scale == 0, z, torch.round((-low.clamp_max(0) / _divisible(scale)).clamp(0, 15)))
    if len(table) > 1:
        scale = _search(w, h, extreme, scale, z, table, bits)
    codes = (_values(w, scale, z, bits) + z).permute(1, 2, 0).reshape(len(weight), -1)[:, :columns]
    if bits != 4:
        return (codes - zero_of(bits)).to(torch.int8), scale.half(), z.to(torch.uint8)
    return pack_nibbles(codes), scale.half(), z.to(torch.uint8)


def _half(scale: Tensor) -> Tensor:
    scale = scale.half().float()
    return torch.where(scale == 0, 0.0, scale)  # -0 becomes 0


def _divisible(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, 1.0, scale)


def _values(w: Tensor, scale: Tensor, z: Tensor, bits: int) -> Tensor:
    v = w / _divisible(scale)
    torch.maximum(v, -z, out=v)
    torch.minimum(v, top_of(bits) - z, out=v)
    # rint as in the kernel: torch.round shares even small tensors among threads, which wait where cores are busy
    return v.add_(12582912.0).sub_(12582912.0)


def _sum(x: Tensor) -> Tensor:
    """Sum over the first axis (a power of two), halves onto halves; `x` is used up."""
    while (half := len(x) // 2) > 0:
        x = x[:half].add_(x[half:])
    return x[0]


def _search(
    w: Tensor, h: Tensor, extreme: Tensor, scale: Tensor, z: Tensor, table: tuple[float, ...], bits: int
) -> Tensor:
    def error_of(scale: Tensor) -> Tensor:
        off = w - _values(w, scale, z, bits).mul_(scale)
        return _sum(off.mul_(off).mul_(h))

    best = error_of(scale)
    for divisor in table:
        trial = _half(extreme / divisor)
        v = _values(w, trial, z, bits)
        above, below = _sum((w * v).mul_(h)), _sum(v.mul_(v).mul_(h))
        trial = torch.where(below > 0, _half(above / _divisible(below)), trial)
        error = error_of(trial)
        better = error < best
        scale, best = torch.where(better, trial, scale), torch.where(better, error, best)
    return scale


# Left alone, ptxas holds some searches to 96 registers and spills; at 128 others do; 168 leave three programs at once
CONFIGURATIONS = (Configuration({"ELEMENTS": 1024}, warps=4, stages=1, registers=168),)
# the interpreter's time goes by operations, not by elements
INTERPRETED = Configuration({"ELEMENTS": 1 << 17}, warps=4, stages=1)


@triton.jit
def _half_sum(x: tl.tensor, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEPS: tl.constexpr) -> tl.tensor:
    for step in tl.static_range(STEPS):
        pairs = tl.permute(tl.reshape(x, (ROWS, 2, COLUMNS >> (step + 1))), (0, 2, 1))
        low, high = tl.split(pairs)
        x = low + high
    return tl.reshape(x, (ROWS,))


@triton.jit
def _to_half(scale: tl.tensor) -> tl.tensor:
    scale = scale.to(tl.float16).to(tl.float32)
    return tl.where(scale == 0.0, 0.0, scale)


@triton.jit
def _rint(x: tl.tensor) -> tl.tensor:
    return (x + 12582912.0) - 12582912.0  # 1.5 * 2^23: fp32 has no room for a fraction there; |x| < 2^22


@triton.jit
def _to_values(w: tl.tensor, scale: tl.tensor, z: tl.tensor, TOP: tl.constexpr) -> tl.tensor:
    x = tl.div_rn(w, tl.where(scale == 0.0, 1.0, scale)[:, None])
    return _rint(tl.minimum(tl.maximum(x, -z[:, None]), TOP - z[:, None]))


@triton.jit
def _error(
    w: tl.tensor,
    h: tl.tensor,
    scale: tl.tensor,
    z: tl.tensor,
    TOP: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEPS: tl.constexpr,
) -> tl.tensor:
    off = w - _to_values(w, scale, z, TOP) * scale[:, None]
    return _half_sum(h * (off * off), ROWS, COLUMNS, STEPS)


@triton.jit
def _fitted(
    w: tl.tensor,
    h: tl.tensor,
    scale: tl.tensor,
    z: tl.tensor,
    TOP: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEPS: tl.constexpr,
) -> tl.tensor:
    """The least-squares scale of the codes that `scale` gives; `scale` itself where they are all zero."""
    v = _to_values(w, scale, z, TOP)
    above = _half_sum(h * (w * v), ROWS, COLUMNS, STEPS)
    below = _half_sum(h * (v * v), ROWS, COLUMNS, STEPS)
    fitted = _to_half(tl.div_rn(above, tl.where(below == 0.0, 1.0, below)))
    return tl.where(below > 0.0, fitted, scale)


@triton.jit
def _extremes(w: tl.tensor, ZEROS: tl.constexpr, BITS: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """The smallest weight of each group (at most 0 with zero points), and what its scale is a part of."""
    low, high = tl.min(w, axis=1), tl.max(w, axis=1)
    if ZEROS:
        low, high = tl.minimum(low, 0.0), tl.maximum(high, 0.0)
        extreme = high - low
    elif BITS == 8:
        extreme = tl.maximum(high, -low)
    else:
        extreme = tl.where(high > -low, high, low)
    return low, extreme


@triton.jit
def _pack_kernel(
    weight: tl.tensor,
    importance: tl.tensor,
    table: tl.tensor,
    codes: tl.tensor,
    scales: tl.tensor,
    points: tl.tensor,
    total: tl.tensor,
    columns: tl.tensor,
    groups: tl.tensor,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    STEPS: tl.constexpr,
    ZEROS: tl.constexpr,
    WEIGHTED: tl.constexpr,
    CANDIDATES: tl.constexpr,
    ELEMENTS: tl.constexpr,
) -> None:
    ROWS: tl.constexpr = ELEMENTS // GROUP  # rows of a program are groups: all of W's, row by row
    TOP: tl.constexpr = 254 if BITS == 8 else (1 << BITS) - 1  # layout.top_of
    ZERO: tl.constexpr = 127.0 if BITS == 8 else 1.0 * (1 << (BITS - 1))  # layout.zero_of
    index = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    n, g = (index // groups).to(tl.int64), index % groups
    column = (g * GROUP)[:, None] + tl.arange(0, GROUP)[None, :]
    inside = (index < total)[:, None] & (column < columns)
    w = tl.load(weight + (n * columns)[:, None] + column, mask=inside, other=0.0).to(tl.float32)
    low, extreme = _extremes(w, ZEROS, BITS)
    scale = _to_half(tl.div_rn(extreme, tl.load(table) + tl.zeros_like(extreme)))
    z = tl.zeros_like(scale) + ZERO
    if ZEROS:
        exact = tl.div_rn(-low, tl.where(scale == 0.0, 1.0, scale))
        z = tl.where(scale == 0.0, z, _rint(tl.minimum(tl.maximum(exact, 0.0), 15.0)))
    if CANDIDATES > 1:
        h = tl.full((ROWS, GROUP), 1.0, tl.float32)
        if WEIGHTED:
            h = tl.load(importance + column, mask=inside, other=0.0)
        best = _error(w, h, scale, z, TOP, ROWS, GROUP, STEPS)
        for candidate in range(CANDIDATES):
            trial = _to_half(tl.div_rn(extreme, tl.load(table + candidate) + tl.zeros_like(extreme)))
            trial = _fitted(w, h, trial, z, TOP, ROWS, GROUP, STEPS)
            error = _error(w, h, trial, z, TOP, ROWS, GROUP, STEPS)
            better = error < best
            scale, best = tl.where(better, trial, scale), tl.where(better, error, best)
    v = _to_values(w, scale, z, TOP)
    tl.store(scales + index, scale.to(tl.float16), mask=index < total)
    if ZEROS:
        tl.store(points + index, z.to(tl.uint8), mask=index < total)
    if BITS != 4:
        tl.store(codes + (n * columns)[:, None] + column, v.to(tl.int8), mask=inside)
    else:
        u = tl.reshape((v + z[:, None]).to(tl.int32), (ROWS, GROUP // 32, 8, 4))
        shift = tl.reshape(4 * tl.arange(0, 8), (1, 1, 8, 1))
        words = tl.reshape(tl.sum(u << shift, axis=2), (ROWS, GROUP // 8))  # disjoint bits
        word = (g * (GROUP // 8))[:, None] + tl.arange(0, GROUP // 8)[None, :]
        kept = (index < total)[:, None] & (word < columns // 8)
        tl.store(codes + (n * (columns // 8))[:, None] + word, words, mask=kept)


def pack(
    weight: Tensor,
    *,
    bits: Bits = 4,
    group: int = 32,
    zeros: bool = False,
    search: bool = False,
    importance: Tensor | None = None,
    configuration: Configuration | None = None,
) -> Quantized:
    """Quantize `weight` (N, K) on its device: the same bits, and the same refusals, as `pack_ref`.

    A configuration is tuned for sizes N, K and options bits, group, zeros, search.
    """
    h = _checked(weight, bits, group, zeros, search, importance)
    out = _allocate(weight, bits, group, zeros)
    _launch(weight.contiguous(), h, out, search, importance is not None, configuration)
    return out


def _allocate(weight: Tensor, bits: int, group: int, zeros: bool) -> Quantized:
    rows, columns = weight.shape
    shape = (rows, -(-columns // group))
    stored = (columns // 8, torch.int32) if bits == 4 else (columns, torch.int8)
    codes = torch.empty(rows, stored[0], dtype=stored[1], device=weight.device)
    scales = torch.empty(shape, dtype=torch.float16, device=weight.device)
    points = torch.empty(shape, dtype=torch.uint8, device=weight.device) if zeros else None
    return Quantized(codes, scales, group, points, narrow_of(bits))


def _launch(
    weight: Tensor, h: Tensor, out: Quantized, search: bool, weighted: bool, given: Configuration | None
) -> None:
    zeros = out.zeros is not None
    configuration = choose_config(
        "pack",
        {"N": weight.shape[0], "K": weight.shape[1]},
        {"bits": out.bits, "group": out.group, "zeros": zeros, "search": search},
        weight.device,
        INTERPRETED if weight.device.type == "cpu" else CONFIGURATIONS[0],
        given,
    )
    table = scale_candidates(out.bits, zeros, search)
    groups, total = out.scales.shape[1], out.scales.numel()
    elements = configuration.constants["ELEMENTS"]
    _pack_kernel[(triton.cdiv(total, elements // out.group),)](
        weight,
        h,
        torch.tensor(table, device=weight.device),
        out.codes,
        out.scales,
        out.zeros if zeros else out.scales,
        total,
        weight.shape[1],
        groups,
        BITS=out.bits,
        GROUP=out.group,
        STEPS=out.group.bit_length() - 1,
        ZEROS=zeros,
        WEIGHTED=weighted,
        CANDIDATES=len(table),
        ELEMENTS=elements,
        **configuration.launch_options(fused=False),  # fused, a multiply-add rounds once; the reference rounds twice
    )


def _check(case: Case, device: str, seed: int) -> Outcome:
    """Into poisoned memory: the reference's bits, and every code the nearest to its weight for the stored scale."""
    random = torch.Generator().manual_seed(seed)
    rows, columns = case.sizes["N"], case.sizes["K"]
    options = {"bits": 4, "group": 32, "zeros": False, "search": False, **case.options}
    weighted = bool(options.pop("weighted", False))
    weight = torch.randn(rows, columns, generator=random) * torch.rand(rows, 1, generator=random)
    weight[rows // 2, : columns // 2] = 0
    weight[0, -1] = 30.0  # an outlier
    weight = weight.to(getattr(torch, case.dtype)).to(device)
    importance = torch.rand(columns, generator=random).to(device) if weighted else None
    want = pack_ref(weight, **options, importance=importance)
    got = _allocate(weight, options["bits"], options["group"], options["zeros"])
    got.codes.fill_(0x5A)
    got.scales.fill_(float("nan"))
    if got.zeros is not None:
        got.zeros.fill_(255)
    h = _checked(weight, **options, importance=importance)
    _launch(weight, h, got, options["search"], weighted, None)
    same = torch.equal(got.codes, want.codes) and torch.equal(
        got.scales.view(torch.int16), want.scales.view(torch.int16)
    )
    if got.zeros is not None and want.zeros is not None:
        same = same and torch.equal(got.zeros, want.zeros)
    error = float((dequantize(got, torch.float64) - weight.double()).abs().max())
    return Outcome(_farthest(weight.double(), got) if same else float("inf"), error)


def _farthest(weight: Tensor, packed: Quantized) -> float:
    """The largest distance of a weight, clamped to what its group can hold, from its code: 1 is half a step."""
    points = torch.full_like(packed.scales, zero_of(packed.bits)) if packed.zeros is None else packed.zeros
    s = per_column(packed.scales.double(), packed.group, weight.shape[1])
    z = per_column(points.double(), packed.group, weight.shape[1])
    s = torch.where(s == 0, 1.0, s)
    exact = (weight / s).maximum(-z).minimum(top_of(packed.bits) - z)
    distance = (dequantize(packed, torch.float64) / s - exact).abs() / 0.5
    return float((distance / (1 + 2.0**-20)).max())


def _cases() -> Iterator[Case]:
    for (n, k), dtype, options in (
        ((576, 1536), "float32", {}),
        ((576, 192), "bfloat16", {"group": 128}),
        ((896, 4864), "float16", {"bits": 8}),
        ((2048, 5632), "bfloat16", {"group": 64}),
        ((37, 608), "float16", {"group": 128, "zeros": True}),
        ((1, 32), "float32", {}),
        ((131, 352), "bfloat16", {"group": 64, "search": True}),
        ((64, 576), "float32", {"search": True}),
        ((61, 576), "float16", {"search": True, "weighted": True}),
        ((33, 576), "float32", {"group": 128, "search": True, "weighted": True}),
        ((29, 224), "float32", {"group": 64, "zeros": True, "search": True, "weighted": True}),
        ((48, 192), "bfloat16", {"bits": 8, "search": True}),
        ((50, 160), "bfloat16", {"bits": 5, "group": 128}),
        ((40, 96), "float32", {"bits": 5, "search": True, "weighted": True}),
        ((33, 64), "float16", {"bits": 6}),
        ((31, 96), "float32", {"bits": 6, "group": 64, "search": True}),
        ((19, 96), "float32", {"bits": 8, "group": 64, "search": True, "weighted": True}),
    ):
        yield Case({"N": n, "K": k}, dtype, 0.0, 0.0, options)


def _builds() -> Iterator[Build]:
    config = CONFIGURATIONS[0]
    kinds: list[tuple[int, bool, bool]] = [
        (4, False, False),
        (4, False, True),
        (4, True, True),
        (5, False, True),
        (6, False, True),
        (8, False, True),
    ]
    for dtype, pointer in (("float32", "*fp32"), ("bfloat16", "*bf16")):
        for bits, zeros, search in kinds:
            for group in GROUPS:
                kind = f"{dtype}-int{bits}-g{group}" + "-zeros" * zeros + "-search" * search
                constants = {
                    "BITS": bits,
                    "GROUP": group,
                    "STEPS": group.bit_length() - 1,
                    "ZEROS": zeros,
                    "WEIGHTED": search,
                    "CANDIDATES": len(scale_candidates(bits, zeros, search)),
                    **config.constants,
                }
                signature = {
                    "weight": pointer,
                    "importance": "*fp32",
                    "table": "*fp32",
                    "codes": "*i32" if bits == 4 else "*i8",
                    "scales": "*fp16",
                    "points": "*u8" if zeros else "*fp16",
                    "total": "i32",
                    "columns": "i32",
                    "groups": "i32",
                }
                yield Build(
                    "pack",
                    kind,
                    _pack_kernel,
                    signature,
                    constants,
                    config,
                    aligned=("weight", "importance", "table", "codes", "scales", "points", "columns"),
                    grid=("cdiv(total, ELEMENTS // GROUP)", "1", "1"),
                    fused=False,
                )


KERNEL = Kernel(
    "pack", "quantize to 4 or 8 bits and pack", pack, pack_ref, CONFIGURATIONS, tuple(_cases()), _check, _builds
)

"""What the benchmarks of the low-bit matmuls share: operands, correctness, baselines, tuning, the rows of shapes.

All sides multiply by the same random matrices, so that every baseline can be checked too: fp16 of cuBLAS by the
dequantized weights; `torch.compile` of dequantize and multiply; tinygemm, the 4-bit kernel inside torch that torchao's
tile-packed tensors call, by the same integers in its own order; GemLite by the same integers, where it is installed.
Left out: bias and zero points.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from gpu_program import Bar, Run, worst
from gpu_timing import AbsentError, Side, absent_or, compared, copies_for, interleave, told
from gpu_tuning import best_of, write_entries
from torch import Tensor
from torch.nn import functional

from soloist.kernels.errors import GateError
from soloist.kernels.layout import Quantized, dequantize, unpack_nibbles
from soloist.kernels.matmul import matmul_ref
from soloist.kernels.spec import Configuration, Kernel
from soloist.kernels.tuned import Entry, tuned

SQUARES = ((4096, 4096), (8192, 8192))
STUDENTS = ((576, 1536), (1536, 576), (576, 192), (896, 4864), (2048, 5632))  # SmolLM2-135M, Qwen2.5-0.5B, a 1B one
GATED = ((1536, 576), (4864, 896), (5632, 2048))  # their gate and up
RIVAL_ERROR = 0.03  # relative; bfloat16 rounds weights and sums
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Shape:
    """y (M, N) = x (M, K) W (N, K)^T, W in groups of G columns; gated: silu(x Gate^T) * (x Up^T), two such matrices."""

    m: int
    n: int
    k: int
    group: int
    gated: bool = False

    @property
    def matrices(self) -> int:
        """How many there are."""
        return 1 + self.gated

    @property
    def sizes(self) -> dict[str, int]:
        """As tuned tables have them."""
        return {"M": self.m, "N": self.n, "K": self.k}

    @property
    def options(self) -> dict[str, Any]:
        """Likewise."""
        return {"group": self.group, **({"gated": True} if self.gated else {})}

    def __str__(self) -> str:
        gated = ", gated" if self.gated else ""
        return f"{self.n} × {self.k}{gated}, group {self.group}, {self.m} row{'s' if self.m > 1 else ''}"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those of all matmuls."""
    parser.add_argument("--dtype", choices=list(DTYPES), default="float16", help="of the activations")
    parser.add_argument(
        "--baselines", nargs="*", choices=list(BASELINES), default=list(BASELINES), help="beside cuBLAS"
    )


class Operands:
    """Random activations and as many copies of a quantized matrix (gate above up) as do not fit in the cache."""

    def __init__(self, run: Run, shape: Shape, bits: int) -> None:
        self.run, self.shape, self.bits = run, shape, bits
        self.dtype = DTYPES[run.options.dtype]
        device, m, n, k = run.clock.device, shape.m, shape.n, shape.k
        draw = torch.Generator(device).manual_seed(run.options.seed)
        groups, high = -(-k // shape.group), shape.matrices * n
        self.copies = copies_for(high * (k * bits // 8 + 2 * groups), run.facts)
        rows = self.copies * high
        if bits == 4:  # random words are random nibbles
            codes = torch.randint(-(2**31), 2**31, (rows, k // 8), dtype=torch.int32, device=device, generator=draw)
        else:
            codes = torch.randint(-128, 128, (rows, k), dtype=torch.int8, device=device, generator=draw)
        scales = 0.5 + torch.rand((rows, groups), device=device, generator=draw)
        scales = (scales / ((5 if bits == 4 else 74) * k**0.5)).to(torch.float16)  # y is about normal
        self.whole = Quantized(codes, scales, shape.group)
        self.weights = [self._part(i, high) for i in range(self.copies)]
        self.x = torch.randn((m, k), device=device, generator=draw).to(self.dtype)

    def _part(self, index: int, rows: int) -> Quantized:
        return Quantized(part(self.whole.codes, index, rows), part(self.whole.scales, index, rows), self.whole.group)

    def arguments(self, copy: int) -> dict[str, Quantized]:
        """A copy as our kernels take it."""
        n, first = self.shape.n, copy * self.shape.matrices
        return {"weight": self._part(first, n), **({"up": self._part(first + 1, n)} if self.shape.gated else {})}

    @property
    def moved(self) -> int:
        """Bytes that a call on quantized weights must move: a copy, x and y."""
        return self.weights[0].bytes + self.edges

    @property
    def edges(self) -> int:
        """Bytes of x and y."""
        return (self.x.numel() + self.shape.m * self.shape.n) * 2

    @functools.cached_property
    def exact(self) -> dict[int, Tensor]:
        """y in float64 for the first and the last copy."""
        return {i: matmul_ref(self.x, **self.arguments(i), inside=torch.float64) for i in (0, self.copies - 1)}

    def relative_error(self, found: Tensor, copy: int) -> float:
        """|y - exact| / |exact|; infinite where it is not a number."""
        error = (found.double() - self.exact[copy]).norm() / self.exact[copy].norm()
        return float(error.nan_to_num(nan=float("inf")))


def part(whole: Tensor, index: int, rows: int) -> Tensor:
    """Rows of a copy, beginning at a multiple of 16 bytes as tensors of their own do."""
    own = whole[index * rows : (index + 1) * rows]
    return own if own.data_ptr() % 16 == 0 else own.clone()


# ---------------------------------------------------------------- ours


def ours(kernel: Kernel, work: Operands, configuration: Configuration | None = None, name: str = "ours") -> Side:
    """Our kernel on each copy, into one output; by its own choice of configuration unless one is given."""
    out = torch.empty((work.shape.m, work.shape.n), dtype=work.dtype, device=work.x.device)
    call = functools.partial(kernel.run, work.x, out=out, configuration=configuration)
    return Side(name, [functools.partial(call, **work.arguments(i)) for i in range(work.copies)], work.moved, ours=True)


def demand_right(kernel: Kernel, work: Operands, side: Side) -> float:
    """Compare the calls that will be timed with float64, outputs poisoned; the worst error in units of the allowed.

    Raises:
        GateError: a wrong element: then nothing is timed.
    """
    like = [
        case
        for case in kernel.cases
        if case.dtype == work.run.options.dtype and bool(case.options.get("gated")) == work.shape.gated
    ]
    atol, rtol = max(case.atol for case in like), max(case.rtol for case in like)
    most = 0.0
    for copy, exact in work.exact.items():
        out = side.calls[copy].keywords["out"]
        out.fill_(torch.nan)
        side.calls[copy]()
        off = (out.double() - exact).abs() / (atol + rtol * exact.abs())
        most = max(most, float(off.nan_to_num(nan=float("inf")).max()))
    if most > 1:
        raise GateError(
            f"{kernel.name} is wrong at {work.shape}, {side.name}: {most:.3g} times the allowed error against float64; "
            "it is not timed"
        )
    return most


# ---------------------------------------------------------------- baselines


def cublas(work: Operands) -> Side:
    """The dequantized matrix in 16 bits; gate and up in one product, as servers fuse them."""
    high, k = work.shape.matrices * work.shape.n, work.shape.k
    copies = min(work.copies, copies_for(2 * high * k, work.run.facts))
    whole = Quantized(work.whole.codes[: copies * high], work.whole.scales[: copies * high], work.shape.group)
    wide = dequantize(whole, work.dtype)
    product = gated_product if work.shape.gated else functional.linear
    calls = [functools.partial(product, work.x, part(wide, i, high)) for i in range(copies)]
    return Side("cublas", calls, 2 * high * k + work.edges)


def gated_product(x: Tensor, both: Tensor) -> Tensor:
    """silu(x Gate^T) * (x Up^T) in plain torch."""
    gate, up = functional.linear(x, both).chunk(2, dim=-1)
    return functional.silu(gate) * up


def dequantized_product(x: Tensor, codes: Tensor, scales: Tensor, group: int, gated: bool) -> Tensor:
    """What a user would write and compile."""
    rows = len(codes)
    if codes.dtype == torch.int32:
        shifts = 4 * torch.arange(8, dtype=torch.int32, device=codes.device)[:, None]
        values = ((codes.view(rows, -1, 1, 4) >> shifts) & 15) - 8
    else:
        values = codes
    weights = values.reshape(rows, -1, group).to(x.dtype) * scales.to(x.dtype)[:, :, None]
    return (gated_product if gated else functional.linear)(x, weights.reshape(rows, -1))


def compiled(work: Operands) -> Side:
    """`torch.compile`; at one row as gpt-fast asks for it, which makes a fused sum of the product."""
    if work.shape.k % work.shape.group:
        raise AbsentError("a short last group: no plain reshape")
    if work.shape.m not in (1, 16, 512):
        raise AbsentError("compiled for 1, 16 and 512 rows only, for time's sake")
    how = {"coordinate_descent_tuning": True} if work.shape.m == 1 else {}
    made = work.run.clock.compiled(dequantized_product, **how)
    calls = [functools.partial(made, work.x, w.codes, w.scales, w.group, work.shape.gated) for w in work.weights]
    return Side("compiled", calls, work.moved)


def tinygemm(work: Operands) -> Side:
    """torch's own 4-bit kernel: W = (u - 8) s + zero, two codes a byte, high first; bfloat16 only."""
    shape = work.shape
    if work.bits != 4 or work.x.device.type != "cuda" or shape.gated:
        raise AbsentError("torch has it for 4 bits on CUDA, not gated")
    if shape.k % shape.group or shape.n % 8:
        raise AbsentError("a short last group, or rows that are no multiple of 8")
    inner = next(tiles for tiles in (8, 4, 2) if shape.k % (16 * tiles) == 0)
    x, calls = work.x.to(torch.bfloat16), []
    for weight in work.weights:
        codes = unpack_nibbles(weight.codes)
        packed = torch.ops.aten._convert_weight_to_int4pack(codes[:, ::2] << 4 | codes[:, 1::2], inner)
        scales = weight.scales.to(torch.bfloat16).T
        both = torch.stack([scales, torch.zeros_like(scales)], dim=2).contiguous()
        calls.append(functools.partial(torch.ops.aten._weight_int4pack_mm, x, packed, shape.group, both))
    return Side("tinygemm", calls, work.moved + 2 * shape.n * (shape.k // shape.group))


def gemlite(work: Operands) -> Side:
    """GemLite (dropbox/gemlite) by its own choice of kernel; it tunes itself when first called."""
    try:
        import gemlite as library
    except ImportError as error:
        raise AbsentError("GemLite is not installed (pip install gemlite)") from error
    shape = work.shape
    if (shape.n, shape.k) not in SQUARES or shape.gated:
        raise AbsentError("it tunes itself for minutes a shape: at 4096 and 8192 only")
    kind = {"float16": library.DType.FP16, "bfloat16": library.DType.BF16}[work.run.options.dtype]
    calls: list[Any] = []
    for weight in work.weights:
        codes = unpack_nibbles(weight.codes) if work.bits == 4 else (weight.codes.to(torch.int16) + 128).to(torch.uint8)
        layer = library.GemLiteLinear(
            work.bits,
            group_size=shape.group,
            in_features=shape.k,
            out_features=shape.n,
            input_dtype=kind,
            output_dtype=kind,
        )
        layer.pack(codes, weight.scales.to(work.dtype), 8 if work.bits == 4 else 128, None)
        calls.append(functools.partial(layer, work.x))
    return Side("gemlite", calls, work.moved)


BASELINES: dict[str, Callable[[Operands], Side]] = {"compiled": compiled, "tinygemm": tinygemm, "gemlite": gemlite}


def checked(make: Callable[[Operands], Side], work: Operands) -> Side:
    """A baseline whose result is right as well."""
    side = make(work)
    error = work.relative_error(side.calls[0](), 0)
    if not error <= RIVAL_ERROR:
        raise AbsentError(f"wrong here: relative error {error:.3g}")
    return side


# ---------------------------------------------------------------- measuring


def measure_shape(run: Run, kernel: Kernel, shape: Shape, bits: int) -> dict[str, Any]:
    """One shape: correctness, then all sides in turns.

    Raises:
        GateError: our kernel is wrong.
    """
    with torch.inference_mode():
        work = Operands(run, shape, bits)
        side = ours(kernel, work)
        off = demand_right(kernel, work, side)
        asked = {"cublas": cublas, **{name: BASELINES[name] for name in BASELINES if name in run.options.baselines}}
        made = {name: absent_or(functools.partial(checked, make, work)) for name, make in asked.items()}
        sides = [side, *(baseline for baseline in made.values() if isinstance(baseline, Side))]
        times = interleave(run.clock, sides, run.options.rounds)
    row = compared(times, sides, run.rate)
    absent = {name: baseline for name, baseline in made.items() if isinstance(baseline, str)} | times.absent
    config = tuned(kernel.name, run.facts["name"], shape.sizes, shape.options)
    flops = 2 * shape.m * shape.n * shape.k * shape.matrices
    run.say(f"{kernel.name} {shape}: " + told(row))
    return {
        "kernel": kernel.name,
        **shape.sizes,
        **shape.options,
        "dtype": run.options.dtype,
        "error": round(off, 4),
        "tuned": config and config.name,
        "tflops": round(flops / (row["ours"]["us"]["median"] * 1e6), 2),
        "sides": row,
        "absent": absent,
    }


def measure_all(run: Run, kernel: Kernel, shapes: Iterable[Shape], bits: int) -> list[dict[str, Any]]:
    """All shapes, after tuning where it is asked for."""
    shapes = list(shapes)
    if run.options.tune:
        with torch.inference_mode():
            write_entries(run, kernel, [_tuned(run, kernel, shape, bits) for shape in shapes])
    return [measure_shape(run, kernel, shape, bits) for shape in shapes]


def _tuned(run: Run, kernel: Kernel, shape: Shape, bits: int) -> Entry:
    work = Operands(run, shape, bits)
    return best_of(
        run,
        kernel,
        shape.sizes,
        shape.options,
        lambda config: ours(kernel, work, config, config.name),
        lambda side: demand_right(kernel, work, side),
    )


def faster(rows: Sequence[dict[str, Any]], baseline: str = "cublas") -> list[float]:
    """How many times ours is faster than the baseline, where both were timed."""
    return [row["sides"][baseline]["times_slower_than"]["ours"]["median"] for row in rows if baseline in row["sides"]]


def student_bar(kernel: str, rows: Sequence[dict[str, Any]]) -> Bar:
    """Students' matrices at one row."""
    own = [row for row in rows if (row["N"], row["K"]) in STUDENTS and row["M"] == 1 and not row.get("gated")]
    which = f"worst of {len(own)} students' matrices, 1 row, in CUDA graphs"
    return Bar(f"{kernel}: times as fast as cuBLAS in fp16, {which}", 1.0, worst(faster(own)))


def roofline_bar(kernel: str, rows: Sequence[dict[str, Any]]) -> Bar:
    """8192², group 128, one row."""
    own = [row["sides"]["ours"]["of_copy"] for row in rows if (row["N"], row["K"], row["M"]) == (8192, 8192, 1)]
    return Bar(f"{kernel}: share of the measured copy bandwidth, 8192 × 8192, group 128, 1 row", 0.7, worst(own))

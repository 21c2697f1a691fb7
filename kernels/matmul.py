"""What `gemv.py` and `gemm.py` share: y = x W^T with low-bit W, its reference, its entry point, how it is checked.

    y = w4a16_gemv(x, weight)           an instance of `Matmul`: checks arguments, chooses a configuration, launches
    y = matmul_ref(x, weight)           the same in plain torch: dequantize, then multiply

All kernels take the same arguments in the same order. Where the columns are split over programs, each leaves float32
parts (SPLITS, 2 if gated else 1, M, N) in a workspace; `_sum_parts_kernel` adds them in the order of their columns: no
atomics, the same bits in every run.

Unpacking never converts an integer: a code is put into the mantissa of a float32 whose exponent makes its last bit
worth one, (bits | 0x4B000000), and 2^23 is subtracted again, exactly. There are 24 bits of room: a nibble at bit 4 e
counts 16^e, no shift is needed.

A check lays every tensor between margins of NaN (largest integers where there is no NaN), outputs and parts start as
NaN: a read or a write outside, or an output left out, shows.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from soloist.kernels.choose import choose_config, interpreting
from soloist.kernels.errors import UsageError
from soloist.kernels.jit import tl, triton
from soloist.kernels.layout import Quantized, dequantize, pack_nibbles
from soloist.kernels.spec import Build, Case, Configuration, Kernel, Outcome


def matmul_ref(
    x: Tensor,
    weight: Quantized,
    *,
    up: Quantized | None = None,
    bias: Tensor | None = None,
    inside: torch.dtype | None = None,
) -> Tensor:
    """y (M, N) = x W^T + bias, or silu(x W^T) * (x Up^T).

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
        y = functional.silu(y) * (x.to(inside) @ dequantize(up, inside).T)
    if bias is not None:
        y = y + bias.to(inside)
    return y if inside == torch.float64 else y.to(x.dtype)


# --- on the device ----------------------------------------------------------------------------------------------------


@triton.jit
def magic_fp32(K: tl.tensor) -> tl.tensor:
    """0x4B000000, the bits of 2^23, as a value the compiler cannot know (K is a multiple of 32).

    A logic operation takes one constant: were both known, each would first move the other into a register.
    """
    return (0x4B000000 + (K & 31)).to(tl.uint32, bitcast=True)


@triton.jit
def as_fp32(bits: tl.tensor, magic: tl.tensor) -> tl.tensor:
    """The integer `bits` (uint32, below 2^23) plus 2^23, as float32."""
    return (bits | magic).to(tl.float32, bitcast=True)


@triton.jit
def silu_times(gate: tl.tensor, up: tl.tensor) -> tl.tensor:
    """silu(gate) * up."""
    return gate / (1.0 + tl.exp(-gate)) * up


@triton.jit
def _sum_parts_kernel(
    parts_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    y_ptr: tl.tensor,
    size: tl.tensor,
    N: tl.tensor,
    GATED: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """y (size,) = the sum of its parts, by BLOCK outputs a program."""
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


def sum_config(splits: int) -> Configuration:
    """Configuration of the sum over parts."""
    return Configuration({"SPLITS": splits, "BLOCK": 256})


# --- the entry point --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Matmul:
    """An entry point: y (M, N) = x W^T + bias, or silu(x W^T) * (x Up^T).

    Args:
        name: in the registry and in tuned tables.
        bits: of the codes it reads, as stored.
        max_rows: largest M; 0 for any.
        configurations: all that may be chosen.
        rule: the one for M, N, K, bits and whether gated, where no tuned table knows better.
        gemm: its function on tensor cores, for configurations with BLOCK_M.
        gemv: its function for one row, for the others.
    """

    name: str
    bits: Literal[4, 8]
    max_rows: int
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
        self._refuse_misfit(x, weight, up, bias, out)
        (m, k), n, gated = x.shape, weight.shape[0], up is not None
        options = {"group": weight.group, **({"gated": True} if gated else {})}
        own = self.rule(m, n, k, self.bits, gated)
        chosen = choose_config(self.name, {"M": m, "N": n, "K": k}, options, x.device, own, configuration)
        splits, size = chosen.constants["SPLITS"], workspace_size(chosen, m, n, gated)
        y = torch.empty((m, n), dtype=x.dtype, device=x.device) if out is None else out
        if workspace is None:
            workspace = torch.empty(size, dtype=torch.float32, device=x.device)
        elif workspace.numel() < size or workspace.dtype != torch.float32 or workspace.device != x.device:
            raise UsageError(f"workspace must be float32 on {x.device} with at least {size} elements")
        function, constants = self.function(chosen)
        rows = chosen.constants.get("BLOCK_M", 1)
        grid = (triton.cdiv(n, chosen.constants["BLOCK_N"]), splits, triton.cdiv(m, rows))
        operands = (
            x,
            *_pointers(weight),
            *_pointers(up),
            bias if splits == 1 else None,
            y if splits == 1 else workspace,
        )
        with torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext():
            function[grid](*operands, m, n, k, GROUP=weight.group, **constants, **chosen.launch_options())
            if splits > 1:
                add = sum_config(splits)
                _sum_parts_kernel[(triton.cdiv(m * n, add.constants["BLOCK"]),)](
                    workspace, bias, y, m * n, n, GATED=gated, **add.constants, **add.launch_options()
                )
        return y

    def function(self, configuration: Configuration) -> tuple[Any, dict[str, Any]]:
        """The device's function that a configuration is of, and its constants besides GROUP."""
        if "BLOCK_M" not in configuration.constants:
            return self.gemv, dict(configuration.constants)
        return self.gemm, {**configuration.constants, "BITS": self.bits, "WARPS": configuration.warps}

    def _refuse_misfit(
        self, x: Tensor, weight: Quantized, up: Quantized | None, bias: Tensor | None, out: Tensor | None
    ) -> None:
        """Raise UsageError, in one line, for what does not fit."""
        n, k = weight.shape
        if x.dtype not in (torch.float16, torch.bfloat16):
            raise UsageError(f"activations are float16 or bfloat16, not {x.dtype}")
        if x.ndim != 2 or x.shape[1] != k or not x.is_contiguous():
            raise UsageError(f"x is {tuple(x.shape)}: a matrix of {n} x {k} takes contiguous (M, {k})")
        m = len(x)
        if x.numel() >= 1 << 31:
            raise UsageError(f"x has {x.numel()} elements: places are counted in 32 bits, hand it over in parts")
        if not 1 <= m <= (self.max_rows or m):
            few = f"{m} rows: this kernel takes 1 to {self.max_rows}, more are for gemm"
            raise UsageError(few if m else "x has no rows")
        self._refuse_matrix("weight", weight, x.device)
        if up is not None:
            self._refuse_matrix("up", up, x.device)
            if up.shape != weight.shape or up.group != weight.group or (up.zeros is None) != (weight.zeros is None):
                raise UsageError("gate and up must agree in shape, group size and whether they have zero points")
            if bias is not None:
                raise UsageError("a bias together with up is not supported: gated layers have none")
        for name, given, shape in (("bias", bias, (n,)), ("out", out, (m, n))):
            if given is not None and (
                given.shape != shape or given.dtype != x.dtype or given.device != x.device or not given.is_contiguous()
            ):
                raise UsageError(f"{name} must be contiguous {x.dtype} {shape} on {x.device}")
        if x.device.type == "cpu" and not interpreting():
            raise UsageError("tensors are on the CPU: use the reference, or set TRITON_INTERPRET=1 before the import")

    def _refuse_matrix(self, name: str, matrix: Quantized, device: torch.device) -> None:
        if matrix.stored_bits != self.bits:
            raise UsageError(f"{name} has {matrix.bits}-bit codes, this kernel reads {self.bits}")
        for part in (matrix.codes, matrix.scales, matrix.zeros):
            if part is not None and part.device != device:
                raise UsageError(f"{name} is on {part.device}, x on {device}: use .to(...)")
            if part is not None and not part.is_contiguous():
                raise UsageError(f"{name} must be contiguous")
        if matrix.codes.data_ptr() % 16:
            raise UsageError(f"{name}: its codes must begin at a multiple of 16 bytes")


def workspace_size(configuration: Configuration, rows: int, outputs: int, gated: bool) -> int:
    """Elements of float32 that a split-K launch writes its parts to; 0 where it needs none."""
    splits = configuration.constants["SPLITS"]
    return 0 if splits == 1 else splits * (2 if gated else 1) * rows * outputs


def _pointers(weight: Quantized | None) -> tuple[Tensor | None, ...]:
    """Words, scales and zero points as the kernels take them; 8-bit codes in words of four."""
    return (None, None, None) if weight is None else (weight.codes.view(torch.int32), weight.scales, weight.zeros)


# --- builds -----------------------------------------------------------------------------------------------------------

# configurations, type of the activations, sizes of groups, what is added ("bias", "zeros", "gated" or nothing)
BuildGroup = tuple[Sequence[Configuration], str, tuple[int, ...], str]


def matmul_builds(kernel: Matmul, build_groups: Sequence[BuildGroup]) -> Iterator[Build]:
    """A build of every configuration and group size of each `BuildGroup`; zero points for 4 bits alone."""
    for configurations, dtype, groups, extra in build_groups:
        if extra == "zeros" and kernel.bits != 4:
            continue
        for configuration in configurations:
            for group in groups:
                yield _build(kernel, configuration, dtype, group, extra)


def _build(kernel: Matmul, configuration: Configuration, dtype: str, group: int, extra: str) -> Build:
    split = configuration.constants["SPLITS"] > 1
    present = {
        "zeros_ptr": extra == "zeros",
        "up_words_ptr": extra == "gated",
        "up_scales_ptr": extra == "gated",
        "up_zeros_ptr": False,
        "bias_ptr": extra == "bias" and not split,
    }
    signature = {
        "x_ptr": f"*{dtype}",
        "words_ptr": "*i32",
        "scales_ptr": "*fp16",
        "zeros_ptr": "*u8",
        "up_words_ptr": "*i32",
        "up_scales_ptr": "*fp16",
        "up_zeros_ptr": "*u8",
        "bias_ptr": f"*{dtype}",
        "y_ptr": "*fp32" if split else f"*{dtype}",
        "M": "i32",
        "N": "i32",
        "K": "i32",
    }
    absent = [name for name, there in present.items() if not there]
    for name in absent:
        del signature[name]
    function, constants = kernel.function(configuration)
    aligned = ("x_ptr", "words_ptr", "up_words_ptr", "scales_ptr", "y_ptr", "K")
    return Build(
        kernel=kernel.name,
        variant="-".join(filter(None, (dtype, f"g{group}", extra))),
        function=function,
        signature=signature,
        constants={**dict.fromkeys(absent), **constants, "GROUP": group},
        configuration=configuration,
        aligned=tuple(name for name in aligned if name in signature),
        grid=("cdiv(N, BLOCK_N)", "SPLITS", "cdiv(M, BLOCK_M)" if "BLOCK_M" in constants else "M"),
    )


def sum_build(kernel: Matmul, dtype: str, splits: int, extra: str = "") -> Build:
    """The sum over parts that follows a split-K launch."""
    configuration = sum_config(splits)
    signature = {"parts_ptr": "*fp32", "bias_ptr": f"*{dtype}", "y_ptr": f"*{dtype}", "size": "i32", "N": "i32"}
    constants: dict[str, Any] = {"GATED": extra == "gated", **configuration.constants}
    if extra != "bias":
        del signature["bias_ptr"]
        constants["bias_ptr"] = None
    return Build(
        kernel=kernel.name,
        variant="-".join(filter(None, ("sum", dtype, extra))),
        function=_sum_parts_kernel,
        signature=signature,
        constants=constants,
        configuration=configuration,
        aligned=("parts_ptr", "y_ptr"),
        grid=("cdiv(size, BLOCK)", "1", "1"),
    )


# --- checks -----------------------------------------------------------------------------------------------------------

MARGIN = 64  # elements on either side of a tensor; keeps 16-byte alignment for every type

# What rounding may cost at outputs of size one. On multiply-adds the weights are exact and only y is rounded (the
# interpreter cuts bfloat16 off instead of rounding); tensor cores also round each weight to the activations' type.
_TOLERANCES: Mapping[tuple[str, bool], tuple[float, float]] = {
    ("float16", False): (5e-4, 1e-3),
    ("bfloat16", False): (1e-3, 8e-3),
    ("float16", True): (2e-3, 1e-3),
    ("bfloat16", True): (2.5e-2, 1e-2),
}


def matmul_case(
    kernel: Matmul,
    m: int,
    n: int,
    k: int,
    dtype: str,
    group: int,
    extra: str = "",
    *,
    config: int | None = None,
    coarse: bool = False,
    slow: bool = False,
) -> Case:
    """A row of a kernel's table.

    Args:
        extra: what is added: words out of `bias`, `zeros` (left out for 8 bits), `gated`.
        config: the place of a configuration among the kernel's, else the rule decides.
        coarse: few large programs in the interpreter, whose time is that of its programs.
    """
    words = [word for word in extra.split() if kernel.bits == 4 or word != "zeros"]
    options: dict[str, Any] = {"group": group, **dict.fromkeys(words, True)}
    if config is not None:
        options["config"] = config
    if coarse:
        options["coarse"] = True
    case = Case({"M": m, "N": n, "K": k}, dtype, 0.0, 0.0, options, slow)
    atol, rtol = _TOLERANCES[dtype, "BLOCK_M" in configuration_of(kernel, case, "cuda").constants]
    if "gated" in words:  # a product of two such sums
        atol, rtol = 4 * atol, 2 * rtol
    return replace(case, atol=atol, rtol=rtol)


def configuration_of(kernel: Matmul, case: Case, device: str) -> Configuration:
    """The configuration that a case runs in on a device."""
    m, n, k = case.sizes.values()
    config: int | None = case.options.get("config")
    if config is not None:
        return kernel.configurations[config]
    own = kernel.rule(m, n, k, kernel.bits, "gated" in case.options)
    if "coarse" not in case.options or device != "cpu":
        return own
    if "CHUNKS" in own.constants:
        return Configuration({"BLOCK_N": 128, "CHUNKS": 64, "SPLITS": 1}, 4, 1)
    return Configuration({"BLOCK_N": 256, "BLOCK_M": 16 if m <= 16 else 128, "SPLITS": 1}, 4, 1)


def fenced(tensor: Tensor, device: str) -> Tensor:
    """The same tensor inside poisoned memory."""
    poison = torch.nan if tensor.is_floating_point() else torch.iinfo(tensor.dtype).max
    memory = torch.full((tensor.numel() + 2 * MARGIN,), poison, dtype=tensor.dtype, device=device)
    inner = memory[MARGIN : MARGIN + tensor.numel()].view(tensor.shape)
    inner.copy_(tensor)
    return inner


def random_weight(
    n: int, k: int, bits: int, group: int, zeros: bool, generator: torch.Generator, device: str = "cpu"
) -> Quantized:
    """Codes of every value, scales of both signs such that a row times a normal x is about normal."""
    shape = (n, -(-k // group))
    size = (0.5 + torch.rand(shape, generator=generator)) / ((5 if bits == 4 else 74) * k**0.5)
    scales = (size * (2 * torch.randint(0, 2, shape, generator=generator) - 1)).to(torch.float16)
    if bits == 8:
        codes = torch.randint(-128, 128, (n, k), dtype=torch.int8, generator=generator)
    else:
        codes = pack_nibbles(torch.randint(0, 16, (n, k), dtype=torch.uint8, generator=generator))
    points = torch.randint(0, 16, shape, dtype=torch.uint8, generator=generator) if zeros else None
    return Quantized(
        fenced(codes, device), fenced(scales, device), group, None if points is None else fenced(points, device)
    )


def check_matmul(kernel: Matmul, case: Case, device: str, seed: int) -> Outcome:
    """One case on one device: the worst error in units of what is allowed; infinite where memory was harmed."""
    return compare(kernel, kernel.bits, configuration_of(kernel, case, device), case, device, seed)


def compare(
    run: Callable[..., Tensor], bits: int, configuration: Configuration, case: Case, device: str, seed: int
) -> Outcome:
    """The same for any function of an entry point's arguments, in a given configuration."""
    m, n, k = case.sizes.values()
    options, dtype = case.options, getattr(torch, case.dtype)
    generator = torch.Generator().manual_seed(seed)
    random = functools.partial(random_weight, n, k, bits, options["group"], "zeros" in options, generator, device)
    weight, up = random(), random() if "gated" in options else None
    x = fenced(torch.randn(m, k, generator=generator).to(dtype), device)
    bias = fenced(torch.randn(n, generator=generator).to(dtype), device) if "bias" in options else None
    out = fenced(torch.full((m, n), torch.nan, dtype=dtype), device)
    parts = fenced(torch.full((workspace_size(configuration, m, n, up is not None),), torch.nan), device)
    y = run(x, weight, up=up, bias=bias, out=out, workspace=parts, configuration=configuration)
    exact = matmul_ref(x, weight, up=up, bias=bias, inside=torch.float64)
    outcome = Outcome.of(y, exact, case.atol, case.rtol)
    whole = y is out and _margins_are_whole(out) and _margins_are_whole(parts)
    return outcome if whole else Outcome(math.inf, outcome.absolute)


def _margins_are_whole(inner: Tensor) -> bool:
    memory = torch.empty(0, dtype=inner.dtype, device=inner.device).set_(inner.untyped_storage())
    return bool(memory[:MARGIN].isnan().all()) and bool(memory[MARGIN + inner.numel() :].isnan().all())


def matmul_kernel(
    run: Matmul,
    summary: str,
    cases: Callable[[Matmul], Iterator[Case]],
    builds: Callable[[Matmul], Iterator[Build]],
) -> Kernel:
    """The record of a kernel."""
    return Kernel(
        name=run.name,
        summary=summary,
        run=run,
        reference=matmul_ref,
        configurations=run.configurations,
        cases=tuple(cases(run)),
        check=functools.partial(check_matmul, run),
        builds=functools.partial(builds, run),
    )

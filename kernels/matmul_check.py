"""How the four low-bit matmuls are checked: random operands inside poisoned memory, against float64.

Every tensor a kernel is handed lies between margins of NaN (largest integers where there is no NaN), outputs and
split-K parts start as NaN: a read or a write outside, or an output left out, shows. The tables hold each configuration
on an awkward shape, with what may be added in turn, and students' shapes by the rule. Left out: speed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from soloist.kernels.layout import Quantized, pack_nibbles
from soloist.kernels.matmul_configs import GATED_ROWS, GEMM, GEMV, coarse, gemm_config, gemv_config
from soloist.kernels.matmul_host import Matmul, matmul_ref, workspace_size
from soloist.kernels.spec import Case, Configuration, Outcome

MARGIN = 64  # elements on either side; keeps 16-byte alignment for every type

# What rounding may cost at outputs of size one. On multiply-adds the weights are exact and only y is rounded (the
# interpreter cuts bfloat16 off instead of rounding); tensor cores also round each weight to the activations' type.
_TOLERANCES: Mapping[tuple[str, bool], tuple[float, float]] = {
    ("float16", False): (5e-4, 1e-3),
    ("bfloat16", False): (1e-3, 8e-3),
    ("float16", True): (2e-3, 1e-3),
    ("bfloat16", True): (2.5e-2, 1e-2),
}


def row(
    m: int,
    n: int,
    k: int,
    dtype: str,
    group: int,
    configuration: Configuration,
    *,
    slow: bool = False,
    **options: object,
) -> Case:
    """A row of a kernel's table.

    Args:
        configuration: what it runs in, which sets what is allowed.
        options: `bias`, `zeros`, `gated`; `config`, the place of a configuration among the kernel's, else the rule
            decides; `coarse`, few large programs in the interpreter.
    """
    atol, rtol = _TOLERANCES[dtype, "BLOCK_M" in configuration.constants]
    if options.get("gated"):  # a product of two such sums
        atol, rtol = 4 * atol, 2 * rtol
    return Case({"M": m, "N": n, "K": k}, dtype, atol, rtol, {"group": group, **options}, slow)


def _extra(text: str, bits: int) -> dict[str, bool]:
    """What `zeros bias` adds to a row; 8-bit codes have no zero points."""
    return {name: True for name in text.split() if bits == 4 or name != "zeros"}


def gemv_cases(bits: int) -> Iterator[Case]:
    """1 to 16 rows: every configuration, split columns with all that may be added, students' shapes."""
    half, brain = "float16", "bfloat16"
    for at, config in enumerate(GEMV):
        extra = "gated" if config in GATED_ROWS else ("", "bias", "zeros", "gated")[at % 4]
        m, dtype = 2 + at % 15 if "BLOCK_M" in config.constants else 1, (half, brain)[(at + at // 4) % 2]
        yield row(m, 43, 352, dtype, (32, 64, 128)[at % 3], config, config=at, **_extra(extra, bits))
    split = [
        (1, ""),
        (1, "bias"),
        (1, "gated zeros"),
        (8, "bias"),
        *([(1, "zeros"), (8, "zeros")] if bits == 4 else []),
    ]
    for at, (m, extra) in enumerate(split):
        place = 6 if m == 1 else 9  # gemv, gemm; four parts
        yield row(m, 19, 5632, (half, brain)[at % 2], 32, GEMV[place], config=place, **_extra(extra, bits))
    for m, n, k, dtype, group, extra, slow in (
        (1, 576, 1536, half, 32, "", False),
        (1, 1536, 576, brain, 64, "gated", False),
        (1, 576, 192, half, 128, "zeros", False),
        (1, 192, 576, brain, 32, "bias", False),
        (1, 896, 4864, half, 128, "zeros bias", False),
        (1, 4864, 896, half, 64, "gated zeros", False),
        (1, 2048, 5632, brain, 32, "zeros", False),
        (1, 5632, 2048, half, 32, "", False),
        (1, 191, 160, half, 128, "", False),
        (1, 577, 352, brain, 128, "gated zeros", False),
        (3, 191, 1184, half, 64, "", False),
        (2, 577, 352, half, 32, "", False),
        (6, 191, 160, brain, 64, "zeros", False),
        (16, 576, 1536, half, 32, "", False),
        (16, 896, 4864, half, 128, "zeros", True),
        (5, 2048, 5632, brain, 64, "", True),
    ):
        more = _extra(extra, bits)
        config = gemv_config(m, n, k, bits, "gated" in more)
        yield row(m, n, k, dtype, group, config, slow=slow, coarse=True, **more)
    for m, n, k, dtype, group, extra in ((7, 576, 192, half, 128, "bias"), (16, 192, 576, brain, 32, "gated")):
        yield row(m, n, k, dtype, group, gemv_config(m, n, k, bits, extra == "gated"), **_extra(extra, bits))


def gemm_cases(bits: int) -> Iterator[Case]:
    """More rows: every configuration, students' shapes."""
    half, brain = "float16", "bfloat16"
    for at, config in enumerate(GEMM):
        extra = ("", "zeros")[at % 2]
        yield row(
            19 + at, 67, 352, (half, brain)[at % 2], (32, 64, 128)[at % 3], config, config=at, **_extra(extra, bits)
        )
    for m, n, k, dtype, group, extra, large, slow in (
        (17, 191, 160, half, 32, "bias", False, False),
        (33, 577, 352, brain, 128, "gated", True, False),
        (130, 576, 1536, half, 32, "", True, False),
        (33, 576, 192, half, 64, "zeros bias", False, False),
        (17, 192, 576, brain, 32, "gated zeros", False, False),
        (1, 1536, 576, half, 128, "", True, False),
        (17, 896, 4864, brain, 64, "", True, True),
        (17, 2048, 5632, half, 128, "", True, True),
        (70, 5632, 2048, brain, 32, "gated", True, True),
    ):
        more = {**_extra(extra, bits), **({"coarse": True} if large else {})}
        yield row(m, n, k, dtype, group, gemm_config(m, n, k, bits, "gated" in more), slow=slow, **more)


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


def configuration_of(kernel: Matmul, case: Case, device: str) -> Configuration:
    """The configuration that a case runs in."""
    m, n, k = (case.sizes[name] for name in ("M", "N", "K"))
    if "config" in case.options:
        place: int = case.options["config"]
        return kernel.configurations[place]
    own = kernel.rule(m, n, k, kernel.bits, bool(case.options.get("gated")))
    return coarse(own, m) if case.options.get("coarse") and device == "cpu" else own


def check_matmul(kernel: Matmul, case: Case, device: str, seed: int) -> Outcome:
    """One case on one device: the worst error in units of what is allowed; infinite where memory was harmed."""
    return compare(kernel, kernel.bits, configuration_of(kernel, case, device), case, device, seed)


def compare(
    run: Callable[..., Tensor], bits: int, configuration: Configuration, case: Case, device: str, seed: int
) -> Outcome:
    """The same for any function of an entry point's arguments, in a given configuration."""
    m, n, k = (case.sizes[name] for name in ("M", "N", "K"))
    options, dtype = case.options, getattr(torch, case.dtype)
    generator = torch.Generator().manual_seed(seed)
    weights = [
        random_weight(n, k, bits, options["group"], bool(options.get("zeros")), generator, device)
        for _ in range(2 if options.get("gated") else 1)
    ]
    weight, up = weights[0], weights[1] if len(weights) > 1 else None
    x = fenced(torch.randn(m, k, generator=generator).to(dtype), device)
    bias = fenced(torch.randn(n, generator=generator).to(dtype), device) if options.get("bias") else None
    out = fenced(torch.full((m, n), torch.nan, dtype=dtype), device)
    size = workspace_size(configuration, m, n, up is not None)
    parts = fenced(torch.full((size,), torch.nan), device)
    y = run(x, weight, up=up, bias=bias, out=out, workspace=parts, configuration=configuration)
    exact = matmul_ref(x, weight, up=up, bias=bias, inside=torch.float64)
    error = (y.double() - exact).abs()
    worst = (error / (case.atol + case.rtol * exact.abs())).max().item()
    whole = y is out and _margins_are_whole(out) and _margins_are_whole(parts) and bool(error.isfinite().all())
    return Outcome(worst if whole else float("inf"), error.max().item())


def _margins_are_whole(inner: Tensor) -> bool:
    memory = torch.empty(0, dtype=inner.dtype, device=inner.device).set_(inner.untyped_storage())
    return bool(memory[:MARGIN].isnan().all()) and bool(memory[MARGIN + inner.numel() :].isnan().all())

"""How the four low-bit matmuls are checked: random operands inside poisoned memory, against float64.

Every tensor a kernel is handed lies between margins of NaN (largest integers where there is no NaN), outputs and
split-K parts start as NaN: a read or a write outside, or an output left out, shows. Left out: speed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from soloist.kernels.layout import Quantized, pack_nibbles
from soloist.kernels.matmul_host import matmul_ref, workspace_size
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
    m: int, n: int, k: int, dtype: str, group: int, *, tensor_cores: bool, slow: bool = False, **options: object
) -> Case:
    """A row of a kernel's table.

    Args:
        options: `bias`, `zeros`, `gated`; `cut`, the place of a configuration among the kernel's; `coarse`, few large
            programs, which is what the interpreter likes.
    """
    atol, rtol = _TOLERANCES[dtype, tensor_cores]
    if options.get("gated"):  # a product of two such sums
        atol, rtol = 4 * atol, 2 * rtol
    return Case({"M": m, "N": n, "K": k}, dtype, atol, rtol, {"group": group, **options}, slow)


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


def check_matmul(
    run: Callable[..., Tensor], bits: int, configuration: Configuration, case: Case, device: str, seed: int
) -> Outcome:
    """One case on one device: the worst error in units of what is allowed; infinite where memory was harmed."""
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
    exact = matmul_ref(x, weight, up, bias, torch.float64)
    error = (y.double() - exact).abs()
    worst = (error / (case.atol + case.rtol * exact.abs())).max().item()
    whole = y is out and _margins_are_whole(out) and _margins_are_whole(parts) and bool(error.isfinite().all())
    return Outcome(worst if whole else float("inf"), error.max().item())


def _margins_are_whole(inner: Tensor) -> bool:
    memory = torch.empty(0, dtype=inner.dtype, device=inner.device).set_(inner.untyped_storage())
    return bool(memory[:MARGIN].isnan().all()) and bool(memory[MARGIN + inner.numel() :].isnan().all())

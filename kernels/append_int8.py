"""Append a token's keys and values to an int8 cache, quantizing them; `decode_attention` reads the cache.

    s = fp16(max |x| / 127),   code = clamp(round(x / s), -127, 127),   for each row b and head g at positions[b]

    x (B, Hkv, D) fp16 or bf16;  cache (B, Hkv, S, D) int8;  scales (B, Hkv, S) float16;  positions (B,) int32

One program per row and head; keys and values in one launch each. The kernel's bits are those of the torch reference:
rounding goes to even by adding and subtracting 1.5 * 2^23, the quotient is the correctly rounded one, and 1 / 127 is a
factor, because torch divides by a number differently on CPU and GPU. A position outside of the cache is dropped. Left
out: filling a cache from a prompt, zero points.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from soloist.kernels.choose import choose_config, interpreting
from soloist.kernels.decode_attention import HEAD_DIMS
from soloist.kernels.errors import UsageError
from soloist.kernels.jit import tl, triton
from soloist.kernels.spec import Build, Case, Configuration, Kernel, Outcome


def append_int8_ref(
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    key_scales: Tensor,
    value_scales: Tensor,
    positions: Tensor,
) -> None:
    """Write keys and values at each row's position of the caches, in place."""
    rows = ((positions >= 0) & (positions < key_cache.shape[2])).nonzero()[:, 0]
    places = positions[rows].long()
    for new, cache, scales in ((key, key_cache, key_scales), (value, value_cache, value_scales)):
        exact = new[rows].float()
        scale = (exact.abs().amax(-1) * (1.0 / 127.0)).clamp(max=65504.0).half()
        scale32 = scale.float()[..., None]
        codes = torch.where(scale32 > 0, (exact / scale32).round().clamp(-127, 127), 0.0)
        cache[rows, :, places] = codes.to(torch.int8)
        scales[rows, :, places] = scale


CONFIGURATION = Configuration({}, warps=1, stages=1)


@triton.jit
def _append_int8_kernel(
    new: tl.tensor,
    cache: tl.tensor,
    scales: tl.tensor,
    positions: tl.tensor,
    BATCH: tl.int32,
    HEADS: tl.int32,
    S: tl.int32,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    pair = tl.program_id(0)  # (row, cache head); BATCH is there for the grid
    position = tl.load(positions + pair // HEADS)
    columns = tl.arange(0, BLOCK_D)
    x = tl.load(new + pair * D + columns, mask=columns < D, other=0.0).to(tl.float32)
    scale = tl.minimum(tl.max(tl.abs(x), 0) * 0.007874015748031496, 65504.0).to(tl.float16)
    scale32 = scale.to(tl.float32)
    scaled = tl.div_rn(x, tl.where(scale32 > 0, scale32, 1.0) + tl.zeros_like(x))
    scaled = (scaled + 12582912.0) - 12582912.0
    codes = tl.where(scale32 > 0, tl.minimum(tl.maximum(scaled, -127.0), 127.0), 0.0)
    place = pair.to(tl.int64) * S + position
    places = position + tl.zeros_like(columns)  # the interpreter takes no mask of a vector and a single truth
    inside = (columns < D) & (places >= 0) & (places < S)
    tl.store(cache + place * D + columns, codes.to(tl.int8), mask=inside)
    tl.store(scales + place, scale, mask=(position >= 0) & (position < S))


def append_int8(
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    key_scales: Tensor,
    value_scales: Tensor,
    positions: Tensor,
    *,
    configuration: Configuration | None = None,
) -> None:
    """Write keys and values at each row's position of the caches, in place.

    Args:
        configuration: by default the tuned one for sizes B, HKV and D.

    Raises:
        UsageError: shapes, dtypes or layouts that do not fit.
    """
    batch, heads, head_dim = key.shape
    sizes = {"B": batch, "HKV": heads, "D": head_dim}
    config = choose_config("append_int8", sizes, {}, key.device, CONFIGURATION, configuration)
    if key.device.type == "cpu" and not interpreting():
        raise UsageError("append_int8: on a CPU use the reference, or TRITON_INTERPRET=1 before the first import")
    for new, cache, scales in ((key, key_cache, key_scales), (value, value_cache, value_scales)):
        shape = (batch, heads, cache.shape[2], head_dim)
        if new.shape != key.shape or tuple(cache.shape) != shape or tuple(scales.shape) != shape[:3]:
            raise UsageError(f"append_int8: {tuple(new.shape)} does not fit a cache of {tuple(cache.shape)}")
        if cache.dtype != torch.int8 or scales.dtype != torch.float16 or head_dim not in HEAD_DIMS:
            raise UsageError(
                f"append_int8: int8 caches, float16 scales, heads of {HEAD_DIMS}; not {cache.dtype}, {head_dim}"
            )
        if not all(tensor.is_contiguous() for tensor in (new, cache, scales, positions)):
            raise UsageError("append_int8: every tensor must be contiguous")
        _append_int8_kernel[(batch * heads,)](
            new,
            cache,
            scales,
            positions,
            batch,
            heads,
            shape[2],
            D=head_dim,
            BLOCK_D=triton.next_power_of_2(head_dim),
            **config.launch_options(fused=False),  # the reference's bits
        )


# ---------------------------------------------------------------- checks and builds


def _case(batch: int, heads: int, capacity: int, head_dim: int, dtype: str, **options: Any) -> Case:
    return Case({"B": batch, "HKV": heads, "S": capacity, "D": head_dim}, dtype, 0.0, 0.0, options)


_CASES = (
    _case(3, 3, 17, 64, "float16"),
    _case(4, 1, 5, 80, "bfloat16"),
    _case(2, 2, 3, 96, "float16", size=3e-6),
    _case(2, 1, 7, 128, "bfloat16", size=1e30),
    _case(1, 2, 1, 32, "float16", size=0.0),
)


def _check(case: Case, device: str, seed: int) -> Outcome:
    """The reference's bits in all of both caches, which are -128 and NaN before."""
    draw = torch.Generator().manual_seed(seed)
    batch, heads, capacity, head_dim = case.sizes.values()
    dtype, size = getattr(torch, case.dtype), case.options.get("size", 3.0)
    key = (torch.randn((batch, heads, head_dim), generator=draw) * size).to(dtype)
    value = (torch.randn((batch, heads, head_dim), generator=draw) * size).to(dtype)
    positions = torch.randint(0, capacity + (batch > 1), (batch,), generator=draw, dtype=torch.int32)

    def filled(function: Callable[..., None], place: str) -> list[Tensor]:
        codes = torch.full((2, batch, heads, capacity, head_dim), -128, dtype=torch.int8, device=place)
        scales = torch.full((2, batch, heads, capacity), torch.nan, dtype=torch.float16, device=place)
        function(key.to(place), value.to(place), *codes, *scales, positions.to(place))
        return [codes.cpu(), scales.cpu().view(torch.int8)]

    different = 0.0
    for tensor, exact in zip(filled(append_int8, device), filled(append_int8_ref, "cpu"), strict=True):
        different += float((tensor != exact).sum())
    return Outcome(different, different)


def _builds() -> Iterator[Build]:
    for head_dim in HEAD_DIMS:
        for short in ("fp16", "bf16"):
            yield Build(
                "append_int8",
                f"{short}-d{head_dim}",
                _append_int8_kernel,
                {
                    "new": f"*{short}",
                    "cache": "*i8",
                    "scales": "*fp16",
                    "positions": "*i32",
                    "BATCH": "i32",
                    "HEADS": "i32",
                    "S": "i32",
                },
                {"D": head_dim, "BLOCK_D": 1 << (head_dim - 1).bit_length()},
                CONFIGURATION,
                aligned=("new", "cache"),
                grid=("BATCH * HEADS", "1", "1"),
                fused=False,
            )


KERNEL = Kernel(
    name="append_int8",
    summary="a token's keys and values quantized into an int8 cache",
    run=append_int8,
    reference=append_int8_ref,
    configurations=(CONFIGURATION,),
    cases=_CASES,
    check=_check,
    builds=_builds,
)

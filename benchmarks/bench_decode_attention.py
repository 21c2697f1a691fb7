"""Attention of one new token: `decode_attention` on fp16 and int8 caches against torch's SDPA on fp16.

    python -P benchmarks/bench_decode_attention.py [--quick] [--tune]

Heads of three models at contexts of 512 to 8192, one row. Each is compared with float64 first, outputs and work space
poisoned, and not timed if it is wrong. SDPA runs with `enable_gqa` and whatever backend torch chooses. The sides take
turns on rotated caches in CUDA graphs (`gpu_timing.py` says why); the row has the bytes that each moves. The issue sets
no bar. Appended to benchmarks/results/decode_attention.jsonl. Needs an NVIDIA GPU.
"""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).parent))  # -P leaves it out

import torch
from gpu_program import Found, program
from gpu_timing import Side, compared, copies_for, interleave, told
from gpu_tuning import best_of, write_entries
from torch.nn import functional

from soloist.kernels.decode_attention import KERNEL
from soloist.kernels.errors import GateError

MODELS = {"smollm2-135m": (9, 3, 64), "qwen2.5-0.5b": (14, 2, 64), "llama-3.1-8b": (32, 8, 128)}  # H, Hkv, D
CONTEXTS = (512, 1024, 2048, 4096, 8192)


@dataclass(frozen=True)
class Caches:
    """Rotated caches of one kind, and a query.

    Args:
        kept: for each copy (K, V) in fp16, or (K, V, scales of K, scales of V) in int8.
    """

    query: torch.Tensor
    lengths: torch.Tensor
    kept: list[tuple[torch.Tensor, ...]]

    @property
    def moved(self):
        """Bytes a call moves: the cache once, the query and the result."""
        parts = (*self.kept[0], self.query, self.query)
        return sum(each.numel() * each.element_size() for each in parts)


def made(run, heads, shared, width, context, *, quantized):
    """Random caches that together do not fit in the L2 cache by far."""
    device = run.clock.device
    draw = torch.Generator(device).manual_seed(run.options.seed)
    each = 2 * shared * context * (width + 2 if quantized else 2 * width)
    copies = copies_for(each, run.facts)
    query = torch.randn((1, heads, width), device=device, generator=draw).half()
    whole = [torch.randn((copies, shared, context, width), device=device, generator=draw) for _ in range(2)]
    parts = [one.half() for one in whole]
    if quantized:
        scales = [(one.abs().amax(-1) / 127).half() for one in whole]
        codes = [
            (one / step.float()[..., None]).round().clamp(-127, 127).to(torch.int8)
            for one, step in zip(whole, scales, strict=True)
        ]
        parts = [*codes, *scales]
    lengths = torch.full((1,), context, dtype=torch.int32, device=device)
    return Caches(query, lengths, [tuple(one[i : i + 1] for one in parts) for i in range(copies)])


def ours(caches, name, configuration=None):
    """Our kernel on each copy."""
    calls = [
        functools.partial(KERNEL.run, caches.query, *kept[:2], caches.lengths, *kept[2:], configuration=configuration)
        for kept in caches.kept
    ]
    return Side(name, calls, caches.moved, ours=True)


def sdpa(caches):
    """torch's, on the fp16 caches."""
    query = caches.query[:, :, None]
    calls = [
        functools.partial(functional.scaled_dot_product_attention, query, *kept, enable_gqa=True)
        for kept in caches.kept
    ]
    return Side("sdpa", calls, caches.moved)


def demand_right(caches, side):
    """Compare the first and the last call with float64, all that it allocates poisoned.

    Raises:
        GateError: a wrong element: then nothing is timed.
    """
    cases = [case for case in KERNEL.cases if case.dtype == "float16"]
    atol, rtol = max(case.atol for case in cases), max(case.rtol for case in cases)

    def poisoned(*shape, **how):
        return torch.empty(*shape, **how).fill_(torch.nan)

    most = 0.0
    for copy in (0, len(side.calls) - 1):
        kept = caches.kept[copy]
        exact = KERNEL.reference(caches.query.double(), *kept[:2], caches.lengths, *kept[2:])
        off = (side.calls[copy](empty=poisoned).double() - exact).abs() / (atol + rtol * exact.abs())
        most = max(most, float(off.nan_to_num(nan=float("inf")).max()))
    if most > 1:
        raise GateError(
            f"decode_attention is wrong, {side.name}, cache {tuple(caches.kept[0][0].shape)}: {most:.3g} times the "
            "allowed error against float64; it is not timed"
        )
    return most


def measure_context(run, model, context):
    """One context of one model: three sides in turns."""
    heads, shared, width = MODELS[model]
    wide, narrow = (made(run, heads, shared, width, context, quantized=quantized) for quantized in (False, True))
    sides = [ours(wide, "ours"), ours(narrow, "ours-int8")]
    pairs = zip((wide, narrow), sides, strict=True)
    errors = {side.name: round(demand_right(caches, side), 4) for caches, side in pairs}
    sides.append(sdpa(wide))
    times = interleave(run.clock, sides, run.options.rounds)
    found = compared(times, sides, run.rate)
    run.say(f"{model} at {context}: " + told(found))
    return {
        "model": model,
        "B": 1,
        "H": heads,
        "HKV": shared,
        "S": context,
        "D": width,
        "dtype": "float16",
        "error": errors,
        "sides": found,
        "absent": times.absent,
    }


def tuned(run, model, context, *, quantized):
    """The best configuration for a cache."""
    heads, shared, width = MODELS[model]
    caches = made(run, heads, shared, width, context, quantized=quantized)
    return best_of(
        run,
        KERNEL,
        {"B": 1, "H": heads, "HKV": shared, "S": context, "D": width},
        {"int8": quantized},
        lambda config: ours(caches, config.name, config),
        lambda side: demand_right(caches, side),
    )


def measure(run):
    """All contexts of all models."""
    quick = run.options.quick
    shapes = [
        (model, context)
        for model in list(MODELS)[: 1 if quick else None]
        for context in ((512, 8192) if quick else CONTEXTS)
    ]
    with torch.inference_mode():
        if run.options.tune:
            kinds = [(shape, quantized) for shape in shapes for quantized in (False, True)]
            write_entries(run, KERNEL, [tuned(run, *shape, quantized=quantized) for shape, quantized in kinds])
        return Found([measure_context(run, *shape) for shape in shapes])


def main(**more):
    """The exit code."""
    return program("decode_attention", __doc__, measure, **more)


if __name__ == "__main__":
    sys.exit(main())

"""Attention of decoding: a single query per row against its key-value cache, the sequence split over programs.

    out[b, h] = sum_s p[s] V[b, g, s],   p = softmax over s < lengths[b] of  scale * q[b, h] . K[b, g, s],   g = h // G

    q (B, H, D);  K, V (B, Hkv, S, D) in q's dtype, or int8 with float16 scales (B, Hkv, S): K[b, g, s] ks[b, g, s];
    lengths (B,) int32;  G = H / Hkv heads share a cache head and are processed together, so the cache is read once.

Decoding reads the whole cache for one token, so its time is that of the memory, all of which must be busy. With one
program per (row, cache head) most of a GPU would idle; flash-decoding
(https://crfm.stanford.edu/2023/10/12/flashdecoding.html) cuts the sequence into pieces and gives each its own program,
which leaves (m, l, acc): the largest score, the sum of exp(score - m) and the sum of exp(score - m) V. A second kernel
merges them,

    m = max m_i,   out = sum_i exp(m_i - m) acc_i / sum_i exp(m_i - m) l_i

in a fixed order, so that the same input gives the same bits. Bytes: the cache once, 2 S D elements a cache head (int8:
half, plus 4 S of scales), and per piece D + 2 floats a head written and read. Scores and sums are fp32, products are
matrix instructions on q's dtype (the G heads padded to 16 rows: free where memory is the limit), exponentials base 2.
An int8 value's scale is folded into p, relative to the largest scale of its block, so that fp16 cannot underflow.

A row of length 0 gives 0. `append_int8` fills an int8 cache. Left out: sliding windows, paged caches, several queries
per row.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from soloist.kernels.choose import choose_config, interpreting
from soloist.kernels.errors import UsageError
from soloist.kernels.jit import tl, triton
from soloist.kernels.spec import Build, Case, Configuration, Kernel, Outcome

HEAD_DIMS = (32, 64, 80, 96, 128)
_LOG2_E = 1.4426950408889634
_MAX_SPLITS = 128


def decode_attention_ref(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Tensor,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
    *,
    scale: float | None = None,
) -> Tensor:
    """The formula in fp32 (fp64 for an fp64 query): (B, H, D) in the query's dtype."""
    precise = torch.promote_types(query.dtype, torch.float32)
    batch, heads, head_dim = query.shape
    masked = torch.arange(key.shape[2], device=key.device) >= lengths[:, None, None]  # (B, 1, S)

    def exact(cache: Tensor, scales: Tensor | None) -> Tensor:
        whole = cache.to(precise) if scales is None else cache.to(precise) * scales.to(precise)[..., None]
        return whole.masked_fill(masked[..., None], 0)

    grouped = query.to(precise).view(batch, key.shape[1], heads // key.shape[1], head_dim)
    scores = grouped @ exact(key, key_scales).transpose(-1, -2) * (head_dim**-0.5 if scale is None else scale)
    weights = scores.masked_fill(masked[:, :, None], -torch.inf).softmax(-1)
    weights = weights.masked_fill(masked[:, :, None], 0)  # a row of length 0 has no softmax
    return (weights @ exact(value, value_scales)).view(batch, heads, head_dim).to(query.dtype)


# BLOCK_S: places of the cache taken at once. Three stages: two blocks of K and V, 64 KiB in fp16, are under way.
NARROW = Configuration({"BLOCK_S": 128}, warps=4, stages=3)  # D <= 64
WIDE = Configuration({"BLOCK_S": 64}, warps=4, stages=3)
CONFIGURATIONS = (NARROW, WIDE)
_MERGE = Configuration({"BLOCK_I": 16}, warps=4, stages=1)


@triton.jit
def _product(a: tl.tensor, b: tl.tensor, INTERPRETED: tl.constexpr) -> tl.tensor:
    """a b on tensor cores, b as a's dtype. The interpreter keeps bfloat16 as raw bits and would multiply those."""
    if INTERPRETED:  # noqa: SIM108 - both sides of an expression would be compiled
        product = tl.dot(a.to(tl.float32), b.to(tl.float32))
    else:
        product = tl.dot(a, b.to(a.dtype))
    return product


@triton.jit
def _scales(
    key_scales: tl.tensor, value_scales: tl.tensor, start: tl.tensor, stop: tl.tensor, BLOCK_S: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Of a block of keys and values, zero from `stop` on."""
    places = start + tl.arange(0, BLOCK_S)
    of_keys = tl.load(key_scales + places, mask=places < stop, other=0.0).to(tl.float32)
    return of_keys, tl.load(value_scales + places, mask=places < stop, other=0.0).to(tl.float32)


@triton.jit
def _load_block(
    keys: tl.tensor, values: tl.tensor, places: tl.tensor, valid: tl.tensor, columns: tl.tensor, D: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Keys and values (BLOCK_S, BLOCK_D) at these places, zero where not valid."""
    offsets = places[:, None] * D + columns[None, :]
    mask = valid[:, None] & (columns < D)[None, :]
    return tl.load(keys + offsets, mask=mask, other=0), tl.load(values + offsets, mask=mask, other=0)


@triton.jit
def _online(
    scores: tl.tensor, scale: tl.tensor, valid: tl.tensor, peak: tl.tensor, total: tl.tensor
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """A step of online softmax: 2^(scores - new peak), the factor of older sums, the new peak, the new sum.

    The scores of int8 keys are still to be multiplied by their scales; else `scale` is None.
    """
    if scale is not None:
        scores = scores * scale[None, :]
    scores = tl.where(valid[None, :], scores, float("-inf"))
    top = tl.maximum(peak, tl.max(scores, 1))
    rescale = tl.exp2(peak - top)
    p = tl.exp2(scores - top[:, None])
    return p, rescale, top, total * rescale + tl.sum(p, 1)


@triton.jit
def _accumulate(
    acc: tl.tensor,
    rescale: tl.tensor,
    p: tl.tensor,
    v: tl.tensor,
    valid: tl.tensor,
    scale: tl.tensor,
    DTYPE: tl.constexpr,
    INTERPRETED: tl.constexpr,
) -> tl.tensor:
    """acc, rescaled, + p v; int8 values come with their scales, else `scale` is None."""
    if scale is None:
        acc = acc * rescale[:, None] + _product(p.to(DTYPE), v, INTERPRETED)
    else:
        largest = tl.maximum(tl.max(scale, 0), 1e-30)
        p = p * (scale / largest)[None, :]
        v = tl.where(valid[:, None], v, 0)  # changes nothing; bare, Triton copies int8 by 8 bytes instead of 16
        acc = acc * rescale[:, None] + _product(p.to(DTYPE), v, INTERPRETED) * largest
    return acc


@triton.jit
def _decode_attention_kernel(
    query: tl.tensor,
    key: tl.tensor,
    value: tl.tensor,
    key_scales: tl.tensor,
    value_scales: tl.tensor,
    lengths: tl.tensor,
    peaks: tl.tensor,
    sums: tl.tensor,
    partials: tl.tensor,
    out: tl.tensor,
    scale: tl.float32,
    BATCH: tl.int32,
    HEADS: tl.int32,
    S: tl.int32,
    GROUP: tl.int32,
    TOKENS: tl.int32,
    SPLITS: tl.int32,
    D: tl.constexpr,
    QUANTIZED: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
    INTERPRETED: tl.constexpr,
) -> None:
    pair, split = tl.program_id(0), tl.program_id(1)  # pair: (row, cache head); BATCH is there for the grid
    length = tl.minimum(tl.load(lengths + pair // HEADS), S)
    first, last = split * TOKENS, tl.minimum(split * TOKENS + TOKENS, length)
    if not WHOLE:  # noqa: SIM102 - known when compiled, unlike the length
        if first >= length:
            return
    group, columns = tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_D)
    inside = (group < GROUP)[:, None] & (columns < D)[None, :]
    heads = pair * GROUP + group
    q = tl.load(query + heads[:, None] * D + columns[None, :], mask=inside, other=0.0)
    base = pair.to(tl.int64) * S
    keys, values = key + base * D, value + base * D
    peak = tl.full((BLOCK_G,), float("-inf"), tl.float32)
    total, acc = tl.zeros((BLOCK_G,), tl.float32), tl.zeros((BLOCK_G, BLOCK_D), tl.float32)
    if QUANTIZED:  # scales come a block ahead: Triton does not do it for loads of two bytes
        next_scales = _scales(key_scales + base, value_scales + base, first, last, BLOCK_S)
    for start in range(first, last, BLOCK_S):
        places = start + tl.arange(0, BLOCK_S)
        valid, key_scale, value_scale = places < last, None, None
        if QUANTIZED:
            key_scale, value_scale = next_scales
            next_scales = _scales(key_scales + base, value_scales + base, start + BLOCK_S, last, BLOCK_S)
        k, v = _load_block(keys, values, places, valid, columns, D)
        scores = _product(q, tl.trans(k), INTERPRETED) * scale
        p, rescale, peak, total = _online(scores, key_scale, valid, peak, total)
        acc = _accumulate(acc, rescale, p, v, valid, value_scale, q.dtype, INTERPRETED)
    if WHOLE:
        mean = acc / tl.where(total > 0, total, 1.0)[:, None]
        tl.store(out + heads[:, None] * D + columns[None, :], mean.to(out.dtype.element_ty), mask=inside)
    else:
        piece = heads * SPLITS + split
        tl.store(peaks + piece, peak, mask=group < GROUP)
        tl.store(sums + piece, total, mask=group < GROUP)
        tl.store(partials + piece[:, None] * D + columns[None, :], acc, mask=inside)


@triton.jit
def _merge_kernel(
    peaks: tl.tensor,
    sums: tl.tensor,
    partials: tl.tensor,
    lengths: tl.tensor,
    out: tl.tensor,
    BATCH: tl.int32,
    HEADS: tl.int32,
    S: tl.int32,
    TOKENS: tl.int32,
    SPLITS: tl.int32,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_I: tl.constexpr,
) -> None:
    head = tl.program_id(0)  # (row, head)
    length = tl.minimum(tl.load(lengths + head // HEADS), S)
    used = (length + TOKENS - 1) // TOKENS  # pieces beyond the length were never written
    columns = tl.arange(0, BLOCK_D)
    peak = tl.full((1,), float("-inf"), tl.float32)
    total = tl.zeros((1,), tl.float32)
    acc = tl.zeros((BLOCK_D,), tl.float32)
    for start in range(0, used, BLOCK_I):
        pieces = start + tl.arange(0, BLOCK_I)
        valid = pieces < used
        flat = head * SPLITS + pieces
        m = tl.load(peaks + flat, mask=valid, other=float("-inf"))
        parts = tl.load(
            partials + flat[:, None] * D + columns[None, :], mask=valid[:, None] & (columns < D)[None, :], other=0.0
        )
        top = tl.maximum(peak, tl.max(m, 0))
        rescale = tl.exp2(peak - top)
        weights = tl.exp2(m - top)
        total = total * rescale + tl.sum(weights * tl.load(sums + flat, mask=valid, other=0.0), 0)
        acc = acc * rescale + tl.sum(weights[:, None] * parts, 0)
        peak = top
    acc = acc / tl.where(total > 0, total, 1.0)
    tl.store(out + head * D + columns, acc.to(out.dtype.element_ty), mask=columns < D)


def decode_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Tensor,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
    *,
    scale: float | None = None,
    splits: int | None = None,
    configuration: Configuration | None = None,
    empty: Callable[..., Tensor] = torch.empty,
) -> Tensor:
    """Attention of one query per row over the first `lengths` places of its cache, (B, H, D).

    Args:
        scale: of the scores; D ** -0.5 unless given.
        splits: pieces of the sequence; by default what fills the device.
        configuration: by default the tuned one for sizes B, H, HKV, S, D and option int8.
        empty: allocates the output and the work space.

    Raises:
        UsageError: shapes, dtypes or layouts that do not fit.
    """
    _refuse_misfit(query, key, value, lengths, key_scales, value_scales)
    batch, heads, head_dim = query.shape
    shared, capacity = key.shape[1:3]
    sizes = {"B": batch, "H": heads, "HKV": shared, "S": capacity, "D": head_dim}
    quantized, own = key_scales is not None, NARROW if head_dim <= 64 else WIDE
    chosen = choose_config("decode_attention", sizes, {"int8": quantized}, query.device, own, configuration)
    block, group, padded = chosen.constants["BLOCK_S"], heads // shared, triton.next_power_of_2(head_dim)
    tokens, pieces = _split(batch * shared, capacity, block, splits, query.device)
    out = empty(query.shape, dtype=query.dtype, device=query.device)
    count = batch * heads * pieces if pieces > 1 else 1
    peaks = empty(count, dtype=torch.float32, device=query.device)
    sums = empty(count, dtype=torch.float32, device=query.device)
    partials = empty(count * head_dim if pieces > 1 else 1, dtype=torch.float32, device=query.device)
    factor = (head_dim**-0.5 if scale is None else scale) * _LOG2_E
    scales = (query if key_scales is None else key_scales, query if value_scales is None else value_scales)
    _decode_attention_kernel[(batch * shared, pieces)](
        *(query, key, value, *scales, lengths, peaks, sums, partials, out, factor),
        *(batch, shared, capacity, group, tokens, pieces),
        D=head_dim,
        QUANTIZED=quantized,
        WHOLE=pieces == 1,
        BLOCK_G=max(16, triton.next_power_of_2(group)),
        BLOCK_D=padded,
        BLOCK_S=block,
        INTERPRETED=interpreting(),
        **chosen.launch_options(),
    )
    if pieces > 1:
        _merge_kernel[(batch * heads,)](
            *(peaks, sums, partials, lengths, out, batch, heads, capacity, tokens, pieces),
            D=head_dim,
            BLOCK_D=padded,
            **_MERGE.constants,
            **_MERGE.launch_options(),
        )
    return out


def _refuse_misfit(
    query: Tensor, key: Tensor, value: Tensor, lengths: Tensor, key_scales: Tensor | None, value_scales: Tensor | None
) -> None:
    batch, heads, head_dim = query.shape
    scales = [scale for scale in (key_scales, value_scales) if scale is not None]
    if head_dim not in HEAD_DIMS or query.dtype not in (torch.float16, torch.bfloat16):
        raise UsageError(
            f"decode_attention: heads of {head_dim} in {query.dtype}; it takes {HEAD_DIMS} in fp16 or bf16"
        )
    if key.shape != value.shape or key.shape[0] != batch or key.shape[3] != head_dim or heads % key.shape[1]:
        raise UsageError(
            f"decode_attention: queries {tuple(query.shape)} do not fit a cache of {tuple(key.shape)} and "
            f"{tuple(value.shape)}: both are (B, Hkv, S, D), H a multiple of Hkv"
        )
    if key.dtype != value.dtype or key.dtype != (torch.int8 if scales else query.dtype) or len(scales) == 1:
        raise UsageError(f"decode_attention: a cache of {key.dtype} for {query.dtype}; int8 comes with both scales")
    for scale in scales:
        if scale.shape != key.shape[:3] or scale.dtype != torch.float16:
            raise UsageError(f"decode_attention: scales must be float16 {tuple(key.shape[:3])}")
    if lengths.shape != (batch,) or lengths.dtype != torch.int32:
        raise UsageError(f"decode_attention: lengths must be int32 ({batch},), not {lengths.dtype}")
    if not all(tensor.is_contiguous() for tensor in (query, key, value, lengths, *scales)):
        raise UsageError("decode_attention: every tensor must be contiguous")
    if query.device.type == "cpu" and not interpreting():
        raise UsageError("decode_attention: on a CPU use the reference, or TRITON_INTERPRET=1 before the first import")


def _split(pairs: int, capacity: int, block: int, splits: int | None, device: torch.device) -> tuple[int, int]:
    """Places per piece, a multiple of the block, and the number of pieces."""
    if splits is None:
        most = min(_MAX_SPLITS, -(-capacity // (4 * block)))  # a shorter piece is not worth a program
        splits = max(1, min(most, -(-2 * _processors(device) // pairs)))
    tokens = max(1, -(-capacity // (splits * block))) * block
    return tokens, max(1, -(-capacity // tokens))


@functools.cache
def _processors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count) if device.type == "cuda" else 8


# ---------------------------------------------------------------- checks and builds


def _case(batch: int, heads: int, shared: int, capacity: int, head_dim: int, dtype: str, **options: int) -> Case:
    atol, rtol = (2e-3, 2e-3) if dtype == "float16" else (1.6e-2, 1.6e-2)
    slow = bool(options.pop("slow", 0))
    sizes = {"B": batch, "H": heads, "HKV": shared, "S": capacity, "D": head_dim}
    return Case(sizes, dtype, atol, rtol, options, slow)


_CASES = (
    _case(2, 9, 3, 131, 64, "float16"),  # SmolLM2-135M's heads
    _case(2, 9, 3, 131, 64, "bfloat16", int8=True, splits=2),
    _case(1, 14, 2, 257, 64, "float16", int8=True, splits=3),  # Qwen2.5-0.5B's
    _case(3, 4, 4, 67, 32, "bfloat16"),
    _case(2, 4, 1, 301, 80, "float16", splits=5),
    _case(2, 4, 1, 67, 80, "bfloat16", int8=True),
    _case(2, 6, 2, 97, 96, "float16", int8=True, splits=2),
    _case(2, 32, 1, 193, 128, "bfloat16", splits=4),
    _case(1, 2, 1, 1, 128, "float16", int8=True),
    _case(4, 2, 2, 64, 64, "float16", splits=1),
    _case(1, 9, 3, 4099, 64, "float16", splits=20, slow=True),  # two turns of the merge
    _case(2, 32, 8, 1021, 128, "bfloat16", int8=True, splits=7, slow=True),
    _case(1, 15, 5, 2048, 64, "float16", slow=True),
)


def _check(case: Case, device: str, seed: int) -> Outcome:
    """Random queries and caches; what lies beyond a row's length, and every allocation, is NaN or -128."""
    draw = torch.Generator().manual_seed(seed)
    batch, heads, shared, capacity, head_dim = case.sizes.values()
    dtype = getattr(torch, case.dtype)
    lengths = torch.tensor((capacity, 1, capacity * 3 // 4, 0), dtype=torch.int32)[:batch]
    beyond = (torch.arange(capacity) >= lengths[:, None])[:, None, :].expand(batch, shared, capacity)

    def cached(exact: Tensor) -> tuple[Tensor, Tensor | None]:
        if not case.options.get("int8"):
            return exact.to(dtype).masked_fill(beyond[..., None], torch.nan), None
        scales = (exact.abs().amax(-1) / 127).half()
        codes = exact.div(scales.float()[..., None]).round().clamp(-127, 127).to(torch.int8)
        return codes.masked_fill(beyond[..., None], -128), scales.masked_fill(beyond, torch.nan)

    def poisoned(*shape: object, **how: object) -> Tensor:
        return torch.empty(*shape, **how).fill_(torch.nan)

    query = torch.randn((batch, heads, head_dim), generator=draw).to(dtype)
    key, key_scales = cached(torch.randn((batch, shared, capacity, head_dim), generator=draw) * 1.5)
    value, value_scales = cached(torch.randn((batch, shared, capacity, head_dim), generator=draw) * 1.5)
    tensors = (query, key, value, lengths, key_scales, value_scales)
    moved = [None if tensor is None else tensor.to(device) for tensor in tensors]
    result = decode_attention(*moved, scale=0.2, splits=case.options.get("splits"), empty=poisoned)
    exact = decode_attention_ref(query.double(), *tensors[1:], scale=0.2)
    return Outcome.of(result, exact, case.atol, case.rtol)


def _builds() -> Iterator[Build]:
    """Every head size in fp16, the usual two in bf16; split for all, undivided too for the usual two."""
    for head_dim, short in itertools.product(HEAD_DIMS, ("fp16", "bf16")):
        usual = head_dim in (64, 128)
        if short == "fp16" or usual:
            for quantized in (False, True):
                yield _attention_build(head_dim, short, quantized, whole=False)
                if usual:
                    yield _attention_build(head_dim, short, quantized, whole=True)
            yield _merge_build(head_dim, short)


def _attention_build(head_dim: int, short: str, quantized: bool, whole: bool) -> Build:
    cache, scales = ("*i8", "*fp16") if quantized else (f"*{short}", f"*{short}")
    configuration = NARROW if head_dim <= 64 else WIDE
    return Build(
        "decode_attention",
        f"{short}-{'int8' if quantized else short}-d{head_dim}{'-whole' if whole else ''}",
        _decode_attention_kernel,
        {
            "query": f"*{short}",
            "key": cache,
            "value": cache,
            "key_scales": scales,
            "value_scales": scales,
            "lengths": "*i32",
            "peaks": "*fp32",
            "sums": "*fp32",
            "partials": "*fp32",
            "out": f"*{short}",
            "scale": "fp32",
            "BATCH": "i32",
            "HEADS": "i32",
            "S": "i32",
            "GROUP": "i32",
            "TOKENS": "i32",
            "SPLITS": "i32",
        },
        {
            "D": head_dim,
            "QUANTIZED": quantized,
            "WHOLE": whole,
            "BLOCK_G": 16,
            "BLOCK_D": 1 << (head_dim - 1).bit_length(),
            "INTERPRETED": False,
            **configuration.constants,
        },
        configuration,
        aligned=("query", "key", "value", "partials", "out", "TOKENS"),
        grid=("BATCH * HEADS", "SPLITS", "1"),
    )


def _merge_build(head_dim: int, short: str) -> Build:
    return Build(
        "decode_attention",
        f"merge-{short}-d{head_dim}",
        _merge_kernel,
        {
            "peaks": "*fp32",
            "sums": "*fp32",
            "partials": "*fp32",
            "lengths": "*i32",
            "out": f"*{short}",
            "BATCH": "i32",
            "HEADS": "i32",
            "S": "i32",
            "TOKENS": "i32",
            "SPLITS": "i32",
        },
        {"D": head_dim, "BLOCK_D": 1 << (head_dim - 1).bit_length(), **_MERGE.constants},
        _MERGE,
        aligned=("peaks", "sums", "partials", "out", "TOKENS"),
        grid=("BATCH * HEADS", "1", "1"),
    )


KERNEL = Kernel(
    name="decode_attention",
    summary="one query against an fp16, bf16 or int8 cache, split over the sequence",
    run=decode_attention,
    reference=decode_attention_ref,
    configurations=CONFIGURATIONS,
    cases=_CASES,
    check=_check,
    builds=_builds,
)

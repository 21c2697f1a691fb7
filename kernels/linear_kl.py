"""The distillation loss from hidden states: a divergence from the teacher, the (T, V) logits never held whole.

    z = (h W^T + b) / tau,   Q = softmax z,   P = softmax(t / tau),   M = beta P + (1 - beta) Q,   row i: w[i] D[i]

    forward   D = sum P log(P / Q)                                dz = Q - P
    reverse   D = sum Q log(Q / P)                                dz = Q (log(Q / P) - D)
    jsd       D = beta KL(P || M) + (1 - beta) KL(Q || M)         dz = (1 - beta) Q (log(Q / M) - KL(Q || M))
    dh = dz W / tau,   dW = dz^T h / tau,   db = sum dz / tau

    h (T, D);  W (V, D);  b (V,) or none;  w (T,) or none, rows of weight 0 are left out before anything is computed;
    teacher: logits t (T, V), or a `Head` (its states and matrix, for logits by the chunk too), or `TopK`.

`TopK` is k tokens and one more outcome, all other tokens together: `bucket` gives it the teacher's remaining mass,
`renormalized` gives it none. One token renormalized is cross-entropy. There is no factor tau^2.

Sweeps. For C tokens at a time: z (T, C) in fp32 by torch's matrix product, small enough to stay in a GPU's L2, then
one Triton kernel over it. A row's gradient needs its normalizers over all of V, so there are two sweeps, and three for
jsd, whose second one sums KL(P || M) and KL(Q || M). Each computes z again: 4 products of T V D (jsd: 5) where the
plain loss has 3. In exchange it holds T C (4 + 2) bytes of z and dz, where the plain loss holds T V times 2 of logits,
4 of each fp32 log-softmax and 2 of the gradient. Per logit and sweep 4 bytes of z are written and read and 2 of the
teacher's read; the last sweep writes 2 of dz, which two products read. State is 5 floats a row; 3 are saved for the
backward pass. The gradient is computed there and not in the forward pass: as the sweeps are separate anyway that costs
nothing, rows may be weighted afterwards, dW is not held beside the activations, and a forward pass whose gradient is
not wanted (evaluation, checkpointing) is one sweep. dz is rounded before its row's weight is applied: in fp16 a small
weight would underflow.

`plain=True` is the same in torch, for devices without Triton. Left out: a gradient for the teacher, several devices.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from soloist.kernels.choose import choose_config, interpreting
from soloist.kernels.divergences import Head, Kind, TopK, divergence_ref, of_few, refuse_misfit
from soloist.kernels.errors import UsageError
from soloist.kernels.jit import tl, triton
from soloist.kernels.spec import Build, Case, Configuration, Kernel, Outcome
from soloist.kernels.vocabulary import SPARE, Divergence, Picked, Steps, sum_dtype

_NUMBERS = {"lse": 0, "forward": 1, "reverse": 2, "jsd": 3}
_GPU_ELEMENTS, _CPU_ELEMENTS = 1 << 23, 1 << 20  # of a chunk: 32 MiB in L2, 4 MiB


def linear_kl_ref(
    hidden: Tensor,
    weight: Tensor,
    teacher: Tensor | Head | TopK,
    *,
    bias: Tensor | None = None,
    kind: Kind = "forward",
    beta: float = 0.5,
    temperature: float = 1.0,
    weights: Tensor | None = None,
) -> Tensor:
    """The formula on whole logits, differentiable by torch: (T,) in fp32 or fp64."""
    wide = sum_dtype(hidden.dtype)
    log_q = (functional.linear(hidden, weight, bias).to(wide) / temperature).log_softmax(-1)
    if isinstance(teacher, TopK):
        rest = log_q.scatter(1, teacher.indices, -torch.inf).logsumexp(-1)
        rows = of_few(log_q.gather(1, teacher.indices), rest, teacher, kind, beta, temperature)
    else:
        if isinstance(teacher, Head):
            teacher = functional.linear(teacher.states, teacher.weight, teacher.bias)
        rows = divergence_ref(log_q, (teacher.detach().to(wide) / temperature).log_softmax(-1), kind, beta)
    return rows if weights is None else torch.where(weights == 0, 0.0, rows * weights.to(wide))


# BLOCK_T x BLOCK_V logits at once: 16 a thread, so that each of its loads is 16 bytes.
CONFIGURATIONS = (
    Configuration({"BLOCK_T": 2, "BLOCK_V": 1024}, warps=4, stages=2),
    Configuration({"BLOCK_T": 1, "BLOCK_V": 2048}, warps=4, stages=2),
)


@triton.jit
def _online(x: tl.tensor, peak: tl.tensor, total: tl.tensor) -> tl.tensor:
    """exp(x - new peak), the factor of older sums, the new peak, the new sum."""
    top = tl.maximum(peak, tl.max(x, 1))
    base = tl.where(top == float("-inf"), 0.0, top)  # nothing but tokens without mass so far
    mass = tl.exp(x - base[:, None])
    rescale = tl.exp(peak - base)
    return mass, rescale, top, total * rescale + tl.sum(mass, 1)


@triton.jit
def _statistics_kernel(
    logits: tl.tensor,
    teacher: tl.tensor,
    rows: tl.tensor,
    state: tl.tensor,
    count: tl.int32,
    width: tl.int32,
    stride: tl.int32,
    teacher_stride: tl.int32,
    inverse: tl.float32,
    KIND: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_V: tl.constexpr,
) -> None:
    """First sweep: state (5, count) is peak and sum of the student, of the teacher, and an expectation."""
    row = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    valid = row < count
    logits_at = logits + row.to(tl.int64)[:, None] * stride
    teacher_at = teacher + tl.load(rows + row, mask=valid, other=0)[:, None] * teacher_stride
    peak_q = tl.load(state + row, mask=valid, other=float("-inf"))
    sum_q = tl.load(state + count + row, mask=valid, other=0.0)
    peak_p = tl.load(state + 2 * count + row, mask=valid, other=float("-inf"))
    sum_p = tl.load(state + 3 * count + row, mask=valid, other=0.0)
    acc = tl.load(state + 4 * count + row, mask=valid, other=0.0)
    for start in range(0, width, BLOCK_V):
        columns = start + tl.arange(0, BLOCK_V)
        inside = valid[:, None] & (columns < width)[None, :]
        z = tl.load(logits_at + columns[None, :], mask=inside, other=float("-inf"))
        mass_q, rescale_q, peak_q, sum_q = _online(z, peak_q, sum_q)
        if KIND != 0:
            t = tl.load(teacher_at + columns[None, :], mask=inside, other=float("-inf")).to(tl.float32) * inverse
            mass_p, rescale_p, peak_p, sum_p = _online(t, peak_p, sum_p)
            if KIND == 1:
                log_ratio = tl.where(mass_p > 0, t, 0.0) - tl.where(mass_p > 0, z, 0.0)
                acc = acc * rescale_p + tl.sum(mass_p * log_ratio, 1)
            if KIND == 2:
                log_ratio = tl.where(mass_q > 0, z, 0.0) - tl.where(mass_q > 0, t, 0.0)
                acc = acc * rescale_q + tl.sum(mass_q * log_ratio, 1)
    tl.store(state + row, peak_q, mask=valid)
    tl.store(state + count + row, sum_q, mask=valid)
    tl.store(state + 2 * count + row, peak_p, mask=valid)
    tl.store(state + 3 * count + row, sum_p, mask=valid)
    tl.store(state + 4 * count + row, acc, mask=valid)


@triton.jit
def _mixture_kernel(
    logits: tl.tensor,
    teacher: tl.tensor,
    rows: tl.tensor,
    lse: tl.tensor,
    sums: tl.tensor,
    count: tl.int32,
    width: tl.int32,
    stride: tl.int32,
    teacher_stride: tl.int32,
    inverse: tl.float32,
    beta: tl.float32,
    BLOCK_T: tl.constexpr,
    BLOCK_V: tl.constexpr,
) -> None:
    """Second sweep of jsd: sums (2, count) gather KL(P || M) and KL(Q || M)."""
    row = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    valid = row < count
    logits_at = logits + row.to(tl.int64)[:, None] * stride
    teacher_at = teacher + tl.load(rows + row, mask=valid, other=0)[:, None] * teacher_stride
    lse_q = tl.load(lse + row, mask=valid, other=0.0)[:, None]
    lse_p = tl.load(lse + count + row, mask=valid, other=0.0)[:, None]
    of_p = tl.load(sums + row, mask=valid, other=0.0)
    of_q = tl.load(sums + count + row, mask=valid, other=0.0)
    for start in range(0, width, BLOCK_V):
        columns = start + tl.arange(0, BLOCK_V)
        inside = valid[:, None] & (columns < width)[None, :]
        log_q = tl.load(logits_at + columns[None, :], mask=inside, other=-1e30) - lse_q
        log_p = (
            tl.load(teacher_at + columns[None, :], mask=inside, other=float("-inf")).to(tl.float32) * inverse - lse_p
        )
        log_ratio = tl.minimum(tl.maximum(log_p - log_q, -80.0), 80.0)  # beyond, one of them has no mass
        log_q_m = -tl.log(beta * tl.exp(log_ratio) + (1.0 - beta))  # log(Q / M)
        of_p += tl.sum(tl.exp(log_p) * (log_ratio + log_q_m), 1)
        of_q += tl.sum(tl.exp(log_q) * log_q_m, 1)
    tl.store(sums + row, of_p, mask=valid)
    tl.store(sums + count + row, of_q, mask=valid)


@triton.jit
def _gradient_kernel(
    logits: tl.tensor,
    teacher: tl.tensor,
    rows: tl.tensor,
    lse: tl.tensor,
    out: tl.tensor,
    count: tl.int32,
    width: tl.int32,
    stride: tl.int32,
    teacher_stride: tl.int32,
    inverse: tl.float32,
    beta: tl.float32,
    KIND: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_V: tl.constexpr,
) -> None:
    """Last sweep: dz of a block. lse (3, count): log-sum-exp of student and teacher, and the row's term of dz."""
    row = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    columns = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    valid = row < count
    inside = valid[:, None] & (columns < width)[None, :]
    place = row.to(tl.int64)[:, None] * stride + columns[None, :]
    log_q = tl.load(logits + place, mask=inside, other=-1e30)
    log_q = log_q - tl.load(lse + row, mask=valid, other=0.0)[:, None]
    row_term = tl.load(lse + 2 * count + row, mask=valid, other=0.0)[:, None]
    q = tl.exp(log_q)
    if KIND == 0:
        gradient = q * row_term
    else:
        teacher_at = teacher + tl.load(rows + row, mask=valid, other=0)[:, None] * teacher_stride + columns[None, :]
        log_p = tl.load(teacher_at, mask=inside, other=float("-inf")).to(tl.float32) * inverse
        log_p = log_p - tl.load(lse + count + row, mask=valid, other=0.0)[:, None]
        if KIND == 1:
            gradient = q - tl.exp(log_p)
        if KIND == 2:
            gradient = q * tl.where(q > 0, log_q - log_p - row_term, 0.0)
        if KIND == 3:
            log_ratio = tl.minimum(tl.maximum(log_p - log_q, -80.0), 80.0)
            gradient = (1.0 - beta) * q * (-tl.log(beta * tl.exp(log_ratio) + (1.0 - beta)) - row_term)
    tl.store(out + place, gradient.to(out.dtype.element_ty), mask=inside)


@dataclass(frozen=True)
class _Triton(Steps):
    """The steps as the kernels above."""

    configuration: Configuration = CONFIGURATIONS[0]

    @property
    def exact(self) -> bool:
        """As a GPU computes them."""
        return True

    @property
    def _how(self) -> dict[str, Any]:
        return {**self.configuration.constants, **self.configuration.launch_options()}

    def statistics(self, z: Tensor, t: Tensor | None, rows: Tensor, state: Tensor) -> None:
        t = z if t is None else t
        _statistics_kernel[(self._blocks(z),)](
            z, t, rows, state, *z.shape, z.stride(0), t.stride(0), self.inverse, KIND=_NUMBERS[self.kind], **self._how
        )

    def mixture(self, z: Tensor, t: Tensor | None, rows: Tensor, lse: Tensor, sums: Tensor) -> None:
        assert t is not None
        _mixture_kernel[(self._blocks(z),)](
            z, t, rows, lse, sums, *z.shape, z.stride(0), t.stride(0), self.inverse, self.beta, **self._how
        )

    def gradient(self, z: Tensor, t: Tensor | None, rows: Tensor, lse: Tensor, out: Tensor) -> None:
        t = z if t is None else t
        sizes = (*z.shape, z.stride(0), t.stride(0), self.inverse, self.beta)
        wide = -(-z.shape[1] // self.configuration.constants["BLOCK_V"])
        _gradient_kernel[(self._blocks(z), wide)](z, t, rows, lse, out, *sizes, KIND=_NUMBERS[self.kind], **self._how)

    def _blocks(self, z: Tensor) -> int:
        return -(-len(z) // self.configuration.constants["BLOCK_T"])


def linear_kl(
    hidden: Tensor,
    weight: Tensor,
    teacher: Tensor | Head | TopK,
    *,
    bias: Tensor | None = None,
    kind: Kind = "forward",
    beta: float = 0.5,
    temperature: float = 1.0,
    weights: Tensor | None = None,
    chunk: int | None = None,
    plain: bool = False,
    configuration: Configuration | None = None,
    empty: Callable[..., Tensor] = torch.empty,
) -> Tensor:
    """The weighted divergence of each row, (T,) in fp32; gradients for hidden states, matrix and bias.

    Args:
        weights: (T,), of each row; one of 0 costs nothing.
        chunk: tokens of the vocabulary at a time; by default what fits the caches.
        plain: in torch instead of Triton.
        configuration: by default the tuned one for sizes T (rows of weight), C (chunk) and option kind, `lse` of TopK.
        empty: allocates buffers and gradients.

    Raises:
        UsageError: shapes that do not fit, or a divergence that is not defined.
    """
    refuse_misfit(hidden, weight, teacher, kind, beta, temperature)
    if not plain and (hidden.dtype == torch.float64 or (hidden.device.type == "cpu" and not interpreting())):
        raise UsageError("linear_kl: no Triton for fp64, nor on a CPU without TRITON_INTERPRET=1: choose plain")
    device = hidden.device
    autocast = torch.is_autocast_enabled(device.type)
    states = hidden.to(torch.get_autocast_dtype(device.type)) if autocast else hidden
    rows = torch.arange(len(hidden), device=device) if weights is None else weights.nonzero()[:, 0]
    if not len(rows):
        return torch.zeros(len(hidden), dtype=sum_dtype(states.dtype), device=device) + hidden[:0].sum()
    states = states if weights is None else states[rows]
    if chunk is None:
        elements = _CPU_ELEMENTS if device.type == "cpu" else _GPU_ELEMENTS
        chunk = min(max(256, elements // len(rows) // 256 * 256), -(-len(weight) // SPARE) * SPARE)
    sweep = "lse" if isinstance(teacher, TopK) else kind
    steps = Steps(sweep, beta, temperature, chunk, empty)
    if not plain:
        sizes, options = {"T": len(rows), "C": chunk}, {"kind": sweep}
        config = choose_config("linear_kl", sizes, options, device, CONFIGURATIONS[0], configuration)
        steps = _Triton(sweep, beta, temperature, chunk, empty, config)
    with torch.autocast(device.type, enabled=False):
        if isinstance(teacher, TopK):
            few = TopK(teacher.indices[rows], teacher.values[rows], teacher.rest)
            rest, picked = Picked.apply(states.contiguous(), weight, bias, steps, few.indices)
            lse = torch.logaddexp(rest, picked.logsumexp(-1))
            values = of_few(picked - lse[:, None], rest - lse, few, kind, beta, temperature)
        else:
            values = Divergence.apply(states.contiguous(), weight, bias, steps, *_detached(teacher, rows))
    if weights is None:
        return values
    return torch.zeros(len(hidden), dtype=values.dtype, device=device).index_copy(
        0, rows, values * weights[rows].to(values.dtype)
    )


def _detached(teacher: Tensor | Head, rows: Tensor) -> tuple[Tensor | None, ...]:
    """The teacher's row for each of ours; its logits, or its states, matrix and bias."""
    if isinstance(teacher, Tensor):
        return rows, teacher.detach()
    bias = None if teacher.bias is None else teacher.bias.detach()
    return torch.arange(len(rows), device=rows.device), teacher.states[rows].detach(), teacher.weight.detach(), bias


# ---------------------------------------------------------------- checks and builds


def _case(rows: int, vocabulary: int, width: int, chunk: int, dtype: str, **options: Any) -> Case:
    """Tolerances of gradients, in units of their largest element; those of the values are fp32's."""
    atol, rtol = {"float32": (1e-5, 1e-4), "float16": (2e-3, 4e-3), "bfloat16": (8e-3, 1.6e-2)}[dtype]
    slow = options.pop("slow", False)
    return Case({"T": rows, "V": vocabulary, "D": width, "C": chunk}, dtype, atol, rtol, options, slow)


_CASES = (
    _case(5, 203, 24, 64, "float32", kind="forward"),
    _case(7, 203, 24, 64, "bfloat16", kind="reverse", weighted=True),
    _case(6, 203, 24, 80, "float16", kind="jsd", beta=0.3, bias=True),
    _case(4, 131, 16, 131, "float32", kind="jsd", beta=0.9, temperature=2.0, weighted=True),
    _case(5, 131, 40, 48, "bfloat16", kind="forward", temperature=0.5, frozen=True),
    _case(3, 97, 16, 32, "float32", kind="reverse", teacher="head", bias=True),
    _case(5, 97, 16, 32, "float16", kind="forward", teacher="head", weighted=True),
    _case(5, 203, 24, 64, "float32", kind="forward", teacher="renormalized", k=5),
    _case(5, 203, 24, 64, "bfloat16", kind="jsd", teacher="renormalized", k=1, weighted=True),
    _case(5, 203, 24, 64, "float16", kind="reverse", teacher="bucket", k=7, bias=True),
    _case(1, 1031, 16, 512, "float32", kind="forward", teacher="bucket", k=16),
    _case(1, 17, 8, 256, "float16", kind="jsd"),
    *(
        _case(33, 4099, 64, 1024, dtype, kind=kind, weighted=True, slow=True)
        for dtype, kind in itertools.product(("float32", "float16", "bfloat16"), ("forward", "reverse", "jsd"))
    ),
)


def _check(case: Case, device: str, seed: int) -> Outcome:
    """Random states and teachers: rows, dh, dW and db against float64 autograd; every buffer starts as NaN."""
    draw = torch.Generator().manual_seed(seed)
    rows, vocabulary, width = case.sizes["T"], case.sizes["V"], case.sizes["D"]
    how = {name: value for name, value in case.options.items() if name in ("kind", "beta", "temperature")}

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=draw) * scale).to(getattr(torch, case.dtype))

    leaves = [normal(rows, width), normal(vocabulary, width, scale=2 * width**-0.5)]
    leaves += [normal(vocabulary)] if case.options.get("bias") else []
    states, matrix, logits = normal(rows, 12), normal(vocabulary, 12, scale=0.5), normal(rows, vocabulary, scale=2.0)
    likely = logits.float().log_softmax(-1).topk(case.options.get("k", 1))
    upstream = torch.randn(rows, generator=draw)
    weights = torch.rand(rows, generator=draw).mul(2).sub(0.6).clamp(min=0) if case.options.get("weighted") else None

    def run(function: Callable[..., Tensor], dtype: torch.dtype, place: str, **more: Any) -> list[Tensor]:
        own = [leaf.to(place, dtype, copy=True).requires_grad_() for leaf in leaves]
        own[1].requires_grad_(not case.options.get("frozen"))
        kind, put = case.options.get("teacher"), {"device": place, "dtype": dtype}
        teacher: Any = logits.to(**put)
        if kind == "head":
            teacher = Head(states.to(**put), matrix.to(**put))
        elif kind:
            teacher = TopK(likely.indices.to(place), likely.values.to(place, sum_dtype(dtype)), kind)
        given = None if weights is None else weights.to(place)
        values = function(own[0], own[1], teacher, bias=own[2] if own[2:] else None, weights=given, **how, **more)
        values.backward(upstream.to(values))
        return [values.detach(), *(leaf.grad for leaf in own if leaf.grad is not None)]

    def poisoned(*shape: object, **options: Any) -> Tensor:
        return torch.empty(*shape, **options).fill_(torch.nan)

    values, *gradients = run(linear_kl, getattr(torch, case.dtype), device, chunk=case.sizes["C"], empty=poisoned)
    exact, *exact_gradients = run(linear_kl_ref, torch.float64, "cpu")
    outcomes = [Outcome.of(values, exact, 2e-5, 1e-4)]
    for gradient, right in zip(gradients, exact_gradients, strict=True):
        outcomes.append(Outcome.of(gradient, right, case.atol * float(right.abs().max()), case.rtol))
    return Outcome(max(each.worst for each in outcomes), max(each.absolute for each in outcomes))


def _builds() -> Iterator[Build]:
    for config, dtype, kind in itertools.product(CONFIGURATIONS, ("bf16", "fp16", "fp32"), _NUMBERS):
        if kind == "lse" and dtype == "fp32":
            continue
        teacher = "*fp32" if kind == "lse" else f"*{dtype}"
        front = {"logits": "*fp32", "teacher": teacher, "rows": "*i64"}
        sizes = {"count": "i32", "width": "i32", "stride": "i32", "teacher_stride": "i32", "inverse": "fp32"}
        aligned = ("logits", "teacher", "rows", "width", "stride", "teacher_stride")
        blocks = "cdiv(count, BLOCK_T)"
        yield Build(
            "linear_kl",
            f"statistics-{kind}-{dtype}",
            _statistics_kernel,
            {**front, "state": "*fp32", **sizes},
            {"KIND": _NUMBERS[kind], **config.constants},
            config,
            (*aligned, "state"),
            (blocks, "1", "1"),
        )
        yield Build(
            "linear_kl",
            f"gradient-{kind}-{dtype}",
            _gradient_kernel,
            {**front, "lse": "*fp32", "out": f"*{dtype}", **sizes, "beta": "fp32"},
            {"KIND": _NUMBERS[kind], **config.constants},
            config,
            (*aligned, "lse", "out"),
            (blocks, "cdiv(width, BLOCK_V)", "1"),
        )
        if kind == "jsd":
            yield Build(
                "linear_kl",
                f"mixture-{dtype}",
                _mixture_kernel,
                {**front, "lse": "*fp32", "sums": "*fp32", **sizes, "beta": "fp32"},
                dict(config.constants),
                config,
                (*aligned, "lse", "sums"),
                (blocks, "1", "1"),
            )


KERNEL = Kernel(
    name="linear_kl",
    summary="distillation loss from hidden states, chunked over the vocabulary, forward and backward",
    run=linear_kl,
    reference=linear_kl_ref,
    configurations=CONFIGURATIONS,
    cases=_CASES,
    check=_check,
    builds=_builds,
)

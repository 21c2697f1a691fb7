"""A small kernel for the tests of the frame around kernels: y = W x, W (N, K) float16, K a multiple of BLOCK_K.

ROW_DOT in the environment makes it fail on purpose: `greedy` (more registers than there are), `broken` (does not
compile), `wrong` (computes something else).
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from soloist.kernels.jit import tl, triton
from soloist.kernels.spec import Build, Case, Configuration, Kernel, Outcome

SMALL = Configuration({"BLOCK_N": 16, "BLOCK_K": 64}, warps=4, stages=2)
GREEDY = Configuration({"BLOCK_N": 64, "BLOCK_K": 128}, warps=1, stages=1)
FAULT = os.environ.get("ROW_DOT", "")


def row_dot_ref(w, x):
    return (w.float() @ x.float()).to(x.dtype)


@triton.jit
def _row_dot_kernel(w_ptr, x_ptr, y_ptr, N, K, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for start in range(0, K, BLOCK_K):
        columns = start + tl.arange(0, BLOCK_K)
        w = tl.load(w_ptr + rows[:, None] * K + columns[None, :], mask=(rows < N)[:, None], other=0.0)
        total += w.to(tl.float32) * tl.load(x_ptr + columns)[None, :].to(tl.float32)
    tl.store(y_ptr + rows, tl.sum(total, 1).to(tl.float16), mask=rows < N)


@triton.jit
def _broken_kernel(w_ptr, x_ptr, y_ptr, N, K, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    tl.store(y_ptr, tl.no_such_function(N))


def row_dot(w, x):
    import torch  # here, so that compiling does without it

    y = torch.full((w.shape[0],), float("nan"), dtype=x.dtype, device=x.device)
    _row_dot_kernel[(triton.cdiv(w.shape[0], 16),)](w, x, y, *w.shape, **SMALL.constants, **SMALL.launch_options())
    return y


def _check(case: Case, device: str, seed: int) -> Outcome:
    import torch

    draw = torch.Generator().manual_seed(seed)
    w, x = (torch.randn(size, generator=draw).half() for size in ((case.sizes["N"], case.sizes["K"]), case.sizes["K"]))
    wanted = w.double() @ x.double()
    found = row_dot(w.to(device), x.to(device)).double().cpu() + (FAULT == "wrong")
    off = (found - wanted).abs()
    return Outcome(float((off / (case.atol + case.rtol * wanted.abs())).max()), float(off.max()))


def _builds() -> Iterator[Build]:
    config = GREEDY if FAULT == "greedy" else SMALL
    yield Build(
        "row_dot",
        "fp16",
        _broken_kernel if FAULT == "broken" else _row_dot_kernel,
        {"w_ptr": "*fp16", "x_ptr": "*fp16", "y_ptr": "*fp16", "N": "i32", "K": "i32"},
        dict(config.constants),
        config,
        aligned=("w_ptr", "x_ptr", "y_ptr", "K"),
        grid=("cdiv(N, BLOCK_N)", "1", "1"),
    )


KERNEL = Kernel(
    name="row_dot",
    summary="rows of a matrix times a vector",
    run=row_dot,
    reference=row_dot_ref,
    configurations=(SMALL,),
    cases=(
        Case({"N": 19, "K": 128}, "float16", 2e-3, 2e-3),
        Case({"N": 64, "K": 256}, "float16", 2e-3, 2e-3, slow=True),
    ),
    check=_check,
    builds=_builds,
)

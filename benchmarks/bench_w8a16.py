"""8-bit weights: `w8a16_gemv` and `w8a16_gemm` against cuBLAS in fp16 and `torch.compile`, 1 to 2048 rows.

    python -P benchmarks/bench_w8a16.py [--quick] [--tune]

Made like `bench_w4a16_gemv.py`. Half the bytes of fp16 allow 1.94 times its speed at group 128, so of the bars only
those that are no ratio of bytes apply: the share of the bandwidth, and students' matrices. Appended to
benchmarks/results/w8a16.jsonl. Needs an NVIDIA GPU.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))  # -P leaves it out

from gpu_matmul import GATED, SQUARES, STUDENTS, Shape, add_options, measure_all, roofline_bar, student_bar
from gpu_program import Found, program

from soloist.kernels.gemm import W8A16 as GEMM
from soloist.kernels.gemv import W8A16 as GEMV

DECODE = (
    *(Shape(m, n, k, 128) for n, k in SQUARES for m in (1, 4, 16)),
    *(Shape(1, n, k, 32) for n, k in STUDENTS),  # GGUF's Q8_0
    *(Shape(1, n, k, 32, gated=True) for n, k in GATED),
)
PREFILL = (
    *(Shape(m, n, k, 128) for n, k in SQUARES for m in (32, 512)),
    *(Shape(512, n, k, 32) for n, k in STUDENTS),
)
QUICK = (*(Shape(1, n, k, 128) for n, k in SQUARES), Shape(1, 576, 1536, 32)), (Shape(512, 4096, 4096, 128),)


def measure(run):
    """All shapes of both kernels, and the bars of the one that decodes."""
    decode, prefill = QUICK if run.options.quick else (DECODE, PREFILL)
    rows = measure_all(run, GEMV, decode, bits=8)
    more = measure_all(run, GEMM, prefill, bits=8)
    return Found([*rows, *more], [roofline_bar(GEMV.name, rows), student_bar(GEMV.name, rows)])


def main(**more):
    """The exit code."""
    return program("w8a16", __doc__, measure, add_options, **more)


if __name__ == "__main__":
    sys.exit(main())

"""Prefill with 4-bit weights: `w4a16_gemm` against cuBLAS in fp16 and other 4-bit kernels, 32 to 2048 rows.

    python -P benchmarks/bench_w4a16_gemm.py [--quick] [--tune]

Made like `bench_w4a16_gemv.py`. At many rows the arithmetic is the limit and 4 bits save nothing: no bar is set, the
row says where the crossing is. Appended to benchmarks/results/w4a16_gemm.jsonl. Needs an NVIDIA GPU.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))  # -P leaves it out

from gpu_matmul import SQUARES, STUDENTS, Shape, add_options, measure_all
from gpu_program import Found, program

from soloist.kernels.gemm import W4A16 as KERNEL

SHAPES = (
    *(Shape(m, n, k, 128) for n, k in SQUARES for m in (32, 64, 128, 512, 2048)),
    *(Shape(512, n, k, 32) for n, k in STUDENTS),
)
QUICK = (Shape(32, 4096, 4096, 128), Shape(512, 4096, 4096, 128), Shape(512, 576, 1536, 32))


def measure(run):
    """All shapes."""
    return Found(measure_all(run, KERNEL, QUICK if run.options.quick else SHAPES, bits=4))


def main(**more):
    """The exit code."""
    return program("w4a16_gemm", __doc__, measure, add_options, **more)


if __name__ == "__main__":
    sys.exit(main())

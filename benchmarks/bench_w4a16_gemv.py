"""Decoding with 4-bit weights: `w4a16_gemv` against cuBLAS in fp16 and other 4-bit kernels, 1 to 16 rows.

    python -P benchmarks/bench_w4a16_gemv.py [--quick] [--tune]

Each shape is compared with float64 first and not timed if it is wrong. Then all sides take turns on rotated copies in
CUDA graphs (`gpu_timing.py` says why), and at the end the bars are told. Meant to take 5 minutes on an H100, `--quick`
one; `--tune` writes kernels/tuned/<gpu>.json before it measures. The last line on stdout is the row, which is also
appended to benchmarks/results/w4a16_gemv.jsonl. Needs an NVIDIA GPU.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))  # -P leaves it out

from gpu_matmul import GATED, SQUARES, STUDENTS, Shape, add_options, faster, measure_all, roofline_bar, student_bar
from gpu_program import Bar, Found, program, worst

from soloist.kernels.gemv import W4A16 as KERNEL

SHAPES = (
    *(Shape(m, n, k, 128) for n, k in SQUARES for m in (1, 2, 4, 8, 16)),  # as published numbers have them
    *(Shape(1, n, k, group) for n, k in STUDENTS for group in (32, 128)),
    *(Shape(1, n, k, 32, gated=True) for n, k in GATED),
)
QUICK = (*(Shape(m, n, k, 128) for n, k in SQUARES for m in (1, 16)), Shape(1, 576, 1536, 32))


def bars(rows):
    """What is asked of this kernel."""
    found = []
    for n, k in SQUARES:
        own = [row for row in rows if (row["N"], row["K"], row["group"]) == (n, k, 128) and row["M"] <= 16]
        first = [row for row in own if row["M"] == 1]
        where = f"times as fast as fp16 torch.matmul, {n} × {k}, group 128"
        found += [
            Bar(f"{where}, 1 row", 2.3, worst(faster(first))),
            Bar(f"{where}, worst of {', '.join(str(row['M']) for row in own)} rows", 1.3, worst(faster(own))),
        ]
    return [*found, roofline_bar(KERNEL.name, rows), student_bar(KERNEL.name, rows)]


def measure(run):
    """All shapes and the bars."""
    rows = measure_all(run, KERNEL, QUICK if run.options.quick else SHAPES, bits=4)
    return Found(rows, bars(rows))


def main(**more):
    """The exit code."""
    return program("w4a16_gemv", __doc__, measure, add_options, **more)


if __name__ == "__main__":
    sys.exit(main())

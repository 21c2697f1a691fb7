"""The configurations of the four low-bit matmuls that ship, and the rules that pick one.

    gemv    {BLOCK_N, CHUNKS, SPLITS}      one row on multiply-adds: BLOCK_N rows of W by CHUNKS chunks, one to a thread
    gemm    {BLOCK_N, BLOCK_M, SPLITS}     several rows on tensor cores: BLOCK_N rows of W by BLOCK_M rows of x

A chunk is 16 bytes of codes (32 columns of 4 bits, 16 of 8), so what is right for 4 bits is right for 8 once rows of W
are counted in bytes. SPLITS parts of the columns go to different programs, so that a small W keeps enough of them
reading. Left out: what a GPU says, which is in `soloist.kernels.tuned` and goes before the rules here.
"""

from __future__ import annotations

from soloist.kernels.spec import Configuration

CACHED = 1 << 21  # bytes of a W that several rows may read each for itself: it stays in the L2 cache


def _one_row(block_n: int, warps: int, splits: int = 1) -> Configuration:
    """For sm_120 ptxas holds eight rows of 8 bits to 72 registers and spills; with a ceiling it takes what it needs."""
    ceiling = 168 if block_n == 8 and warps > 1 else None
    return Configuration({"BLOCK_N": block_n, "CHUNKS": 32 * warps, "SPLITS": splits}, warps, 1, registers=ceiling)


def _tensor_cores(block_n: int, block_m: int, splits: int, warps: int, stages: int) -> Configuration:
    return Configuration({"BLOCK_N": block_n, "BLOCK_M": block_m, "SPLITS": splits}, warps, stages)


def _several_rows(block_m: int, splits: int, gated: bool = False) -> Configuration:
    """64 outputs for few rows of one matrix, else 128: near 90 registers ptxas spills rather than lose a program."""
    if block_m == 8 and not gated:
        return _tensor_cores(64, 8, splits, 4, 4)
    return _tensor_cores(128, block_m, splits, 4, 3)


ONE_ROW = (*(_one_row(block_n, warps) for block_n in (4, 8) for warps in (1, 2, 4)), _one_row(8, 4, splits=4))
SEVERAL_ROWS = tuple(_several_rows(block_m, splits) for block_m in (8, 16) for splits in (1, 2, 4, 8))
GATED_ROWS = tuple(_several_rows(8, splits, gated=True) for splits in (1, 2, 4, 8))
GEMV = (*ONE_ROW, *SEVERAL_ROWS, *GATED_ROWS)
GEMM = (
    _tensor_cores(128, 16, 1, 4, 3),
    _tensor_cores(64, 32, 1, 4, 4),
    _tensor_cores(64, 64, 1, 4, 3),
    _tensor_cores(128, 64, 1, 8, 3),
)


def gemv_config(m: int, n: int, k: int, bits: int, gated: bool = False) -> Configuration:
    """The configuration of GEMV for M, N, K: multiply-adds for one row or a cached W, else tensor cores."""
    row = k * bits // 8  # bytes of one of W
    if m == 1 or (m <= 4 and n * row <= CACHED):
        if n <= 1024 and k >= 8192:
            return _one_row(8, 4, splits=4)
        return _one_row(4 if n <= 2048 or gated else 8, 1 if row <= 512 else 2 if row <= 1024 else 4)
    rows = 8 if m <= 8 else 16
    programs, splits = -(-n // _several_rows(rows, 1, gated).constants["BLOCK_N"]), 1
    while splits < 8 and programs * splits < 256 and k >= 512 * splits:
        splits *= 2
    return _several_rows(rows, splits, gated)


def gemm_config(m: int, n: int, k: int, bits: int, gated: bool = False) -> Configuration:
    """The configuration of GEMM for M and N (K and bits do not matter): as many rows as there are, then wide tiles."""
    if m <= 16:
        return GEMM[0]
    if m <= 32 or gated:  # two matrices at once: wider tiles would spill
        return GEMM[1]
    return GEMM[2 if m <= 64 or n < 2048 else 3]


def coarse(config: Configuration, m: int) -> Configuration:
    """Few large programs on the same path, for checking large shapes in the interpreter: it counts programs."""
    if "CHUNKS" in config.constants:
        return Configuration({"BLOCK_N": 128, "CHUNKS": 64, "SPLITS": 1}, 4, 1)
    return _tensor_cores(256, 16 if m <= 16 else 128, 1, 4, 1)

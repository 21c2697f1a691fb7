"""What is compiled ahead of time of the four low-bit matmuls: every configuration, not every combination.

Every configuration ships in float16 for the usual group sizes; bfloat16, groups of 64, bias, zero points and the gated
form for the configurations that students' shapes take most. Left out: all else, which Triton compiles when it runs.
"""

from __future__ import annotations

from collections.abc import Iterator

from soloist.kernels.matmul_configs import GATED_ROWS, ONE_ROW, SEVERAL_ROWS
from soloist.kernels.matmul_host import Matmul, sum_config
from soloist.kernels.matmul_parts import sum_parts_kernel
from soloist.kernels.spec import Build, Configuration


def gemv_builds(kernel: Matmul) -> Iterator[Build]:
    """Every configuration in float16; the common ones in bfloat16, in groups of 64, and with what may be added."""
    narrow, wide = ONE_ROW[0], ONE_ROW[5]  # 4 rows of W by 1 warp, 8 by 4
    one, several = (
        (narrow, ONE_ROW[4], wide),
        [config for config in SEVERAL_ROWS if config.constants["SPLITS"] in (1, 4)],
    )
    sixteen, sixteen_split = several[2:]
    plans = [(config, "fp16", group, "") for config in ONE_ROW for group in (32, 128)]
    plans += [(config, "fp16", 128, "") for config in SEVERAL_ROWS] + [(config, "fp16", 32, "") for config in several]
    plans += [(config, "bf16", 32, "") for config in (*one, *several)] + [(config, "fp16", 64, "") for config in one]
    for extra in ("bias", "zeros") if kernel.bits == 4 else ("bias",):
        plans += [(config, "fp16", group, extra) for config in (narrow, wide) for group in (32, 128)]
        plans += [(sixteen, "fp16", 32, extra)]
    plans += [(config, "fp16", group, "gated") for config in ONE_ROW[:3] for group in (32, 128)]
    plans += [(config, "fp16", 32, "gated") for config in (*GATED_ROWS, sixteen, sixteen_split)]
    for plan in plans:
        yield _build(kernel, *plan)
    for splits in (2, 4, 8):
        yield _sum_build(kernel, "fp16", splits)
    yield _sum_build(kernel, "bf16", 4)
    for extra in ("gated", "bias"):
        yield _sum_build(kernel, "fp16", 4, extra)


def gemm_builds(kernel: Matmul) -> Iterator[Build]:
    """Every configuration in both types; what may be added in float16, where the rule takes it."""
    configs = kernel.configurations
    for config in configs:
        for dtype in ("fp16", "bf16"):
            for group in (32, 128):
                yield _build(kernel, config, dtype, group)
    for extra in ("bias", "zeros", "gated") if kernel.bits == 4 else ("bias", "gated"):
        for config in configs[:2] if extra == "gated" else configs[1:]:
            yield _build(kernel, config, "fp16", 32, extra)


def _build(kernel: Matmul, configuration: Configuration, dtype: str, group: int, extra: str = "") -> Build:
    """One of a kernel's functions.

    Args:
        dtype: of activations, `fp16` or `bf16`.
        extra: "", "bias", "zeros" or "gated".
    """
    config = dict(configuration.constants)
    split, rows = config["SPLITS"] > 1, config.get("BLOCK_M")
    types = {
        "x_ptr": f"*{dtype}",
        "words_ptr": "*i32",
        "scales_ptr": "*fp16",
        "zeros_ptr": "*u8",
        "up_words_ptr": "*i32",
        "up_scales_ptr": "*fp16",
        "up_zeros_ptr": "*u8",
        "bias_ptr": f"*{dtype}",
        "y_ptr": "*fp32" if split else f"*{dtype}",
        "M": "i32",
        "N": "i32",
        "K": "i32",
    }
    absent = {"up_words_ptr", "up_scales_ptr"} if extra != "gated" else set()
    absent |= {"up_zeros_ptr", *(("zeros_ptr",) if extra != "zeros" else ())}
    absent |= {"bias_ptr"} if extra != "bias" or split else set()
    constants = {**dict.fromkeys(sorted(absent)), **config, "GROUP": group}
    if rows is not None:
        constants["WARPS"] = configuration.warps
    return Build(
        kernel=kernel.name,
        variant="-".join(filter(None, (dtype, f"g{group}", extra))),
        function=kernel.function(configuration),
        signature={name: kind for name, kind in types.items() if name not in absent},
        constants=constants,
        configuration=configuration,
        aligned=tuple(
            name for name in ("x_ptr", "words_ptr", "up_words_ptr", "scales_ptr", "y_ptr", "K") if name not in absent
        ),
        grid=("cdiv(N, BLOCK_N)", "SPLITS", "M" if rows is None else "cdiv(M, BLOCK_M)"),
    )


def _sum_build(kernel: Matmul, dtype: str, splits: int, extra: str = "") -> Build:
    """The sum over parts that follows a split-K launch, ahead of time."""
    config, bias = sum_config(splits), extra == "bias"
    signature = {"parts_ptr": "*fp32", "bias_ptr": f"*{dtype}", "y_ptr": f"*{dtype}", "size": "i32", "N": "i32"}
    if not bias:
        del signature["bias_ptr"]
    return Build(
        kernel=kernel.name,
        variant="-".join(filter(None, ("sum", dtype, extra))),
        function=sum_parts_kernel,
        signature=signature,
        constants={**({} if bias else {"bias_ptr": None}), "GATED": extra == "gated", **config.constants},
        configuration=config,
        aligned=("parts_ptr", "y_ptr"),
        grid=("cdiv(size, BLOCK)", "1", "1"),
    )

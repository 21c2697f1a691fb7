"""Matrices to integers by their rules; files of such matrices, so that finished work survives a kill; and the folder
of a quantized student, which every target reads (`soloist.targets.quantized`)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from soloist.targets.base import require
from soloist.targets.quantized import PLAN, WEIGHTS, arrays_of, carry
from soloist.targets.repack import Matrix
from soloist.toolchain.core.artifact import Facts
from soloist.toolchain.core.files import write_atomic
from soloist.toolchain.quantize.plan import Rule
from soloist.toolchain.quantize.weights import Source, read_weights, tied

if TYPE_CHECKING:
    from torch import Tensor

    from soloist.kernels.gptq import Gram
    from soloist.kernels.layout import Quantized

Kernels = Literal["auto", "triton", "reference"]


def device_of(device: str) -> str:
    """The device by name; "auto" is a GPU if there is one."""
    if device != "auto":
        return device
    torch = require("torch", "train")
    return "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Rounder:
    """Where and how matrices are rounded. `act_order` (columns by falling activation) and `damping` are GPTQ's."""

    device: str = "cpu"
    kernels: Kernels = "auto"
    act_order: bool = False
    damping: float = 0.01

    def reason(self, rules: Iterable[Rule]) -> str:
        """Why the kernels run as they do. Raises UsageError for those that cannot."""
        from soloist.kernels.choose import choose

        used = "gptq" if any(rule.rounding == "gptq" for rule in rules) else "pack"
        return choose(used, self.device, self.kernels).reason

    def round(self, weight: Tensor, rule: Rule, gram: Gram | None = None) -> Quantized:
        """The integers of a weight (N, K), on the CPU. `gram`: statistics of its inputs, for what calibrates."""
        from soloist.kernels.choose import choose

        weight = weight.to(self.device)
        settings: dict[str, Any] = {"bits": rule.bits, "group": rule.group, "zeros": rule.asymmetric}
        settings["search"] = rule.rounding != "rtn"
        if rule.rounding == "gptq":
            assert gram is not None
            order = "activation" if self.act_order else "natural"
            run = choose("gptq", self.device, self.kernels).run
            rounded = run(weight, gram.hessian, **settings, damping=self.damping, order=order)
        else:
            importance = gram.mean_square if gram is not None and rule.rounding == "awq" else None
            rounded = choose("pack", self.device, self.kernels).run(weight, **settings, importance=importance)
        return rounded.to("cpu")  # type: ignore[no-any-return]  # `run` is a callable of any kernel

    def round_all(
        self, weights: Mapping[str, Source], rules: Mapping[str, Rule], grams: Mapping[str, Gram]
    ) -> dict[str, Quantized]:
        """The integers of several matrices by name.

        On a CPU each core takes a matrix of its own: rounding is thousands of small operations, and sharing one among
        cores costs more than the operation, a hundred times more where the cores have other work (benchmarks/LOG.md).
        """
        torch = require("torch", "train")

        def one(name: str) -> Quantized:
            return self.round(weights[name].load(), rules[name], grams.get(name))

        if self.device != "cpu":
            return {name: one(name) for name in weights}
        cores = torch.get_num_threads()
        torch.set_num_threads(1)  # of the threads that are started from now on, too
        try:
            with ThreadPoolExecutor(cores) as pool:
                return dict(zip(weights, pool.map(one, weights), strict=True))
        finally:
            torch.set_num_threads(cores)


def write_matrices(file: Path, matrices: Mapping[str, Quantized]) -> None:
    """Whole or not at all."""
    tensors: dict[str, Tensor] = {}
    for name, matrix in matrices.items():
        tensors[f"{name}.codes"] = matrix.codes.contiguous()
        tensors[f"{name}.scales"] = matrix.scales.contiguous()
        if matrix.zeros is not None:
            tensors[f"{name}.zeros"] = matrix.zeros.contiguous()
    temporary = file.with_suffix(".tmp")
    require("safetensors.torch", "train").save_file(tensors, str(temporary))
    temporary.replace(file)


def read_matrices(file: Path, rules: Mapping[str, Rule]) -> dict[str, Quantized]:
    """The matrices of a file by name; `rules` hold those they were made by."""
    from soloist.kernels.layout import Quantized, narrow_of

    tensors = require("safetensors.torch", "train").load_file(str(file))
    matrices: dict[str, Quantized] = {}
    for key, codes in tensors.items():
        name, _, part = key.rpartition(".")
        if part == "codes":
            scales, zeros, rule = tensors[f"{name}.scales"], tensors.get(f"{name}.zeros"), rules[name]
            matrices[name] = Quantized(codes, scales, rule.group, zeros, narrow_of(rule.bits))
    return matrices


class WeightFacts(Facts):
    """Quantized weights as written: megabytes, number of matrices, mean of their errors relative to their norms."""

    size_mb: float
    matrices: int
    mean_error: float


def write_quantized(
    folder: Path, target: Path, matrices: Mapping[str, Quantized], roundings: Mapping[str, str]
) -> WeightFacts:
    """The quantized student of a Hugging Face folder in the folder `target`, everything else as it is.

    Args:
        roundings: how each matrix was made, for the record.
    """
    target.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {}
    tensors: dict[str, dict[str, Any]] = {}
    kept: list[str] = []
    with ExitStack() as stack:
        for name, source in sorted(read_weights(folder, stack).items()):
            if name not in matrices:
                arrays[name] = source.load().float().numpy()
                kept.append(name)
                continue
            matrix = Matrix.of(matrices[name])
            arrays |= arrays_of(name, matrix)
            tensors[name] = {
                "bits": matrix.bits,
                "group": matrix.group,
                "shape": list(matrix.shape),
                "rounding": roundings[name],
                "asymmetric": matrix.zeros is not None,
                "error": _relative_error(source.load(), matrices[name]),
            }
    temporary = target / (WEIGHTS + ".tmp")
    require("safetensors.numpy", "train").save_file(arrays, str(temporary))
    temporary.chmod(0o644)
    temporary.replace(target / WEIGHTS)
    carry(folder, target)
    record = {"schema": 1, "tied": tied(folder), "tensors": tensors, "kept": kept}
    write_atomic(target / PLAN, json.dumps(record, indent=1))
    size = (target / WEIGHTS).stat().st_size
    error = sum(one["error"] for one in tensors.values()) / max(1, len(tensors))
    return WeightFacts(size_mb=round(size / 1e6, 3), matrices=len(tensors), mean_error=error)


def _relative_error(weight: Tensor, rounded: Quantized) -> float:
    from soloist.kernels.layout import dequantize

    exact = weight.float()
    return round(float((dequantize(rounded) - exact).norm() / exact.norm().clamp_min(1e-30)), 6)

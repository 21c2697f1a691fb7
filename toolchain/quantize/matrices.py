"""One matrix to integers by its rule; files of such matrices, so that finished work survives a kill; and the folder
of a quantized student, which every target reads (`soloist.targets.quantized`)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from soloist.targets.base import require
from soloist.targets.quantized import PLAN, WEIGHTS, arrays_of, carry
from soloist.targets.repack import Matrix
from soloist.toolchain.core.files import write_atomic
from soloist.toolchain.quantize.plan import Rule
from soloist.toolchain.quantize.weights import read_weights, tied

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
class Rounding:
    """Where and how matrices are rounded. `order` and `damping` are GPTQ's."""

    device: str = "cpu"
    kernels: Kernels = "auto"
    order: Literal["natural", "activation"] = "natural"
    damping: float = 0.01

    def reason(self, rules: Iterable[Rule]) -> str:
        """Why the kernels run as they do. Raises UsageError for those that cannot."""
        from soloist.kernels.choose import choose

        used = "gptq" if any(rule.method == "gptq" for rule in rules) else "pack"
        return choose(used, self.device, self.kernels).reason

    def matrix(self, weight: Tensor, rule: Rule, gram: Gram | None = None) -> Quantized:
        """The integers of a weight (N, K), on the CPU. `gram`: statistics of its inputs, for methods that calibrate."""
        from soloist.kernels.choose import choose

        weight = weight.to(self.device)
        settings: dict[str, Any] = {"bits": rule.bits, "group": rule.group, "zeros": rule.zeros}
        settings["search"] = rule.method != "rtn"
        if rule.method == "gptq":
            assert gram is not None
            run = choose("gptq", self.device, self.kernels).run
            found = run(weight, gram.hessian, **settings, damping=self.damping, order=self.order)
        else:
            importance = gram.mean_square if gram is not None and rule.method == "awq" else None
            found = choose("pack", self.device, self.kernels).run(weight, **settings, importance=importance)
        return found.to("cpu")  # type: ignore[no-any-return]  # `run` is a callable of any kernel


def write_matrices(file: Path, matrices: Mapping[str, Quantized]) -> None:
    """Whole or not at all."""
    made: dict[str, Tensor] = {}
    for name, found in matrices.items():
        parts = {"codes": found.codes, "scales": found.scales, "zeros": found.zeros}
        made |= {f"{name}.{part}": tensor.contiguous() for part, tensor in parts.items() if tensor is not None}
    temporary = file.with_suffix(".tmp")
    require("safetensors.torch", "train").save_file(made, str(temporary))
    temporary.replace(file)


def read_matrices(file: Path, rules: Mapping[str, Rule]) -> dict[str, Quantized]:
    """The matrices of a file; `rules` are those they were made by, of these names."""
    from soloist.kernels.layout import Quantized, narrow_of

    tensors = require("safetensors.torch", "train").load_file(str(file))
    return {
        name: Quantized(
            tensors[f"{name}.codes"],
            tensors[f"{name}.scales"],
            rule.group,
            tensors.get(f"{name}.zeros"),
            narrow_of(rule.bits),
        )
        for name, rule in rules.items()
    }


def write_quantized(
    folder: Path, target: Path, matrices: Mapping[str, Quantized], methods: Mapping[str, str]
) -> dict[str, Any]:
    """The quantized student of a Hugging Face folder in the folder `target`, everything else as it is; returns facts.

    Args:
        methods: how each matrix was made, for the record.
    """
    target.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {}
    tensors: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        read = read_weights(folder, stack)
        for name, found in matrices.items():
            matrix = Matrix.of(found)
            arrays |= arrays_of(name, matrix)
            tensors[name] = {
                "bits": matrix.bits,
                "group": matrix.group,
                "shape": list(matrix.shape),
                "method": methods[name],
                "zeros": matrix.zeros is not None,
                "error": _relative_error(read[name].load(), found),
            }
        kept = {name: source.load().float().numpy() for name, source in read.items() if name not in tensors}
    temporary = target / (WEIGHTS + ".tmp")
    require("safetensors.numpy", "train").save_file(arrays | kept, str(temporary))
    temporary.chmod(0o644)
    temporary.replace(target / WEIGHTS)
    carry(folder, target)
    plan = {"schema": 1, "tied": tied(folder), "tensors": tensors, "kept": sorted(kept)}
    write_atomic(target / PLAN, json.dumps(plan, indent=1))
    size = (target / WEIGHTS).stat().st_size
    errors = [facts["error"] for facts in tensors.values()]
    return {"size_mb": round(size / 1e6, 3), "matrices": len(tensors), "error_mean": sum(errors) / len(errors)}


def _relative_error(weight: Tensor, found: Quantized) -> float:
    from soloist.kernels.layout import dequantize

    exact = weight.float()
    return round(float((dequantize(found) - exact).norm() / exact.norm().clamp_min(1e-30)), 6)

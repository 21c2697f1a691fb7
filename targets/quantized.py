"""The folder of a quantized student: integers, scales and the plan they were made by.

    quantized.safetensors    <name>.codes  <name>.scales  [<name>.zeros]   of each quantized matrix
                             <name>                                        float32 of everything else (norms)
    quantization.json        bits, group, rounding and error of each matrix; whether the head is the embedding
    config.json, tokenizer.json, chat_template.jinja …                     the student's own

`<name>` is the tensor's name in the Hugging Face folder. Every format is written from these integers (`repack.py`).
Reading needs numpy and safetensors, no torch. Left out: sharded files.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from soloist.kernels.errors import ArtifactError
from soloist.targets.base import require
from soloist.targets.files import whole_file
from soloist.targets.repack import Matrix

WEIGHTS = "quantized.safetensors"
PLAN = "quantization.json"
_PARTS = ("codes", "scales", "zeros")


@dataclass(frozen=True)
class Quantization:
    """What a folder holds: quantized matrices, other tensors (float32) and the plan, by tensor name."""

    matrices: Mapping[str, Matrix]
    others: Mapping[str, npt.NDArray[np.float32]]
    plan: Mapping[str, Any]

    @property
    def bits(self) -> int:
        """Of the linear layers: the smallest there is outside embedding and head."""
        layers = [matrix.bits for name, matrix in self.matrices.items() if ".layers." in name]
        return min(layers, default=8)


def is_quantized(folder: Path) -> bool:
    """Whether a folder is what `soloist quantize` made."""
    return (folder / PLAN).is_file()


def read_plan(folder: Path) -> dict[str, Any]:
    """The plan's record. Raises ArtifactError."""
    file = folder / PLAN
    if not file.is_file():
        raise ArtifactError(f"{folder}: not a quantized student (no {PLAN}); make one with `soloist quantize`")
    try:
        plan: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        dict(plan["tensors"])
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{file}: not a plan of ours ({error}); quantize the student again") from error
    return plan


def read_quantized(folder: Path) -> Quantization:
    """All of a folder. Raises ArtifactError: no quantized student, cut off, or not what its plan says."""
    plan = read_plan(folder)
    safetensors = require("safetensors", "train")
    tensors: dict[str, Any] = {}
    try:
        with safetensors.safe_open(str(folder / WEIGHTS), framework="np") as file:
            for key in file.keys():  # noqa: SIM118 - not a dict
                tensors[key] = file.get_tensor(key)
    except (safetensors.SafetensorError, OSError) as error:
        raise ArtifactError(f"{folder / WEIGHTS}: missing or damaged ({error}); quantize the student again") from error
    matrices: dict[str, Matrix] = {}
    for name, facts in plan["tensors"].items():
        codes, scales, zeros = (tensors.pop(f"{name}.{part}", None) for part in _PARTS)
        if codes is None or scales is None:
            raise ArtifactError(f"{folder / WEIGHTS}: '{name}' is in the plan and not in the file; quantize again")
        narrow = facts["bits"] if facts["bits"] in (5, 6) else None
        matrix = Matrix(codes, scales, int(facts["group"]), zeros, narrow)
        if matrix.bits != facts["bits"] or list(matrix.shape) != list(facts["shape"]):
            raise ArtifactError(f"{folder / WEIGHTS}: '{name}' is not what {PLAN} says; quantize the student again")
        matrices[name] = matrix
    return Quantization(matrices, tensors, plan)


def arrays_of(name: str, matrix: Matrix) -> dict[str, npt.NDArray[Any]]:
    """A matrix as it stands in the file."""
    arrays = {
        f"{name}.codes": np.ascontiguousarray(matrix.codes),
        f"{name}.scales": np.ascontiguousarray(matrix.scales),
    }
    if matrix.zeros is not None:
        arrays[f"{name}.zeros"] = np.ascontiguousarray(matrix.zeros)
    return arrays


def carry(student: Path, folder: Path) -> None:
    """Copy what is not weights: settings, tokenizer, template, the student's card."""
    for file in sorted(student.iterdir()):
        if file.is_file() and file.suffix in (".json", ".jinja", ".txt") and file.name not in _NOT_CARRIED:
            shutil.copyfile(file, folder / file.name)


_NOT_CARRIED = ("manifest.json", "plan.json", "quantization.json", "model.safetensors.index.json")


def write_dequantized(folder: Path, out: Path) -> None:
    """A plain Hugging Face folder of the same values in float32: what the integers say, for runtimes without them."""
    content = read_quantized(folder)
    out.mkdir(parents=True, exist_ok=True)
    carry(folder, out)
    file = out / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) | {"dtype": "float32"}
    config.pop("torch_dtype", None)
    file.write_text(json.dumps(config, indent=1), encoding="utf-8")
    tensors = {name: matrix.dequantized() for name, matrix in content.matrices.items()} | dict(content.others)
    with whole_file(out / "model.safetensors") as temporary:
        require("safetensors.numpy", "train").save_file(tensors, str(temporary), metadata={"format": "pt"})

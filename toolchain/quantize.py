"""Stage `quantize`: a student's matrices become integers and scales, once, for every format.

    method   scales and codes
    rtn      the group's extreme over a divisor, nearest codes
    mse      the scale of several with the smallest error of the weights
    awq      the same, each column's error weighted by the mean square of its input on the student's own trajectories
    gptq     columns rounded in order, their error taken back by later columns, for the Hessian of those inputs

Linear layers get `bits`, embedding and head `embedding_bits` (always by rtn or mse: a row is used or not, there is no
input to weigh), norms and biases stay as they are. Layers are done one by one and kept, so a kill costs one layer. The
kernels of `soloist.kernels` do the work, on a GPU if there is one. Left out: choosing bits matrix by matrix (a plan).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from soloist.kernels.errors import ArtifactError, UsageError
from soloist.targets.base import require
from soloist.targets.quantized import PLAN, WEIGHTS, arrays_of, carry, read_quantized
from soloist.targets.repack import Matrix
from soloist.toolchain.artifact import Artifact, stage, write_atomic
from soloist.toolchain.config import Config
from soloist.toolchain.events import QUIET, EventLog
from soloist.toolchain.export import model_folders

if TYPE_CHECKING:
    from torch import Tensor

    from soloist.kernels.gptq import Gram
    from soloist.kernels.layout import Quantized


STAGE = "quantize"
CALIBRATED = ("awq", "gptq")
_WORK = "layers"
_TABLES = ("embed_tokens.weight", "lm_head.weight")


class QuantizeConfig(Config):
    """Widths, group size and method. `samples`: conversations to calibrate on; `order`, `damping`: GPTQ's."""

    bits: Literal[4, 8] = 4
    group: Literal[32, 64, 128] = 32
    method: Literal["rtn", "mse", "awq", "gptq"] = "gptq"
    embedding_bits: Literal[4, 8] = 8
    zeros: bool = False
    samples: int = Field(default=64, ge=1)
    order: Literal["natural", "activation"] = "natural"
    damping: float = Field(default=0.01, gt=0, le=1)
    seed: int = 42

    @model_validator(mode="after")
    def _possible(self) -> QuantizeConfig:
        if self.zeros and self.bits != 4:
            raise ValueError("zero points are for 4 bits")
        return self


def load_quantized(path: Path) -> dict[str, Quantized]:
    """The quantized matrices of an artifact (or of one of its models) by the name of the weight, as torch tensors.

    Raises:
        ArtifactError: no quantized student, or a damaged one.
    """
    from soloist.targets.quantized_torch import as_torch

    return {name: as_torch(matrix) for name, matrix in read_quantized(path).matrices.items()}


def quantize(
    config: QuantizeConfig,
    student: Artifact,
    out: Path,
    *,
    traces: Artifact | None = None,
    device: str = "auto",
    kernels: Literal["auto", "triton", "reference"] = "auto",
    events: EventLog = QUIET,
) -> Artifact:
    """Quantize a student. `traces` replace those of its lineage for methods that calibrate.

    Raises:
        ArtifactError: no student, or its traces are gone.
        UsageError: a method that cannot be for this student, a device or kernel that is not there.
        DataError: weights that are not finite.
    """
    models = model_folders(student)
    parents = [student]
    if config.method in CALIBRATED:
        if len(models) > 1:
            raise UsageError(f"method {config.method} calibrates one model; for a student of two use rtn or mse")
        from soloist.toolchain.calibration import traces_of

        traces = traces or traces_of(student)
        parents.append(traces)
    place = _device(device)

    def build(made: Path) -> Mapping[str, Any]:
        facts = {}
        carry(student.path, made)
        for part, folder in models.items():
            target = made / part
            target.mkdir(parents=True, exist_ok=True)
            work = _Work(config, student, folder, target, made / _WORK / (part or "model"), place, kernels, events)
            facts[part] = work.run(traces if config.method in CALIBRATED else None)
        whole: Mapping[str, Any] = facts.get("", {"parts": facts})
        return whole

    return stage(STAGE, out, config.model_dump(mode="json"), parents, build, events=events, scratch=(_WORK,))


def _device(device: str) -> str:
    if device != "auto":
        return device
    torch = require("torch", "train")
    return "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class _Work:
    """One model at work. `scratch` keeps finished layers."""

    config: QuantizeConfig
    student: Artifact
    folder: Path
    target: Path
    scratch: Path
    device: str
    kernels: Literal["auto", "triton", "reference"]
    events: EventLog

    def run(self, traces: Artifact | None) -> dict[str, Any]:
        from soloist.kernels.choose import choose

        self.scratch.mkdir(parents=True, exist_ok=True)
        chosen = choose("gptq" if self.config.method == "gptq" else "pack", self.device, self.kernels)
        self.events.emit(STAGE, "note", text=f"kernels: {chosen.reason}")
        with ExitStack() as stack:
            read = _weights(self.folder, stack)
            groups = _groups(read)
            if traces is None:
                for done, (name, members) in enumerate(groups.items()):
                    self.events.progress(STAGE, done, len(groups), layer=name)
                    self._group(name, members, {})
                tokens = None
            else:
                tokens = self._walk(traces, groups)
            self.events.progress(STAGE, len(groups), len(groups))
            facts = self._write(groups, read)
        return {**facts, "kernels": chosen.reason, **({"calibration": tokens} if tokens else {})}

    def _walk(self, traces: Artifact, groups: Mapping[str, Mapping[str, _Source]]) -> dict[str, int]:
        """Layer by layer on the student's conversations; layers that are done are only walked through."""
        from soloist.kernels.layout import dequantize
        from soloist.toolchain.calibration import Walk, conversations

        walk = Walk(self.folder, self.device)
        sequences = conversations(self.student, walk.tokenizer, traces, self.config.samples, self.config.seed)
        for name, weight in self._group("tables", groups["tables"], {}).items():
            walk.replace(name, dequantize(weight.to(self.device)))
        tokens = walk.start(sequences)
        for done, (layer, members) in enumerate(groups.items()):
            self.events.progress(STAGE, done, len(groups), layer=layer)
            if layer == "tables":
                continue
            grams = {} if self._file(layer).is_file() else walk.observe(int(layer))
            new = self._group(layer, members, grams)

            def weight_of(name: str, new: Mapping[str, Quantized] = new) -> Tensor | None:
                return dequantize(new[name].to(self.device)) if name in new else None

            walk.advance(int(layer), weight_of)
        return {"conversations": len(sequences), "tokens": tokens}

    def _file(self, group: str) -> Path:
        return self.scratch / f"{group}.safetensors"

    def _group(self, group: str, members: Mapping[str, _Source], grams: Mapping[str, Gram]) -> dict[str, Quantized]:
        """The quantized matrices of one layer, from its file if it was done before."""
        torch_file = require("safetensors.torch", "train")
        from soloist.kernels.layout import Quantized

        file = self._file(group)
        if not file.is_file():
            made: dict[str, Tensor] = {}
            for name, source in members.items():
                found = self._matrix(name, source.load(), grams.get(name))
                made |= {f"{name}.{part}": tensor for part, tensor in _parts(found).items()}
            temporary = file.with_suffix(".tmp")
            torch_file.save_file(made, str(temporary))
            temporary.replace(file)
        tensors = torch_file.load_file(str(file))
        return {
            name: Quantized(
                tensors[f"{name}.codes"], tensors[f"{name}.scales"],
                _group_of(name, tensors[f"{name}.codes"], self.config.group), tensors.get(f"{name}.zeros"),
            )
            for name in members
        }  # fmt: skip

    def _matrix(self, name: str, weight: Tensor, gram: Gram | None) -> Quantized:
        from soloist.kernels.choose import choose

        config, weight = self.config, weight.to(self.device)
        if name.endswith(_TABLES):
            settings: dict[str, Any] = {"bits": config.embedding_bits, "search": config.method != "rtn"}
            settings["group"] = config.group if weight.shape[1] % config.group == 0 else 32
            found = choose("pack", self.device, self.kernels).run(weight, **settings)
        else:
            settings = {"bits": config.bits, "group": config.group, "zeros": config.zeros}
            settings["search"] = config.method != "rtn"
            if config.method == "gptq":
                assert gram is not None
                run = choose("gptq", self.device, self.kernels).run
                found = run(weight, gram.hessian, **settings, damping=config.damping, order=config.order)
            else:
                importance = gram.mean_square if gram is not None else None
                found = choose("pack", self.device, self.kernels).run(weight, **settings, importance=importance)
        return found.to("cpu")  # type: ignore[no-any-return]  # `run` is a callable of any kernel

    def _write(self, groups: Mapping[str, Mapping[str, _Source]], read: Mapping[str, _Source]) -> dict[str, Any]:
        """Everything into one file, with the plan and what the student needs beside its weights."""
        arrays: dict[str, Any] = {}
        tensors: dict[str, dict[str, Any]] = {}
        for group, members in groups.items():
            for name, found in self._group(group, members, {}).items():
                matrix = Matrix.of(found)
                arrays |= arrays_of(name, matrix)
                tensors[name] = {
                    "bits": matrix.bits, "group": matrix.group, "shape": list(matrix.shape),
                    "method": self._method(name), "zeros": matrix.zeros is not None,
                    "error": _relative_error(members[name].load(), found),
                }  # fmt: skip
        kept = {name: source.load().float().numpy() for name, source in read.items() if name not in tensors}
        temporary = self.target / (WEIGHTS + ".tmp")
        require("safetensors.numpy", "train").save_file(arrays | kept, str(temporary))
        temporary.chmod(0o644)
        temporary.replace(self.target / WEIGHTS)
        carry(self.folder, self.target)
        tied = bool(json.loads((self.folder / "config.json").read_text(encoding="utf-8")).get("tie_word_embeddings"))
        plan = {"schema": 1, "tied": tied, "tensors": tensors, "kept": sorted(kept)}
        write_atomic(self.target / PLAN, json.dumps(plan, indent=1))
        size = (self.target / WEIGHTS).stat().st_size
        errors = [facts["error"] for facts in tensors.values()]
        return {"size_mb": round(size / 1e6, 3), "matrices": len(tensors), "error_mean": sum(errors) / len(errors)}

    def _method(self, name: str) -> str:
        if name.endswith(_TABLES):
            return "rtn" if self.config.method == "rtn" else "mse"
        return self.config.method


@dataclass(frozen=True)
class _Source:
    """A tensor of a Hugging Face folder: its shape, and how to read it."""

    shape: tuple[int, ...]
    load: Callable[[], Tensor]


def _weights(folder: Path, stack: ExitStack) -> dict[str, _Source]:
    """Every tensor of a Hugging Face folder, read when it is called for."""
    safetensors = require("safetensors", "train")
    found: dict[str, _Source] = {}
    tied = bool(json.loads((folder / "config.json").read_text(encoding="utf-8")).get("tie_word_embeddings"))
    for path in sorted(folder.glob("*.safetensors")):
        try:
            file = stack.enter_context(safetensors.safe_open(str(path), framework="pt"))
        except (safetensors.SafetensorError, OSError) as error:
            raise ArtifactError(f"{path}: cut off or damaged ({error}); make the student again") from error
        for key in sorted(file.keys()):
            if not (tied and key == "lm_head.weight"):
                found[key] = _Source(tuple(file.get_slice(key).get_shape()), partial(file.get_tensor, key))
    if not found:
        raise ArtifactError(f"{folder}: not a student (no model.safetensors); run the distill stage again")
    return found


def _groups(read: Mapping[str, _Source]) -> dict[str, dict[str, _Source]]:
    """Matrices to quantize: `tables` (embedding, head), then each layer by its number."""
    found: dict[str, dict[str, _Source]] = {"tables": {}}
    layers: dict[int, dict[str, _Source]] = {}
    for name, source in read.items():
        if name.endswith(_TABLES):
            found["tables"][name] = source
        elif ".layers." in name and name.endswith("_proj.weight") and source.shape[-1] % 32 == 0:
            layers.setdefault(int(name.split(".layers.")[1].split(".")[0]), {})[name] = source
    return found | {str(number): layers[number] for number in sorted(layers)}


def _parts(found: Quantized) -> dict[str, Tensor]:
    parts = {"codes": found.codes, "scales": found.scales, "zeros": found.zeros}
    return {part: tensor.contiguous() for part, tensor in parts.items() if tensor is not None}


def _group_of(name: str, codes: Tensor, group: int) -> int:
    """The group size of a matrix: a table whose rows it does not divide has 32."""
    columns = codes.shape[1] * (8 if codes.element_size() == 4 else 1)
    return 32 if name.endswith(_TABLES) and columns % group else group


def _relative_error(weight: Tensor, found: Quantized) -> float:
    from soloist.kernels.layout import dequantize

    exact = weight.float()
    return round(float((dequantize(found) - exact).norm() / exact.norm().clamp_min(1e-30)), 6)

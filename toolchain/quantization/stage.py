"""Stage `quantize`: a student's matrices become integers and scales, once, for every format.

    method   scales and codes
    rtn      the group's extreme over a divisor, nearest codes
    mse      the scale of several with the smallest error of the weights
    awq      the same, each column's error weighted by the mean square of its input on the student's own trajectories
    gptq     columns rounded in order, their error taken back by later columns, for the Hessian of those inputs

A plan says the width and method of each matrix (`plan.py`); without one, linear layers get `bits`, embedding and head
`embedding_bits` (by rtn or mse: a row is used or not, there is no input to weigh), norms and biases stay as they are.
Layers are done one by one and kept, so a kill costs one layer. `distill` then trains the rounded layers a little
more (`aware.py`). The kernels of `soloist.kernels` do the work, on a GPU if there is one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from soloist.kernels.errors import UsageError
from soloist.targets.base import require
from soloist.targets.quantized import PLAN, WEIGHTS, arrays_of, carry, read_quantized
from soloist.targets.repack import Matrix
from soloist.toolchain.artifact import Artifact, stage, write_atomic
from soloist.toolchain.config import Config
from soloist.toolchain.events import QUIET, EventLog
from soloist.toolchain.export import model_folders
from soloist.toolchain.quantization.plan import CALIBRATED, Bits, Method, Plan, Rule, resolve, uniform
from soloist.toolchain.quantization.weights import FIRST, Source, architecture, groups_of, read_weights, shapes_of, tied

if TYPE_CHECKING:
    from torch import Tensor

    from soloist.kernels.gptq import Gram
    from soloist.kernels.layout import Quantized


STAGE = "quantize"
_WORK = "layers"
_PLANNED = ("bits", "group", "method", "embedding_bits", "zeros")


class QuantizeConfig(Config):
    """Widths, group size and method, or a `plan` of them. `samples`: conversations to calibrate on; `order`,
    `damping`: GPTQ's."""

    bits: Bits = 4
    group: Literal[32, 64, 128] = 32
    method: Method = "gptq"
    embedding_bits: Bits = 8
    zeros: bool = False
    plan: Plan | None = None
    samples: int = Field(default=64, ge=1)
    order: Literal["natural", "activation"] = "natural"
    damping: float = Field(default=0.01, gt=0, le=1)
    seed: int = 42

    @model_validator(mode="after")
    def _possible(self) -> QuantizeConfig:
        if self.zeros and self.bits != 4:
            raise ValueError("zero points are for 4 bits")
        told = [name for name in _PLANNED if name in self.model_fields_set]
        if self.plan is not None and told:
            raise ValueError(f"a plan says {', '.join(told)}; leave out the one or the other")
        return self

    @property
    def rules(self) -> Plan:
        """The plan, or the one that the widths make."""
        return self.plan or uniform(self.bits, self.embedding_bits, self.group, self.method, zeros=self.zeros)

    @property
    def calibrates(self) -> bool:
        """Whether some matrix is quantized for its inputs."""
        return any(rule.method in CALIBRATED for rule in self.rules.rules)


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
    if config.calibrates:
        if len(models) > 1:
            raise UsageError("methods awq and gptq calibrate one model; for a student of two use rtn or mse")
        from soloist.toolchain.quantization.calibration import traces_of

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
            facts[part] = work.run(traces if config.calibrates else None)
        whole: Mapping[str, Any] = facts.get("", {"parts": facts})
        return whole

    said = config.model_dump(mode="json", by_alias=True, exclude=set(_PLANNED) if config.plan else {"plan"})
    return stage(STAGE, out, said, parents, build, events=events, scratch=(_WORK,))


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
    rules: dict[str, Rule] = field(default_factory=dict)  # of each matrix, once its folder has been read

    def run(self, traces: Artifact | None) -> dict[str, Any]:
        from soloist.kernels.choose import choose

        self.scratch.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            read = read_weights(self.folder, stack)
            groups = groups_of(read)
            self.rules.update(resolve(self.config.rules, architecture(self.folder), shapes_of(groups)))
            used = "gptq" if any(rule.method == "gptq" for rule in self.rules.values()) else "pack"
            chosen = choose(used, self.device, self.kernels)
            self.events.emit(STAGE, "note", text=f"kernels: {chosen.reason}")
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

    def _walk(self, traces: Artifact, groups: Mapping[str, Mapping[str, Source]]) -> dict[str, int]:
        """Layer by layer on the student's conversations; layers that are done are only walked through."""
        from soloist.kernels.layout import dequantize
        from soloist.toolchain.quantization.calibration import Walk, conversations

        walk = Walk(self.folder, self.device)
        sequences = conversations(self.student, walk.tokenizer, traces, self.config.samples, self.config.seed)
        for name, weight in self._group(FIRST, groups[FIRST], {}).items():
            walk.replace(name, dequantize(weight.to(self.device)))
        tokens = walk.start([example.ids for example in sequences])
        for done, (layer, members) in enumerate(groups.items()):
            self.events.progress(STAGE, done, len(groups), layer=layer)
            if layer == FIRST:
                continue
            grams = {} if self._file(layer).is_file() else walk.observe(int(layer))
            new = self._group(layer, members, grams)

            def weight_of(name: str, new: Mapping[str, Quantized] = new) -> Tensor | None:
                return dequantize(new[name].to(self.device)) if name in new else None

            walk.advance(int(layer), weight_of)
        return {"conversations": len(sequences), "tokens": tokens}

    def _file(self, group: str) -> Path:
        return self.scratch / f"{group}.safetensors"

    def _group(self, group: str, members: Mapping[str, Source], grams: Mapping[str, Gram]) -> dict[str, Quantized]:
        """The quantized matrices of one layer, from its file if it was done before."""
        torch_file = require("safetensors.torch", "train")
        from soloist.kernels.layout import Quantized, narrow_of

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
                tensors[f"{name}.codes"], tensors[f"{name}.scales"], self.rules[name].group,
                tensors.get(f"{name}.zeros"), narrow_of(self.rules[name].bits),
            )
            for name in members
        }  # fmt: skip

    def _matrix(self, name: str, weight: Tensor, gram: Gram | None) -> Quantized:
        from soloist.kernels.choose import choose

        rule, weight = self.rules[name], weight.to(self.device)
        settings: dict[str, Any] = {"bits": rule.bits, "group": rule.group, "zeros": rule.zeros}
        settings["search"] = rule.method != "rtn"
        if rule.method == "gptq":
            assert gram is not None
            run = choose("gptq", self.device, self.kernels).run
            found = run(
                weight, gram.hessian, **settings, damping=self.config.damping, order=self.config.order
            )  # fmt: skip
        else:
            importance = gram.mean_square if gram is not None and rule.method == "awq" else None
            found = choose("pack", self.device, self.kernels).run(weight, **settings, importance=importance)
        return found.to("cpu")  # type: ignore[no-any-return]  # `run` is a callable of any kernel

    def _write(self, groups: Mapping[str, Mapping[str, Source]], read: Mapping[str, Source]) -> dict[str, Any]:
        """Everything into one file, with the plan and what the student needs beside its weights."""
        arrays: dict[str, Any] = {}
        tensors: dict[str, dict[str, Any]] = {}
        for group, members in groups.items():
            for name, found in self._group(group, members, {}).items():
                matrix = Matrix.of(found)
                arrays |= arrays_of(name, matrix)
                tensors[name] = {
                    "bits": matrix.width, "group": matrix.group, "shape": list(matrix.shape),
                    "method": self.rules[name].method, "zeros": matrix.zeros is not None,
                    "error": _relative_error(members[name].load(), found),
                }  # fmt: skip
        kept = {name: source.load().float().numpy() for name, source in read.items() if name not in tensors}
        temporary = self.target / (WEIGHTS + ".tmp")
        require("safetensors.numpy", "train").save_file(arrays | kept, str(temporary))
        temporary.chmod(0o644)
        temporary.replace(self.target / WEIGHTS)
        carry(self.folder, self.target)
        plan = {"schema": 1, "tied": tied(self.folder), "tensors": tensors, "kept": sorted(kept)}
        write_atomic(self.target / PLAN, json.dumps(plan, indent=1))
        size = (self.target / WEIGHTS).stat().st_size
        errors = [facts["error"] for facts in tensors.values()]
        return {"size_mb": round(size / 1e6, 3), "matrices": len(tensors), "error_mean": sum(errors) / len(errors)}


def _parts(found: Quantized) -> dict[str, Tensor]:
    parts = {"codes": found.codes, "scales": found.scales, "zeros": found.zeros}
    return {part: tensor.contiguous() for part, tensor in parts.items() if tensor is not None}


def _relative_error(weight: Tensor, found: Quantized) -> float:
    from soloist.kernels.layout import dequantize

    exact = weight.float()
    return round(float((dequantize(found) - exact).norm() / exact.norm().clamp_min(1e-30)), 6)

"""Stage `quantize`: a student's matrices become integers and scales, once, for every format.

    method   scales and codes
    rtn      the group's extreme over a divisor, nearest codes
    mse      the scale of several with the smallest error of the weights
    awq      the same, each column's error weighted by the mean square of its input on the student's own trajectories
    gptq     columns rounded in order, their error taken back by later columns, for the Hessian of those inputs

A plan says the width and method of each matrix (`plan.py`); without one, linear layers get `bits`, embedding and head
`embedding_bits` (by rtn or mse: a row is used or not, there is no input to weigh), norms and biases stay as they are.
Layers are done one by one and kept, so a kill costs one layer. `refine` then trains the rounded layers a little more
(`refine.py`). Where inputs were looked at, `importance.gguf` holds their squares for llama.cpp's own quantizer. The
kernels of `soloist.kernels` do the work, on a GPU if there is one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from soloist.kernels.errors import UsageError
from soloist.targets.base import require
from soloist.targets.quantized import carry, read_quantized
from soloist.toolchain.core.artifact import Artifact, stage
from soloist.toolchain.core.config import Config
from soloist.toolchain.core.events import QUIET, EventLog
from soloist.toolchain.quantize.matrices import (
    Kernels,
    Rounding,
    device_of,
    read_matrices,
    write_matrices,
    write_quantized,
)
from soloist.toolchain.quantize.plan import CALIBRATED, Bits, Method, Plan, Rule, resolve, uniform
from soloist.toolchain.quantize.qat import AwareConfig, refine
from soloist.toolchain.quantize.weights import FIRST, Source, architecture, groups_of, read_weights, shapes_of
from soloist.toolchain.student.student import QUANTIZE, Student

if TYPE_CHECKING:
    from torch import Tensor

    from soloist.kernels.gptq import Gram
    from soloist.kernels.layout import Quantized


STAGE = QUANTIZE
_WORK = "layers"
_PLANNED = ("bits", "group", "method", "embedding_bits", "zeros")


class QuantizeConfig(Config):
    """Widths, group size and method, or a `plan` of them. `samples`: conversations to calibrate on; `order`,
    `damping`: GPTQ's; `refine`: train on through the rounding."""

    bits: Bits = 4
    group: Literal[32, 64, 128] = 32
    method: Method = "gptq"
    embedding_bits: Bits = 8
    zeros: bool = False
    plan: Plan | None = None
    samples: int = Field(default=64, ge=1)
    order: Literal["natural", "activation"] = "natural"
    damping: float = Field(default=0.01, gt=0, le=1)
    refine: AwareConfig | None = None
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

    @property
    def reads(self) -> bool:
        """Whether the student's traces are needed."""
        return self.calibrates or self.refine is not None


def load_quantized(path: Path) -> dict[str, Quantized]:
    """The quantized matrices of an artifact (or of one of its models) by the name of the weight, as torch tensors.

    Raises:
        ArtifactError: no quantized student, or a damaged one.
    """
    from soloist.targets.quantized_torch import as_torch

    return {name: as_torch(matrix) for name, matrix in read_quantized(path).matrices.items()}


def quantize(
    config: QuantizeConfig,
    student: Student,
    out: Path,
    *,
    traces: Artifact | None = None,
    device: str = "auto",
    kernels: Kernels = "auto",
    events: EventLog = QUIET,
) -> Artifact:
    """Quantize a student. `traces` replace those of its lineage for methods that calibrate.

    Raises:
        ArtifactError: no student, or its traces are gone.
        UsageError: a method that cannot be for this student, a device or kernel that is not there.
        DataError: weights that are not finite.
    """
    models = student.models
    parents = [student.artifact]
    if config.reads:
        if len(models) > 1:
            raise UsageError(
                "methods awq and gptq and a refinement are for one model; for a student of two use rtn or mse"
            )
        traces = traces or student.traces()
        parents.append(traces)
    rounding = Rounding(device_of(device), kernels, config.order, config.damping)

    def build(made: Path) -> Mapping[str, Any]:
        facts = {}
        carry(student.path, made)
        for part, folder in models.items():
            target = made / part
            target.mkdir(parents=True, exist_ok=True)
            work = _Work(config, student, folder, target, made / _WORK / (part or "model"), rounding, events)
            facts[part] = work.run(traces)
        whole: Mapping[str, Any] = facts.get("", {"parts": facts})
        return whole

    said = config.model_dump(mode="json", by_alias=True, exclude=set(_PLANNED) if config.plan else {"plan"})
    return stage(STAGE, out, said, parents, build, events=events, scratch=(_WORK,))


@dataclass(frozen=True)
class _Work:
    """One model at work. `scratch` keeps finished layers."""

    config: QuantizeConfig
    student: Student
    folder: Path
    target: Path
    scratch: Path
    rounding: Rounding
    events: EventLog
    rules: dict[str, Rule] = field(default_factory=dict)  # of each matrix, once its folder has been read

    def run(self, traces: Artifact | None) -> dict[str, Any]:
        self.scratch.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            read = read_weights(self.folder, stack)
            groups = groups_of(read)
            self.rules.update(resolve(self.config.rules, architecture(self.folder), shapes_of(groups)))
            reason = self.rounding.reason(self.rules.values())
            self.events.emit(STAGE, "note", text=f"kernels: {reason}")
            if traces is None or not self.config.calibrates:
                for done, (name, members) in enumerate(groups.items()):
                    self.events.progress(STAGE, done, len(groups), layer=name)
                    self._group(name, members, {})
                tokens = None
            else:
                tokens = self._walk(traces, groups)
            self.events.progress(STAGE, len(groups), len(groups))
            matrices = {name: one for group in groups for name, one in self._group(group, groups[group], {}).items()}
            methods = {name: rule.method for name, rule in self.rules.items()}
            refined: dict[str, Any] = {}
            if traces is not None and self.config.refine is not None:
                new, refined = self._refine(matrices, traces, self.config.refine)
                matrices |= new
            facts = write_quantized(self.folder, self.target, matrices, methods)
            self._write_importance()
        return {**facts, "kernels": reason, **({"calibration": tokens} if tokens else {}), **refined}

    def _walk(self, traces: Artifact, groups: Mapping[str, Mapping[str, Source]]) -> dict[str, int]:
        """Layer by layer on the student's conversations; layers that are done are only walked through."""
        from soloist.kernels.layout import dequantize
        from soloist.toolchain.quantize.calibration import Walk, conversations

        walk = Walk(self.folder, self.rounding.device)
        sequences = conversations(self.student, walk.tokenizer, traces, self.config.samples, self.config.seed)
        for name, weight in self._group(FIRST, groups[FIRST], {}).items():
            walk.replace(name, dequantize(weight.to(self.rounding.device)))
        tokens = walk.start([example.ids for example in sequences])
        for done, (layer, members) in enumerate(groups.items()):
            self.events.progress(STAGE, done, len(groups), layer=layer)
            if layer == FIRST:
                continue
            grams = {} if self._file(layer).is_file() else walk.observe(int(layer))
            self._keep_importance(layer, grams)
            new = self._group(layer, members, grams)

            def weight_of(name: str, new: Mapping[str, Quantized] = new) -> Tensor | None:
                return dequantize(new[name].to(self.rounding.device)) if name in new else None

            walk.advance(int(layer), weight_of)
        return {"conversations": len(sequences), "tokens": tokens}

    def _refine(
        self, matrices: Mapping[str, Quantized], traces: Artifact, config: AwareConfig
    ) -> tuple[dict[str, Quantized], dict[str, Any]]:
        """New integers for the linear layers, from all of the student's conversations."""
        from soloist.toolchain.distill.model import load_base
        from soloist.toolchain.quantize.calibration import conversations

        tokenizer = load_base(self.folder)[1]
        talks = conversations(self.student, tokenizer, traces, None, self.config.seed)
        new, facts = refine(
            self.folder,
            matrices,
            talks,
            config,
            self.scratch / "refine",
            device=self.rounding.device,
            events=self.events,
        )
        return new, {"refine": facts}

    def _keep_importance(self, layer: str, grams: Mapping[str, Gram]) -> None:
        """Sums of squares of a layer's inputs, where they were looked at."""
        if grams:
            arrays = {}
            for name, gram in grams.items():
                arrays[f"{name}.sum"] = gram.mean_square.float().cpu().numpy() * np.float32(gram.rows)
                arrays[f"{name}.rows"] = np.array([gram.rows], np.float32)
            file = self.scratch / f"importance-{layer}.tmp"
            require("safetensors.numpy", "train").save_file(arrays, str(file))
            file.replace(file.with_suffix(".safetensors"))

    def _write_importance(self) -> None:
        """llama.cpp's file of them, if the model is one that GGUF knows."""
        from soloist.targets.families import FAMILIES, places
        from soloist.targets.llama_quantize import IMPORTANCE, write_importance

        files = sorted(self.scratch.glob("importance-*.safetensors"))
        if not files or architecture(self.folder) not in FAMILIES:
            return
        load = require("safetensors.numpy", "train").load_file
        found = {name: array for file in files for name, array in load(str(file)).items()}
        where = places(json.loads((self.folder / "config.json").read_text(encoding="utf-8")), self.folder)
        write_importance(
            self.target / IMPORTANCE,
            {
                where[name].name: (found[f"{name}.sum"], float(found[f"{name}.rows"][0]))
                for name in (key.removesuffix(".sum") for key in found if key.endswith(".sum"))
                if name in where
            },
        )

    def _file(self, group: str) -> Path:
        return self.scratch / f"{group}.safetensors"

    def _group(self, group: str, members: Mapping[str, Source], grams: Mapping[str, Gram]) -> dict[str, Quantized]:
        """The quantized matrices of one layer, from its file if it was done before."""
        file = self._file(group)
        if not file.is_file():
            write_matrices(
                file,
                {
                    name: self.rounding.matrix(source.load(), self.rules[name], grams.get(name))
                    for name, source in members.items()
                },
            )
        return read_matrices(file, {name: self.rules[name] for name in members})

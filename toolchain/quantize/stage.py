"""Stage `quantize`: a student's matrices become integers and scales, once, for every format.

    rounding   scales and codes
    rtn        the group's extreme over a divisor, nearest codes
    mse        the scale of several with the smallest error of the weights
    awq        the same, each column's error weighted by the mean square of its input on the student's own trajectories
    gptq       columns rounded in order, their error taken back by later columns, for the Hessian of those inputs

A plan says the bits and rounding of each matrix (`plan.py`); without one, linear layers get `bits`, embedding and head
`embedding_bits` (by rtn or mse: a row is used or not, there is no input to weigh), norms and biases stay as they are.
Layers are done one by one and kept, so a kill costs one layer. `qat` then trains the rounded layers a little more
(`qat.py`). Where inputs were looked at, `importance.gguf` holds their squares for llama.cpp's own quantizer. The
kernels of `soloist.kernels` do the work, on a GPU if there is one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field, model_validator

from soloist.kernels.errors import UsageError
from soloist.targets.base import require
from soloist.targets.quantized import carry, read_quantized
from soloist.toolchain.core.artifact import Artifact, Facts, stage
from soloist.toolchain.core.config import Config
from soloist.toolchain.core.events import QUIET, EventLog
from soloist.toolchain.quantize.matrices import (
    Kernels,
    Rounder,
    WeightFacts,
    device_of,
    read_matrices,
    write_matrices,
    write_quantized,
)
from soloist.toolchain.quantize.plan import CALIBRATED, BitPlan, Bits, Group, Rounding, Rule, resolve, uniform
from soloist.toolchain.quantize.qat import QATConfig, QATFacts, qat
from soloist.toolchain.quantize.weights import TABLES_GROUP, Source, architecture, groups_of, read_weights, shapes_of
from soloist.toolchain.student.student import QUANTIZE, Student

if TYPE_CHECKING:
    from soloist.kernels.gptq import Gram
    from soloist.kernels.layout import Quantized


STAGE = QUANTIZE
SAMPLES = 64
_WORK = "layers"
PLANNED = ("bits", "group", "rounding", "embedding_bits", "asymmetric")  # what a plan says


class QuantizeConfig(Config):
    """Bits, group size and rounding, or a `plan` of them.

    `samples`: conversations to calibrate on; `act_order`, `damping`: GPTQ's; `qat`: train on through the rounding.
    """

    bits: Bits = 4
    group: Group = 32
    rounding: Rounding = "gptq"
    embedding_bits: Bits = 8
    asymmetric: bool = False
    plan: BitPlan | None = None
    samples: int = Field(default=SAMPLES, ge=1)
    act_order: bool = False
    damping: float = Field(default=0.01, gt=0, le=1)
    qat: QATConfig | None = None
    seed: int = 42

    @model_validator(mode="after")
    def _possible(self) -> QuantizeConfig:
        if self.asymmetric and self.bits != 4:
            raise ValueError("zero points are for 4 bits")
        also = [name for name in PLANNED if name in self.model_fields_set]
        if self.plan is not None and also:
            raise ValueError(f"a plan says {', '.join(also)}; leave out the one or the other")
        return self

    @property
    def rules(self) -> BitPlan:
        """The plan, or the one that the bits make."""
        return self.plan or uniform(
            self.bits, self.embedding_bits, self.group, self.rounding, asymmetric=self.asymmetric
        )

    @property
    def calibrates(self) -> bool:
        """Whether some matrix is quantized for its inputs."""
        return any(rule.rounding in CALIBRATED for rule in self.rules.rules)

    @property
    def reads(self) -> bool:
        """Whether the student's traces are needed."""
        return self.calibrates or self.qat is not None


class CalibrationFacts(Facts):
    """What the inputs of the layers were taken from."""

    conversations: int
    tokens: int


class ModelFacts(WeightFacts):
    """One quantized model: its weights, why the kernels ran as they did, and what it was calibrated and trained on."""

    kernels: str
    calibration: CalibrationFacts | None = None
    qat: QATFacts | None = None


class QuantizeFacts(Facts):
    """What stage `quantize` writes into its manifest: each model by its folder, "" of a student of one."""

    models: Mapping[str, ModelFacts]


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
    """Quantize a student. `traces` replace those of its lineage for what calibrates.

    Raises:
        ArtifactError: no student, or its traces are gone.
        UsageError: a rounding that cannot be for this student, a device or kernel that is not there.
        DataError: weights that are not finite.
    """
    models = student.models
    parents = [student.artifact]
    if config.reads:
        if len(models) > 1:
            raise UsageError("awq, gptq and qat are for one model; for a student of two use rounding rtn or mse")
        traces = traces or student.traces()
        parents.append(traces)
    rounder = Rounder(device_of(device), kernels, config.act_order, config.damping)

    def build(made: Path) -> QuantizeFacts:
        facts: dict[str, ModelFacts] = {}
        carry(student.path, made)
        for part, folder in models.items():
            target = made / part
            target.mkdir(parents=True, exist_ok=True)
            work = _Work(config, student, folder, target, made / _WORK / (part or "model"), rounder, events)
            facts[part] = work.run(traces)
        return QuantizeFacts(models=facts)

    settings = config.model_dump(mode="json", by_alias=True, exclude=set(PLANNED) if config.plan else {"plan"})
    return stage(STAGE, out, settings, parents, build, events=events, scratch=(_WORK,))


@dataclass(frozen=True)
class _Work:
    """One model at work. `scratch` keeps finished layers."""

    config: QuantizeConfig
    student: Student
    folder: Path
    target: Path
    scratch: Path
    rounder: Rounder
    events: EventLog
    rules: dict[str, Rule] = field(default_factory=dict)  # of each matrix, once its folder has been read

    def run(self, traces: Artifact | None) -> ModelFacts:
        self.scratch.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            groups = groups_of(read_weights(self.folder, stack))
            self.rules.update(resolve(self.config.rules, architecture(self.folder), shapes_of(groups)))
            reason = self.rounder.reason(self.rules.values())
            self.events.emit(STAGE, "note", text=f"kernels: {reason}")
            calibration = None
            if traces is not None and self.config.calibrates:
                calibration = self._calibrate(traces, groups)
            matrices: dict[str, Quantized] = {}
            for done, (group, members) in enumerate(groups.items()):
                if calibration is None:
                    self.events.progress(STAGE, done, len(groups), layer=group)
                matrices |= self._group(group, members, {})
            self.events.progress(STAGE, len(groups), len(groups))
        trained = None
        if traces is not None and self.config.qat is not None:
            layers, trained = self._train(matrices, traces, self.config.qat)
            matrices |= layers
        roundings = {name: rule.rounding for name, rule in self.rules.items()}
        weights = write_quantized(self.folder, self.target, matrices, roundings)
        self._write_importance()
        return ModelFacts(**weights.model_dump(), kernels=reason, calibration=calibration, qat=trained)

    def _calibrate(self, traces: Artifact, groups: Mapping[str, Mapping[str, Source]]) -> CalibrationFacts:
        """Layer by layer on the student's conversations; layers that are done are only walked through."""
        from soloist.kernels.layout import dequantize
        from soloist.toolchain.quantize.calibration import Walk, batched, conversations

        device = self.rounder.device
        walk = Walk(self.folder, device)
        calibration_set = conversations(self.student, walk.tokenizer, traces, self.config.samples, self.config.seed)
        for name, matrix in self._group(TABLES_GROUP, groups[TABLES_GROUP], {}).items():
            walk.replace(name, dequantize(matrix.to(device)))
        walk.start(batched(calibration_set, device))
        for done, (layer, members) in enumerate(groups.items()):
            self.events.progress(STAGE, done, len(groups), layer=layer)
            if layer == TABLES_GROUP:
                continue
            grams = {} if self._file(layer).is_file() else walk.observe(int(layer))
            self._keep_importance(layer, grams)
            matrices = self._group(layer, members, grams)
            walk.advance(int(layer), {name: dequantize(matrix.to(device)) for name, matrix in matrices.items()})
        return CalibrationFacts(conversations=len(calibration_set), tokens=walk.tokens)

    def _train(
        self, matrices: Mapping[str, Quantized], traces: Artifact, config: QATConfig
    ) -> tuple[dict[str, Quantized], QATFacts]:
        """New integers for the linear layers, from all of the student's conversations."""
        from soloist.toolchain.distill.model import load_base
        from soloist.toolchain.quantize.calibration import conversations

        tokenizer = load_base(self.folder)[1]
        examples = conversations(self.student, tokenizer, traces, None, self.config.seed)
        work, device = self.scratch / "qat", self.rounder.device
        return qat(self.folder, matrices, examples, config, work, device=device, events=self.events)

    def _keep_importance(self, layer: str, grams: Mapping[str, Gram]) -> None:
        """Sums of squares of a layer's inputs, where they were looked at."""
        if not grams:
            return
        arrays: dict[str, Any] = {}
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
        where = places(json.loads((self.folder / "config.json").read_text(encoding="utf-8")), self.folder)
        importance = {}
        for file in files:
            arrays = require("safetensors.numpy", "train").load_file(str(file))
            for key, total in arrays.items():
                name = key.removesuffix(".sum")
                if key.endswith(".sum") and name in where:
                    importance[where[name].name] = (total, float(arrays[f"{name}.rows"][0]))
        write_importance(self.target / IMPORTANCE, importance)

    def _file(self, group: str) -> Path:
        return self.scratch / f"{group}.safetensors"

    def _group(self, group: str, members: Mapping[str, Source], grams: Mapping[str, Gram]) -> dict[str, Quantized]:
        """The quantized matrices of one layer, from its file if it was done before."""
        file = self._file(group)
        if not file.is_file():
            write_matrices(file, self.rounder.round_all(members, self.rules, grams))
        return read_matrices(file, self.rules)

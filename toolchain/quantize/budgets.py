"""Budgets of a plan: what the bits of every unit cost, and whether there are any that a budget allows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, model_validator

from soloist.kernels.errors import UsageError
from soloist.targets.devices.spec import device as device_named
from soloist.targets.predict import itl_ms
from soloist.targets.predict import student as shape_named
from soloist.toolchain.core.config import Config
from soloist.toolchain.quantize.plan import TABLES, Bits, Group, Rounding, Rule, Shapes, table_rounding
from soloist.toolchain.quantize.search import Option, Unit
from soloist.toolchain.quantize.sizes import Target, other_bytes, size_of
from soloist.toolchain.quantize.weights import Source, groups_of, read_weights, shapes_of, tied

CONTEXT = 512  # tokens in the cache when milliseconds are predicted


class PlanConfig(Config):
    """Budgets and what is measured.

    `target`: whose containers count (`sizes.CONTAINERS`); `samples`: conversations to calibrate on; `eval_samples`:
    others, on which KL is measured.
    """

    target: Target = "gguf"
    max_mb: float | None = Field(default=None, gt=0)
    device: str | None = None
    max_ms_per_token: float | None = Field(default=None, gt=0)
    max_accuracy_drop: float | None = Field(default=None, ge=0)
    bits: tuple[Bits, ...] = (4, 5, 8)
    group: Group = 32
    rounding: Rounding = "gptq"
    samples: int = Field(default=64, ge=1)
    eval_samples: int = Field(default=32, ge=1)
    seed: int = 42

    @model_validator(mode="after")
    def _possible(self) -> PlanConfig:
        if self.max_mb is None and self.max_ms_per_token is None and self.max_accuracy_drop is None:
            raise ValueError("no budget: give max_mb, max_ms_per_token or max_accuracy_drop")
        if (self.max_ms_per_token is None) != (self.device is None):
            raise ValueError("max_ms_per_token needs a device, and a device is for that")
        if not self.bits or len(set(self.bits)) != len(self.bits):
            raise ValueError("bits: name each once")
        return self

    def rule(self, name: str, bits: int) -> Rule:
        """The rule of a matrix at so many bits, one of `bits`."""
        if name.endswith(TABLES):
            fields = {"group": 32, "rounding": table_rounding(self.rounding)}
        else:
            fields = {"group": self.group, "rounding": self.rounding}
        return Rule.model_validate({"tensors": name, "bits": bits, **fields})


@dataclass(frozen=True)
class Model:
    """What is known of a model before anything is measured.

    Attributes:
        groups: its matrices, embedding and head first, then layer by layer.
        units: what gets its bits together.
        shapes: (N, K) of every matrix.
        other: bytes of the file beside its matrices, at most.
    """

    folder: Path
    groups: Mapping[str, Mapping[str, Source]]
    units: Sequence[Unit]
    shapes: Shapes
    other: int


def read_model(folder: Path, target: Target, stack: ExitStack) -> Model:
    """The model of a Hugging Face folder; its tensors can be read while `stack` is open."""
    from soloist.toolchain.quantize.sensitivity import units_of

    read = read_weights(folder, stack)
    groups = groups_of(read)
    shapes = shapes_of(groups)
    kept = {name: source for name, source in read.items() if name not in shapes}
    units = units_of({group: list(members) for group, members in groups.items()})
    return Model(folder, groups, units, shapes, other_bytes(folder, kept, len(read), target))


def option_of(config: PlanConfig, model: Model, unit: Unit, bits: int, kl_increase: float) -> Option:
    """A unit at so many bits, and what that costs."""
    size = 0
    for name in unit.tensors:
        size += size_of(model.shapes[name], config.rule(name, bits), config.target)
    looked_up = unit.name == "embedding" and not tied(model.folder)  # a row of it, not all
    return Option(bits, size, 0 if looked_up else size, kl_increase)


def predicted_ms(device: str, folder: Path, streamed: float) -> float:
    """Milliseconds per token on a device for which a token streams so many bytes of weights, and the cache."""
    shape = shape_named(str(folder))
    return itl_ms(device_named(device), shape, streamed + shape.kv_bytes(CONTEXT))


def max_streamed(config: PlanConfig, folder: Path) -> int | None:
    """Bytes of weights that a token may stream for the milliseconds it may take; below 0 where none may."""
    if config.max_ms_per_token is None or config.device is None:
        return None
    none = predicted_ms(config.device, folder, 0)
    per_byte = (predicted_ms(config.device, folder, 1e9) - none) / 1e9
    return int((config.max_ms_per_token - none) / per_byte)


def refuse_impossible(config: PlanConfig, model: Model) -> None:
    """Refuse budgets that no bits meet, before anything is measured; the message names the nearest that can be met.

    Raises:
        UsageError: there are such.
    """
    fewest = min(config.bits)
    least = [option_of(config, model, unit, fewest, 0.0) for unit in model.units]
    size = sum(option.bytes for option in least) + model.other
    if config.max_mb is not None and size > config.max_mb * 1e6:
        raise UsageError(
            f"max_mb {config.max_mb:g} cannot be met: with {fewest} bits everywhere the file takes "
            f"{_upward(size / 1e6)} MB, {model.other / 1e6:.4g} of them tokenizer and norms"
        )
    limit, streamed = max_streamed(config, model.folder), sum(option.streamed for option in least)
    if limit is not None and streamed > limit and config.device is not None:
        board, shape = device_named(config.device), shape_named(str(model.folder))
        fixed, cached = itl_ms(board, shape, 0), predicted_ms(config.device, model.folder, 0)
        nearest = predicted_ms(config.device, model.folder, streamed)
        raise UsageError(
            f"max_ms_per_token {config.max_ms_per_token:g} cannot be met on {board.name}: with {fewest} bits "
            f"everywhere a token takes {_upward(nearest)} ms (predicted), {fixed:.3g} of them launches and "
            f"{cached - fixed:.3g} the cache of {CONTEXT} tokens"
        )


def _upward(value: float) -> str:
    """Four digits, none too few: what is named as a budget can be met."""
    step = 10.0 ** (math.floor(math.log10(value)) - 3)
    return f"{math.ceil(value / step) * step:.4g}"

"""What a student's layers are fed on its own task: the inputs that a quantizer should serve well.

The text is the student's own: the trajectories of the traces it learned from, found through its lineage, as the
conversations it was trained on. A generic text would keep what the student never says. Layers are taken one after the
other: each sees what the layers before it, quantized already, hand on; memory holds one layer's statistics.
Conversations of like length go through a layer together; what fills up the shorter ones counts as no input.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from soloist.kernels.errors import ArtifactError, UsageError
from soloist.kernels.gptq import Gram
from soloist.toolchain.core.artifact import Artifact
from soloist.toolchain.distill.data import Example, select
from soloist.toolchain.distill.model import load_base
from soloist.toolchain.distill.stage import recheck
from soloist.toolchain.student.artifact import Mode
from soloist.toolchain.student.student import Student
from soloist.toolchain.traces.recording import TRACES
from soloist.toolchain.traces.store import read_runs

_LONGEST = 1024  # tokens of a conversation
_BATCH_TOKENS = 2048  # fills the cores, and keeps the states of a batch at a few megabytes


def conversations(
    student: Student,
    tokenizer: Any,
    traces: Artifact,
    samples: int | None,
    seed: int,
) -> list[Example]:
    """At most `samples` conversations of the traces (None: all), drawn at random, always the same ones.

    Raises:
        DataError: no trace the student could have learned from.
    """
    mode: Mode = student.card.mode if student.card is not None else "tools"
    runs = read_runs(traces.path / TRACES)
    chosen = select(runs, tokenizer, check_steps=recheck, mode=mode, max_length=_LONGEST)
    drawn = random.Random(f"{seed}/calibration")  # noqa: S311 - not cryptography
    return drawn.sample(list(chosen.examples), min(samples or len(chosen.examples), len(chosen.examples)))


@dataclass(frozen=True)
class Batch:
    """Conversations of like length together.

    Attributes:
        ids: (B, T), filled up on the right, which no earlier token of a causal model can see.
        own: (B, T), false where a conversation was filled up.
        trained: (R, 2), row and position of each token whose successor is trained.
    """

    ids: Tensor
    own: Tensor
    trained: Tensor


def batched(examples: Sequence[Example], device: torch.device | str) -> list[Batch]:
    """The conversations by length, cut into batches."""
    batches: list[Batch] = []
    waiting: list[Example] = []
    for example in sorted(examples, key=lambda example: len(example.ids)):
        if waiting and (len(waiting) + 1) * len(example.ids) > _BATCH_TOKENS:
            batches.append(_batch(waiting, device))
            waiting = []
        waiting.append(example)
    return [*batches, _batch(waiting, device)] if waiting else batches


def _batch(examples: Sequence[Example], device: torch.device | str) -> Batch:
    longest = max(len(example.ids) for example in examples)
    ids = torch.zeros(len(examples), longest, dtype=torch.long)
    own = torch.zeros(len(examples), longest, dtype=torch.bool)
    trained = torch.zeros(len(examples), longest, dtype=torch.bool)
    for row, example in enumerate(examples):
        length = len(example.ids)
        ids[row, :length] = torch.tensor(example.ids)
        own[row, :length] = True
        trained[row, : length - 1] = torch.tensor(example.trained[1:])
    return Batch(ids.to(device), own.to(device), trained.nonzero().to(device))


class _Captured(Exception):
    """The first layer was reached."""


class Walk:
    """A model, layer by layer, on batches of conversations.

    Raises:
        ArtifactError: a model whose layers are not found.
    """

    def __init__(self, folder: Path, device: torch.device | str = "cpu") -> None:
        model, self.tokenizer = load_base(folder)
        self.model = model.to(device).eval().requires_grad_(False)
        self.device = device
        lists = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and n.endswith("layers")]
        if len(lists) != 1:
            raise ArtifactError(f"{folder}: {type(model).__name__} is not one stack of layers; use rounding rtn or mse")
        self.prefix, self.layers = lists[0]
        self._batches: Sequence[Batch] = ()
        self._states: list[Tensor] = []
        self._arguments: list[Mapping[str, Any]] = []

    @property
    def tokens(self) -> int:
        """Of the conversations, without what fills them up."""
        return int(sum(batch.own.sum() for batch in self._batches))

    def start(self, batches: Sequence[Batch]) -> None:
        """Embed the conversations, which `observe` and `advance` take from layer to layer."""
        self._states = self.enter(batches)

    def enter(self, batches: Sequence[Batch]) -> list[Tensor]:
        """What enters the first layer for each batch (B, T, width); `through` goes on from there."""
        if not batches:
            raise UsageError("no conversation to calibrate on")
        states: list[Tensor] = []
        self._batches, self._arguments = batches, []

        def capture(_: nn.Module, positional: tuple[Any, ...], named: Mapping[str, Any]) -> None:
            states.append(positional[0])
            self._arguments.append(named)
            raise _Captured

        hook = self.layers[0].register_forward_pre_hook(capture, with_kwargs=True)
        try:
            for batch in batches:
                try:
                    with torch.no_grad():
                        self.model(batch.ids, use_cache=False)
                except _Captured:
                    continue
        finally:
            hook.remove()
        return states

    def observe(self, index: int) -> dict[str, Gram]:
        """The input statistics of each linear layer inside layer `index`, by the name of its weight.

        Layers that read the very same input (query, key and value) share one.
        """
        grams: dict[str, Gram] = {}
        seen: dict[str, Tensor] = {}  # of this batch; keeps the tensors, so that none takes another's place
        own: Tensor = self._batches[0].own

        def see(name: str, inputs: Tensor) -> None:
            for other, tensor in seen.items():
                if tensor is inputs:
                    grams[name] = grams[other]
                    return
            seen[name] = inputs
            rows = inputs.reshape(-1, inputs.shape[-1])
            if len(rows) != own.numel():
                raise ArtifactError(f"{name}: sees only some of the tokens; use rounding rtn or mse")
            if name not in grams:
                grams[name] = Gram(rows.shape[1], self.device)
            grams[name].add(rows[own.flatten()])

        hooks = []
        for name, module in self._linear(index):
            hooks.append(module.register_forward_pre_hook(lambda _, given, name=name: see(name, given[0])))
        try:
            for place, batch in enumerate(self._batches):
                own = batch.own
                self.through(index, place, self._states[place])
                seen.clear()
        finally:
            for hook in hooks:
                hook.remove()
        return grams

    def advance(self, index: int, weights: Mapping[str, Tensor]) -> None:
        """Put new weights, by name, into layer `index` and take the conversations through it."""
        for name, module in self._linear(index):
            if name in weights:
                module.weight.data.copy_(weights[name])
        for place, state in enumerate(self._states):
            self._states[place] = self.through(index, place, state)

    def replace(self, name: str, weight: Tensor) -> None:
        """Put a new weight into the embedding or the head, by its name."""
        self.model.get_parameter(name).data.copy_(weight)

    def _linear(self, index: int) -> Iterator[tuple[str, nn.Linear]]:
        for name, module in self.layers[index].named_modules():
            if isinstance(module, nn.Linear):
                yield f"{self.prefix}.{index}.{name}.weight", module

    def through(self, index: int, place: int, state: Tensor) -> Tensor:
        """What leaves layer `index` for the batch at `place` of those that entered."""
        with torch.no_grad():
            out = self.layers[index](state, **self._arguments[place])
        left: Tensor = out[0] if isinstance(out, tuple) else out
        return left

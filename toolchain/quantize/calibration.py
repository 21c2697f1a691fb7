"""What a student's layers are fed on its own task: the inputs that a quantizer should serve well.

The text is the student's own: the trajectories of the traces it learned from, found through its lineage, as the
conversations it was trained on. A generic text would keep what the student never says. Layers are taken one after the
other: each sees what the layers before it, quantized already, hand on; memory holds one layer's statistics. Left out:
batches (one conversation at a time needs no padding, which would count as input).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
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

_LONGEST = 1024


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


class _Captured(Exception):
    """The first layer was reached."""


class Walk:
    """A model, layer by layer, on some conversations.

    Raises:
        ArtifactError: a model whose layers are not found.
    """

    def __init__(self, folder: Path, device: torch.device | str = "cpu") -> None:
        model, self.tokenizer = load_base(folder)
        self.model = model.to(device).eval().requires_grad_(False)
        self.device = device
        lists = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and n.endswith("layers")]
        if len(lists) != 1:
            raise ArtifactError(f"{folder}: {type(model).__name__} is not one stack of layers; use method rtn or mse")
        self.prefix, self.layers = lists[0]
        self._states: list[Tensor] = []
        self._arguments: list[Mapping[str, Any]] = []

    def start(self, sequences: Sequence[Sequence[int]]) -> int:
        """Embed the conversations; returns how many tokens they have."""
        self._states = self.enter([torch.tensor([list(ids)]) for ids in sequences])
        return sum(state.shape[1] for state in self._states)

    def enter(self, batches: Sequence[Tensor]) -> list[Tensor]:
        """What enters the first layer for each batch of token ids (B, T); `through` goes on from there."""
        states: list[Tensor] = []
        self._arguments = []

        def capture(_: nn.Module, positional: tuple[Any, ...], named: Mapping[str, Any]) -> None:
            states.append(positional[0])
            self._arguments.append(named)
            raise _Captured

        hook = self.layers[0].register_forward_pre_hook(capture, with_kwargs=True)
        try:
            for ids in batches:
                try:
                    with torch.no_grad():
                        self.model(ids.to(self.device), use_cache=False)
                except _Captured:
                    continue
        finally:
            hook.remove()
        if not states:
            raise UsageError("no conversation to calibrate on")
        return states

    def observe(self, index: int) -> dict[str, Gram]:
        """The input statistics of each linear layer inside layer `index`, by the name of its weight."""
        grams: dict[str, Gram] = {}
        seen: list[tuple[Tensor, str]] = []  # keeps the tensors of this pass, so that none takes another's place
        hooks = []
        for name, module in self._linear(index):

            def hook(_: nn.Module, given: tuple[Any, ...], name: str = name) -> None:
                same = next((other for tensor, other in seen if tensor is given[0]), None)
                if same is not None:  # query, key and value read the same input
                    grams[name] = grams[same]
                    return
                seen.append((given[0], name))
                grams.setdefault(name, Gram(given[0].shape[-1], self.device)).add(given[0])

            hooks.append(module.register_forward_pre_hook(hook))
        try:
            for place in range(len(self._states)):
                self.through(index, place, self._states[place])
                seen.clear()
        finally:
            for one in hooks:
                one.remove()
        return grams

    def advance(self, index: int, weight_of: Callable[[str], Tensor | None]) -> None:
        """Put new weights into layer `index` and take the conversations through it."""
        for name, module in self._linear(index):
            weight = weight_of(name)
            if weight is not None:
                module.weight.data.copy_(weight)
        self._states = [self.through(index, place, state) for place, state in enumerate(self._states)]

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
        found: Tensor = out[0] if isinstance(out, tuple) else out
        return found

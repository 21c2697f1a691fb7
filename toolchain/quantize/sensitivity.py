"""What quantizing one unit of a model costs on its task: measured unit by unit, width by width.

    unit      embedding (and head) · of each layer: query-key-value, attention out, gate-up, down
    damage    mean KL(float model || model with only this unit quantized) in nats over the trained tokens of
              conversations of the student's own task; calibration saw others

Codes are those the method makes for the float model (GPTQ on the inputs each layer has there); they are kept in a
file per layer, and every measurement is a line in a log, so a kill costs one of them. A unit of layer i is measured
from the states that enter layer i, which are computed once. Left out: widths of pairs together (`search` adds them up),
models whose layers are not one stack.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from soloist.kernels.errors import ArtifactError
from soloist.kernels.layout import Quantized, dequantize
from soloist.toolchain.distill.data import Example
from soloist.toolchain.quantize.calibration import Walk
from soloist.toolchain.quantize.weights import FIRST

PARTS = {
    "query-key-value": ("q_proj", "k_proj", "v_proj"),
    "attention-out": ("o_proj",),
    "gate-up": ("gate_proj", "up_proj"),
    "down": ("down_proj",),
}
_BATCH = 8  # conversations of like length together: little padding, and matrices that fill a core
_SAME = 1e-3


@dataclass(frozen=True)
class Spot:
    """Where a unit's matrices are: its layer (-1: embedding and head), their names."""

    name: str
    layer: int
    tensors: tuple[str, ...]


def spots(groups: Mapping[str, Sequence[str]]) -> list[Spot]:
    """The units of a model, embedding and head first. `groups`: names of matrices of `tables` and of each layer."""
    found = [Spot("embedding" if "embed_tokens" in name else "head", -1, (name,)) for name in groups[FIRST]]
    for layer, names in groups.items():
        if layer == FIRST:
            continue
        for part, projections in PARTS.items():
            members = tuple(name for name in names if name.split(".")[-2] in projections)
            if members:
                found.append(Spot(f"layer-{int(layer):02d}.{part}", int(layer), members))
    return found


class Probe:
    """A float model and conversations on which replaced weights are judged.

    Raises:
        ArtifactError: the layers, the norm and the head, taken one by one, do not make the model.
    """

    def __init__(self, walk: Walk, talks: Sequence[Example]) -> None:
        self.walk = walk
        ordered = sorted(talks, key=lambda talk: len(talk.ids))
        batches = [ordered[start : start + _BATCH] for start in range(0, len(ordered), _BATCH)]
        self._ids = [_padded(batch).to(walk.device) for batch in batches]
        self._at = [_trained(batch).to(walk.device) for batch in batches]
        self.norm, self.head = _ends(walk)
        self._states = [[state.clone() for state in walk.enter(self._ids)]]
        for layer in range(len(walk.layers)):
            self._states.append([walk.through(layer, place, state) for place, state in enumerate(self._states[-1])])
        self._sure = [torch.log_softmax(self._logits(place, state), -1) for place, state in enumerate(self._states[-1])]
        self._check()

    @property
    def tokens(self) -> int:
        """Over how many the damage is averaged."""
        return sum(len(sure) for sure in self._sure)

    def damage(self, layer: int, weights: Mapping[str, Tensor]) -> float:
        """Mean KL in nats with these weights in the place of the model's own; `layer` is the first that changes."""
        model = self.walk.model
        kept = {name: model.get_parameter(name).data for name in weights}
        for name, weight in weights.items():
            model.get_parameter(name).data = weight.to(kept[name])
        try:
            states = self.walk.enter(self._ids) if layer < 0 else self._states[layer]
            total = 0.0
            for place, entering in enumerate(states):
                state = entering
                for number in range(max(layer, 0), len(self.walk.layers)):
                    state = self.walk.through(number, place, state)
                total += float(_divergence(self._sure[place], self._logits(place, state)))
        finally:
            for name, value in kept.items():
                model.get_parameter(name).data = value
        return total / self.tokens

    def _logits(self, place: int, state: Tensor) -> Tensor:
        with torch.no_grad():
            found: Tensor = self.head(self.norm(state[tuple(self._at[place].T)]))
        return found

    def _check(self) -> None:
        with torch.no_grad():
            whole = self.walk.model(self._ids[0], use_cache=False).logits[tuple(self._at[0].T)]
        gap = float((torch.log_softmax(whole, -1) - self._sure[0]).abs().max())
        if gap > _SAME:
            raise ArtifactError(
                f"{type(self.walk.model).__name__}: its layers taken one by one are not the model (off by {gap:.1e}); "
                "write a plan by hand"
            )


def _padded(batch: Sequence[Example]) -> Tensor:
    """Filled on the right, which no earlier token of a causal model can see."""
    longest = max(len(talk.ids) for talk in batch)
    return torch.tensor([[*talk.ids, *[talk.ids[-1]] * (longest - len(talk.ids))] for talk in batch])


def _trained(batch: Sequence[Example]) -> Tensor:
    """(row, position) of each token whose successor is trained."""
    return torch.tensor(
        [(row, at) for row, talk in enumerate(batch) for at in range(len(talk.ids) - 1) if talk.trained[at + 1]]
    )


def _ends(walk: Walk) -> tuple[nn.Module, nn.Module]:
    parent = walk.model.get_submodule(walk.prefix.rpartition(".")[0])
    norm, head = getattr(parent, "norm", None), walk.model.get_output_embeddings()
    if norm is None or head is None:
        raise ArtifactError(f"{type(walk.model).__name__}: no last norm or no head was found; write a plan by hand")
    return norm, head


def _divergence(sure: Tensor, logits: Tensor) -> Tensor:
    """Sum of KL over rows of log probabilities and logits, in float64."""
    other = torch.log_softmax(logits, -1)
    return (sure.exp() * (sure - other)).sum(-1).clamp_min(0).double().sum()


def line(unit: str, bits: int, damage: float) -> str:
    """A measurement as the log has it."""
    return json.dumps({"unit": unit, "bits": bits, "damage": damage}) + "\n"


class Log:
    """Measurements by unit and width, one line each; a line that was cut off is measured again."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.known: dict[tuple[str, int], float] = {}
        if file.is_file():
            whole = [line for line in file.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
            self.known = {(row["unit"], row["bits"]): row["damage"] for row in map(json.loads, whole)}
            file.write_text("".join(whole), encoding="utf-8")

    def add(self, unit: str, bits: int, damage: float) -> None:
        """Keep one."""
        with self.file.open("a", encoding="utf-8") as file:
            file.write(line(unit, bits, damage))
        self.known[unit, bits] = damage


def measure(
    probe: Probe, places: Sequence[Spot], codes: Mapping[int, Mapping[str, Any]], log: Log
) -> Iterator[tuple[Spot, int, float]]:
    """Damage of each unit at each width; `codes` are the quantized matrices by width and name (loaded when needed)."""
    for spot in places:
        for bits, matrices in codes.items():
            if (spot.name, bits) not in log.known:
                weights = {name: _float(matrices[name]) for name in spot.tensors}
                log.add(spot.name, bits, probe.damage(spot.layer, weights))
            yield spot, bits, log.known[spot.name, bits]


def _float(matrix: Quantized) -> Tensor:
    return dequantize(matrix)

"""What quantizing one unit of a model costs on its task: measured unit by unit, at each number of bits.

    unit           embedding (and head) · of each layer: query-key-value, attention out, gate-up, down
    KL increase    mean KL(float model || model with only this unit quantized) in nats over the trained tokens of
                   conversations of the student's own task; calibration saw others

Codes are those the rounding makes for the float model (GPTQ on the inputs each layer has there); they are kept in a
file per layer, and every measurement is a line in a log, so a kill costs one of them. A unit of layer i is measured
from the states that enter layer i, which are computed once. Left out: pairs of units together (`search` adds them up),
models whose layers are not one stack.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from soloist.kernels.errors import ArtifactError
from soloist.kernels.layout import Quantized, dequantize
from soloist.toolchain.distill.data import Example
from soloist.toolchain.quantize.calibration import Walk, batched
from soloist.toolchain.quantize.search import Unit
from soloist.toolchain.quantize.weights import TABLES_GROUP

PARTS = {
    "query-key-value": ("q_proj", "k_proj", "v_proj"),
    "attention-out": ("o_proj",),
    "gate-up": ("gate_proj", "up_proj"),
    "down": ("down_proj",),
}
_SAME = 1e-3


def units_of(groups: Mapping[str, Sequence[str]]) -> list[Unit]:
    """The units of a model, embedding and head first. `groups`: names of matrices of `tables` and of each layer."""
    units: list[Unit] = []
    for group, names in groups.items():
        if group == TABLES_GROUP:
            units += [Unit("embedding" if "embed_tokens" in name else "head", -1, (name,)) for name in names]
            continue
        for part, projections in PARTS.items():
            members = tuple(name for name in names if name.split(".")[-2] in projections)
            if members:
                units.append(Unit(f"layer-{int(group):02d}.{part}", int(group), members))
    return units


class Evaluator:
    """A float model and conversations on which replaced weights are judged.

    Raises:
        ArtifactError: the layers, the norm and the head, taken one by one, do not make the model.
    """

    def __init__(self, walk: Walk, examples: Sequence[Example]) -> None:
        self.walk = walk
        self._batches = batched(examples, walk.device)
        self.norm, self.head = _ends(walk)
        self._states = [walk.enter(self._batches)]
        for layer in range(len(walk.layers)):
            self._states.append([walk.through(layer, place, state) for place, state in enumerate(self._states[-1])])
        self.tokens = 0  # over how many KL is averaged
        self._wanted: list[Tensor] = []  # log probabilities of the float model
        for place, state in enumerate(self._states[-1]):
            self._wanted.append(torch.log_softmax(self._logits(place, state), -1))
            self.tokens += len(self._wanted[-1])
        self._check()

    def kl_increase(self, layer: int, weights: Mapping[str, Tensor]) -> float:
        """Mean KL in nats with these weights in the place of the model's own; `layer` is the first that changes."""
        model = self.walk.model
        kept: dict[str, Tensor] = {}
        for name, weight in weights.items():
            parameter = model.get_parameter(name)
            kept[name] = parameter.data
            parameter.data = weight.to(parameter.data)
        try:
            states = self.walk.enter(self._batches) if layer < 0 else self._states[layer]
            total = 0.0
            for place, entering in enumerate(states):
                state = entering
                for number in range(max(layer, 0), len(self.walk.layers)):
                    state = self.walk.through(number, place, state)
                total += float(_divergence(self._wanted[place], self._logits(place, state)))
        finally:
            for name, value in kept.items():
                model.get_parameter(name).data = value
        return total / self.tokens

    def _logits(self, place: int, state: Tensor) -> Tensor:
        """At the positions whose next token is trained (R, vocabulary)."""
        with torch.no_grad():
            logits: Tensor = self.head(self.norm(state[self._at(place)]))
        return logits

    def _at(self, place: int) -> tuple[Tensor, ...]:
        return tuple(self._batches[place].trained.T)

    def _check(self) -> None:
        with torch.no_grad():
            whole = self.walk.model(self._batches[0].ids, use_cache=False).logits[self._at(0)]
        gap = float((torch.log_softmax(whole, -1) - self._wanted[0]).abs().max())
        if gap > _SAME:
            raise ArtifactError(
                f"{type(self.walk.model).__name__}: its layers taken one by one are not the model (off by {gap:.1e}); "
                "write a plan by hand"
            )


def _ends(walk: Walk) -> tuple[nn.Module, nn.Module]:
    parent = walk.model.get_submodule(walk.prefix.rpartition(".")[0])
    norm, head = getattr(parent, "norm", None), walk.model.get_output_embeddings()
    if norm is None or head is None:
        raise ArtifactError(f"{type(walk.model).__name__}: no last norm or no head was found; write a plan by hand")
    return norm, head


def _divergence(wanted: Tensor, logits: Tensor) -> Tensor:
    """Sum of KL over rows of log probabilities and logits, in float64."""
    other = torch.log_softmax(logits, -1)
    return (wanted.exp() * (wanted - other)).sum(-1).clamp_min(0).double().sum()


def line(unit: str, bits: int, kl_increase: float) -> str:
    """A measurement as the log has it."""
    return json.dumps({"unit": unit, "bits": bits, "kl_increase": kl_increase}) + "\n"


class Log:
    """Measurements by unit and bits, one line each; a line that was cut off is measured again."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.known: dict[tuple[str, int], float] = {}
        if not file.is_file():
            return
        text = file.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        for row in map(json.loads, whole.splitlines()):
            self.known[row["unit"], row["bits"]] = row["kl_increase"]
        file.write_text(whole, encoding="utf-8")

    def add(self, unit: str, bits: int, kl_increase: float) -> None:
        """Keep one."""
        with self.file.open("a", encoding="utf-8") as file:
            file.write(line(unit, bits, kl_increase))
        self.known[unit, bits] = kl_increase


def measure(
    evaluator: Evaluator, units: Sequence[Unit], candidates: Mapping[int, Mapping[str, Quantized]], log: Log
) -> Iterator[tuple[Unit, int, float]]:
    """KL increase of each unit at each number of bits; `candidates` are the quantized matrices by bits and name."""
    for unit in units:
        for bits, matrices in candidates.items():
            if (unit.name, bits) not in log.known:
                weights = {name: dequantize(matrices[name]) for name in unit.tensors}
                log.add(unit.name, bits, evaluator.kl_increase(unit.layer, weights))
            yield unit, bits, log.known[unit.name, bits]

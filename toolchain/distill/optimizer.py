"""AdamW on fp32 copies of the weights, whatever precision computes.

The update of bf16 weights is smaller than their last bit, so it must land in fp32: `master` holds the
true weights, the model's bf16 ones are rounded from it after each step. The update runs over slices
that fit the cache (gradient to fp32, moments, weight, rounding), one pass over memory instead of three.
State is a flat mapping of tensors, so that a checkpoint is one safetensors file.

Of several processes each owns some of the tensors (`shares`): it alone keeps their fp32 weights and moments,
12 of some 16 bytes per parameter, receives the sum of their gradients, updates them and hands the new weights
out. An update is elementwise, so this changes no number. Left out: other optimizers, states in 8 bits, tensors
split between owners.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from soloist.toolchain.distill.distributed import ALONE, MAIN, Processes

_SLICE = 1 << 18  # elements: 7 arrays of 1 MB or less stay in the cache of one core
_DECAYED_DIMENSIONS = 2  # matrices decay, norms and biases do not


def shares(sizes: Mapping[str, int], count: int) -> dict[str, int]:
    """Which of `count` processes owns each tensor: the largest first, each to whoever has least so far."""
    loads = [0] * count
    owners = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        owners[name] = loads.index(min(loads))
        loads[owners[name]] += sizes[name]
    return owners


class MasterAdamW:
    """AdamW over named parameters. `separate` weights are copied, for models that will be rounded.

    `master`, `first` and `second` hold what this process owns.
    """

    def __init__(
        self,
        parameters: Sequence[tuple[str, nn.Parameter]],
        *,
        separate: bool,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
        processes: Processes = ALONE,
    ) -> None:
        self.parameters = dict(parameters)
        self.processes = processes
        self.owners = shares({name: value.numel() for name, value in parameters}, processes.count)
        for value in self.parameters.values():
            processes.spread(value, MAIN)  # whatever was drawn at random: one start for all
        self.weight_decay = weight_decay
        self.betas = betas
        self.epsilon = epsilon
        self.steps = 0
        self.master: dict[str, Tensor] = {}
        self.first: dict[str, Tensor] = {}
        self.second: dict[str, Tensor] = {}
        for name, value in self.parameters.items():
            if self.owners[name] == processes.rank:
                self.master[name] = value.detach().float().clone() if separate else value.detach()
                self.first[name] = torch.zeros_like(self.master[name])
                self.second[name] = torch.zeros_like(self.master[name])
        self._sums: dict[str, Tensor] = {}
        self._reached = list(self.parameters)  # what this step's gradient reaches, in any process

    def accumulate(self) -> None:
        """Add the model's gradients to fp32 sums and clear them: one call per part of a step but the last."""
        for name, value in self.parameters.items():
            if value.grad is not None:
                self._take(name, value)

    def _take(self, name: str, value: nn.Parameter) -> None:
        kept = self._sums.get(name)
        self._sums[name] = value.grad.float() if kept is None else kept.add_(value.grad)
        value.grad = None

    def gradients(self) -> dict[str, Tensor]:
        """This step's gradients so far: fp32 sums where parts were accumulated, the model's own else."""
        if self._sums:
            self.accumulate()
            return self._sums
        return {name: value.grad for name, value in self.parameters.items() if value.grad is not None}

    def reduce(self) -> None:
        """Add this step's gradients up over all processes, each at its owner; every process must call it.

        A tensor that no process has a gradient for is left alone, as one process would leave it alone: a
        gradient of zero would still let the moments fade and the weight decay.
        """
        has = [value.grad is not None or name in self._sums for name, value in self.parameters.items()]
        holders = self.processes.sum(torch.tensor(has, dtype=torch.float32, device=self.processes.device)).tolist()
        self._reached = list(itertools.compress(self.parameters, holders))
        for name in self._reached:
            value = self.parameters[name]
            if value.grad is not None:
                self._take(name, value)
            mine = self._sums.pop(name, None)
            if mine is None:
                mine = torch.zeros_like(value, dtype=torch.float32)
            total = self.processes.collect(mine, self.owners[name])
            if name in self.master:
                self._sums[name] = total

    def norm(self) -> Tensor:
        """The global norm of this step's gradients, over all processes."""
        norms = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in self.gradients().values()]
        norm = torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros((), device=self.processes.device)
        return self.processes.sum(norm.square()).sqrt() if self.processes.several else norm

    def step(self, learning_rate: float, scale: float = 1.0) -> None:
        """Update every weight that has a gradient; gradients are multiplied by `scale` first.

        Every process must call it: owners hand the new weights out.
        """
        self.steps += 1
        for name, gradient in self.gradients().items():
            value = self.parameters[name]
            decay = self.weight_decay if value.ndim >= _DECAYED_DIMENSIONS else 0.0
            with torch.no_grad():
                self._update(name, gradient, learning_rate, scale, decay)
            value.grad = None
        self._sums = {}
        for name in self._reached:
            self.processes.spread(self.parameters[name], self.owners[name])

    def _update(self, name: str, gradient: Tensor, learning_rate: float, scale: float, decay: float) -> None:
        master, first, second = self.master[name].view(-1), self.first[name].view(-1), self.second[name].view(-1)
        source, working = gradient.reshape(-1), self.parameters[name].view(-1)
        rounded = working.data_ptr() != master.data_ptr()
        # the kernel adds one to the step it is given, in place
        for start in range(0, source.numel(), _SLICE):
            stop = min(start + _SLICE, source.numel())
            piece = source[start:stop].float()
            step = torch.tensor(float(self.steps - 1), device=piece.device)
            adamw(
                [master[start:stop]],
                [piece * scale if scale != 1.0 else piece],
                [first[start:stop]],
                [second[start:stop]],
                [],
                [step],
                fused=True,
                amsgrad=False,
                beta1=self.betas[0],
                beta2=self.betas[1],
                lr=learning_rate,
                weight_decay=decay,
                eps=self.epsilon,
                maximize=False,
            )
            if rounded:
                working[start:stop] = master[start:stop]

    def exact(self) -> dict[str, Tensor]:
        """The fp32 weights, all of them on every process; every process must call it."""
        return {name: self._whole(self.master, name) for name in self.parameters}

    def _whole(self, group: Mapping[str, Tensor], name: str) -> Tensor:
        value = group.get(name)
        if value is None:
            value = torch.empty_like(self.parameters[name], dtype=torch.float32)
        return self.processes.spread(value, self.owners[name])

    def state(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, as a flat mapping, whole on the main process; every process must call it."""
        state = {}
        for part, group in self._parts().items():
            for name in self.parameters:
                value = self._whole(group, name)
                if self.processes.main:  # what others own is not to fill this one's accelerator
                    state[f"{part}.{name}"] = value if name in group else value.cpu()
        return state

    def _parts(self) -> dict[str, dict[str, Tensor]]:
        return {"master": self.master, "first": self.first, "second": self.second}

    def load(self, state: Mapping[str, Tensor], steps: int) -> None:
        """Go on from `state()`, which only the main process needs to have; every process must call it."""
        with torch.no_grad():
            for part, group in self._parts().items():
                for name, parameter in self.parameters.items():
                    value = torch.empty_like(parameter, dtype=torch.float32)
                    if self.processes.main:
                        value.copy_(state[f"{part}.{name}"])
                    self.processes.spread(value, MAIN)
                    if name in group:
                        group[name].copy_(value)
                    if part == "master":
                        parameter.copy_(value)
        self.steps = steps

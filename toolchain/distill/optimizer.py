"""AdamW on fp32 copies of the weights, whatever precision computes.

The update of bf16 weights is smaller than their last bit, so it must land in fp32: `master` holds the
true weights, the model's bf16 ones are rounded from it after each step. The update runs over slices
that fit the cache (gradient to fp32, moments, weight, rounding), one pass over memory instead of three.
State is a flat mapping of tensors, so that a checkpoint is one safetensors file. Left out: other
optimizers, states in 8 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

_SLICE = 1 << 18  # elements: 7 arrays of 1 MB or less stay in the cache of one core
_DECAYED_DIMENSIONS = 2  # matrices decay, norms and biases do not


class MasterAdamW:
    """AdamW over named parameters. `separate` weights are copied, for models that will be rounded."""

    def __init__(
        self,
        parameters: Sequence[tuple[str, nn.Parameter]],
        *,
        separate: bool,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
    ) -> None:
        self.parameters = dict(parameters)
        self.weight_decay = weight_decay
        self.betas = betas
        self.epsilon = epsilon
        self.steps = 0
        self.master = {
            name: value.detach().float().clone() if separate else value.detach()
            for name, value in self.parameters.items()
        }
        self.first = {name: torch.zeros_like(value) for name, value in self.master.items()}
        self.second = {name: torch.zeros_like(value) for name, value in self.master.items()}
        self._sums: dict[str, Tensor] = {}

    def accumulate(self) -> None:
        """Add the model's gradients to fp32 sums and clear them: one call per part of a step but the last."""
        for name, value in self.parameters.items():
            if value.grad is not None:
                kept = self._sums.get(name)
                self._sums[name] = value.grad.float() if kept is None else kept.add_(value.grad)
                value.grad = None

    def gradients(self) -> dict[str, Tensor]:
        """This step's gradients so far: fp32 sums where parts were accumulated, the model's own else."""
        if self._sums:
            self.accumulate()
            return self._sums
        return {name: value.grad for name, value in self.parameters.items() if value.grad is not None}

    def reduce(self, collect: Callable[[Tensor], Tensor]) -> None:
        """Replace each gradient by what `collect` makes of it over all processes; every process must call it."""
        self.accumulate()
        self._sums = {name: collect(self._sums.get(name, torch.zeros_like(m))) for name, m in self.master.items()}

    def norm(self) -> Tensor:
        """The global norm of this step's gradients."""
        norms = [torch.linalg.vector_norm(g, dtype=torch.float32) for g in self.gradients().values()]
        return torch.linalg.vector_norm(torch.stack(norms))

    def step(self, learning_rate: float, scale: float = 1.0) -> None:
        """Update every weight that has a gradient; gradients are multiplied by `scale` first."""
        self.steps += 1
        for name, gradient in self.gradients().items():
            value = self.parameters[name]
            decay = self.weight_decay if value.ndim >= _DECAYED_DIMENSIONS else 0.0
            with torch.no_grad():
                self._update(name, gradient, learning_rate, scale, decay)
            value.grad = None
        self._sums = {}

    def _update(self, name: str, gradient: Tensor, learning_rate: float, scale: float, decay: float) -> None:
        flat = [t.view(-1) for t in (self.master[name], self.first[name], self.second[name])]
        source, working = gradient.reshape(-1), self.parameters[name].view(-1)
        rounded = working.data_ptr() != flat[0].data_ptr()
        # the kernel adds one to the step it is given, in place
        for start in range(0, source.numel(), _SLICE):
            stop = min(start + _SLICE, source.numel())
            piece = source[start:stop].float()
            step = torch.tensor(float(self.steps - 1), device=piece.device)
            adamw(
                [flat[0][start:stop]],
                [piece * scale if scale != 1.0 else piece],
                [flat[1][start:stop]],
                [flat[2][start:stop]],
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
                working[start:stop] = flat[0][start:stop]

    def state(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, as a flat mapping."""
        parts = {"master": self.master, "first": self.first, "second": self.second}
        return {f"{part}.{name}": value for part, group in parts.items() for name, value in group.items()}

    def load(self, state: Mapping[str, Tensor], steps: int) -> None:
        """Go on from `state()`."""
        with torch.no_grad():
            for key, value in self.state().items():
                value.copy_(state[key])
            for name, parameter in self.parameters.items():
                parameter.copy_(self.master[name])
        self.steps = steps

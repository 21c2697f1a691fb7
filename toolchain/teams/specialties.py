"""What a team of specialists knows of a task: its families, their tools, and demonstrations of each.

A task module (`soloist.toolchain.tasks.desk`, or the user's own as `package.module`) offers FAMILIES
(name to an object with `tools` and `description`) and `demonstrations(family, count, seed)`.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from soloist.kernels.errors import UsageError
from soloist.targets.base import Message
from soloist.toolchain.teams.config import AgentConfig, Demonstration, DemonstrationSource, Followup
from soloist.toolchain.tools.base import Toolbox
from soloist.toolchain.tools.calls import render_call, run_call


class Specialties:
    """Families of one task, with demonstrations rendered as chat messages and kept."""

    def __init__(self, module: Any, toolbox: Toolbox, names: Sequence[str] = ()) -> None:  # noqa: ANN401 - user's
        self._module = module
        self._toolbox = toolbox
        self.names: tuple[str, ...] = tuple(names or module.FAMILIES)
        self._shown: dict[tuple[str, int, int, int], list[Message]] = {}
        self._nearest: Nearest | None = None

    def tools(self, family: str) -> tuple[str, ...]:
        return tuple(self._module.FAMILIES[family].tools)

    def routing(self, count: int) -> list[Message]:
        """`count` questions of every family with the family's name as the reply, families interleaved."""
        messages: list[Message] = []
        for k in range(count):
            for name in self.names:
                case = self._module.demonstrations(name, count, seed=900)[k]
                messages.append({"role": "user", "content": case.question.question})
                messages.append({"role": "assistant", "content": name})
        return messages

    def nearest(self, embed: Callable[[str], npt.NDArray[np.float32]], count: int) -> Nearest:
        """The families ordered by how near their demonstrations lie to a question; `count` of each are compared."""
        if self._nearest is None:
            texts = {
                name: [case.question.question for case in self._module.demonstrations(name, count, seed=900)]
                for name in self.names
            }
            self._nearest = Nearest({name: np.stack([embed(text) for text in those]) for name, those in texts.items()})
        return self._nearest

    def demonstrations(self, agent: AgentConfig, family: str, step: int) -> list[Message]:
        """The agent's own worked demonstrations of one step of a family: question (and results so far) to call."""
        source = agent.demonstrations
        if not isinstance(source, DemonstrationSource):
            raise UsageError(f"agent '{agent.name}': demonstrations must name a task, a count and a seed")
        key = (family, step, source.count, source.seed)
        if key not in self._shown:
            cases = self._module.demonstrations(family, source.count, seed=source.seed)
            self._shown[key] = [message for case in cases for message in self._show(case, step)]
        return self._shown[key]

    def examples(self, count: int, seed: int = 0) -> tuple[Demonstration, ...]:
        """`count` whole worked examples of every family, for an agent that has to know them all."""
        return tuple(
            self._example(case) for name in self.names for case in self._module.demonstrations(name, count, seed=seed)
        )

    def _example(self, case: Any) -> Demonstration:  # noqa: ANN401 - a task's Case
        last = len(case.calls) - 1
        written = [
            render_call(call.name, call.arguments, self._toolbox, more=i < last) for i, call in enumerate(case.calls)
        ]
        results = [run_call(call, self._toolbox).value for call in case.calls[:-1]]
        followups = tuple(
            Followup(result=result, reply=reply) for result, reply in zip(results, written[1:], strict=True)
        )
        return Demonstration(question=case.question.question, reply=written[0], then=followups)

    def _show(self, case: Any, step: int) -> list[Message]:  # noqa: ANN401 - a task's Case
        results = [run_call(call, self._toolbox).value for call in case.calls[:step]]
        call, more = case.calls[step], step + 1 < len(case.calls)
        written = render_call(call.name, call.arguments, self._toolbox, more=more)
        return [
            {"role": "user", "content": asked(case.question.question, results)},
            {"role": "assistant", "content": written},
        ]


def asked(question: str, results: Sequence[str]) -> str:
    """The question as a reader of a later step sees it: with the results so far."""
    return "\n".join([question, *(f"Result: {result}" for result in results)])


class Nearest:
    """Families by the cosine of a question's hidden state to the nearest of their demonstrations, standardized."""

    def __init__(self, anchors: Mapping[str, npt.NDArray[np.float32]]) -> None:
        every = np.concatenate(list(anchors.values()))
        self._mean, self._scale = every.mean(axis=0), every.std(axis=0) + 1e-6
        self._anchors = {name: self._unit(rows) for name, rows in anchors.items()}

    def _unit(self, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        moved = (rows - self._mean) / self._scale
        unit: npt.NDArray[np.float32] = moved / np.linalg.norm(moved, axis=-1, keepdims=True)
        return unit

    def ranked(self, vector: npt.NDArray[np.float32]) -> list[str]:
        """Family names, nearest first."""
        near = {name: float((rows @ self._unit(vector)).max()) for name, rows in self._anchors.items()}
        return sorted(near, key=lambda name: -near[name])


@functools.cache
def load_specialties(task: str, names: tuple[str, ...] = ()) -> Specialties:
    """The specialties of a task of ours by name, or of a module of the user's; all families, or those named.

    Raises UsageError.
    """
    name = task if "." in task else f"soloist.toolchain.tasks.{task}"
    try:
        module = importlib.import_module(name)
        unknown = [name for name in names if name not in module.FAMILIES]
        if unknown:
            raise UsageError(f"task '{task}' has no family {', '.join(unknown)}; it has {', '.join(module.FAMILIES)}")
        return Specialties(module, module.toolbox(), names)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"task '{task}' offers no specialties: {error}") from error

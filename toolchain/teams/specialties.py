"""What a team of specialists knows of a task: its families, their tools, and demonstrations of each.

A task module (`soloist.toolchain.tasks.desk`, or the user's own as `package.module`) offers FAMILIES
(name to an object with `tools` and `description`) and `demonstrations(family, count, seed)`.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

from soloist.kernels.errors import UsageError
from soloist.targets.base import Message
from soloist.toolchain.teams.config import AgentConfig, DemonstrationSource
from soloist.toolchain.tools.base import Toolbox
from soloist.toolchain.tools.calls import render_call, run_call


class Specialties:
    """Families of one task, with demonstrations rendered as chat messages and kept."""

    def __init__(self, module: Any, toolbox: Toolbox) -> None:  # noqa: ANN401 - the user's module
        self._module = module
        self._toolbox = toolbox
        self.names: tuple[str, ...] = tuple(module.FAMILIES)
        self._shown: dict[tuple[str, int, int], list[Message]] = {}

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

    def demonstrations(self, agent: AgentConfig, family: str) -> list[Message]:
        """The agent's own worked demonstrations of a family."""
        source = agent.demonstrations
        if not isinstance(source, DemonstrationSource):
            raise UsageError(f"agent '{agent.name}': demonstrations must name a task, a count and a seed")
        key = (family, source.count, source.seed)
        if key not in self._shown:
            cases = self._module.demonstrations(family, source.count, seed=source.seed)
            self._shown[key] = [message for case in cases for message in demonstrate(case, self._toolbox)]
        return self._shown[key]


def demonstrate(case: Any, tools: Toolbox) -> list[Message]:  # noqa: ANN401 - a task's Case
    """A case as messages: the question, each call, each result that another call follows."""
    messages: list[Message] = [{"role": "user", "content": case.question.question}]
    for index, call in enumerate(case.calls):
        more = index + 1 < len(case.calls)
        messages.append({"role": "assistant", "content": render_call(call.name, call.arguments, tools, more=more)})
        if more:
            messages.append({"role": "tool", "content": run_call(call, tools).value})
    return messages


@functools.cache
def load_specialties(task: str) -> Specialties:
    """The specialties of a task of ours by name, or of a module of the user's. Raises UsageError."""
    name = task if "." in task else f"soloist.toolchain.tasks.{task}"
    try:
        module = importlib.import_module(name)
        return Specialties(module, module.toolbox())
    except (ImportError, AttributeError) as error:
        raise UsageError(f"task '{task}' offers no specialties: {error}") from error

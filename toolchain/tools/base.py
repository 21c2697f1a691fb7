"""A tool: a Python function with a JSON schema, and what came of calling it.

Tools compute exactly and return their worked steps; they parse their arguments and never evaluate
text as code. A tool may carry `check`, a second way to reach the same result (substitution, another
algorithm): the critic of a team uses it. A tool that looks things up in a table may carry `facts`, which
reads from its working the triples of that table it used: (spider, has legs, 8).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from soloist.kernels.errors import DataError

Arguments = Mapping[str, Any]


class ToolError(DataError):
    """Arguments a tool cannot work with. Inside a team it is an observation, not a crash."""


@dataclass(frozen=True)
class Result:
    """`value` is the answer as text; `steps` are lines of working, each checkable on its own."""

    value: str
    steps: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tool:
    """One tool.

    `parameters` is a JSON schema of type object whose `properties` stand in the order in which a call
    writes them; all are required. A string property may carry `x-grammar`, the GBNF body of its text.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    function: Callable[..., Result | str | int | float]
    check: Callable[[Arguments, str], bool] | None = None
    facts: Callable[[Sequence[str]], Iterable[tuple[str, str, str]]] | None = None

    def run(self, arguments: Arguments) -> Result:
        """Call the function. Any ValueError, TypeError or ZeroDivisionError of it becomes a ToolError."""
        try:
            result = self.function(**arguments)
        except ToolError:
            raise
        except (ValueError, TypeError, ArithmeticError, KeyError) as error:
            raise ToolError(f"{self.name}: {error}") from error
        return result if isinstance(result, Result) else Result(str(result))


@dataclass(frozen=True)
class Toolbox:
    """A team's or a student's tools, by name."""

    tools: Mapping[str, Tool] = field(default_factory=dict)

    @classmethod
    def of(cls, tools: Sequence[Tool]) -> Toolbox:
        return cls({tool.name: tool for tool in tools})

    def __getitem__(self, name: str) -> Tool:
        try:
            return self.tools[name]
        except KeyError:
            raise ToolError(f"no tool '{name}'; there are: {', '.join(self.tools)}") from None

    def __iter__(self) -> Iterator[Tool]:
        return iter(self.tools.values())

    def __len__(self) -> int:
        return len(self.tools)

    def subset(self, names: Sequence[str]) -> Toolbox:
        return Toolbox({name: self[name] for name in names})

    def schemas(self) -> list[dict[str, Any]]:
        """The schemas in the form OpenAI-compatible servers take."""
        schemas = []
        for tool in self:
            function = {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}
            schemas.append({"type": "function", "function": function})
        return schemas

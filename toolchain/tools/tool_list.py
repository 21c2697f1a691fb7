"""The tools a model calls, as a file beside it: `tools.json`.

    {"format": "compact", "entries": ["package.module:attribute"], "tools": [OpenAI's schemas]}

`entries` say where the functions are. The file came with a model, so it is data: only functions that ship with Soloist
are imported on its word, those of a user when the user names them (`--tools`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from soloist.kernels.errors import ArtifactError, UsageError
from soloist.toolchain.core.config import describe
from soloist.toolchain.core.files import write_atomic
from soloist.toolchain.tools.base import Tool, Toolbox, ToolError
from soloist.toolchain.tools.files import load_tools

FILE = "tools.json"
_OURS = "soloist.toolchain."


class FunctionSchema(BaseModel):
    """A function as OpenAI-compatible servers take it: name, description and JSON schema of its arguments."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str
    description: str = ""
    parameters: dict[str, Any] = Field(default_factory=dict)


class ToolSchema(BaseModel):
    """A tool as OpenAI-compatible servers take it."""

    model_config = ConfigDict(extra="allow", frozen=True)

    type: Literal["function"] = "function"
    function: FunctionSchema


class ToolList(BaseModel):
    """What `tools.json` says: how calls are written, where the functions are, and the schemas of the tools."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    format: Literal["compact"] = "compact"
    entries: tuple[str, ...] = ()
    tools: tuple[ToolSchema, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(tool.function.name for tool in self.tools)

    @classmethod
    def of(cls, entries: Sequence[str]) -> ToolList:
        """All tools at `entries`, which are imported. Raises UsageError."""
        schemas = load_tools(entries).schemas()
        return cls(entries=tuple(entries), tools=tuple(ToolSchema.model_validate(schema) for schema in schemas))

    def subset(self, names: Sequence[str]) -> ToolList:
        """These of its tools; one that it does not know is kept by its name alone."""
        known = {tool.function.name: tool for tool in self.tools}
        undeclared = {tool.function.name: tool for tool in ToolList.undeclared(names).tools}
        return self.model_copy(update={"tools": tuple(known.get(name, undeclared[name]) for name in names)})

    def write(self, folder: Path) -> None:
        """Write `tools.json` into a folder."""
        write_atomic(folder / FILE, self.text())

    @classmethod
    def undeclared(cls, names: Sequence[str]) -> ToolList:
        """Tools of which only the names are known."""
        return cls(tools=tuple(ToolSchema(function=FunctionSchema(name=name)) for name in names))

    def toolbox(self) -> Toolbox:
        """The tools as grammars and prompts need them: they cannot be called."""
        tools = []
        for tool in self.tools:
            function = tool.function
            tools.append(Tool(function.name, function.description, function.parameters, _not_here))
        return Toolbox.of(tools)

    def text(self) -> str:
        """The text of the file."""
        return self.model_dump_json(indent=1)

    def trusted(self, given: Sequence[str], where: Path) -> tuple[str, ...]:
        """The entries to import: those the user has given, else its own where all of them ship with Soloist.

        Raises:
            UsageError: it names code that is not ours, or none at all, and the user has not named any.
        """
        if given:
            return tuple(given)
        foreign = [entry for entry in self.entries if not entry.startswith(_OURS)]
        if foreign or not self.entries:
            named = "; if you trust them: " + " ".join(f"--tools {entry}" for entry in foreign) if foreign else ""
            raise UsageError(
                f"{where}: this student calls tools ({', '.join(self.names)}) whose code is not part of Soloist: "
                f"name them with --tools MODULE:NAME{named}"
            )
        return self.entries


def _not_here(**_: object) -> str:
    raise ToolError("only the schema of this tool is known")


def read_tool_list(file: Path) -> ToolList:
    """Read a `tools.json`. Raises ArtifactError."""
    try:
        return ToolList.model_validate_json(file.read_bytes())
    except OSError as error:
        raise ArtifactError(f"{file}: cannot be read ({error.strerror})") from error
    except ValidationError as error:
        raise ArtifactError(
            f"{file}: not a list of tools of ours ({describe(error)}); name them with --tools"
        ) from error

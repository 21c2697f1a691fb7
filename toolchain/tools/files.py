"""Users' own tools, named as `module:attribute`: a Tool, a Toolbox, a list of Tools, or a function making one.

Every fault of every entry point is reported at once. Nothing but importing the named module happens
here; what a user's tool does when it is called is the user's business.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from soloist.kernels.errors import UsageError
from soloist.toolchain.core.entry_points import resolve_entry_point
from soloist.toolchain.tools.base import Tool, Toolbox

# The tools that ship with Soloist. They only compute, so whoever reads a recorded call of theirs may run it again.
SHIPPED = "soloist.toolchain.desk.tools:desk_tools"


def _tools_of(entry: str) -> list[Tool]:
    named: object = resolve_entry_point(entry, "tool", "the entry points of your tools")
    if callable(named) and not isinstance(named, Tool):
        named = named()
    if isinstance(named, Tool):
        return [named]
    if isinstance(named, Iterable):
        tools = list(named)
        if tools and all(isinstance(tool, Tool) for tool in tools):
            return tools
    raise UsageError(f"'{entry}' is {type(named).__name__}: it must be a Tool, a Toolbox or a list of Tools")


def _faults(tool: Tool, entry: str) -> list[str]:
    where = f"'{entry}', tool '{tool.name}'"
    properties = tool.parameters.get("properties", {})
    faults = [] if tool.name.isidentifier() else [f"{where}: the name must be an identifier"]
    if tool.parameters.get("type") != "object" or not hasattr(properties, "items"):
        return [*faults, f"{where}: parameters must be a JSON schema of type object with properties"]
    known = ("string", "number", "integer", "boolean", "array")
    for name, schema in properties.items():
        if "enum" not in schema and schema.get("type") not in known:
            faults.append(f"{where}: property '{name}' needs a type out of {', '.join(known)}")
    return faults


def load_tools(entries: Sequence[str], base: Toolbox | None = None) -> Toolbox:
    """The tools at `entries`, added to `base`. Raises UsageError with every fault."""
    tools = dict(base.tools) if base else {}
    faults: list[str] = []
    for entry in entries:
        try:
            loaded = _tools_of(entry)
        except UsageError as error:
            faults.append(str(error))
            continue
        for tool in loaded:
            faults += _faults(tool, entry)
            if tool.name in tools:
                faults.append(f"'{entry}': a tool named '{tool.name}' is there already")
            tools[tool.name] = tool
    if faults:
        raise UsageError("tools cannot be used: " + "; ".join(faults))
    return Toolbox(tools)

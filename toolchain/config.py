"""Config files: YAML to strict models, every fault at once, each with file, line and field.

The models are pydantic's (`extra="forbid"`, frozen); this module adds what pydantic cannot know: in which
line of the file a field stands.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from soloist.kernels.errors import UsageError


class Config(BaseModel):
    """Base of all configs: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


C = TypeVar("C", bound=BaseModel)


def load_yaml(path: Path, model: type[C]) -> C:
    """Read a YAML file as `model`.

    Raises:
        UsageError: the file is missing, is not YAML, or does not fit; all faults, one per line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise UsageError(f"{path}: not a text file ({error})") from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise UsageError(f"{path}{line}: not YAML: {getattr(error, 'problem', error)}") from error
    try:
        return model.model_validate(data if data is not None else {})
    except ValidationError as error:
        raise UsageError("\n".join(_explain(path, node, fault) for fault in error.errors(include_url=False))) from error


def _explain(path: Path, node: yaml.Node | None, fault: object) -> str:
    assert isinstance(fault, dict)
    location = tuple(part for part in fault["loc"])
    field = ".".join(str(part) for part in location) or "file"
    message = str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"] == "extra_forbidden":
        message = "unknown key"
    return f"{path}:{_line(node, location)}: {field}: {message}"


def _line(node: yaml.Node | None, location: tuple[str | int, ...]) -> int:
    """The line of the deepest node of `location` that exists in the file."""
    if node is None:
        return 1
    line = node.start_mark.line + 1
    for part in location:
        if isinstance(node, yaml.MappingNode):
            found = next(((k, v) for k, v in node.value if k.value == str(part)), None)
            if found is None:
                break
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return line

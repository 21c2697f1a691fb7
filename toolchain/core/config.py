"""Config files: YAML to strict models, every fault at once, each with file, line and field.

The models are pydantic's (`extra="forbid"`, frozen); this module adds what pydantic cannot know: in which
line of the file a field stands. `describe` words the faults of records that people do not write by hand
(traces, measurements, reports), where a line number says nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from soloist.kernels.errors import UsageError


class Config(BaseModel):
    """Base of all configs: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


C = TypeVar("C", bound=BaseModel)
_FAULTS_SHOWN = 20  # a file of another kind is wrong in every record


def shortened(faults: Sequence[str]) -> list[str]:
    """The first faults, and how many more there are."""
    more = len(faults) - _FAULTS_SHOWN
    return [*faults[:_FAULTS_SHOWN], f"and {more} more"] if more > 0 else list(faults)


def describe(error: ValidationError, prefix: str = "") -> str:
    """All faults of a pydantic error in one line: `field: message; field: message`."""
    faults = []
    for fault in error.errors(include_url=False, include_context=False):
        field = ".".join(map(str, fault["loc"])) or "record"
        faults.append(f"{prefix}{field}: {_message(fault, 'field')}")
    return "; ".join(shortened(faults))


def _message(fault: ErrorDetails, kind: str) -> str:
    return f"unknown {kind}" if fault["type"] == "extra_forbidden" else fault["msg"].removeprefix("Value error, ")


def validated(model: type[C], values: Mapping[str, Any], where: str) -> C:
    """`values` as `model`, or a UsageError with every fault: `where: field: message`."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        known = ", ".join(model.model_fields) or "none"
        raise UsageError(f"{where}: {describe(error)}; its options: {known}") from error


def load_yaml(path: Path, model: type[C]) -> C:
    """Read a YAML file as `model`.

    Raises:
        UsageError: the file is missing, is not YAML, or does not fit; all faults, one per line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except (UnicodeDecodeError, OSError) as error:
        raise UsageError(f"{path}: not a text file that can be read ({error})") from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that no calendar has
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise UsageError(f"{path}{line}: not YAML: {problem}") from error
    faults = [f"{path}:{line}: {key}: stands here twice" for line, key in _twice(node, [])]
    try:
        config = model.model_validate(data if data is not None else {})
    except ValidationError as error:
        faults += [_explain(path, node, fault) for fault in error.errors(include_url=False)]
        raise UsageError("\n".join(faults)) from error
    if faults:
        raise UsageError("\n".join(faults))
    return config


def _twice(node: yaml.Node | None, above: list[yaml.Node]) -> Iterator[tuple[int, str]]:
    """Keys that stand twice in one mapping: YAML would silently take the last."""
    if not isinstance(node, yaml.CollectionNode) or node in above:
        return
    above = [*above, node]
    if isinstance(node, yaml.SequenceNode):
        for child in node.value:
            yield from _twice(child, above)
        return
    seen: set[str] = set()
    for key, child in node.value:
        if isinstance(key, yaml.ScalarNode) and key.value in seen:
            yield key.start_mark.line + 1, str(key.value)
        seen.add(str(key.value))
        yield from _twice(child, above)


def _explain(path: Path, node: yaml.Node | None, fault: ErrorDetails) -> str:
    line, parts = _locate(node, fault["loc"], missing=fault["type"] == "missing")
    return f"{path}:{line}: {'.'.join(parts) or 'file'}: {_message(fault, 'key')}"


def _locate(node: yaml.Node | None, location: tuple[str | int, ...], *, missing: bool) -> tuple[int, list[str]]:
    """Line and name of a field. What is not in the file (pydantic names the branches of a union) is left out."""
    line = node.start_mark.line + 1 if node is not None else 1
    parts: list[str] = []
    for index, part in enumerate(location):
        child: tuple[yaml.Node, yaml.Node] | None = None
        if isinstance(node, yaml.MappingNode):
            child = next(((k, v) for k, v in node.value if k.value == str(part)), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            child = (node.value[part], node.value[part])
        if child is not None:
            line, node = child[0].start_mark.line + 1, child[1]
        if child is not None or (missing and index == len(location) - 1):
            parts.append(str(part))
    return line, parts

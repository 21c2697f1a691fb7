"""KEY=VALUE pairs of `--set`, for the commands that hand options to a method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from soloist.kernels.errors import UsageError


def method_options(pairs: Sequence[str]) -> dict[str, Any]:
    """Values as YAML would read them. Raises UsageError."""
    import yaml

    options: dict[str, Any] = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign or not key:
            raise UsageError(f"--set {pair}: expected KEY=VALUE")
        if key in options:
            raise UsageError(f"--set {key}: given twice")
        try:
            options[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            options[key] = value
    return options

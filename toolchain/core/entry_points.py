"""TO BE DESCRIBED."""

from __future__ import annotations

from typing import Any


def resolve_entry_point(name: str, what: str, known: str) -> Any:
    """Import `module:attribute`. Raises UsageError naming what is missing."""
    import importlib

    from soloist.kernels.errors import UsageError

    module, colon, attribute = name.partition(":")
    if not colon:
        raise UsageError(f"unknown {what} '{name}': use one of {known}, or module:function")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"{what} '{name}' cannot be imported: {error}") from error

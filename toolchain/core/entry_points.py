"""What a config file names in Python: `module:attribute`, or `package:submodule` for a whole module.

    mine:toolbox                      an attribute of the module mine
    soloist.toolchain.desk:topology   a module in a package, which nobody has to have imported before

Importing the module that the user names is all that happens here; nothing is looked for, and nothing is evaluated.
"""

from __future__ import annotations

import importlib
from typing import Any

from soloist.kernels.errors import UsageError


def resolve_entry_point(name: str, what: str, known: str) -> Any:
    """The object or module at `name`. Raises UsageError that says what is missing, `what` being its kind.

    `known` are the names that may stand instead of an entry point, in words.
    """
    module_name, colon, attribute = name.partition(":")
    if not colon:
        raise UsageError(f"unknown {what} '{name}': use one of {known}, or module:function")
    try:
        module = importlib.import_module(module_name)
        if hasattr(module, attribute) or not hasattr(module, "__path__"):
            return getattr(module, attribute)
        return importlib.import_module(f"{module_name}.{attribute}")
    except (ImportError, AttributeError, ValueError) as error:  # ValueError: an empty part
        raise UsageError(f"{what} '{name}' cannot be imported: {error}") from error

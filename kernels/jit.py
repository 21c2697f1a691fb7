"""Triton where it is installed; where it is not, names that stand for it, so that the torch references import anywhere.

    from soloist.kernels.jit import tl, triton

A kernel file holds its reference beside its kernel. Triton exists for Linux only, so on a Mac `@triton.jit` of this
module hands back an object that explains itself as soon as it is launched. It also says how multiply-adds are fused:
Triton's default changes between releases, and a kernel compiled ahead of time has to round like one compiled at run
time. Left out: everything else Triton has; nothing here imitates it.
"""

from __future__ import annotations

import os
from typing import Any

from soloist.kernels.errors import MissingExtraError

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")


class Absent:
    """Stands for Triton or one of its names: may be looked up, called and used as a decorator, never launched."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Absent:
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent(f"{self._name}.{name}")

    def __call__(self, *values: Any, **_: Any) -> Absent:
        decorated = values[0] if len(values) == 1 else None
        return Absent(getattr(decorated, "__name__", self._name))

    def __getitem__(self, _: object) -> Any:
        raise MissingExtraError("triton", "kernels")


try:
    import triton
    import triton.language as tl
except ImportError:
    triton, tl = Absent("triton"), Absent("tl")

__all__ = ["tl", "triton"]

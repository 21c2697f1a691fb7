"""What an engine is: something that answers for agents, several independent calls at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from soloist.targets.base import Message, Reply, Sampling


@dataclass(frozen=True)
class Ask:
    """One call: `grammar` is GBNF for engines that can keep to it; `model` overrides the engine's own."""

    messages: Sequence[Message]
    sampling: Sampling
    grammar: str | None = None
    model: str | None = None


class Engine(Protocol):
    """Answers calls. `model` names what answers when an agent names nothing else."""

    model: str

    def ask(self, asks: Sequence[Ask]) -> list[Reply]:
        """Answer independent calls, together where that is faster; replies in the order of the calls.

        Raises EngineError when a call is not answered after all retries.
        """

    def close(self) -> None:
        """Free models and connections."""


@runtime_checkable
class Embedder(Protocol):
    """An engine that can also show what its model makes of a text."""

    def embed(self, text: str) -> tuple[npt.NDArray[np.float32], int]:
        """Mean hidden state of a text, shape (width,), and its number of tokens."""

"""The in-process engine: a team of agents over one GGUF model, every agent's prompt kept in the cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from soloist.kernels.errors import UsageError
from soloist.targets.base import Reply
from soloist.targets.run_gguf import GgufRuntime, Request
from soloist.toolchain.teams.config import GgufEngineConfig
from soloist.toolchain.teams.engines.base import Ask


class GgufEngine:
    """Opens the model once; `ask` computes all calls of a list in one batch."""

    def __init__(self, config: GgufEngineConfig) -> None:
        from soloist.targets.from_gguf import find_base

        path = Path(config.model)
        if path.suffix != ".gguf":
            path = find_base(config.model)
        if config.weights != "as-is":
            from soloist.targets.requantize import requantize

            path = requantize(path, config.weights)
        self.runtime = GgufRuntime(path, slots=config.slots, context=config.context, threads=config.threads)
        self.model = self.runtime.name

    def ask(self, asks: Sequence[Ask]) -> list[Reply]:
        for ask in asks:
            if ask.model not in (None, self.model):
                raise UsageError(f"the gguf engine runs one model ({self.model}); an agent asks for '{ask.model}'")
        return self.runtime.chat_many([Request(a.messages, a.sampling, a.grammar) for a in asks])

    def embed(self, text: str) -> tuple[npt.NDArray[np.float32], int]:
        """Mean hidden state of a text, and its number of tokens."""
        return self.runtime.embed(text)

    def close(self) -> None:
        self.runtime.close()

"""A student (or any single model file) as an engine, so that it is asked, traced and measured like a team."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from soloist.targets.base import Reply
from soloist.toolchain.knowledge.context import graph_beside, informed
from soloist.toolchain.teams.config import StudentEngineConfig
from soloist.toolchain.teams.engines.base import Ask


class StudentEngine:
    """Opens a GGUF file, an ONNX folder, a Hugging Face folder or a quantized one; calls run one after the other.

    A student trained with facts before the question has its graph beside it and is prompted with facts.
    """

    def __init__(self, config: StudentEngineConfig, on_text: Callable[[str], None] | None = None) -> None:
        from soloist.targets.open import open_runtime

        self.runtime = open_runtime(Path(config.path), config.format, provider=config.provider)
        self.model = self.runtime.name
        self.note = str(getattr(self.runtime, "note", ""))  # what is held of a quantized student, and why
        self.on_text = on_text
        self.graph = graph_beside(Path(config.path))

    def ask(self, asks: Sequence[Ask]) -> list[Reply]:
        replies = []
        for ask in asks:
            messages = ask.messages if self.graph is None else informed(ask.messages, self.graph)
            replies.append(self.runtime.chat(messages, ask.sampling, grammar=ask.grammar, on_text=self.on_text))
        return replies

    def close(self) -> None:
        self.runtime.close()

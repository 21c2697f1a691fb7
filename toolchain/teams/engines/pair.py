"""A student of two models (decomposer and solver) as one engine: each agent names its part as its model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from soloist.kernels.errors import EngineError
from soloist.targets.base import Reply
from soloist.toolchain.teams.config import StudentEngineConfig
from soloist.toolchain.teams.engines.base import Ask, Engine
from soloist.toolchain.teams.engines.student import StudentEngine


class PairEngine:
    """Both models in memory, one after the other at work."""

    def __init__(
        self, name: str, models: dict[str, StudentEngineConfig], on_text: Callable[[str], None] | None = None
    ) -> None:
        self.model = name
        self.on_text = on_text
        self.parts: dict[str, StudentEngine] = {}
        try:
            for part, config in models.items():
                self.parts[part] = StudentEngine(config, on_text)
        except BaseException:
            self.close()
            raise
        self.note = "\n".join(filter(None, (part.note for part in self.parts.values())))

    def ask(self, asks: Sequence[Ask]) -> list[Reply]:
        replies = []
        for ask in asks:
            replies += self._part(ask).ask([ask])
            if self.on_text is not None:
                self.on_text("\n")  # what the parts say is told apart
        return replies

    def _part(self, ask: Ask) -> StudentEngine:
        if ask.model not in self.parts:
            named = f"'{ask.model}'" if ask.model else "none"
            raise EngineError(
                f"{self.model}: this student is made of {' and '.join(self.parts)}; every agent must name one of them "
                f"as its model, this one names {named}"
            )
        return self.parts[ask.model]

    def close(self) -> None:
        for part in self.parts.values():
            part.close()


def open_student(config: StudentEngineConfig, on_text: Callable[[str], None] | None = None) -> Engine:
    """The engine of a student, be it one model or two."""
    from soloist.targets.open import parts

    path = Path(config.path)
    models = {name: config.model_copy(update={"path": str(model)}) for name, model in parts(path).items()}
    return PairEngine(path.name, models, on_text) if models else StudentEngine(config, on_text)

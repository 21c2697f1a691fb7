"""A TensorRT or TensorRT-RTX engine as a runtime: `run_engine` under the one decoding loop, with the chat template.

Needs a GPU, tokenizers and jinja2; neither torch nor transformers. A folder is one of `build_rtx`, or one exported for
a Jetson after `build_engine.py` has run in it. Left out: grammars, and engines without their weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from soloist.kernels.errors import ArtifactError, EngineError
from soloist.targets.base import Message, require
from soloist.targets.decode import CachedDecoder, Logits
from soloist.targets.portable.facts import TEMPLATE, TOKENIZER
from soloist.targets.portable.template import chat_template
from soloist.targets.tensorrt.run_engine import SIDECAR, Engine, EngineFault


def is_engine(folder: Path) -> bool:
    """Whether a folder holds an engine that was built."""
    return (folder / SIDECAR).is_file()


class EngineRuntime(CachedDecoder):
    """An engine folder with one cached sequence.

    Args:
        gpu: what holds the buffers (`run_engine.Gpu`); the first GPU if not given.

    Raises:
        ArtifactError: files are missing or others, TensorRT is missing or another, or there is no GPU.
    """

    def __init__(self, path: Path, *, gpu: Any = None) -> None:  # noqa: ANN401 - run_engine.Gpu, or what stands for it
        super().__init__()
        try:
            self._engine = Engine(path, gpu)
        except EngineFault as fault:
            raise ArtifactError(str(fault)) from fault
        model = self._engine.facts["model"]
        self.name = path.name
        self.context = self._engine.context
        self.stop_ids = frozenset(int(token) for token in model["stop_ids"])
        for name in (TOKENIZER, TEMPLATE):
            if not (path / name).is_file():
                raise ArtifactError(f"{path}: {name} is missing; export the student again")
        self._render = chat_template((path / TEMPLATE).read_text(encoding="utf-8"), model["special"])
        self._tokenizer: Any = require("tokenizers", "onnx").Tokenizer.from_file(str(path / TOKENIZER))

    def render(self, messages: Sequence[Message]) -> str:
        return self._render(messages)

    def tokenize(self, text: str) -> list[int]:
        return [int(token) for token in self._tokenizer.encode(text, add_special_tokens=False).ids]

    def text(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    def _feed(self, tokens: Sequence[int], keep: int) -> Logits:
        return self._computed(tokens, keep, every=False)

    def logits(self, tokens: Sequence[int]) -> Logits:
        self._held = []
        found = self._computed(tokens, 0, every=True)
        self._held = list(tokens)
        return found

    def _computed(self, tokens: Sequence[int], keep: int, *, every: bool) -> Logits:
        try:
            self._engine.cut(keep)
            found: Logits = self._engine.feed(tokens, every)
        except EngineFault as fault:
            raise EngineError(f"{self.name}: {fault}") from fault
        return found

    def close(self) -> None:
        self._engine.close()
        self._held = []

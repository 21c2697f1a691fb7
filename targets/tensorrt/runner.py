"""A TensorRT or TensorRT-RTX engine as a runtime: `run_engine` under the one decoding loop, with the chat template.

Needs a GPU, tokenizers and jinja2; neither torch nor transformers. A folder is one of `build_rtx`, or one exported for
a Jetson after `build_engine.py` has run in it. Left out: grammars, and engines without their weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from soloist.kernels.errors import ArtifactError, EngineError
from soloist.targets.decode import Logits
from soloist.targets.portable.template import FolderDecoder
from soloist.targets.tensorrt.run_engine import Engine, EngineFault


class EngineRuntime(FolderDecoder):
    """An engine folder with one cached sequence.

    Args:
        gpu: what holds the buffers (`run_engine.Gpu`); the first GPU if not given.

    Raises:
        ArtifactError: files are missing or others, TensorRT is missing or another, or there is no GPU.
    """

    def __init__(self, path: Path, *, gpu: Any = None) -> None:
        try:
            self._engine = Engine(path, gpu)
        except EngineFault as fault:
            raise ArtifactError(str(fault)) from fault
        model = self._engine.facts["model"]
        super().__init__(path, model["special"])
        self.context = self._engine.context
        self.stop_ids = frozenset(map(int, model["stop_ids"]))

    def _feed(self, tokens: Sequence[int], keep: int) -> Logits:
        return self._computed(tokens, keep, every=False)

    def _feed_all(self, tokens: Sequence[int]) -> Logits:
        return self._computed(tokens, 0, every=True)

    def _computed(self, tokens: Sequence[int], keep: int, *, every: bool) -> Logits:
        try:
            self._engine.crop(keep)
            logits: Logits = self._engine.feed(tokens, every)
        except EngineFault as fault:
            raise EngineError(f"{self.name}: {fault}") from fault
        return logits

    def close(self) -> None:
        self._engine.close()
        self._cached = []

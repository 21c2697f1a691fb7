"""What every runtime offers: open a student or a base model and let it answer.

One small protocol covers the in-process GGUF runtime, onnxruntime-genai, and torch, so that teams,
the fidelity gate and the measurements never ask which format is behind it. Left out on purpose:
batching across questions (a laptop answers one person) and streaming of anything but text.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypedDict

import numpy as np
import numpy.typing as npt


class Message(TypedDict):
    """One chat message, in the form every chat template takes."""

    role: str
    content: str


@dataclass(frozen=True)
class Sampling:
    """How to sample tokens. Temperature 0 is greedy; `seed` makes a temperature above 0 repeatable."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 256
    seed: int = 0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reply:
    """What one call returned. Times are `time.perf_counter()` seconds; tokens are the model's own.

    `tokens_in` counts the whole prompt, `tokens_cached` the part of it that was not computed again.
    `finish` is "stop" or "length".
    """

    text: str
    tokens_in: int
    tokens_cached: int
    tokens_out: int
    start: float
    first_token: float
    end: float
    finish: str


class Runtime(Protocol):
    """A loaded model. Not thread-safe: one runtime, one caller at a time."""

    name: str

    def chat(
        self,
        messages: Sequence[Message],
        sampling: Sampling,
        *,
        grammar: str | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> Reply:
        """Answer `messages`. `grammar` is GBNF with the rule `root`; a runtime without grammars ignores it."""

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt text the chat template makes of `messages`, generation prompt included."""

    def tokenize(self, text: str) -> list[int]:
        """Token ids of `text`, special tokens recognized, nothing added in front."""

    def logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """Next-token logits after every prefix of `tokens`, float32, shape (len(tokens), vocabulary)."""

    def close(self) -> None:
        """Free the model."""


def default_threads() -> int:
    """Threads of a runtime by default: OMP_NUM_THREADS, else all cores but one.

    The runtimes wait for each other at every layer, so on a machine without a free core one more thread
    makes them many times slower, not faster.
    """
    named = os.environ.get("OMP_NUM_THREADS", "")
    return int(named) if named.isdigit() and int(named) > 0 else max(1, (os.cpu_count() or 2) - 1)


# two packages that fill one folder, so that each overwrites files of the other
_ONE_OF = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "onnxruntime_genai": ("onnxruntime-genai", "onnxruntime-genai-cuda"),
}


def check_one_onnxruntime() -> None:
    """Raise ResourceError where ONNX Runtime is installed for the CPU and for CUDA at once."""
    from importlib.metadata import distributions

    from soloist.kernels.errors import ResourceError

    for pair in _ONE_OF.values():
        if all(next(iter(distributions(name=name)), None) for name in pair):
            both = [*_ONE_OF["onnxruntime"], *_ONE_OF["onnxruntime_genai"]]
            raise ResourceError(
                f"{' and '.join(pair)} are both installed, and each has overwritten files of the other: pip uninstall "
                f"{' '.join(both)}, then pip install 'soloist[onnx]' for the CPU or 'soloist[onnx-gpu]' for CUDA"
            )


def require(package: str, extra: str) -> Any:
    """Import an optional package, or say which extra carries it.

    Raises:
        MissingExtraError: it is not installed.
        ResourceError: it is installed twice.
    """
    import importlib

    from soloist.kernels.errors import MissingExtraError

    if package.partition(".")[0] in _ONE_OF:
        check_one_onnxruntime()
    try:
        return importlib.import_module(package)
    except ImportError as error:
        if error.name and error.name.split(".")[0] != package.split(".", maxsplit=1)[0]:
            raise
        raise MissingExtraError(package, extra) from error


def named(things: Iterable[Any]) -> dict[str, Any]:
    """Tensors, nodes, fields … by their attribute `name`, in order."""
    return {thing.name: thing for thing in things}


def first_line(error: Exception) -> str:
    """The first line of a library's exception, for a message of one line."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)

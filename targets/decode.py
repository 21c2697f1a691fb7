"""One decoding loop for every runtime that only computes logits (torch, onnxruntime-genai).

The loop keeps what the cache holds and feeds only what is new, draws tokens, cuts at stop texts and
streams whole characters. Having it once means that the reference and the compiled file differ in their
numbers, never in how an answer is drawn from them. Left out: grammars (the GGUF runtime has them).
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from soloist.kernels.errors import EngineError
from soloist.targets.base import Message, Reply, Sampling

Logits = npt.NDArray[np.float32]
_HALF = "\ufffd"  # what a decoder shows for a character whose bytes are not all there yet


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences share from the start."""
    for count, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return count
    return min(len(a), len(b))


def draw(logits: Logits, sampling: Sampling, random: np.random.Generator) -> int:
    """The next token: the likeliest at temperature 0, else drawn from the nucleus `top_p`."""
    if sampling.temperature <= 0:
        return int(logits.argmax())
    scaled = logits.astype(np.float64) / sampling.temperature
    weights = np.exp(scaled - scaled.max())
    order = np.argsort(-weights)
    sums = np.cumsum(weights[order])
    kept = order[: int(np.searchsorted(sums, sampling.top_p * sums[-1])) + 1]
    return int(random.choice(kept, p=weights[kept] / weights[kept].sum()))


class CachedDecoder(ABC):
    """A runtime's `chat` on top of four things: render, tokenize, text of tokens, logits of new tokens."""

    name: str
    context: int
    stop_ids: frozenset[int]

    def __init__(self) -> None:
        self._held: list[int] = []

    @abstractmethod
    def render(self, messages: Sequence[Message]) -> str:
        """The prompt text."""

    @abstractmethod
    def tokenize(self, text: str) -> list[int]:
        """The ids of a text."""

    @abstractmethod
    def text(self, tokens: Sequence[int]) -> str:
        """The text of tokens, special tokens left out."""

    @abstractmethod
    def _feed(self, tokens: Sequence[int], keep: int) -> Logits:
        """Cut the cache to its first `keep` tokens, compute `tokens` after them; logits after the last."""

    def _advance(self, tokens: Sequence[int], keep: int) -> Logits:
        try:
            logits = self._feed(tokens, keep)
        except Exception:  # whatever a runtime raises, what its cache now holds is unknown
            self._held = []
            raise
        self._held = [*self._held[:keep], *tokens]
        return logits

    def chat(
        self,
        messages: Sequence[Message],
        sampling: Sampling,
        *,
        grammar: str | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> Reply:
        start = time.perf_counter()
        prompt = self.tokenize(self.render(messages))
        if len(prompt) + 2 > self.context:
            raise EngineError(f"{self.name}: a prompt of {len(prompt)} tokens does not fit the context {self.context}")
        cached = min(common_prefix(self._held, prompt), len(prompt) - 1)
        logits = self._advance(prompt[cached:], cached)
        random = np.random.default_rng(sampling.seed)
        out: list[int] = []
        text, shown, first, finish = "", 0, 0.0, "length"
        while True:
            token = draw(logits, sampling, random)
            first = first or time.perf_counter()
            if token in self.stop_ids:
                finish = "stop"
                break
            out.append(token)
            text = self.text(out)
            cut = _first_stop(text, sampling.stop)
            if cut is not None:
                text, finish = text[:cut], "stop"
            shown = _show(text, shown, on_text, whole=cut is not None)
            if cut is not None or len(out) >= sampling.max_tokens or len(prompt) + len(out) + 1 >= self.context:
                break
            logits = self._advance([token], len(self._held))
        _show(text, shown, on_text, whole=True)
        return Reply(
            text=text,
            tokens_in=len(prompt),
            tokens_cached=cached,
            tokens_out=max(len(out), 1),
            start=start,
            first_token=first,
            end=time.perf_counter(),
            finish=finish,
        )


def _first_stop(text: str, stops: Sequence[str]) -> int | None:
    found = [at for stop in stops if (at := text.find(stop)) >= 0]
    return min(found) if found else None


def _show(text: str, shown: int, on_text: Callable[[str], None] | None, *, whole: bool) -> int:
    """Pass on what is new; a character that may still change is held back unless this is the end."""
    if on_text is None or (text.endswith(_HALF) and not whole) or len(text) <= shown:
        return shown
    on_text(text[shown:])
    return len(text)

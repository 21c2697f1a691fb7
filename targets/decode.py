"""One decoding loop for every runtime that only computes logits (torch, onnxruntime-genai).

The loop computes only the tokens that the cache does not hold, samples, ends at stop texts and streams
whole characters. Having it once means that the reference and the compiled file differ in their numbers,
never in how an answer is sampled from them. Left out: grammars (the GGUF runtime has them).
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
_INCOMPLETE = "\ufffd"  # what a tokenizer decodes to while bytes of a character are missing


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences share from the start."""
    for count, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return count
    return min(len(a), len(b))


def sample(logits: Logits, sampling: Sampling, random: np.random.Generator) -> int:
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
    """A runtime's `chat` and `logits` on top of a model: subclasses render, tokenize, decode, and compute logits."""

    name: str
    context: int
    stop_ids: frozenset[int]

    def __init__(self) -> None:
        self._cached: list[int] = []  # tokens whose keys and values the cache holds

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
        """Compute `tokens` after the first `keep` tokens of the cache; logits after the last, (vocabulary,)."""

    @abstractmethod
    def _feed_all(self, tokens: Sequence[int]) -> Logits:
        """Empty the cache and compute `tokens`; logits after each, (len(tokens), vocabulary)."""

    def _advance(self, tokens: Sequence[int], keep: int) -> Logits:
        try:
            logits = self._feed(tokens, keep)
        except Exception:  # whatever a runtime raises, what its cache now holds is unknown
            self._cached = []
            raise
        self._cached = [*self._cached[:keep], *tokens]
        return logits

    def logits(self, tokens: Sequence[int]) -> Logits:
        if len(tokens) > self.context:
            raise EngineError(f"{self.name}: {len(tokens)} tokens do not fit the context of {self.context}")
        self._cached = []
        rows = self._feed_all(tokens)
        self._cached = list(tokens)
        return rows

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
        cached = min(common_prefix(self._cached, prompt), len(prompt) - 1)
        logits = self._advance(prompt[cached:], cached)
        random = np.random.default_rng(sampling.seed)
        out: list[int] = []
        text, shown, first, finish = "", 0, 0.0, "length"
        while True:
            token = sample(logits, sampling, random)
            first = first or time.perf_counter()
            if token in self.stop_ids:
                finish = "stop"
                break
            out.append(token)
            text = self.text(out)
            stopped = any(stop in text for stop in sampling.stop)
            if stopped:
                text, finish = before_stop(text, sampling.stop), "stop"
            shown = _show(text, shown, on_text, whole=stopped)
            if stopped or len(out) >= sampling.max_tokens or len(prompt) + len(out) + 1 >= self.context:
                break
            logits = self._advance([token], len(self._cached))
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


def before_stop(text: str, stops: Sequence[str]) -> str:
    """The text in front of the first stop text in it."""
    starts = [text.find(stop) for stop in stops if stop in text]
    return text[: min(starts, default=len(text))]


def _show(text: str, shown: int, on_text: Callable[[str], None] | None, *, whole: bool) -> int:
    """Pass on what is new; a character that may still change is held back unless this is the end."""
    if on_text is None or (text.endswith(_INCOMPLETE) and not whole) or len(text) <= shown:
        return shown
    on_text(text[shown:])
    return len(text)

"""The portable ONNX runtime: a graph of standard operators in plain ONNX Runtime.

Needs onnxruntime, tokenizers, jinja2 and numpy; no torch, no transformers, no onnxruntime-genai, so that it runs where
only those have a wheel. Keys and values stay where the provider computes: outputs of one step are bound as inputs of
the next, and come to the host only where the cache is cropped to a prefix. A long prompt goes through in pieces,
since the graph returns the logits of every position.

ONNX Runtime turns DequantizeLinear and MatMul into one product of its own, which by default rounds activations to
8 bits; `accuracy_level` 1 keeps them in float32 (very slow where a weight has 8 bits), 4 is that default. Left out: a
cache in a fixed buffer (the graph's Concat copies it for every token) and batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from soloist.kernels.errors import ArtifactError, EngineError, SoloistError
from soloist.targets.base import default_threads, first_line, require
from soloist.targets.decode import Logits
from soloist.targets.portable.facts import GRAPH, cache_names, read_facts
from soloist.targets.portable.template import FolderDecoder
from soloist.targets.providers import NAMES, Opened, Provider, open_on

LEVELS = (0, 1, 4)
PIECE = 256  # tokens of a prompt computed at once


class PortableRuntime(FolderDecoder):
    """A portable ONNX folder with one cached sequence of at most `context` tokens.

    Args:
        provider: what computes, see `soloist.targets.providers`; `note` says what a user should know of it.
        accuracy_level: 0, 1 or 4, of products with quantized weights; what the export measured if not given.

    Raises:
        ArtifactError: files are missing or cut off, or onnxruntime refuses the graph.
        UsageError, ResourceError: a provider there is not, or CUDA where it cannot be had.
    """

    def __init__(
        self,
        path: Path,
        *,
        context: int = 2048,
        threads: int | None = None,
        provider: Provider = "auto",
        accuracy_level: int | None = None,
    ) -> None:
        self.facts = read_facts(path)
        super().__init__(path, self.facts.special)
        self.context = min(context, self.facts.context)
        self.stop_ids = frozenset(self.facts.stop_ids)
        self._ort: Any = require("onnxruntime", "onnx")
        level = self.facts.accuracy_level if accuracy_level is None else accuracy_level
        if level not in LEVELS:
            raise ArtifactError(f"accuracy level {level} is not one of {', '.join(map(str, LEVELS))}")
        opened = self._open(path / GRAPH, provider, threads or default_threads(), level)
        self._session, self._device, self.note = opened.model, opened.device, opened.note
        self._past = cache_names(self.facts.layers, "past_key_values")
        self._present = cache_names(self.facts.layers, "present")
        empty = np.zeros((1, self.facts.kv_heads, 0, self.facts.head_dim), np.dtype(self.facts.dtype))
        self._cache: list[Any] = self._on_device([empty] * len(self._past))

    def _open(self, graph: Path, provider: Provider, threads: int, level: int) -> Opened:
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", str(level))
        installed = NAMES["cuda"] in self._ort.get_available_providers()

        def start(device: str) -> Any:
            return self._ort.InferenceSession(str(graph), options, providers=[NAMES[device]], enable_fallback=0)

        try:
            return open_on(provider, installed, start, lambda session: NAMES["cuda"] in session.get_providers())
        except SoloistError:
            raise
        except Exception as error:  # the library raises a kind of its own for every status
            raise ArtifactError(f"{graph}: onnxruntime cannot load this graph ({first_line(error)})") from error

    def _on_device(self, arrays: Sequence[Any]) -> list[Any]:
        return [self._ort.OrtValue.ortvalue_from_numpy(array, self._device, 0) for array in arrays]

    def _crop(self, keep: int) -> None:
        if keep < self._length():
            self._cache = self._on_device([np.ascontiguousarray(value.numpy()[:, :, :keep]) for value in self._cache])

    def _length(self) -> int:
        return int(self._cache[0].shape()[2])

    def _run(self, tokens: Sequence[int]) -> Logits:
        """Logits (len(tokens), vocabulary) of tokens after what the cache holds; the cache holds them afterwards."""
        past, total = self._length(), self._length() + len(tokens)
        binding = self._session.io_binding()
        binding.bind_cpu_input("input_ids", np.array([tokens], np.int64))
        binding.bind_cpu_input("attention_mask", np.ones((1, total), np.int64))
        binding.bind_cpu_input("position_ids", np.arange(past, total, dtype=np.int64)[None])
        for name, value in zip(self._past, self._cache, strict=True):
            binding.bind_ortvalue_input(name, value)
        binding.bind_output("logits", "cpu")
        for name in self._present:
            binding.bind_output(name, self._device)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # the library raises a kind of its own for every status
            raise EngineError(f"{self.name}: onnxruntime stopped ({first_line(error)})") from error
        logits, *self._cache = binding.get_outputs()
        rows: Logits = logits.numpy()[0]
        return rows

    def _feed(self, tokens: Sequence[int], keep: int) -> Logits:
        self._crop(keep)
        last: Logits = self._pieces(tokens)[-1][-1]
        return last

    def _feed_all(self, tokens: Sequence[int]) -> Logits:
        self._crop(0)
        return np.concatenate(self._pieces(tokens))

    def _pieces(self, tokens: Sequence[int]) -> list[Logits]:
        if not tokens:
            raise EngineError(f"{self.name}: no tokens to compute")
        return [self._run(tokens[at : at + PIECE]) for at in range(0, len(tokens), PIECE)]

    def close(self) -> None:
        self._session = self._tokenizer = None
        self._cache, self._cached = [], []

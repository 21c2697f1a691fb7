"""The torch runtime: a Hugging Face folder answers, with a prefix cache kept between calls.

It is the reference every compiled file is compared with, and the way to talk to a student that is not
compiled yet. Its own loop (`decode`) rather than transformers' `generate`, which drops the cache after
each call. Left out: sliding-window caches, which cannot be cut back to a prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from soloist.kernels.errors import ArtifactError
from soloist.targets.base import Message, require
from soloist.targets.decode import CachedDecoder, Logits

DTYPES = ("float32", "bfloat16", "float16")


class TorchRuntime(CachedDecoder):
    """A model folder with config.json, *.safetensors and a tokenizer.

    Raises:
        ArtifactError: the folder is no such thing, or its weights do not load.
    """

    def __init__(self, path: Path, *, dtype: str = "float32", context: int | None = None, device: str = "cpu") -> None:
        super().__init__()
        if not (path / "config.json").is_file() or not list(path.glob("*.safetensors")):
            raise ArtifactError(f"{path}: not a model folder (needs config.json and model.safetensors)")
        if dtype not in DTYPES:
            raise ArtifactError(f"dtype '{dtype}' is not one of {', '.join(DTYPES)}")
        self._torch = require("torch", "train")
        transformers = require("transformers", "train")
        quiet = transformers.utils.logging
        quiet.disable_progress_bar()
        kind = getattr(self._torch, dtype)
        try:
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(str(path), local_files_only=True)
            self._model: Any = transformers.AutoModelForCausalLM.from_pretrained(
                str(path), dtype=kind, local_files_only=True
            )
        except Exception as error:  # safetensors, json and transformers each raise their own kinds
            raise ArtifactError(f"{path}: the model does not load ({error})") from error
        self._model.to(device).eval()
        self._device = device
        self._cache: Any = transformers.DynamicCache()
        self.name = path.name
        self.context = context or int(self._model.config.max_position_embeddings)
        stop = self._model.generation_config.eos_token_id
        stop = self._tokenizer.eos_token_id if stop is None else stop
        self.stop_ids = frozenset(stop if isinstance(stop, list) else [] if stop is None else [stop])

    def render(self, messages: Sequence[Message]) -> str:
        return str(self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))

    def tokenize(self, text: str) -> list[int]:
        return [int(token) for token in self._tokenizer.encode(text, add_special_tokens=False)]

    def text(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _feed(self, tokens: Sequence[int], keep: int) -> Logits:
        self._cut(keep)
        with self._torch.inference_mode():
            ids = self._torch.tensor([list(tokens)], device=self._device)
            out = self._model(input_ids=ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        logits: Logits = out.logits[0, -1].float().cpu().numpy()
        return logits

    def _cut(self, keep: int) -> None:
        if keep == 0:
            self._cache = type(self._cache)()
        elif self._cache.get_seq_length() > keep:
            self._cache.crop(keep - self._cache.get_seq_length())

    def logits(self, tokens: Sequence[int]) -> Logits:
        with self._torch.inference_mode():
            out = self._model(input_ids=self._torch.tensor([list(tokens)], device=self._device), use_cache=False)
        return np.ascontiguousarray(out.logits[0].float().cpu().numpy())

    def close(self) -> None:
        self._model = self._cache = None
        self._held = []

"""The torch runtime: a Hugging Face folder, or a quantized one, answers, with a prefix cache kept between calls.

It is the reference every compiled file is compared with, and the way to talk to a student that is not
compiled yet. Its own loop (`decode`) rather than transformers' `generate`, which drops the cache after
each call. A quantized student runs on our kernels where there is a GPU for them (`quantized_torch`), its cache in
8 bits (`int8_cache`). Left out: sliding-window caches, which cannot be cropped to a prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from soloist.kernels.errors import ArtifactError, SoloistError, UsageError
from soloist.targets.base import Message, require
from soloist.targets.decode import CachedDecoder, Logits
from soloist.targets.quantized import is_quantized

if TYPE_CHECKING:
    from soloist.kernels.choose import Want
    from soloist.targets.quantized_torch import Place

DTYPES = ("float32", "bfloat16", "float16")


class TorchRuntime(CachedDecoder):
    """A model folder with config.json, *.safetensors and a tokenizer; or what `soloist quantize` made.

    Args:
        dtype: of activations, and of weights that are no integers; float32, but bfloat16 where Triton runs.
        device: the CPU, but for a quantized student a GPU that the kernels run on, if there is one.
        kernels: what multiplies the integers of a quantized student; see `quantized_torch`.
        cache: of keys and values, in the activations' type or in 8 bits; `auto` is 8 bits where Triton runs.

    `note` says, for a quantized student, what is held and why. `weights_bytes` is what the weights take in memory.

    Raises:
        ArtifactError: the folder is no such thing, or its weights do not load.
        UsageError, MissingExtraError, ResourceError: kernels or a cache that cannot be had here.
    """

    def __init__(
        self,
        path: Path,
        *,
        dtype: str | None = None,
        context: int | None = None,
        device: str | None = None,
        kernels: Want = "auto",
        cache: Literal["auto", "float", "int8"] = "auto",
    ) -> None:
        super().__init__()
        if not (path / "config.json").is_file() or not list(path.glob("*.safetensors")):
            raise ArtifactError(f"{path}: not a model folder (needs config.json and model.safetensors)")
        if dtype not in (None, *DTYPES):
            raise ArtifactError(f"dtype '{dtype}' is not one of {', '.join(DTYPES)}")
        self._torch = require("torch", "train")
        transformers = require("transformers", "train")
        transformers.utils.logging.disable_progress_bar()
        from soloist.targets.quantized_torch import open_quantized, place, weights_bytes

        where = place(device, dtype, kernels) if is_quantized(path) else None
        try:
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(str(path), local_files_only=True)
            if where is not None:
                self._model: Any = open_quantized(path, where)
            else:
                kind = getattr(self._torch, dtype or "float32")
                model = transformers.AutoModelForCausalLM
                self._model = model.from_pretrained(str(path), dtype=kind, local_files_only=True)
        except SoloistError:
            raise
        except Exception as error:  # safetensors, json and transformers each raise their own kinds
            reason = str(error) or type(error).__name__  # a MemoryError says nothing
            raise ArtifactError(f"{path}: the model does not load ({reason})") from error
        self._device = where.device if where is not None else device or "cpu"
        self._model.to(self._device).eval()
        self.weights_bytes = weights_bytes(self._model)
        self._new_cache = self._cache_of(where, kernels, cache)
        self._cache: Any = self._new_cache()
        self.note = "" if where is None else self._describe(where)
        self.name = path.name
        self.context = context or int(self._model.config.max_position_embeddings)
        stop = self._model.generation_config.eos_token_id
        stop = self._tokenizer.eos_token_id if stop is None else stop
        self.stop_ids = frozenset(stop if isinstance(stop, list) else [] if stop is None else [stop])

    def _cache_of(self, where: Place | None, kernels: Want, cache: str) -> Callable[[], Any]:
        """What makes an empty cache."""
        if cache not in ("auto", "float", "int8"):
            raise UsageError(f"cache '{cache}': choose auto, float or int8")
        if cache == "int8" or (cache == "auto" and where is not None and where.triton):
            from soloist.targets.int8_cache import prepare, suits

            if cache == "int8" or suits(self._model.config):
                return prepare(self._model, self._device, kernels)
        empty: Callable[[], Any] = require("transformers", "train").DynamicCache
        return empty

    def _describe(self, where: Place) -> str:
        size, kind = f"{self.weights_bytes / 1e6:.1f} MB", str(where.dtype).removeprefix("torch.")
        held = f"integers, {size}, {kind} activations" if where.integers else f"{kind} values, unpacked once, {size}"
        return f"weights held as {held}; {where.reason}"

    def render(self, messages: Sequence[Message]) -> str:
        return str(self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))

    def tokenize(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def text(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _feed(self, tokens: Sequence[int], keep: int) -> Logits:
        if keep == 0:
            self._cache = self._new_cache()
        elif self._cache.get_seq_length() > keep:
            self._cache.crop(keep - self._cache.get_seq_length())
        with self._torch.inference_mode():
            ids = self._torch.tensor([list(tokens)], device=self._device)
            out = self._model(input_ids=ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        logits: Logits = out.logits[0, -1].float().cpu().numpy()
        return logits

    def logits(self, tokens: Sequence[int]) -> Logits:
        return self._feed_all(tokens)  # of any length, and beside the cache, which stays as it is

    def _feed_all(self, tokens: Sequence[int]) -> Logits:
        with self._torch.inference_mode():
            out = self._model(input_ids=self._torch.tensor([list(tokens)], device=self._device), use_cache=False)
        return np.ascontiguousarray(out.logits[0].float().cpu().numpy())

    def close(self) -> None:
        self._model = self._cache = None
        self._cached = []

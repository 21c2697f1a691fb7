"""A cache of keys and values in 8 bits, filled by `append_int8` and read by `decode_attention`.

    codes int8 (1, Hkv, S, D), scales float16 (1, Hkv, S) of keys and of values;  S grows by doubling

Half the bytes of a 16-bit cache, for 0.4 % of the largest element of a head as the largest error. A prompt is stored
first and attended to as it is stored, so that an answer does not depend on what of it was in the cache before. The
attention function is registered with transformers under NAME; it makes its own causal mask, for one conversation
without padding. Left out: sliding windows, several conversations at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from soloist.kernels.append_int8 import append_int8_ref
from soloist.kernels.choose import Want, choose
from soloist.kernels.decode_attention import HEAD_DIMS
from soloist.kernels.errors import UsageError
from soloist.targets.quantized_torch import LLAMA_KIND

NAME = "soloist_int8"
_FIRST = 256  # places


class Int8Layer(CacheLayerMixin):  # type: ignore[misc]  # transformers is not typed where the check runs
    """Keys and values of one layer; `update` returns the layer itself, for `attend` to read."""

    is_sliding = False
    is_croppable = True

    def __init__(self, append: Callable[..., None], attention: Callable[..., Tensor]) -> None:
        super().__init__()
        self.append, self.attention = append, attention
        self.filled = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        _, heads, _, head_dim = key_states.shape
        self.device = key_states.device
        codes = torch.zeros((1, heads, 0, head_dim), dtype=torch.int8, device=self.device)
        scales = torch.zeros((1, heads, 0), dtype=torch.float16, device=self.device)
        self.parts = [codes, codes, scales, scales]  # of keys and values; `_reserve` makes room of their own
        self.length = torch.zeros(1, dtype=torch.int32, device=self.device)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Store keys and values (1, Hkv, T, D) of T tokens."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        count, filled = key_states.shape[2], self.filled
        self._reserve(filled + count)
        keys = key_states[0].transpose(0, 1).contiguous()  # (T, Hkv, D)
        values = value_states[0].transpose(0, 1).contiguous()
        if count == 1:
            self.append(keys, values, *self.parts, self.length)
        else:  # a row for each token, each with room for itself alone
            rooms = [part[0, :, filled : filled + count].transpose(0, 1).unsqueeze(2) for part in self.parts]
            first = torch.zeros(count, dtype=torch.int32, device=self.device)
            append_int8_ref(*[keys, values, *rooms, first])
        self.filled = filled + count
        self.length.fill_(self.filled)
        return self, self

    def _reserve(self, places: int) -> None:
        held = self.parts[0].shape[2]
        if places <= held:
            return
        room = max(_FIRST, 2 * held, 1 << (places - 1).bit_length())
        for index, part in enumerate(self.parts):
            wider = part.new_zeros((*part.shape[:2], room, *part.shape[3:]))
            wider[:, :, :held] = part
            self.parts[index] = wider

    def decode(self, query: Tensor, scaling: float | None) -> Tensor:
        """Attention of one query (1, H, D)."""
        key, value, *scales = self.parts
        return self.attention(query, key, value, self.length, *scales, scale=scaling)

    def stored(self, dtype: torch.dtype) -> list[Tensor]:
        """Keys and values (1, Hkv, tokens, D) as they are stored."""
        restored = []
        for codes, scales in zip(self.parts[:2], self.parts[2:], strict=True):
            restored.append((codes[:, :, : self.filled] * scales[:, :, : self.filled, None].float()).to(dtype))
        return restored

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.filled + query_length, 0

    def get_seq_length(self) -> int:
        return self.filled

    def get_max_length(self) -> int:
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens; the number is negative, as transformers has it."""
        if tokens_to_remove and self.is_initialized:
            self.filled -= abs(tokens_to_remove)
            self.length = torch.full_like(self.length, self.filled)  # of inference mode: no writes to it outside


def attend(
    module: Any,
    query: Tensor,
    key: Any,
    value: Any,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of T queries (1, H, T, D), each to itself and all before; without a cache, to what is given."""
    if not isinstance(key, Int8Layer):
        out, _none = sdpa_attention_forward(module, query, key, value, None, scaling=scaling)
        return out, None
    tokens = query.shape[2]
    if tokens == 1:
        return key.decode(query[:, :, 0].contiguous(), scaling)[:, None], None
    keys, values = key.stored(query.dtype)
    places = keys.shape[2]
    mask = torch.ones(tokens, places, dtype=torch.bool, device=query.device).tril(places - tokens)
    out, _none = sdpa_attention_forward(module, query, keys, values, mask, scaling=scaling)
    return out, None


def suits(config: Any) -> bool:
    """Whether a model's attention is what this cache can hold."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    windowed = config.model_type == "mistral" and config.sliding_window is not None
    return config.model_type in LLAMA_KIND and kinds == {"full_attention"} and head_dim in HEAD_DIMS and not windowed


def prepare(model: Any, device: str, kernels: Want) -> Callable[[], Cache]:
    """Let a model attend to such a cache; returns what makes an empty one.

    Raises:
        UsageError: a model that it does not suit.
    """
    if not suits(model.config):
        raise UsageError(f"a cache in 8 bits is for models like Llama with heads of {', '.join(map(str, HEAD_DIMS))}")
    append = choose("append_int8", device, kernels).run
    attention = choose("decode_attention", device, kernels).run
    AttentionInterface.register(NAME, attend)
    model.set_attn_implementation(NAME)
    count = int(model.config.num_hidden_layers)
    return lambda: Cache(layers=[Int8Layer(append, attention) for _ in range(count)])

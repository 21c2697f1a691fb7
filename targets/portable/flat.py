"""A transformers model as a function of flat tensors, in the form that exports into few, standard operators.

    (input_ids, attention_mask, position_ids, key_0, value_0, …) -> (logits, key_0, value_0, …)

Why each part differs from the model's own:
- the cache: transformers' `DynamicCache` is no pytree, so an exporter cannot see its tensors; here it is a list;
- the mask: transformers builds it with `vmap`; here it is two comparisons. Blocked places get half of the smallest
  float, not the smallest and not -inf: added to any score it stays finite, so that a row of padding, which sees
  nothing, becomes a mean and never NaN (a NaN in the cache would reach every later token through 0 · NaN);
- grouped attention: the queries that share a key head are rows of one product (kv heads, groups · T, head dim), so
  the cache is never repeated. Scores are summed and normalized in float32, whatever the graph's type;
- a linear layer holds its weight as (K, N), the right operand of MatMul: no Transpose stands between an integer
  weight's DequantizeLinear and its MatMul, which is the pattern ONNX Runtime and TensorRT look for.

Left out: dropping keys that have left a sliding window (they are masked; the cache keeps them).
"""

from __future__ import annotations

from typing import Any

import torch
import transformers

ATTENTION = "soloist_grouped"
_LOW = torch.finfo(torch.float32).min / 2


class FlatCache:
    """The part of transformers' cache that a decoder layer calls, over tensors (batch, kv heads, length, head dim)."""

    def __init__(self, tensors: tuple[torch.Tensor, ...]) -> None:
        self.keys, self.values = list(tensors[0::2]), list(tensors[1::2])

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer: int, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append to a layer; all of it."""
        self.keys[layer] = torch.cat([self.keys[layer], key], dim=2)
        self.values[layer] = torch.cat([self.values[layer], value], dim=2)
        return self.keys[layer], self.values[layer]

    def get_seq_length(self, layer: int = 0) -> Any:
        """Tokens held."""
        return self.keys[layer].shape[2]

    def flat(self) -> list[torch.Tensor]:
        """Keys and values in turn."""
        tensors: list[torch.Tensor] = []
        for pair in zip(self.keys, self.values, strict=True):
            tensors += pair
        return tensors


class InOut(torch.nn.Module):  # type: ignore[misc]  # torch is not typed where the check runs
    """A linear layer whose weight is (in, out)."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(linear.weight.detach().T.contiguous(), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.matmul(x, self.weight)
        return y if self.bias is None else y + self.bias


def grouped_attention(
    _module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    *,
    scaling: float,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Attention of transformers' interface; `mask` float32 (batch, 1, groups · T, keys), as `Flat` makes it."""
    batch, heads, length, dim = query.shape
    kv_heads = key.shape[1]
    rows = (query * scaling).reshape(batch, kv_heads, heads // kv_heads * length, dim)
    scores = torch.matmul(rows, key.transpose(2, 3)).to(torch.float32) + mask
    weights = torch.softmax(scores, dim=-1).to(value.dtype)
    mixed = torch.matmul(weights, value).reshape(batch, heads, length, dim)
    return mixed.transpose(1, 2), None


class Flat(torch.nn.Module):  # type: ignore[misc]  # torch is not typed where the check runs
    """A causal language model of flat tensors. Takes the model over: its linear layers are replaced.

    Args:
        apart: a head that is the embedding gets a weight of its own, (hidden, vocabulary); else it is transposed.
    """

    def __init__(self, student: Any, *, apart: bool) -> None:
        super().__init__()
        transformers.AttentionInterface.register(ATTENTION, grouped_attention)
        student.set_attn_implementation(ATTENTION)
        self.student = student
        self.groups: int = student.config.num_attention_heads // student.config.num_key_value_heads
        tied = not apart and student.lm_head.weight is student.model.embed_tokens.weight
        for name, module in list(student.named_modules()):
            if isinstance(module, torch.nn.Linear) and not (tied and module is student.lm_head):
                parent, _, last = name.rpartition(".")
                setattr(student.get_submodule(parent), last, InOut(module))
        self.eval()

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, position_ids: torch.Tensor, *past: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        cache = FlatCache(past)
        out = self.student(
            input_ids=input_ids,
            attention_mask=self._masks(attention_mask, input_ids.shape[1], past[0].shape[2]),
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        )
        return (out.logits.to(torch.float32), *cache.flat())

    def _masks(self, attention_mask: torch.Tensor, length: int, past: int) -> Any:
        columns = torch.arange(past + length, device=attention_mask.device).unsqueeze(0)
        rows = columns[:, past:].transpose(0, 1)
        there = (attention_mask != 0)[:, None, None, :]
        seen = (columns <= rows)[None, None] & there
        config = self.student.config
        if getattr(config, "layer_types", None) is None:
            return self._added(seen)
        masks = {"full_attention": self._added(seen)}
        if "sliding_attention" in config.layer_types:
            masks["sliding_attention"] = self._added(seen & (rows - columns < config.sliding_window)[None, None])
        return masks

    def _added(self, seen: torch.Tensor) -> torch.Tensor:
        mask = torch.where(seen, torch.tensor(0.0), torch.tensor(_LOW))
        batch, _, length, keys = mask.shape
        spread = mask.unsqueeze(2).expand(batch, 1, self.groups, length, keys)
        return spread.reshape(batch, 1, self.groups * length, keys)


def example(layers: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Example arguments and which of their dimensions are free; no dimension is 0 or 1, which a trace would freeze."""
    batch, length, past = 2, 3, 5
    free = torch.export.Dim.AUTO
    ids = torch.ones(batch, length, dtype=torch.int64)
    mask = torch.ones(batch, past + length, dtype=torch.int64)
    positions = torch.arange(past, past + length).unsqueeze(0).repeat(batch, 1)
    cache = [torch.zeros(batch, kv_heads, past, head_dim, dtype=dtype) for _ in range(2 * layers)]
    two, cached = {0: free, 1: free}, {0: free, 2: free}
    return (ids, mask, positions, *cache), (two, two, two, (cached,) * len(cache))

"""Batches without waste: every distinct token of a batch is computed once, and nothing is padded.

A batch of conversations is a trie: where two begin with the same tokens (a template, a system prompt,
the wording of a question) they share those tokens' activations exactly, so they are computed once and
their gradients add up. The trie's nodes form one row of T tokens on which embeddings, projections,
norms and MLPs run. Attention alone needs the conversations again: queries, keys and values are
gathered to (B, L), attended causally, and each node's result is taken back from one conversation.

    linear layers on (1, T)  ->  gather (B, L)  ->  causal attention  ->  one copy of each node (1, T)

Right padding lives only inside attention, where causality hides it. For short conversations the
attention is written as two batched products: on CPUs the backward pass of torch's fused kernel is
about five times slower there (benchmarks/LOG.md). The layout is exact for any model whose attention
goes through transformers' attention interface. Left out: sliding windows, dropout.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from soloist.kernels.errors import ArtifactError
from soloist.toolchain.distill.data import Example, Group, as_groups, count_tokens, examples_of

ATTENTION = "soloist_packed"
_SHORT = 256  # longest conversation whose L x L scores are worth writing out


@dataclass(frozen=True)
class Batch:
    """A batch as a trie of T nodes. `rows[i]` is the node whose next token must be `labels[i]`."""

    ids: Tensor  # (1, T)
    positions: Tensor  # (1, T)
    gather: Tensor  # (B, L) node of each token
    back: Tensor  # (T,) flat place in (B, L) to take each node's result from
    rows: Tensor  # (R,)
    labels: Tensor  # (R,)
    owners: Tensor  # (R,) which conversation a trained token belongs to
    lengths: Tensor  # (B,) tokens of each conversation that are computed: all but its last
    weights: Tensor | None  # (R,) of each trained token; None where all are 1
    spans: Tensor  # (R,) the kind of text a trained token belongs to
    tokens: int  # real tokens, as if nothing were shared
    groups: tuple[range, ...]  # the conversations of each group
    facts: tuple[Mapping[str, Any], ...]  # of each group

    @property
    def targets(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> Batch:
        moved = {}
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            moved[name] = value.to(device) if isinstance(value, Tensor) else value
        return Batch(**moved)


def pack(items: Sequence[Example | Group], *, share: bool = True) -> Batch:
    """Lay conversations out as one trie. `share=False` keeps equal beginnings apart (for comparison)."""
    gathered = as_groups(items)
    examples = examples_of(gathered)
    nodes: dict[tuple[int, int], int] = {}
    ids: list[int] = []
    positions: list[int] = []
    back: list[int] = []
    rows: list[int] = []
    labels: list[int] = []
    owners: list[int] = []
    weights: list[float] = []
    spans: list[int] = []
    longest = max(len(example.ids) for example in examples) - 1  # the last token predicts nothing
    gather = torch.zeros((len(examples), longest), dtype=torch.long)
    for owner, example in enumerate(examples):
        parent, path = -1 if share else -1 - owner, []
        for place, token in enumerate(example.ids[:-1]):
            node = nodes.setdefault((parent, token), len(ids))
            if node == len(ids):
                ids.append(token)
                positions.append(place)
                back.append(owner * longest + place)
            path.append(node)
            parent = node
        gather[owner, : len(path)] = torch.tensor(path)
        for place in range(1, len(example.ids)):
            if example.trained[place]:
                rows.append(path[place - 1])
                labels.append(example.ids[place])
                owners.append(owner)
                weights.append(example.weights[place] if example.weights else 1.0)
                spans.append(example.spans[place] if example.spans else 0)
    ranges, facts, count = [], [], 0
    for group in gathered:
        ranges.append(range(count, count + len(group.examples)))
        facts.append(group.facts)
        count += len(group.examples)
    return Batch(
        ids=torch.tensor([ids]),
        positions=torch.tensor([positions]),
        gather=gather,
        back=torch.tensor(back),
        rows=torch.tensor(rows, dtype=torch.long),
        labels=torch.tensor(labels, dtype=torch.long),
        owners=torch.tensor(owners, dtype=torch.long),
        lengths=torch.tensor([len(example.ids) - 1 for example in examples], dtype=torch.long),
        weights=torch.tensor(weights) if any(example.weights for example in examples) else None,
        spans=torch.tensor(spans, dtype=torch.long),
        tokens=count_tokens(gathered)[0],
        groups=tuple(ranges),
        facts=tuple(facts),
    )


def _short_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Causal attention by two batched products; heads that share a key are one taller matrix."""
    batch, heads, length, width = query.shape
    groups = key.shape[1]
    precise = torch.promote_types(query.dtype, torch.float32)
    hidden = torch.full((length, length), -math.inf, device=query.device).triu(1)
    tall = (query * scale).reshape(batch, groups, heads // groups * length, width)
    scores = torch.matmul(tall, key.transpose(-1, -2)).view(batch, groups, heads // groups, length, length)
    weights = (scores.to(precise) + hidden).softmax(-1).to(value.dtype)
    mixed = torch.matmul(weights.view(batch, groups, heads // groups * length, length), value)
    return mixed.view(batch, heads, length, value.shape[-1])


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    soloist_batch: Batch | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: (1, H, T, D) queries of a trie -> (1, T, H, D)."""
    if soloist_batch is None:
        raise ArtifactError(
            f"{type(module).__name__}: this architecture does not hand its arguments on to transformers' attention "
            "interface; choose another base model"
        )
    places = soloist_batch.gather
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling

    def spread(tensor: Tensor) -> Tensor:
        heads, width = tensor.shape[1], tensor.shape[3]
        return tensor[0].index_select(1, places.flatten()).view(heads, *places.shape, width).transpose(0, 1)

    wide = spread(query), spread(key), spread(value)
    if places.shape[1] <= _SHORT and query.device.type == "cpu":
        mixed = _short_attention(*wide, scale)
    else:
        mixed = functional.scaled_dot_product_attention(*wide, is_causal=True, scale=scale, enable_gqa=True)
    flat = mixed.transpose(1, 2).reshape(places.numel(), query.shape[1], value.shape[-1])
    return flat.index_select(0, soloist_batch.back).unsqueeze(0), None


def _no_mask(*_: Any, **__: Any) -> None:
    """The trie needs no mask: causality within a conversation is all there is."""


def use_packed_attention(model: Any) -> None:
    """Switch a transformers model to the packed attention."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(ATTENTION, packed_attention)
    AttentionMaskInterface.register(ATTENTION, _no_mask)
    model.set_attn_implementation(ATTENTION)

"""What the graph methods train beside the student and throw away: a small graph network, a score, a way to embed.

    embed      h_c = sum_t t x_t / sum_t t   over a conversation's tokens t = 1, 2, ... as the student sees them now
    network    relu(A X W1 + b1) -> dropout -> A H W2 + b2,  A = D^-1/2 (I + edges) D^-1/2, D counts what arrives
    score      s(h) = tanh(w2 . relu(W1 h))

The graphs have a dozen nodes, so the adjacency is dense: two small products do what a library for sparse graphs
would. A node is reached by itself and by the nodes with an edge to it. Everything random is a function of a seed
and the question, never of how a step was split: neither parts nor processes change a number. The tokens are all
that the student computes of a conversation, the question included; the end token predicts nothing and is not
computed. Left out: other networks, edge weights.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from soloist.toolchain.distill.data import Group
from soloist.toolchain.distill.packing import Batch

UNLABELED = -1


def embed(states: Tensor, batch: Batch) -> Tensor:
    """The embedding of every conversation of a batch, (B, width), from the states of the trie's nodes (T, width).

    Later tokens weigh more, counted from the conversation's own first token: a longer neighbor changes nothing.
    """
    precise = torch.promote_types(states.dtype, torch.float32)
    places = torch.arange(1, batch.gather.shape[1] + 1, device=states.device, dtype=precise)
    real = places[None] <= batch.lengths[:, None]
    shares = torch.where(real, places[None], 0.0)
    shares = shares / shares.sum(1, keepdim=True)
    spread = torch.zeros((len(batch.lengths), len(states)), dtype=precise, device=states.device)
    spread.scatter_add_(1, batch.gather, shares)
    return spread @ states.to(precise)


def pooled(states: Tensor, batch: Batch, spans: Sequence[Sequence[int]]) -> Tensor:
    """The same mean over parts of conversations, (S, width): spans are (conversation, first place, place after)."""
    precise = torch.promote_types(states.dtype, torch.float32)
    spread = torch.zeros((len(spans), len(states)), dtype=precise, device=states.device)
    for row, (conversation, start, stop) in enumerate(spans):
        shares = torch.arange(1, stop - start + 1, device=states.device, dtype=precise)
        spread[row, batch.gather[conversation, start:stop]] = shares / shares.sum()
    return spread @ states.to(precise)


def adjacency(edges: Iterable[Sequence[int]], count: int, like: Tensor) -> Tensor:
    """The normalized adjacency of `count` nodes with edges (source, target): row = target, (count, count)."""
    matrix = torch.eye(count, dtype=like.dtype)
    for source, target in edges:
        matrix[target, source] = 1.0
    scale = matrix.sum(1).rsqrt()
    return (scale[:, None] * matrix * scale[None, :]).to(like.device)


def kept(shape: tuple[int, int], rate: float, key: str) -> Tensor:
    """A dropout mask that depends on the step's seed (`torch.manual_seed`) and on `key`, and on nothing else."""
    digest = hashlib.sha256(f"{torch.initial_seed()}/{key}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return (torch.rand(shape, generator=generator) >= rate).float() / (1 - rate)


def matrix(rows: int, columns: int, generator: torch.Generator) -> nn.Parameter:
    """Glorot's uniform start."""
    bound = math.sqrt(6 / (rows + columns))
    return nn.Parameter((torch.rand((rows, columns), generator=generator) * 2 - 1) * bound)


class GraphNetwork:
    """Two graph convolutions: width -> hidden -> classes."""

    def __init__(self, width: int, classes: int, *, hidden: int = 512, dropout: float = 0.5, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.dropout = dropout
        self.w1, self.b1 = matrix(hidden, width, generator), nn.Parameter(torch.zeros(hidden))
        self.w2, self.b2 = matrix(classes, hidden, generator), nn.Parameter(torch.zeros(classes))

    @property
    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        return [("network.w1", self.w1), ("network.b1", self.b1), ("network.w2", self.w2), ("network.b2", self.b2)]

    def encode(self, nodes: Tensor, adjacent: Tensor) -> Tensor:
        """(n, width) and the normalized adjacency -> (n, hidden)."""
        return functional.relu(functional.linear(adjacent @ nodes, self.w1.to(nodes.dtype), self.b1.to(nodes.dtype)))

    def classify(self, encoded: Tensor, adjacent: Tensor, key: str | None) -> Tensor:
        """(n, hidden) -> logits (n, classes); dropout only where `key` names the graph that is trained on."""
        if key is not None and self.dropout:
            mask = kept((encoded.shape[0], encoded.shape[1]), self.dropout, key)
            encoded = encoded * mask.to(encoded)
        return functional.linear(adjacent @ encoded, self.w2.to(encoded.dtype), self.b2.to(encoded.dtype))


class Score:
    """How right an embedding looks, in (-1, 1)."""

    def __init__(self, width: int, *, hidden: int = 512, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.w1, self.w2 = matrix(hidden, width, generator), matrix(1, hidden, generator)

    @property
    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        return [("score.w1", self.w1), ("score.w2", self.w2)]

    def __call__(self, embedded: Tensor) -> Tensor:
        hidden = functional.relu(functional.linear(embedded, self.w1.to(embedded.dtype)))
        return torch.tanh(functional.linear(hidden, self.w2.to(embedded.dtype)))[:, 0]


def judged(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, int]:
    """Cross-entropy summed over the nodes with a label (0 or more), how many of them are right, how many there are."""
    loss = functional.cross_entropy(logits, labels, ignore_index=UNLABELED, reduction="sum")
    return loss, (logits.argmax(1) == labels).sum(), int((labels != UNLABELED).sum())


def ranked(better: Tensor, worse: Tensor, margin: float) -> Tensor:
    """sum max(0, margin - (s+ - s-))."""
    total: Tensor = functional.relu(margin - (better - worse)).sum()
    return total


def ranked_pairs(score: Score, nodes: Tensor, pairs: Sequence[Sequence[int]], margin: float) -> Tensor:
    """`ranked` of the scores of nodes (N, width) at `pairs` of places (better, worse); 0 with a gradient for none."""
    if not pairs:
        return nodes.sum() * 0.0
    scores, places = score(nodes), torch.tensor(pairs, device=nodes.device)
    return ranked(scores[places[:, 0]], scores[places[:, 1]], margin)


def label_counts(groups: Iterable[Group]) -> Counter[int]:
    """How many nodes of the groups have each label."""
    labels: Counter[int] = Counter()
    for group in groups:
        labels.update(group.facts.get("labels", ()))
    return labels


def paired(better: Sequence[int], worse: Sequence[int]) -> list[list[int]]:
    """Every item of the longer list with one of the shorter, which is gone through again and again."""
    if not better or not worse:
        return []
    pairs = []
    for index in range(max(len(better), len(worse))):
        pairs.append([better[index % len(better)], worse[index % len(worse)]])
    return pairs

"""A process reward model: a student with one more number at the end of every step.

    R(step) = w . h(last token of the step) + b          s(R) in 0..1 is its score

The paper's pairwise objective, over the steps of all attempts at one question, with labels y in 0..1:

    L = - sum_t y_t log [ e^(s(R_t)/tau) / (e^(s(R_t)/tau) + sum_j (1 - y_j) e^(s(R_j)/tau)) ]  /  sum_t y_t

For labels of 0 and 1 that is the published formula: good step t against the bad steps j. Ours, because it
is not published: tau; that labels between 0 and 1 weigh a step on both sides; that j runs over the
bad steps at the same place in other attempts, or over all bad steps of the question where there is none
there; that a step several attempts begin with counts once, with its mean label; the mean, over the good steps
that have a bad one to be compared with. `Binary` is what the released code trains in effect, cross-entropy of
each step's label: its contrastive term reaches no trained weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from soloist.kernels.errors import ArtifactError
from soloist.toolchain.core.files import explain_disk_errors
from soloist.toolchain.distill.data import Example, Group
from soloist.toolchain.distill.model import Student
from soloist.toolchain.distill.packing import Batch
from soloist.toolchain.distill.steps import read_at
from soloist.toolchain.distill.train import read_in_parts

HEAD = "head.safetensors"


def rated_group(
    examples: Sequence[Example], ends: Sequence[Sequence[int]], labels: Sequence[Sequence[float]], end_token: int
) -> Group:
    """The attempts at one question for the reward model; facts: each read step's `labels` and `places`."""
    merged: dict[tuple[int, ...], list[float]] = {}
    for example, stops, known in zip(examples, ends, labels, strict=True):
        for end, label in zip(stops, known, strict=True):
            merged.setdefault(example.ids[: end + 1], []).append(label)
    kept, means, places = [], [], []
    for example, stops in zip(examples, ends, strict=True):
        first = []
        for place, end in enumerate(stops):
            values = merged.pop(example.ids[: end + 1], None)
            if values is not None:
                first.append(end)
                means.append(sum(values) / len(values))
                places.append(place)
        if first:
            kept.append(read_at(example, first, end_token))
    return Group(tuple(kept), {"labels": means, "places": places})


def compared(group: Group) -> float:
    """The weight of a group's good steps that have a bad one to be compared with."""
    labels = torch.tensor(group.facts["labels"], dtype=torch.float64)
    against = _against(labels, torch.tensor(group.facts["places"]))
    return float(labels[(against.sum(1) > 0)].sum())


def _against(labels: Tensor, places: Tensor) -> Tensor:
    """(S, S): how much step j counts as a bad step against good step t."""
    bad = (1 - labels)[None, :].expand(len(labels), -1) * (1 - torch.eye(len(labels), dtype=labels.dtype))
    there = bad * (places[:, None] == places[None, :])
    alone = there.sum(1, keepdim=True) == 0
    return torch.where(alone, bad, there)


class RewardHead(nn.Linear):  # type: ignore[misc]  # torch's types are not followed
    """width -> 1, small at first: every step scores about 0.5, and gradients reach the student at once."""

    def __init__(self, width: int) -> None:
        super().__init__(width, 1)
        nn.init.normal_(self.weight, std=0.1 / width**0.5)
        nn.init.zeros_(self.bias)

    def write(self, folder: Path) -> None:
        """Save as safetensors."""
        with explain_disk_errors(folder):
            tensors = {name: value.detach().float().cpu() for name, value in self.state_dict().items()}
            save_file(tensors, folder / HEAD)

    @classmethod
    def read(cls, folder: Path) -> RewardHead:
        """Load. Raises ArtifactError."""
        try:
            tensors = load_file(folder / HEAD)
            head = cls(tensors["weight"].shape[1])
            head.load_state_dict(tensors)
        except (OSError, KeyError, RuntimeError, SafetensorError) as error:
            raise ArtifactError(f"{folder / HEAD}: not a reward head of ours ({error}); train it again") from error
        return head


class Pairwise:
    """The paper's objective."""

    names = ("prm",)

    def __init__(self, head: RewardHead, tau: float = 0.1) -> None:
        self.head = head
        self.tau = tau

    @property
    def parameters(self) -> Sequence[tuple[str, nn.Parameter]]:
        return [(f"head.{name}", value) for name, value in self.head.named_parameters()]

    def counts(self, groups: Sequence[Group]) -> Mapping[str, float]:
        return {"good": max(sum(compared(group) for group in groups), 1e-9)}

    def terms(self, student: Student, batch: Batch, counts: Mapping[str, float]) -> Mapping[str, Tensor]:
        rewards = step_rewards(student, self.head, batch)
        losses = []
        start = 0
        for facts in batch.facts:
            labels = torch.tensor(facts["labels"], dtype=rewards.dtype)
            mine = rewards[start : start + len(labels)]
            losses.append(self._loss(mine, labels, torch.tensor(facts["places"])))
            start += len(labels)
        return {"prm": torch.stack(losses).sum() / counts["good"]}

    def _loss(self, rewards: Tensor, labels: Tensor, places: Tensor) -> Tensor:
        return pairwise_loss(rewards, labels, _against(labels, places).to(rewards.device), self.tau)


class Binary(Pairwise):
    """Cross-entropy of every step's label, averaged over a step's steps."""

    def counts(self, groups: Sequence[Group]) -> Mapping[str, float]:
        return {"good": float(sum(len(group.facts["labels"]) for group in groups))}

    def _loss(self, rewards: Tensor, labels: Tensor, places: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(rewards, labels.to(rewards.device), reduction="sum")


def pairwise_loss(rewards: Tensor, labels: Tensor, against: Tensor, tau: float) -> Tensor:
    """- sum_t y_t log [e_t / (e_t + sum_j against_tj e_j)], e = exp(s(R) / tau), computed in logarithms."""
    scores = torch.sigmoid(rewards) / tau
    others = scores[None, :] + against.clamp_min(torch.finfo(scores.dtype).tiny).log()
    others = others.masked_fill(against == 0, -torch.inf)
    below = torch.logsumexp(torch.cat([scores[:, None], others], dim=1), dim=1)
    return (labels.to(rewards.device) * (below - scores)).sum()


def step_rewards(student: Student, head: RewardHead, batch: Batch) -> Tensor:
    """R of every step a batch reads, in its order."""
    _, states = student.logits_and_states(batch)
    read = states[batch.rows].to(head.weight.dtype)
    rewards: Tensor = head(read)[:, 0]
    return rewards


def train_last_block_only(student: Student) -> None:
    """Freeze everything but the last transformer block: stage I of the paper trains it and the head."""

    def block(name: str) -> int:
        return next((int(part) for part in name.split(".") if part.isdigit()), -1)

    last = max(block(name) for name, _ in student.named_parameters())
    if last < 0:
        raise ArtifactError(
            f"{type(student.model).__name__}: no numbered blocks to find the last one; choose another base"
        )
    for name, value in student.model.named_parameters():
        if block(name) != last:
            value.requires_grad_(False)


class RewardModel:
    """A trained reward model, only read: the score of every step of a conversation."""

    def __init__(self, student: Student, head: RewardHead, part_tokens: int) -> None:
        self.student = student
        self.head = head.to(student.device).requires_grad_(False)
        self.part_tokens = part_tokens

    def scores(self, examples: Sequence[Example], ends: Sequence[Sequence[int]]) -> list[list[float]]:
        """s(R) of each step, in 0..1."""
        end_token = self.student.tokenizer.eos_token_id
        scores: list[list[float]] = [[] for _ in examples]
        groups, with_steps = [], []
        for place, (example, stops) in enumerate(zip(examples, ends, strict=True)):
            if stops:
                groups.append(Group((read_at(example, stops, end_token),)))
                with_steps.append(place)
        with torch.no_grad():
            for batch, places in read_in_parts(groups, self.part_tokens, self.student.device):
                values = torch.sigmoid(step_rewards(self.student, self.head, batch)).tolist()
                for owner, value in zip(batch.owners.tolist(), values, strict=True):
                    scores[with_steps[places[owner]]].append(value)
        return scores

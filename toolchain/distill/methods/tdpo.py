"""Preference pairs from the same round of a debate (T-DPO, arXiv 2506.03541).

    1. sft     every correct attempt of every agent -> the phase-1 student
    2. pairs   correct against wrong attempts at the same question in the same round, starting from it

        L = -mean log s(b (log pi/ref)(chosen) - b (log pi/ref)(rejected))

`ref` is the phase-1 student. It never changes, so its log-probabilities are computed once, before training,
and travel with the pairs: no second model is in memory while the student trains. Log-probabilities are sums
over a conversation's trained tokens, prompts and tool results left out. A pair's prompt is the question and,
where the debate showed them, the answers of the round before; both conversations of a pair share it.

Paper: b, the learning rates, epochs, warm-up. Ours, because nothing is published: the wording of the earlier
answers, identical conversations count once, at most `pairs` pairs a round. Left out: the paper's
self-reflections and feedback, which our debates do not have; label smoothing and the other losses of DPO's
family.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from soloist.kernels.errors import DataError
from soloist.toolchain.core.artifact import Facts
from soloist.toolchain.core.config import Config
from soloist.toolchain.distill.data import Group, Selection, reasons, refuse_split, selection
from soloist.toolchain.distill.full_precision import fit_exact
from soloist.toolchain.distill.methods.attempts import checked, conversation_of, other_kind
from soloist.toolchain.distill.model import Student, frozen
from soloist.toolchain.distill.objective import CrossEntropy, SelfContained
from soloist.toolchain.distill.packing import Batch
from soloist.toolchain.distill.train import read_in_parts
from soloist.toolchain.distill.work import Distilled, Method, Setup, Work, fit
from soloist.toolchain.student.artifact import DataFacts, TrainingFacts
from soloist.toolchain.traces.graph import Graph, graph_of
from soloist.toolchain.traces.schema import Run


class Options(Config):
    """Of the second phase; TrainConfig is that of the first."""

    beta: float = Field(default=0.1, gt=0, description="how far the student may go from the reference (paper)")
    learning_rate: float = Field(default=5e-6, gt=0, description="of the preference phase (paper)")
    epochs: int = Field(default=3, ge=1, description="of the preference phase (paper)")
    warmup: float = Field(default=0.1, ge=0, lt=1, description="share of the preference phase's steps (paper)")
    context: bool = Field(default=True, description="show the answers of the round before, as the debate did (paper)")
    pairs: int = Field(default=4, ge=1, description="most pairs taken from one round (our choice)")


class _LogProbs(torch.autograd.Function):  # type: ignore[misc]  # torch's types are not followed
    """Log-probability of each row's label, added up by owner, with the gradient kept in one copy of the logits."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, owners: Tensor, count: int) -> Tensor:
        gradient = torch.empty_like(logits)
        precise = torch.float64 if logits.dtype == torch.float64 else torch.float32
        each = torch.empty(len(labels), dtype=precise, device=logits.device)
        rows = 16 if logits.device.type == "cpu" else 1024
        for start in range(0, len(labels), rows):
            z = logits[start : start + rows].to(precise).log_softmax(-1)
            y = labels[start : start + rows, None]
            each[start : start + rows] = z.gather(1, y)[:, 0]
            gradient[start : start + rows] = z.exp_().neg_().scatter_add_(1, y, torch.ones_like(y, dtype=precise))
        ctx.save_for_backward(gradient, owners)
        return torch.zeros(count, dtype=precise, device=logits.device).index_add_(0, owners, each)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        gradient, owners = ctx.saved_tensors
        return gradient * upstream.to(gradient.dtype)[owners, None], None, None, None


def log_probs(student: Student, batch: Batch) -> Tensor:
    """Of each conversation of a batch, (B,): the sum over its trained tokens."""
    sums: Tensor = _LogProbs.apply(student.logits(batch), batch.labels, batch.owners, len(batch.lengths))
    return sums


class Preference(SelfContained):
    """-log s(b margin), averaged over a step's pairs. A group is (chosen, rejected); fact `reference`: ref's two."""

    names = ("dpo",)

    def __init__(self, beta: float) -> None:
        self.beta = beta

    def counts(self, groups: Sequence[Group]) -> Mapping[str, float]:
        return {"pairs": float(len(groups))}

    def terms(self, student: Student, batch: Batch, counts: Mapping[str, float]) -> Mapping[str, Tensor]:
        policy = log_probs(student, batch).view(-1, 2)
        reference = [facts["reference"] for facts in batch.facts]
        ratio = policy - torch.tensor(reference, dtype=policy.dtype, device=policy.device)
        return {"dpo": -functional.logsigmoid(self.beta * (ratio[:, 0] - ratio[:, 1])).sum() / counts["pairs"]}


def correct_attempts(runs: Sequence[Run], setup: Setup) -> Selection:
    """Every correct attempt of every run, each as a conversation of its own; identical ones of a run once."""
    kept: list[Group] = []
    rejected: Counter[str] = Counter()
    for run in runs:
        refuse_split(run)
        distinct: set[tuple[int, ...]] = set()
        graph = graph_of(run)
        for node in graph.nodes:
            made = other_kind(node, graph, setup) or checked(node, run, setup)
            if isinstance(made, str):
                rejected[made] += 1
            elif made.ids not in distinct:
                distinct.add(made.ids)
                kept.append(Group((made,)))
    return selection(kept, rejected)


def shown_before(graph: Graph, pair: Sequence[int]) -> str:
    """The answers of the round before that either of the pair's attempts saw; nothing where they saw none."""
    seen = set()
    for link in graph.links:
        if link.target in pair and graph.nodes[link.source].attempt == graph.nodes[link.target].attempt - 1:
            seen.add(link.source)
    answers: list[str] = []
    for index in sorted(seen):
        answer = graph.nodes[index].answer
        if answer and answer not in answers:
            answers.append(answer)
    return f"\n(Earlier answers: {'; '.join(answers)})" if answers else ""


def _rounds(graph: Graph) -> Iterator[tuple[list[int], list[int]]]:
    """The correct and the wrong attempts of each round that has both.

    A round is the team's count and the agent's own: a team may begin again after a failure, and then the
    second first round is not the first.
    """
    rounds: dict[tuple[int, int], tuple[list[int], list[int]]] = {}
    for index, node in enumerate(graph.nodes):
        right, wrong = rounds.setdefault((node.turns[0].round, node.attempt), ([], []))
        if node.verdict == "correct":
            right.append(index)
        elif node.verdict == "wrong":
            wrong.append(index)
    for right, wrong in rounds.values():
        if right and wrong:
            yield right, wrong


def preference_pairs(runs: Sequence[Run], setup: Setup) -> Selection:
    """Groups (chosen, rejected) of the same question and round.

    Raises:
        DataError: no round in which one attempt is right and another is wrong.
    """
    options = setup.options_of(Options)
    kept: list[Group] = []
    rejected: Counter[str] = Counter()
    for run in runs:
        refuse_split(run)
        graph = graph_of(run)
        mixed = list(_rounds(graph))
        if not mixed:
            graded = any(node.verdict in ("correct", "wrong") for node in graph.nodes)
            rejected["no round with both a right and a wrong attempt" if graded else "attempts are not graded"] += 1
        for right, wrong in mixed:
            pairs: dict[tuple[tuple[int, ...], tuple[int, ...]], Group] = {}
            for better, worse in itertools.product(right, wrong):
                made = _pair(run, graph, better, worse, setup, options.context)
                if isinstance(made, str):
                    rejected[made] += 1
                else:
                    pairs.setdefault((made.examples[0].ids, made.examples[1].ids), made)
            kept += list(pairs.values())[: options.pairs]
    if not kept:
        why = reasons(rejected) or "there are no traces"
        raise DataError(
            f"no pair to prefer within ({why}); T-DPO needs several agents that disagree in the same round: "
            "record more, or choose another method"
        )
    return Selection(tuple(kept), dict(rejected))


def _pair(run: Run, graph: Graph, right: int, wrong: int, setup: Setup, context: bool) -> Group | str:
    shown = shown_before(graph, (right, wrong)) if context else ""
    reason = other_kind(graph.nodes[right], graph, setup) or other_kind(graph.nodes[wrong], graph, setup)
    if reason:
        return reason
    chosen = checked(graph.nodes[right], run, setup, shown)
    other = conversation_of(graph.nodes[wrong], run, setup, shown)
    if isinstance(chosen, str) or isinstance(other, str):
        return f"the right attempt: {chosen}" if isinstance(chosen, str) else f"the wrong attempt: {other}"
    if chosen.ids == other.ids:
        return "both attempts say the same"
    return Group((chosen, other), {"shown": bool(shown)})


def reference_log_probs(reader: Student, groups: Sequence[Group], part_tokens: int) -> list[tuple[float, float]]:
    """The two log-probabilities of each pair under a model that is only read, a part at a time."""
    pairs = [(0.0, 0.0)] * len(groups)
    with torch.no_grad():
        for batch, places in read_in_parts(groups, part_tokens, reader.device):
            for place, (chosen, other) in zip(places, log_probs(reader, batch).view(-1, 2).tolist(), strict=True):
                pairs[place] = chosen, other
    return pairs


class _Imitated(Facts):
    """The first phase: what it learned from, and its training."""

    data: DataFacts
    training: TrainingFacts


class _Reference(Facts):
    """The log-probabilities of each pair under the first phase's student: of the right attempt, of the wrong one."""

    log_probs: list[tuple[float, float]]


def train(work: Work) -> Distilled:
    """Both phases. The second reads the first from disk, as the reference does, so the two begin equal."""
    options: Options = work.options

    def imitate(folder: Path) -> _Imitated:
        trainer = work.trainer()
        chosen = work.chosen(work.setup(trainer.student.tokenizer), correct_attempts)
        training = fit_exact(work, trainer, chosen.groups, CrossEntropy(), folder)
        return _Imitated(data=chosen.counts, training=training)

    first, sft = work.phase("sft", _Imitated, imitate)
    trainer = work.trainer(first, learning_rate=options.learning_rate, epochs=options.epochs, warmup=options.warmup)
    chosen = work.chosen(work.setup(trainer.student.tokenizer), preference_pairs)

    def read(_: Path) -> _Reference:
        reader = frozen(first, trainer.dtype, trainer.student.device)
        return _Reference(log_probs=reference_log_probs(reader, chosen.groups, work.train.part_tokens))

    _, reference = work.phase("reference", _Reference, read)
    groups = []
    for group, log_probs_of in zip(chosen.groups, reference.log_probs, strict=True):
        groups.append(replace(group, facts={"reference": log_probs_of}))
    fitted = fit(work, trainer, groups, Preference(options.beta), work.folder)
    shown = sum(group.facts["shown"] for group in chosen.groups)
    return Distilled(
        data=sft.data,
        training=fitted.training.model_copy(update={"phases": {"sft": sft.training}}),
        precision=fitted.precision,
        precision_reason=fitted.precision_reason,
        notes={"pairs": chosen.counts.model_dump(mode="json"), "shown_earlier_answers": shown},
    )


METHOD = Method(
    select=correct_attempts,
    objective=lambda _student, setup: Preference(setup.options_of(Options).beta),
    options=Options,
    defaults={"epochs": 2},
    train=train,
    passes=2,
)

"""SMAGDi (arXiv 2511.05528): MAGDi on the steps of attempts, and two students, one who asks and one who solves.

    decomposer   question -> q_1 .. q_m                      cross-entropy
    solver       question, q_<=j, a_<j -> a_j                L = l1 L_lm + l2 L_node + l3 L_contrast + l4 L_align

    L_lm         cross-entropy of the steps of correct attempts
    L_node       right or wrong: cross-entropy over all steps, by a graph network on the solver's own embeddings
    L_contrast   margin ranking of right steps over wrong ones of the same question
    L_align      1 - cos(P h, stopgrad(e)): what the solver makes of a step (h) against what the network makes of it
                 in its graph (e)

Only the abstract is public; all of this is our choice, as are the weights 1, 1, 0.1, 0.1. A step is a line of what the
solver says, so also a call; a result is read by the next step. Its label is propagated from the answer: right where
some correct attempt begins with the same steps, wrong where its arithmetic or its call fails. Edges: each step to
the next of its attempt (continuity), the last step of an attempt to the first of the attempts that saw it.

Sub-questions: a call is asked for in words ("Which equation goes to solve?"); an attempt without calls is one step
(m = 1, the sub-question is the question). `decompositions` adds questions that people took apart: to the
decomposer always, to the solver where the file has answers and the student does not call tools. One agent alone
is no error here: its steps still have a graph. Both models are saved, each a plain folder, and answer as one
(`teams/topologies/socratic.py`). Left out: step labels from rollouts, a frozen sentence embedding for e.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from soloist.kernels.errors import UsageError
from soloist.targets.base import Message
from soloist.toolchain.core.config import Config
from soloist.toolchain.distill.data import Example, Group, Selection, encode, refuse_split, reject, selection
from soloist.toolchain.distill.decompositions import Decomposed, read_decompositions, taken_apart
from soloist.toolchain.distill.graph_network import (
    UNLABELED,
    GraphNetwork,
    Score,
    adjacency,
    judged,
    matrix,
    paired,
    pooled,
    ranked,
)
from soloist.toolchain.distill.methods.magdi import as_example, may_be_said, said
from soloist.toolchain.distill.model import Student
from soloist.toolchain.distill.objective import CrossEntropy, summed_cross_entropy
from soloist.toolchain.distill.packing import Batch
from soloist.toolchain.distill.steps import step_ends
from soloist.toolchain.distill.train import CHECKPOINTS, LOG
from soloist.toolchain.distill.work import Distilled, Fitted, Method, Select, Setup, Work, fit
from soloist.toolchain.student.artifact import DataFacts
from soloist.toolchain.teams.topologies.socratic import dialogue
from soloist.toolchain.traces.graph import Graph, Node, graph_of
from soloist.toolchain.traces.schema import Run

DECOMPOSER, SOLVER = "decomposer", "solver"
WRONG, CORRECT = 0, 1


class SmagdiOptions(Config):
    """Nothing of the method is published but its abstract: every default is our choice."""

    l1: float = Field(default=1.0, ge=0, description="weight of the cross-entropy of correct attempts")
    l2: float = Field(default=1.0, ge=0, description="weight of the classification of steps")
    l3: float = Field(default=0.1, ge=0, description="weight of the ranking of right steps over wrong ones")
    l4: float = Field(default=0.1, ge=0, description="weight of the alignment with the graph network's embedding")
    margin: float = Field(default=1.0, gt=0, description="by how much a right step must score higher")
    hidden: int = Field(default=512, ge=1, description="width of the graph network and of the score")
    dropout: float = Field(default=0.5, ge=0, lt=1, description="of the graph network, in training only")
    decompositions: Path | None = Field(
        default=None,
        description="file of questions with sub-questions: StrategyQA's JSON or GSM8K's Socratic JSON lines",
    )


def _options(setup: Setup) -> SmagdiOptions:
    assert isinstance(setup.options, SmagdiOptions)
    return setup.options


def check(options: SmagdiOptions) -> None:
    """Refuse what cannot work, before anything is recorded: a file of nothing usable, no weight at all."""
    if options.decompositions is not None:
        read_decompositions(options.decompositions)
    StepObjective(1, options)


# ---------------------------------------------------------------- sub-questions


def solver_messages(node: Node, question: str, setup: Setup) -> list[Message]:
    """An attempt as the solver's conversation: it never sees a later sub-question or answer."""
    if not node.uses:
        return said(node, question, setup)
    return dialogue(question, *taken_apart(node.uses, node.answer, setup.mode))


def decomposer_example(question: str, asked: Sequence[str], question_id: str, setup: Setup) -> Example:
    """A question, and its sub-questions, one a line."""
    messages: list[Message] = [
        {"role": "user", "content": question.strip()},
        {"role": "assistant", "content": "\n".join(asked)},
    ]
    return encode(messages, setup.tokenizer, question_id)


def _read(setup: Setup) -> tuple[list[Decomposed], Mapping[str, int]]:
    file = _options(setup).decompositions
    return ([], {}) if file is None else read_decompositions(file)


def select_decompositions(runs: Sequence[Run], setup: Setup) -> Selection:
    """The decomposer's conversations: one per run that may be learned from, and those of the file."""
    kept: list[Group] = []
    rejected: Counter[str] = Counter()
    written, refused = _read(setup)
    rejected.update({f"of the file: {reason}": count for reason, count in refused.items()})
    asked: list[tuple[str, Sequence[str], str]] = [(one.question, one.asked, one.id) for one in written]
    for run in runs:
        refuse_split(run)
        question = run.question.question.strip()
        reason = reject(run, setup.mode, setup.check_steps)
        if reason:
            rejected[reason] += 1
            continue
        texts = taken_apart(run.trajectory, run.answer, setup.mode)[0]
        asked.append((question, texts or [" ".join(question.split())], run.question.id))
    for question, sub_questions, question_id in asked:
        example = decomposer_example(question, sub_questions, question_id, setup)
        if len(example.ids) > setup.max_length:
            rejected[f"longer than {setup.max_length} tokens"] += 1
            continue
        kept.append(Group((example,)))
    return selection(kept, rejected, {"decompositions written by people": len(written)})


# ---------------------------------------------------------------- the graph of steps


@dataclass(frozen=True)
class Tried:
    """An attempt as the solver would have made it, and where its steps lie: (first place, place after) each."""

    node: Node
    example: Example
    steps: tuple[tuple[int, int], ...]


def step_spans(example: Example, tokenizer: Any, length: int) -> tuple[tuple[int, int], ...]:
    """The places of each step that the student computes: the line's own tokens, the conversation's last excepted."""
    spans = []
    before = -1
    for end in step_ends(example.ids, example.trained, tokenizer):
        start = end
        while start - 1 > before and example.trained[start - 1]:
            start -= 1
        before, stop = end, min(end + 1, length - 1)
        if start < stop and end < length:
            spans.append((start, stop))
    return tuple(spans)


def _tried(node: Node, run: Run, setup: Setup) -> Tried:
    messages = solver_messages(node, run.question.question, setup)
    whole = encode(messages, setup.tokenizer, run.question.id)
    example = as_example(messages, run.question.id, setup, learned=may_be_said(node, run, setup))
    return Tried(node, example, step_spans(whole, setup.tokenizer, len(example.ids)))


def select(runs: Sequence[Run], setup: Setup) -> Selection:
    """The solver's groups: one per question with a correct attempt, and the file's worked sub-questions.

    Raises:
        DataError: a question that may not be trained on; nothing left.
    """
    kept: list[Group] = []
    rejected: Counter[str] = Counter()
    for run in runs:
        refuse_split(run)
        group = _group(run, graph_of(run), setup)
        if isinstance(group, str):
            rejected[group] += 1
        else:
            kept.append(group)
    for one in _read(setup)[0]:
        if one.said and (setup.mode == "cot" or not any(run.trajectory for run in runs)):
            replies: list[list[Message]] = [[{"role": "assistant", "content": text}] for text in one.said]
            messages = dialogue(one.question, one.asked, replies)
            example = as_example(messages, one.id, setup, learned=True)
            if not example.targets:
                rejected[f"of the file: longer than {setup.max_length} tokens"] += 1
                continue
            kept.append(Group((example,), {"question": one.id, "steps": [], "labels": [], "edges": [], "pairs": []}))
    labels = Counter(label for group in kept for label in group.facts["labels"])
    names = {CORRECT: "steps right", WRONG: "steps wrong", UNLABELED: "steps ungraded"}
    return selection(kept, rejected, {name: labels[label] for label, name in names.items() if labels[label]})


def _group(run: Run, graph: Graph, setup: Setup) -> Group | str:
    verdicts = {node.verdict for node in graph.nodes}
    if not verdicts & {"correct", "wrong"}:
        return "no graded attempt"
    if "correct" not in verdicts:
        return "no correct attempt"
    tried = [_tried(node, run, setup) for node in graph.nodes]
    if not any(one.example.targets for one in tried):
        return f"no correct attempt of at most {setup.max_length} tokens that re-checks"
    labels = step_labels(tried, setup)
    places = [[conversation, *span] for conversation, one in enumerate(tried) for span in one.steps]
    right, wrong = ([i for i, label in enumerate(labels) if label == want] for want in (CORRECT, WRONG))
    facts = {
        "question": run.question.id,
        "steps": places,
        "labels": labels,
        "edges": step_edges(graph, tried),
        "pairs": paired(right, wrong),
    }
    return Group(tuple(one.example for one in tried), facts)


def step_labels(tried: Sequence[Tried], setup: Setup) -> list[int]:
    """Of every step, attempt by attempt: answer propagation, after re-checking."""
    reached = {one.example.ids[:stop] for one in tried if one.node.verdict == "correct" for _, stop in one.steps}
    labels = []
    for one in tried:
        for number, (start, stop) in enumerate(one.steps):
            if not _holds(one, number, start, stop, setup):
                labels.append(WRONG)
            elif one.example.ids[:stop] in reached:
                labels.append(CORRECT)
            else:
                labels.append(WRONG if one.node.verdict == "wrong" else UNLABELED)
    return labels


def _holds(one: Tried, number: int, start: int, stop: int, setup: Setup) -> bool:
    uses = one.node.uses
    if uses and setup.mode == "tools":
        use = uses[min(number, len(uses) - 1)]
        return use.error is None and setup.check_steps(use.steps)
    text = setup.tokenizer.decode(one.example.ids[start:stop], skip_special_tokens=True)
    return setup.check_steps([text])


def step_edges(graph: Graph, tried: Sequence[Tried]) -> list[list[int]]:
    """(source, target) between steps, counted through all attempts; every edge points forward in time."""
    first: list[int] = []
    count = 0
    for one in tried:
        first.append(count)
        count += len(one.steps)
    edges = [[at + i, at + i + 1] for at, one in zip(first, tried, strict=True) for i in range(len(one.steps) - 1)]
    for link in graph.links:
        if tried[link.source].steps and tried[link.target].steps:
            edges.append([first[link.source] + len(tried[link.source].steps) - 1, first[link.target]])
    return sorted(edges)


# ---------------------------------------------------------------- optimizing


class StepObjective:
    """l1 L_lm + l2 L_node + l3 L_contrast + l4 L_align, each over the whole step; a weight of 0 leaves its term out."""

    def __init__(self, width: int, options: SmagdiOptions, *, seed: int = 0) -> None:
        self.options = options
        weights = {"lm": options.l1, "nodes": options.l2, "contrast": options.l3, "align": options.l4}
        self.weights = {name: weight for name, weight in weights.items() if weight}
        if not self.weights:
            raise UsageError("method smagdi: no term has a weight above 0; set l1")
        self.names = tuple(self.weights)
        self.observed = ("node_accuracy", "majority_share") if "nodes" in self.weights else ()
        self.network = GraphNetwork(width, 2, hidden=options.hidden, dropout=options.dropout, seed=seed)
        self.score = Score(width, hidden=options.hidden, seed=seed + 1)
        self.projection = matrix(options.hidden, width, torch.Generator().manual_seed(seed + 2))

    @property
    def parameters(self) -> Sequence[tuple[str, nn.Parameter]]:
        network = self.network.parameters if "nodes" in self.weights else []
        score = self.score.parameters if "contrast" in self.weights else []
        return [*network, *score, *([("projection", self.projection)] if "align" in self.weights else [])]

    def counts(self, groups: Sequence[Group]) -> Mapping[str, float]:
        labels = Counter(label for group in groups for label in group.facts["labels"])
        every, unlabeled = labels.total(), labels.pop(UNLABELED, 0)
        return {
            "tokens": sum(example.weight for group in groups for example in group.examples),
            "steps": every,
            "nodes": every - unlabeled,
            "majority": max(labels.values(), default=0),
            "pairs": sum(len(group.facts["pairs"]) for group in groups),
        }

    def terms(self, student: Student, batch: Batch, counts: Mapping[str, float]) -> Mapping[str, Tensor]:
        if set(self.weights) == {"lm"}:
            logits, totals = student.logits(batch), {}
        else:
            logits, states = student.logits_and_states(batch)
            totals = self._of_graphs(states, batch, counts)
        if "lm" in self.weights:
            totals["lm"] = summed_cross_entropy(logits, batch.labels, batch.weights)
        divisors = {"lm": "tokens", "nodes": "nodes", "contrast": "pairs", "align": "steps"}
        shares = {name: totals[name] * (w / max(1.0, counts[divisors[name]])) for name, w in self.weights.items()}
        return shares | {name: totals[name] for name in self.observed}

    def _of_graphs(self, states: Tensor, batch: Batch, counts: Mapping[str, float]) -> dict[str, Tensor]:
        """The sums behind the other three terms, graph by graph, and the shares that are only watched."""
        nothing = states.float().sum() * 0.0  # a part without a graph has a gradient of zero
        sums = {"nodes": nothing, "contrast": nothing, "align": nothing}
        hits, seen = nothing.detach(), 0
        for places, facts in zip(batch.groups, batch.facts, strict=True):
            if not facts["steps"]:
                continue
            spans = [(places[conversation], start, stop) for conversation, start, stop in facts["steps"]]
            nodes = pooled(states, batch, spans)
            heard = adjacency(facts["edges"], len(nodes), nodes)
            encoded = self.network.encode(nodes, heard)
            logits = self.network.classify(encoded, heard, facts["question"])
            loss, right, labeled = judged(logits, torch.tensor(facts["labels"], device=nodes.device))
            sums["nodes"] = sums["nodes"] + loss
            hits, seen = hits + right, seen + labeled
            sums["contrast"] = sums["contrast"] + self._ranked(nodes, facts["pairs"])
            sums["align"] = sums["align"] + self._apart(nodes, encoded)
        nodes_of_step = max(1.0, counts["nodes"])
        share = counts["majority"] / nodes_of_step * seen / nodes_of_step
        return {**sums, "node_accuracy": hits / nodes_of_step, "majority_share": nothing.detach() + share}

    def _ranked(self, nodes: Tensor, pairs: Sequence[Sequence[int]]) -> Tensor:
        if not pairs:
            return nodes.sum() * 0.0
        scores, places = self.score(nodes), torch.tensor(pairs, device=nodes.device)
        return ranked(scores[places[:, 0]], scores[places[:, 1]], self.options.margin)

    def _apart(self, nodes: Tensor, encoded: Tensor) -> Tensor:
        """sum 1 - cos(P h, e); e is what is aimed at and learns nothing from it."""
        made = functional.linear(nodes, self.projection.to(nodes.dtype))
        distance: Tensor = (1 - functional.cosine_similarity(made, encoded.detach(), dim=1)).sum()
        return distance


def objective(student: Student, setup: Setup) -> StepObjective:
    """The solver's loss, for a student of this width."""
    return StepObjective(student.width, _options(setup), seed=setup.seed)


# ---------------------------------------------------------------- training the pair


class _Part(Fitted):
    """One of the two models: what it learned from, and its training."""

    data: DataFacts


def train(work: Work) -> Distilled:
    """The decomposer, then the solver, each into its own folder of the student's."""

    def part(name: str, choose: Select) -> _Part:
        def build(_: Path) -> _Part:
            folder = work.folder / name
            trainer = work.trainer()
            setup = work.setup(trainer.student.tokenizer)
            chosen = work.chosen(setup, choose)
            loss = objective(trainer.student, setup) if name == SOLVER else CrossEntropy()
            fitted = fit(work, trainer, chosen.groups, loss, folder)
            if work.processes.main:
                shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
            return _Part(data=chosen.counts, **dict(fitted))

        return work.phase(name, _Part, build)[1]

    asked = part(DECOMPOSER, select_decompositions)
    solved = part(SOLVER, select)
    if work.processes.main:
        shutil.copyfile(work.folder / SOLVER / LOG, work.folder / LOG)
    return Distilled(
        data=solved.data,
        training=solved.training.model_copy(update={"phases": {DECOMPOSER: asked.training}}),
        precision=solved.precision,
        precision_reason=solved.precision_reason,
        parts=(DECOMPOSER, SOLVER),
        notes={DECOMPOSER: asked.data.model_dump(mode="json")},
    )


METHOD = Method(select=select, objective=objective, options=SmagdiOptions, train=train, passes=2, check=check)

"""SMAGDi (arXiv 2511.05528): MAGDi on the steps of attempts, and two students: a decomposer and a solver.

    decomposer   question -> q_1 .. q_m                      cross-entropy
    solver       question, q_<=j, a_<j -> a_j                L = l1 L_lm + l2 L_node + l3 L_contrast + l4 L_align

    L_lm         cross-entropy of the steps of correct attempts
    L_node       right or wrong: cross-entropy over all steps, by a graph network on the solver's own embeddings
    L_contrast   margin ranking of right steps over wrong ones of the same question
    L_align      1 - cos(P h, stopgrad(e)): the solver's embedding of a step (h) against the network's embedding of
                 it in its graph (e)

Only the abstract is public; all of this is our choice, as are the weights 1, 1, 0.1, 0.1. A step is a line of the
solver's own turns, so also a call; a result is read by the next step. Its label is propagated from the answer: right
where some correct attempt begins with the same steps, wrong where its arithmetic or its call fails. Edges: each step
to the next of its attempt (continuity), the last step of an attempt to the first of the attempts that saw it.

Sub-questions: a call answers one in words ("Which equation goes to solve?"); an attempt without calls is one step
(m = 1, the sub-question is the question). `decompositions` adds questions that people took apart: to the
decomposer always, to the solver where the file has answers and the student does not call tools. One agent alone
is no error here: its steps still have a graph. Both models are saved, each a plain folder, and answer as one
(`teams/topologies/socratic.py`). Left out: step labels from rollouts, a frozen sentence embedding for e.
"""

from __future__ import annotations

import shutil
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from soloist.kernels.errors import UsageError
from soloist.targets.base import Message
from soloist.toolchain.core.config import Config
from soloist.toolchain.distill.data import (
    Example,
    Group,
    Selection,
    encode,
    refuse_split,
    reject,
    selection,
    total_weight,
)
from soloist.toolchain.distill.decompositions import Decomposed, read_decompositions, taken_apart
from soloist.toolchain.distill.graph_network import (
    UNLABELED,
    GraphNetwork,
    Score,
    adjacency,
    judged,
    label_counts,
    matrix,
    paired,
    pooled,
    ranked_pairs,
)
from soloist.toolchain.distill.methods.magdi import as_example, attempt_messages, imitated
from soloist.toolchain.distill.model import Student
from soloist.toolchain.distill.objective import CrossEntropy, summed_cross_entropy
from soloist.toolchain.distill.packing import Batch
from soloist.toolchain.distill.step_graph import CORRECT, WRONG, SteppedAttempt, step_edges, step_labels, step_spans
from soloist.toolchain.distill.train import CHECKPOINTS, LOG
from soloist.toolchain.distill.work import Distilled, Fitted, Method, Select, Setup, Work, fit
from soloist.toolchain.student.artifact import DataFacts
from soloist.toolchain.teams.topologies.socratic import dialogue
from soloist.toolchain.traces.graph import Graph, Node, graph_of
from soloist.toolchain.traces.schema import Run

DECOMPOSER, SOLVER = "decomposer", "solver"


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


def check(options: SmagdiOptions) -> None:
    """Refuse what cannot work, before anything is recorded: a file of nothing usable, no weight at all."""
    if options.decompositions is not None:
        read_decompositions(options.decompositions)
    StepObjective(1, options)


# ---------------------------------------------------------------- sub-questions


def solver_messages(node: Node, question: str, setup: Setup) -> list[Message]:
    """An attempt as the solver's conversation: it never sees a later sub-question or answer."""
    if not node.uses:
        return attempt_messages(node, question, setup)
    return dialogue(question, *taken_apart(node.uses, node.answer, setup.mode))


def decomposer_example(question: str, sub_questions: Sequence[str], question_id: str, setup: Setup) -> Example:
    """A question, and its sub-questions, one a line."""
    messages: list[Message] = [
        {"role": "user", "content": question.strip()},
        {"role": "assistant", "content": "\n".join(sub_questions)},
    ]
    return encode(messages, setup.tokenizer, question_id)


def _read(setup: Setup) -> tuple[list[Decomposed], Mapping[str, int]]:
    file = setup.options_of(SmagdiOptions).decompositions
    return ([], {}) if file is None else read_decompositions(file)


def select_decompositions(runs: Sequence[Run], setup: Setup) -> Selection:
    """The decomposer's conversations: one per run that may be learned from, and those of the file."""
    kept: list[Group] = []
    rejected: Counter[str] = Counter()
    written, refused = _read(setup)
    for reason, count in refused.items():
        rejected[f"of the file: {reason}"] = count
    examples = [decomposer_example(one.question, one.sub_questions, one.id, setup) for one in written]
    for run in runs:
        refuse_split(run)
        question = run.question.question.strip()
        flaw = reject(run, setup.mode, setup.check_steps)
        if flaw:
            rejected[flaw] += 1
            continue
        sub_questions = taken_apart(run.trajectory, run.answer, setup.mode)[0] or [" ".join(question.split())]
        examples.append(decomposer_example(question, sub_questions, run.question.id, setup))
    for example in examples:
        if len(example.ids) > setup.max_length:
            rejected[f"longer than {setup.max_length} tokens"] += 1
            continue
        kept.append(Group((example,)))
    return selection(kept, rejected, {"decompositions written by people": len(written)})


# ---------------------------------------------------------------- selecting


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
        if one.answers and (setup.mode == "cot" or not any(run.trajectory for run in runs)):
            replies: list[list[Message]] = [[{"role": "assistant", "content": text}] for text in one.answers]
            messages = dialogue(one.question, one.sub_questions, replies)
            example = as_example(messages, one.id, setup, learned=True)
            if not example.targets:
                rejected[f"of the file: longer than {setup.max_length} tokens"] += 1
                continue
            kept.append(Group((example,), {"question": one.id, "steps": [], "labels": [], "edges": [], "pairs": []}))
    labels, notes = label_counts(kept), {}
    for label, name in ((CORRECT, "steps right"), (WRONG, "steps wrong"), (UNLABELED, "steps ungraded")):
        if labels[label]:
            notes[name] = labels[label]
    return selection(kept, rejected, notes)


def _group(run: Run, graph: Graph, setup: Setup) -> Group | str:
    verdicts = {node.verdict for node in graph.nodes}
    if not verdicts & {"correct", "wrong"}:
        return "no graded attempt"
    if "correct" not in verdicts:
        return "no correct attempt"
    attempts, examples, places = [], [], []
    for conversation, node in enumerate(graph.nodes):
        messages = solver_messages(node, run.question.question, setup)
        whole = encode(messages, setup.tokenizer, run.question.id)
        example = as_example(messages, run.question.id, setup, learned=imitated(node, run, setup))
        examples.append(example)
        attempts.append(SteppedAttempt(node, example, step_spans(whole, setup.tokenizer, len(example.ids))))
        for start, stop in attempts[-1].steps:
            places.append([conversation, start, stop])
    group = Group(tuple(examples))
    if not group.targets:
        return f"no correct attempt of at most {setup.max_length} tokens that re-checks"
    labels = step_labels(attempts, setup)
    by_label: dict[int, list[int]] = defaultdict(list)
    for step, label in enumerate(labels):
        by_label[label].append(step)
    facts = {
        "question": run.question.id,
        "steps": places,
        "labels": labels,
        "edges": step_edges(graph, attempts),
        "pairs": paired(by_label[CORRECT], by_label[WRONG]),
    }
    return replace(group, facts=facts)


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
        labels = label_counts(groups)
        every, unlabeled = labels.total(), labels.pop(UNLABELED, 0)
        return {
            "tokens": total_weight(groups),
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
        terms = {}
        for name, weight in self.weights.items():
            terms[name] = totals[name] * (weight / max(1.0, counts[divisors[name]]))
        for name in self.observed:
            terms[name] = totals[name]
        return terms

    def _of_graphs(self, states: Tensor, batch: Batch, counts: Mapping[str, float]) -> dict[str, Tensor]:
        """The sums behind the other three terms, graph by graph, and the shares that are only logged."""
        nothing = states.float().sum() * 0.0  # a part without a graph has a gradient of zero
        sums = {"nodes": nothing, "contrast": nothing, "align": nothing}
        hits, seen = nothing.detach(), 0
        for places, facts in zip(batch.groups, batch.facts, strict=True):
            if not facts["steps"]:
                continue
            spans = [(places[conversation], start, stop) for conversation, start, stop in facts["steps"]]
            nodes = pooled(states, batch, spans)
            adjacent = adjacency(facts["edges"], len(nodes), nodes)
            encoded = self.network.encode(nodes, adjacent)
            logits = self.network.classify(encoded, adjacent, facts["question"])
            loss, right, labeled = judged(logits, torch.tensor(facts["labels"], device=nodes.device))
            sums["nodes"] = sums["nodes"] + loss
            hits, seen = hits + right, seen + labeled
            sums["contrast"] = sums["contrast"] + ranked_pairs(self.score, nodes, facts["pairs"], self.options.margin)
            made = functional.linear(nodes, self.projection.to(nodes.dtype))
            apart = 1 - functional.cosine_similarity(made, encoded.detach(), dim=1)  # e learns nothing from it
            sums["align"] = sums["align"] + apart.sum()
        nodes_of_step = max(1.0, counts["nodes"])
        share = counts["majority"] / nodes_of_step * seen / nodes_of_step
        return {**sums, "node_accuracy": hits / nodes_of_step, "majority_share": nothing.detach() + share}


def objective(student: Student, setup: Setup) -> StepObjective:
    """The solver's loss, for a student of this width."""
    return StepObjective(student.width, setup.options_of(SmagdiOptions), seed=setup.seed)


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

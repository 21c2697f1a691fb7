"""MAGDi (Chen et al., ICML 2024, arXiv 2402.01620): a student learns from the whole interaction graph of a team.

    L = alpha L+ + beta L_I + gamma L-

    L+    cross-entropy of the correct attempts' own tokens (question, tool results and wrong attempts are only read)
    L_I   right, wrong or absent: cross-entropy over the nodes, by a graph network on the student's own embeddings
    L-    margin ranking: a correct attempt must score higher than a wrong one to the same question

A group is one question's graph: agents x rounds, each node an attempt as a conversation of the student's. An agent
without an attempt is the bare question, labeled absent. An attempt nobody graded stays in the graph without a label.
A correct attempt that is too long, contains a failed call or a step that does not re-check, or holds nothing beside
whom it agrees with, is a node, but is not imitated.
Embeddings come from the student being trained (`graph_network.embed`), prompt included as in the paper's code,
so L_I and L- shape it; network and score are thrown away afterwards.

`released` follows the published code (dinobby/MAGDi @fd25471) where that can be compared: node embeddings
without gradient, cross-entropy on the prompt too, edges of the full grid pointing backwards in time wherever
a later agent writes to an earlier one (9 of 27 for 3 x 4). Left out of it: graphs assigned to other questions,
embeddings that depend on the padding of the batch, and embeddings of the untrained base.

Ours, not the paper's: teams of any size, the width of the score's hidden layer, one learning rate for all.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from soloist.kernels.errors import DataError, UsageError
from soloist.targets.base import Message
from soloist.toolchain.core.config import Config
from soloist.toolchain.distill.data import (
    Example,
    Group,
    Selection,
    encode,
    examples_of,
    flaw,
    messages_of,
    refuse_split,
    selection,
    total_weight,
)
from soloist.toolchain.distill.graph_network import (
    UNLABELED,
    GraphNetwork,
    Score,
    adjacency,
    embed,
    judged,
    label_counts,
    paired,
    ranked_pairs,
)
from soloist.toolchain.distill.model import Student
from soloist.toolchain.distill.objective import summed_cross_entropy
from soloist.toolchain.distill.packing import Batch
from soloist.toolchain.distill.work import Method, Setup
from soloist.toolchain.student.artifact import Variant
from soloist.toolchain.traces.graph import Graph, Node, graph_of
from soloist.toolchain.traces.schema import Run

WRONG, CORRECT, ABSENT, UNGRADED = 0, 1, 2, UNLABELED
_LABELS = {"wrong": WRONG, "correct": CORRECT}
_STANCE = re.compile(r"(?:^[ \t]*|(?<=[.!?][ \t]))I (?:dis)?agree\b.*?(?:[.!?](?=\s|$)|$)[ \t]*", re.MULTILINE)


class MagdiOptions(Config):
    """The paper's values are the defaults."""

    level: Literal[1, 2, 3, 4] = Field(
        default=4,
        description="ablation ladder: 1 correct attempts of the first round, 2 all correct ones, 3 and wrong ones "
        "(ranking), 4 and the graph",
    )
    alpha: float = Field(default=1.0, ge=0, description="weight of the cross-entropy of correct attempts")
    beta: float = Field(default=1.0, ge=0, description="weight of the node classification")
    gamma: float = Field(default=0.1, ge=0, description="weight of the ranking")
    margin: float = Field(default=1.0, gt=0, description="by how much a correct attempt must score higher")
    hidden: int = Field(default=512, ge=1, description="width of the graph network; of the score too (our choice)")
    dropout: float = Field(default=0.5, ge=0, lt=1, description="of the graph network, in training only")
    edges: Literal["grid", "run"] = Field(
        default="grid",
        description="grid: from everybody to everybody in the next round (the paper); run: who saw whom",
    )
    grid: Literal["team", "run"] = Field(
        default="team",
        description="nodes are all agents and rounds of the team, absent ones included (the paper), or of this run",
    )


# ---------------------------------------------------------------- selecting


@dataclass(frozen=True)
class Grid:
    """The cells of a graph, agent by agent: cell = agent's number * len(columns) + column's number.

    A column is a round; where an agent tried several times in one round (a desk that asks other
    specialists), it is a count of attempts.
    """

    agents: tuple[str, ...]
    columns: tuple[int, ...]
    by_round: bool

    @classmethod
    def of(cls, graphs: Sequence[Graph]) -> Grid:
        """The smallest grid that holds these graphs."""
        agents, rounds, attempts = set(), set(), set()
        by_round = True
        for graph in graphs:
            cells = set()
            for node in graph.nodes:
                agents.add(node.agent)
                rounds.add(node.turns[-1].round)
                attempts.add(node.attempt)
                cells.add((node.agent, node.turns[-1].round))
            by_round = by_round and len(cells) == len(graph.nodes)
        return cls(tuple(sorted(agents)), tuple(sorted(rounds if by_round else attempts)), by_round)

    def cell(self, node: Node) -> int:
        column = self.columns.index(node.turns[-1].round if self.by_round else node.attempt)
        return self.agents.index(node.agent) * len(self.columns) + column

    def column(self, cell: int) -> int:
        return cell % len(self.columns)

    def __len__(self) -> int:
        return len(self.agents) * len(self.columns)


def grid_edges(agents: int, rounds: int, variant: Variant = "paper") -> list[list[int]]:
    """(source, target) from every cell of a round to every cell of the next: n(R-1) + n(n-1)(R-1) edges.

    `released` turns those around that lead from a later agent to an earlier one.
    """
    edges = []
    for column in range(rounds - 1):
        for source in range(agents):
            for target in range(agents):
                edge = [source * rounds + column, target * rounds + column + 1]
                edges.append(edge[::-1] if variant == "released" and source > target else edge)
    return sorted(edges)


def without_stance(text: str) -> str:
    """A text without the sentences in which an agent agrees or disagrees: alone, a student has nobody to agree with."""
    return _STANCE.sub("", text).strip()


def attempt_messages(node: Node, question: str, setup: Setup) -> list[Message]:
    """An attempt as a conversation of the student's."""
    text = without_stance(node.text)
    messages = messages_of(question, node.uses, text, node.answer, setup.mode)
    return messages or _exchange(question, text or node.text)


def _exchange(question: str, text: str) -> list[Message]:
    return [{"role": "user", "content": question.strip()}, {"role": "assistant", "content": text.strip()}]


def imitated(node: Node, run: Run, setup: Setup) -> bool:
    """Whether an attempt is fit to be imitated: correct, by a way that holds and that the student can take."""
    text = without_stance(node.text)
    messages = messages_of(run.question.question, node.uses, text, node.answer, setup.mode)
    if node.verdict != "correct" or messages is None:
        return False
    return flaw(run.question, node.uses, text, setup.mode, setup.check_steps) is None


def as_example(messages: Sequence[Message], question_id: str, setup: Setup, *, learned: bool) -> Example:
    """A conversation of at most `max_length` tokens; one that was cut, or is not to be learned, is only read."""
    example = encode(messages, setup.tokenizer, question_id)
    whole = len(example.ids) <= setup.max_length
    if learned and whole:
        every = (False,) + (True,) * (len(example.ids) - 1)
        return replace(example, trained=every) if setup.variant == "released" else example
    ids = example.ids[: setup.max_length]
    return replace(example, ids=ids, trained=(False,) * len(ids))


def select(runs: Sequence[Run], setup: Setup) -> Selection:
    """One group per question with a correct attempt.

    Raises:
        DataError: no run with several agents; a question that may not be trained on; nothing left.
    """
    graphs = []
    teams: dict[str, list[Graph]] = defaultdict(list)
    for run in runs:
        refuse_split(run)
        graph = graph_of(run)
        graphs.append((run, graph))
        teams[run.team].append(graph)
    grids = {team: Grid.of(of_team) for team, of_team in teams.items()}
    if grids and all(len(grid.agents) < 2 for grid in grids.values()):
        raise DataError(
            f"magdi learns from several agents who try the same question; in these {len(graphs)} traces at most one "
            "agent of a team answers. Record a debate or a desk, or use method sft"
        )
    kept: list[Group] = []
    rejected: Counter[str] = Counter()
    for run, graph in graphs:
        grid = grids[run.team] if setup.options_of(MagdiOptions).grid == "team" else Grid.of([graph])
        group = _group(run, graph, grid, setup)
        if isinstance(group, str):
            rejected[group] += 1
        else:
            kept.append(group)
    labels, notes = label_counts(kept), {}
    for label, name in ((CORRECT, "correct"), (WRONG, "wrong"), (ABSENT, "absent"), (UNGRADED, "ungraded")):
        if labels[label]:
            notes[f"nodes {name}"] = labels[label]
    notes["learned"] = sum(example.targets > 0 for example in examples_of(kept))
    return selection(kept, rejected, notes)


def _group(run: Run, graph: Graph, grid: Grid, setup: Setup) -> Group | str:
    """A question's graph, or why there is none."""
    level, question = setup.options_of(MagdiOptions).level, run.question.question
    cells: list[Node | None] = [None] * len(grid)
    for attempt in graph.nodes:
        cells[grid.cell(attempt)] = attempt
    labels, eligible = [], set()
    for cell, node in enumerate(cells):
        labels.append(ABSENT if node is None else _LABELS.get(node.verdict, UNGRADED))
        if level > 1 or not grid.column(cell):
            eligible.add(labels[cell])
    if len(grid.agents) < 2:
        return "one agent only"
    if not {WRONG, CORRECT} & set(labels):
        return "no graded attempt"
    if CORRECT not in eligible:
        return "no correct attempt" + (" in the first round" if level == 1 else "")
    examples: list[Example] = []
    of_cell: dict[int, int] = {}
    absent: int | None = None
    for cell, node in enumerate(cells):
        if not _needed(labels[cell], grid.column(cell), level):
            continue
        if node is None and absent is not None:
            of_cell[cell] = absent
            continue
        messages = _exchange(question, "") if node is None else attempt_messages(node, question, setup)
        learned = node is not None and imitated(node, run, setup)
        of_cell[cell] = len(examples)
        absent = len(examples) if node is None else absent
        examples.append(as_example(messages, run.question.id, setup, learned=learned))
    if not any(example.targets for example in examples):
        return f"no correct attempt of at most {setup.max_length} tokens that re-checks"
    return Group(tuple(examples), _facts(run, graph, grid, labels, of_cell, setup))


def _needed(label: int, column: int, level: int) -> bool:
    if level == 4:
        return True
    return (label == CORRECT and (level > 1 or column == 0)) or (label == WRONG and level == 3)


def _facts(
    run: Run, graph: Graph, grid: Grid, labels: Sequence[int], of_cell: Mapping[int, int], setup: Setup
) -> dict[str, Any]:
    """What the terms need: conversations of the cells, their labels, edges between cells, pairs of conversations."""
    options = setup.options_of(MagdiOptions)
    facts: dict[str, Any] = {"question": run.question.id}
    if options.level >= 3:
        by_label: dict[int, list[int]] = defaultdict(list)
        for cell, label in enumerate(labels):
            if cell in of_cell:
                by_label[label].append(of_cell[cell])
        facts["pairs"] = paired(by_label[CORRECT], by_label[WRONG])
    if options.level == 4:
        facts["nodes"] = [of_cell[cell] for cell in range(len(grid))]
        facts["labels"] = list(labels)
        if options.edges == "grid":
            facts["edges"] = grid_edges(len(grid.agents), len(grid.columns), setup.variant)
        else:
            facts["edges"] = []
            for link in graph.links:
                source, target = graph.nodes[link.source], graph.nodes[link.target]
                facts["edges"].append([grid.cell(source), grid.cell(target)])
    return facts


# ---------------------------------------------------------------- optimizing


class GraphObjective:
    """alpha L+ + beta L_I + gamma L-, each averaged over the whole step; a term of weight 0 is not computed."""

    def __init__(self, width: int, options: MagdiOptions, *, variant: Variant = "paper", seed: int = 0) -> None:
        self.options, self.variant = options, variant
        weights = {
            "lm": options.alpha,
            "nodes": options.beta if options.level == 4 else 0.0,
            "margin": options.gamma if options.level >= 3 else 0.0,
        }
        self.weights = {name: weight for name, weight in weights.items() if weight}
        if not self.weights:
            raise UsageError(f"method magdi: no term of level {options.level} has a weight above 0; set alpha")
        self.names = tuple(self.weights)
        self.observed = ("node_accuracy", "majority_share") if "nodes" in self.weights else ()
        self.network = GraphNetwork(width, 3, hidden=options.hidden, dropout=options.dropout, seed=seed)
        self.score = Score(width, hidden=options.hidden, seed=seed + 1)

    @property
    def parameters(self) -> Sequence[tuple[str, nn.Parameter]]:
        network = self.network.parameters if "nodes" in self.weights else []
        return [*network, *(self.score.parameters if "margin" in self.weights else [])]

    def counts(self, groups: Sequence[Group]) -> Mapping[str, float]:
        labels = label_counts(groups)
        labels.pop(UNGRADED, None)
        return {
            "tokens": total_weight(groups),
            "nodes": labels.total(),
            "majority": max(labels.values(), default=0),
            "pairs": sum(len(group.facts.get("pairs", ())) for group in groups),
        }

    def terms(self, student: Student, batch: Batch, counts: Mapping[str, float]) -> Mapping[str, Tensor]:
        if set(self.weights) == {"lm"}:
            return self._imitated(student.logits(batch), batch, counts)
        logits, states = student.logits_and_states(batch)
        embedded = embed(states, batch)
        terms = self._imitated(logits, batch, counts)
        if "nodes" in self.weights:
            terms |= self._classified(embedded, batch, counts)
        if "margin" in self.weights:
            pairs = []
            for places, facts in zip(batch.groups, batch.facts, strict=True):
                for better, worse in facts["pairs"]:
                    pairs.append([places[better], places[worse]])
            total = ranked_pairs(self.score, embedded, pairs, self.options.margin)
            terms["margin"] = total * (self.options.gamma / max(1.0, counts["pairs"]))
        return terms

    def _imitated(self, logits: Tensor, batch: Batch, counts: Mapping[str, float]) -> dict[str, Tensor]:
        if "lm" not in self.weights:
            return {}
        total = summed_cross_entropy(logits, batch.labels, batch.weights)
        return {"lm": total * (self.options.alpha / counts["tokens"])}

    def _classified(self, embedded: Tensor, batch: Batch, counts: Mapping[str, float]) -> dict[str, Tensor]:
        """L_I, and beside it the share of nodes that the network gets right and that of the largest class."""
        loss, hits, seen = embedded.new_zeros(()), embedded.new_zeros(()), 0
        source = embedded.detach() if self.variant == "released" else embedded
        for logits, labels in self.node_logits(source, batch, training=True):
            more, right, labeled = judged(logits, labels)
            loss, hits, seen = loss + more, hits + right, seen + labeled
        nodes = max(1.0, counts["nodes"])
        share = counts["majority"] / nodes * seen / nodes
        return {
            "nodes": loss * (self.options.beta / nodes),
            "node_accuracy": hits / nodes,
            "majority_share": embedded.new_tensor(share),
        }

    def node_logits(self, embedded: Tensor, batch: Batch, *, training: bool) -> list[tuple[Tensor, Tensor]]:
        """Of every graph of a batch: what the network says of each node (n, 3), and its label (n,)."""
        graphs = []
        for places, facts in zip(batch.groups, batch.facts, strict=True):
            nodes = embedded[[places[conversation] for conversation in facts["nodes"]]]
            adjacent = adjacency(facts["edges"], len(nodes), nodes)
            encoded = self.network.encode(nodes, adjacent)
            logits = self.network.classify(encoded, adjacent, facts["question"] if training else None)
            graphs.append((logits, torch.tensor(facts["labels"], device=nodes.device)))
        return graphs


def check(options: MagdiOptions) -> None:
    """Refuse options that leave nothing to learn, before anything is recorded."""
    GraphObjective(1, options)


def objective(student: Student, setup: Setup) -> GraphObjective:
    """The loss for a student of this width."""
    return GraphObjective(student.width, setup.options_of(MagdiOptions), variant=setup.variant, seed=setup.seed)


METHOD = Method(select=select, objective=objective, options=MagdiOptions, released=True, check=check)

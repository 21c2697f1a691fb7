"""KG-MASD (arXiv 2510.06240), its training side: only what a knowledge graph bears out is learned.

    run ── its triples (calls with results, facts in the working, facts in texts) ── verified? ── drop, weigh or keep
    input    Facts: (spider, has legs, 8) ...  + question          loss    cross-entropy of reasoning and answer

The team that extracts and verifies triples while it answers is `topology: kg`; runs of any other team are
verified here. A run with a triple that is not verified is dropped, or weighs `unverified_weight` (both from the
description of the method; the 0.3 is our choice, nothing is published). `unverified: keep` is the baseline.

The facts put before the question are those the graph holds about what the question names, not the triples of
the run: a call with its result would give the answer away, and at run time there is no run. The graph is saved
beside the student, and whoever asks the student through Soloist puts the same facts in (`knowledge/context.py`).
`context` is on as in the paper where the student must know (`cot`). Where it calls tools it is off, our choice:
the tool holds the facts, the call needs none, and every fact costs tokens of each question.
Tuning is that of all methods here, not the LoRA of the paper's experiments, so that methods can be compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from soloist.toolchain.core.config import Config
from soloist.toolchain.distill.data import Group, Selection, conversation, encode, refuse_split, reject, selection
from soloist.toolchain.distill.objective import CrossEntropy
from soloist.toolchain.distill.work import Distilled, Method, Setup, Work
from soloist.toolchain.knowledge.annotate import annotated
from soloist.toolchain.knowledge.context import FILE, informed
from soloist.toolchain.knowledge.files import DESK, find_graph
from soloist.toolchain.knowledge.graph import KnowledgeGraph
from soloist.toolchain.knowledge.verify import Judgment, rates
from soloist.toolchain.student.artifact import Mode
from soloist.toolchain.tools.files import SHIPPED, load_tools
from soloist.toolchain.traces.schema import Run


class Options(Config):
    """Options of KG-MASD."""

    graph: Path | None = Field(
        default=None, description="triples file (.tsv, .jsonl, .json); none, or `desk`: the desk's tables"
    )
    unverified: Literal["drop", "weight", "keep"] = Field(
        default="drop", description="what becomes of a run with a triple that is not verified"
    )
    unverified_weight: float = Field(default=0.3, gt=0, le=1, description="its weight under `weight` (ours)")
    context: bool | None = Field(
        default=None, description="facts before the question (the paper's); unset: only in mode cot (ours)"
    )
    tools: tuple[str, ...] = Field(
        default=(), description="entry points of own tools whose calls may be run again, beside the desk's"
    )

    @field_validator("graph", mode="before")
    @classmethod
    def _by_name(cls, value: object) -> object:
        return None if value == DESK else value

    def knowledge(self) -> KnowledgeGraph:
        """The graph. Raises DataError if it cannot be read or is empty."""
        return find_graph(str(self.graph or DESK)).require_facts()

    def informs(self, mode: Mode) -> bool:
        """Whether facts stand before the question."""
        return mode == "cot" if self.context is None else self.context


def select(runs: Sequence[Run], setup: Setup) -> Selection:
    """Runs that pass rejection sampling and whose triples are verified; the rates are of all runs."""
    options = setup.options_of(Options)
    graph, tools = options.knowledge(), load_tools((SHIPPED, *options.tools))
    kept: list[Group] = []
    rejected: Counter[str] = Counter()
    judgments: list[Judgment] = []
    counted: Counter[str] = Counter()
    for run in runs:
        refuse_split(run)
        annotation = annotated(run, graph, tools=tools)
        judgments += annotation.judgments
        reason = reject(run, setup.mode, setup.check_steps)
        if not reason and not annotation.clean and options.unverified == "drop":
            reason = "a triple that is not verified"
        messages = None if reason else conversation(run, setup.mode)
        if messages is None:
            rejected[reason or "nothing to learn from"] += 1
            continue
        shown = informed(messages, graph) if options.informs(setup.mode) else messages
        example = encode(shown, setup.tokenizer, run.question.id)
        if len(example.ids) > setup.max_length:
            rejected[f"longer than {setup.max_length} tokens"] += 1
            continue
        if not annotation.clean and options.unverified == "weight":
            example = replace(example, weights=(options.unverified_weight,) * len(example.ids))
        counted.update(informed=shown != messages, unverified=not annotation.clean)
        kept.append(Group((example,)))
    notes = {
        **rates(judgments).as_facts(),
        "graph": graph.digest,
        "graph_facts": len(graph),
        "with_facts": counted["informed"],
        "with_an_unverified_triple": counted["unverified"],
    }
    return selection(kept, rejected, notes)


def train(work: Work) -> Distilled:
    """One pass; the graph is put beside a student that needs its facts in every prompt."""
    options: Options = work.options
    made = work.once()
    informs = options.informs(work.mode)
    if informs and work.processes.main:
        options.knowledge().save(work.folder / FILE)
    return made.model_copy(update={"context": informs})


METHOD = Method(
    select=select,
    objective=lambda _student, _setup: CrossEntropy(),
    options=Options,
    train=train,
    check=Options.knowledge,
)

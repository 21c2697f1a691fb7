"""AgentArk's process-aware distillation (PAD, arXiv 2602.03955): learn which steps are good, then practice.

    1. sft        a first student on the verified trajectories (`start: base` leaves this out, as the paper does)
    2. labels     every step of every attempt gets a label (`steps.py`)
    3. prm-head   a reward model from the first student: its last block and a reward head
    4. prm-all    the same model, all weights
    5. grpo-…     the first student practices by GRPO: reward = softmin of its steps' scores + verified answer

Each phase, and of labels and GRPO each part, is done once and survives a kill. The first student is needed
because a base of our size solves nothing before it is trained, and practice without a success has no gradient;
the paper begins with models that already solve half of the questions. `--variant released` follows the
published code: answer labels on every step that re-checking does not refute, cross-entropy on them, head and
last block only, advantages per step against a token baseline. Its other defects (whole solutions as steps, a
contrastive term that reaches no trained weight) are not repeated.
"""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field

from soloist.kernels.errors import DataError, UsageError
from soloist.targets.base import require
from soloist.toolchain.core.artifact import Facts
from soloist.toolchain.core.files import write_atomic
from soloist.toolchain.distill.data import Example, Group, Selection, reasons, refuse_split
from soloist.toolchain.distill.full_precision import fit_exact, save_exact
from soloist.toolchain.distill.grpo import GrpoConfig, Judge, Practice, Segment, Update, turn_tokens
from soloist.toolchain.distill.methods.attempts import conversation_of, other_kind
from soloist.toolchain.distill.methods.sft import verified
from soloist.toolchain.distill.model import Student, choose_precision, frozen, load_base
from soloist.toolchain.distill.objective import CrossEntropy
from soloist.toolchain.distill.prm import (
    Binary,
    Pairwise,
    RewardHead,
    RewardModel,
    compared,
    rated_group,
    train_last_block_only,
)
from soloist.toolchain.distill.rollouts import Sampler
from soloist.toolchain.distill.steps import Labeller, Tried, step_ends
from soloist.toolchain.distill.train import LOG, Trained
from soloist.toolchain.distill.work import Distilled, Method, Setup, Work
from soloist.toolchain.student.artifact import DataFacts, TrainingFacts
from soloist.toolchain.tasks.base import Question
from soloist.toolchain.tools.base import Toolbox
from soloist.toolchain.tools.files import SHIPPED, load_tools
from soloist.toolchain.traces.graph import graph_of
from soloist.toolchain.traces.schema import Run

_LABELLED_AT_ONCE = 16  # questions, and so what a kill while labelling repeats


class Options(GrpoConfig):
    """Of PAD's three parts; TrainConfig is that of the first student."""

    start: Literal["sft", "base"] = Field(default="sft", description="practice from a trained student (our choice)")
    tools: tuple[str, ...] = Field(
        default=(SHIPPED,),
        description="entry points of the tools it calls, as in the team's file (default: the desk's)",
    )
    rollouts: int = Field(default=8, ge=0, description="completions per step label (Math-Shepherd); 0: answer labels")
    labeled: int | None = Field(
        default=None, ge=1, description="disputed questions to label, drawn at random (default: all, as the paper)"
    )
    labels: Literal["soft", "hard"] = Field(default="soft", description="share of completions, or any (our choice)")
    head_epochs: int = Field(default=3, ge=1, description="of the reward model's first stage (released)")
    head_learning_rate: float = Field(default=1e-4, gt=0, description="of the first stage (released)")
    all_epochs: int = Field(default=1, ge=0, description="of the second stage, all weights (PURE's); 0 leaves it out")
    all_learning_rate: float = Field(default=1e-6, gt=0, description="of the second stage (PURE's)")


def attempts(runs: Sequence[Run], setup: Setup) -> Selection:
    """Each disputed run's graded attempts as one group; facts: `run`, and of its conversations `nodes` and `right`.

    Raises:
        DataError: no question with both a right and a wrong attempt.
    """
    kept: list[Group] = []
    rejected: Counter[str] = Counter()
    for number, run in enumerate(runs):
        refuse_split(run)
        examples: dict[tuple[int, ...], Example] = {}
        nodes, right = [], []
        graph = graph_of(run)
        for index, node in enumerate(graph.nodes):
            graded = node.verdict in ("correct", "wrong")
            made = other_kind(node, graph, setup) or (conversation_of(node, run, setup) if graded else "not graded")
            if isinstance(made, str):
                rejected[made] += 1
            elif made.ids not in examples:
                examples[made.ids] = made
                nodes.append(index)
                right.append(node.verdict == "correct")
        if len(set(right)) < 2:
            rejected["no attempt" if not right else "attempts all right or all wrong"] += 1
            continue
        kept.append(Group(tuple(examples.values()), {"run": number, "nodes": nodes, "right": right}))
    if not kept:
        why = reasons(rejected) or "there are no traces"
        raise DataError(
            f"no question with both a right and a wrong attempt ({why}): a reward model learns from comparing them; "
            "record a team whose agents disagree, or choose another method"
        )
    return Selection(tuple(kept), dict(rejected))


class _First(Facts):
    """The first student's training; none where the base is taken as it is."""

    training: TrainingFacts | None = None


class _Labels(Facts):
    """A label for each step of each attempt of each group, and how many steps each kind of label decided."""

    labels: list[list[list[float]]]
    counts: Mapping[str, int]


@dataclass
class _Pad:
    """The phases, each a function of what lies on disk before it."""

    work: Work

    def __post_init__(self) -> None:
        self.options: Options = self.work.options
        self.released = self.work.variant == "released"
        self.tools = self._toolbox()

    def _toolbox(self) -> Toolbox | None:
        """The tools the student calls; None where it answers in words."""
        used: set[str] = set()
        for run in self.work.runs:
            for turn in run.turns:
                used.update(use.name for use in turn.tools if use.name)
        if self.work.mode != "tools" or not used:
            return None
        tools = load_tools(self.options.tools)
        if unknown := sorted(used - set(tools.tools)):
            raise UsageError(
                f"method pad: the student has to call its tools, and {', '.join(unknown)} of the traces are not among "
                "them; set the option tools to the entry points in the team's file"
            )
        return tools

    def first(self) -> tuple[Path, _First]:
        """The student that is judged and practices: trained, or the base as it is."""
        work = self.work

        def imitate(folder: Path) -> _First:
            trainer = work.trainer()
            chosen = work.chosen(work.setup(trainer.student.tokenizer), verified)
            return _First(training=fit_exact(work, trainer, chosen.groups, CrossEntropy(), folder))

        def copy(folder: Path) -> _First:
            save_exact(Student(*load_base(work.base), torch.device("cpu")), folder)
            return _First()

        return work.phase("sft", _First, imitate) if self.options.start == "sft" else work.phase("base", _First, copy)

    def rated(self, first: Path) -> tuple[list[Group], DataFacts]:
        """The attempts with a label on every step, and how the labels came to be."""
        work = self.work
        reader = _reader(work, first)
        tokenizer = reader.tokenizer
        setup = work.setup(tokenizer)
        chosen = work.chosen(setup, attempts)
        disputed = list(chosen.groups)
        if self.options.labeled is not None and self.options.labeled < len(disputed):
            draw = random.Random(f"{setup.seed}/labeled")  # noqa: S311 - not cryptography
            disputed = [disputed[index] for index in sorted(draw.sample(range(len(disputed)), self.options.labeled))]
        rollouts = 0 if self.released else self.options.rollouts
        sampler = None
        if rollouts:
            reader.model.set_attn_implementation(reader.native_attention)
            new = turn_tokens(self.options, self.tools)
            sampler = Sampler(reader.model, tokenizer, self.tools, self.options.temperature, new, setup.max_length)
        labeller = Labeller(tokenizer, setup.check_steps, self.tools, sampler, rollouts, self.options.labels == "hard")
        groups, counts = [], Counter[str]()
        for start in range(0, len(disputed), _LABELLED_AT_ONCE):
            part = disputed[start : start + _LABELLED_AT_ONCE]
            _, made = work.phase(f"labels-{start:06d}", _Labels, partial(self._label, part, labeller, setup, start))
            counts.update(made.counts)
            for group, labels in zip(part, made.labels, strict=True):
                ends = [step_ends(example.ids, example.trained, tokenizer) for example in group.examples]
                groups.append(rated_group(group.examples, ends, labels, tokenizer.eos_token_id))
        useful = groups if self.released else [group for group in groups if compared(group) > 0]
        if not useful:
            raise DataError(
                "pad: no question has a good step and a bad one to compare it with; raise the option rollouts, "
                "or record a team whose agents disagree"
            )
        notes = {"labeled": len(disputed), "labels": dict(counts), "compared": len(useful)}
        return useful, chosen.counts.model_copy(update={"notes": notes})

    def _label(self, part: Sequence[Group], labeller: Labeller, setup: Setup, start: int, _: Path) -> _Labels:
        torch.manual_seed(setup.seed * 1_000_003 + start)
        labeller.counts.clear()
        tried = []
        for group in part:
            run = self.work.runs[group.facts["run"]]
            nodes = graph_of(run).nodes
            for example, node, right in zip(group.examples, group.facts["nodes"], group.facts["right"], strict=True):
                uses = nodes[node].uses if setup.mode == "tools" else ()
                tried.append(Tried(run.question, example, right, uses))
        labels = iter(labeller.label(tried))
        of_groups = [list(itertools.islice(labels, len(group.examples))) for group in part]
        return _Labels(labels=of_groups, counts=dict(labeller.counts))

    def reward_model(self, first: Path, groups: Sequence[Group]) -> tuple[Path, dict[str, TrainingFacts]]:
        """Stage I and, in the paper, stage II. Returns the folder of the finished reward model."""
        options, passes = self.options, {}

        def stage(base: Path, head_from: Path | None, rate: float, epochs: int, folder: Path) -> TrainingFacts:
            trainer = self.work.trainer(base, tuning="full", learning_rate=rate, epochs=epochs)
            head = RewardHead(trainer.student.width) if head_from is None else RewardHead.read(head_from)
            if head_from is None:
                train_last_block_only(trainer.student)
            objective = (Binary if self.released else Pairwise)(head, options.tau)
            training = fit_exact(self.work, trainer, groups, objective, folder)
            head.write(folder)
            return training

        folder, passes["prm_head"] = self.work.phase(
            "prm-head",
            TrainingFacts,
            lambda out: stage(first, None, options.head_learning_rate, options.head_epochs, out),
        )
        if options.all_epochs and not self.released:
            base = folder
            folder, passes["prm_all"] = self.work.phase(
                "prm-all",
                TrainingFacts,
                lambda out: stage(base, base, options.all_learning_rate, options.all_epochs, out),
            )
        return folder, passes

    def practice(self, first: Path, rewards: Path, questions: Sequence[Question]) -> tuple[Path, list[Update]]:
        """GRPO, segment by segment; returns the last folder and all updates."""
        options, config = self.options, self.work.train
        size = options.questions
        total = options.steps or -(-len(questions) // size)
        asked: list[Question] = []
        while len(asked) < total * size:  # every pass over the questions its own shuffle
            lap = list(questions)
            random.Random(f"{config.seed}/{len(asked)}").shuffle(lap)  # noqa: S311 - not cryptography
            asked += lap
        at, updates = first, list[Update]()
        judge: Judge | None = None
        for begin in range(0, total, options.segment):

            def run(folder: Path, start: Path = at, begin: int = begin) -> Practice:
                nonlocal judge
                if judge is None:
                    reader, head = _reader(self.work, rewards), RewardHead.read(rewards)
                    judge = Judge(RewardModel(reader, head, config.part_tokens), options, self.work.variant)
                stop = min(begin + options.segment, total)
                part = Segment(
                    start,
                    first,
                    asked[begin * size : stop * size],
                    config.seed * 100_003 + begin,
                    config.device == "cpu",
                    config.max_length,
                    self.tools,
                )
                return part.run(judge, folder)

            at, segment = self.work.phase(f"grpo-{begin:06d}", Practice, run)
            updates += segment.updates
            last = updates[-1]
            self.work.note(f"grpo: {len(updates)} of {total} updates, reward {last.reward}", **last.model_dump())
        return at, updates


def _reader(work: Work, path: Path) -> Student:
    """A model that is only read, in the place and the precision of training."""
    device = work.processes.device
    return frozen(path, choose_precision(work.train.precision, device)[0], device)


def train(work: Work) -> Distilled:
    """All phases; the last segment's policy becomes the student."""
    if work.processes.several:
        raise UsageError("method pad: its policy phase runs in one process; start it without accelerate launch")
    pad = _Pad(work)
    questions: dict[str, Question] = {}  # each once
    for run in work.runs:
        if run.question.gold is not None:
            questions[run.question.question.strip()] = run.question
    if not questions:
        raise DataError("pad: no question has a known answer; practice needs answers to verify")
    first, made = pad.first()
    groups, data = pad.rated(first)
    rewards, phases = pad.reward_model(first, groups)
    last, updates = pad.practice(first, rewards, list(questions.values()))
    _reader(work, last).save(work.folder, {})
    log, steps = "", []
    for step, update in enumerate(updates):
        log += json.dumps({"step": step, **update.model_dump(exclude={"seconds"})}) + "\n"
        steps.append({**update.model_dump(), "computed_tokens": update.tokens})
    write_atomic(work.folder / LOG, log)
    if made.training is not None:
        phases = {"sft": made.training, **phases}
    return Distilled(
        data=data,
        training=Trained(steps).facts(phases),
        precision="float32",
        precision_reason="updates of the policy are smaller than the last bit of bf16",
        notes={"questions": len(questions), "reward": {"first": updates[0].reward, "last": updates[-1].reward}},
    )


METHOD = Method(
    select=attempts,
    objective=lambda student, _setup: Pairwise(RewardHead(student.width)),
    options=Options,
    train=train,
    passes=3,  # the first student, the reward model's two stages; what practice samples is not counted
    released=True,
    check=lambda _options: require("trl", "rl"),
)

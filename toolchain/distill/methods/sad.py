r"""SAD (arXiv 2505.13820): reasoning and acting are imitated apart, what the world said is only read.

    user        question                                     not trained
    assistant   Thought: I should look it up.                REASON
                Action: search[Exampletown river]            ACT
    tool        the observation                              not trained
    ...
    loss        reason_weight * KL_reason + act_weight * KL_act

A span begins at a line with one of the prefixes and lasts to the next; the prefix itself is trained, for the student
has to write it, and the token that ends a turn belongs to the turn's last span. Observations are messages
of their own, from the tools' results, so nothing quoted in one can open a span. A run whose agent wrote an
`Observation:` into its own text is refused: what is the world's there and what is invented cannot be told.
Without prefixes a call is ACT; of a worked solution the steps are REASON and the `#### answer` is ACT.

KL is the forward one to a local teacher; without a teacher it is the cross-entropy of the trace's own tokens (noted
as `hard_label`). Published are the loss as a sum over tokens and the curriculum; both weights 1, the mean over
each mask, the curriculum's coefficients and the learning rate (that of all methods here) are our choice.
`reason_weight` 0 is the action-only ablation: reasoning is read, and no gradient comes from it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from soloist.kernels.errors import DataError, UsageError
from soloist.targets.base import Message
from soloist.toolchain.core.config import Config
from soloist.toolchain.distill.data import (
    Example,
    Group,
    Selection,
    conversation,
    encode,
    refuse_split,
    reject,
    selection,
)
from soloist.toolchain.distill.divergence import cross_entropies, divergences, row_entropy
from soloist.toolchain.distill.model import Student
from soloist.toolchain.distill.objective import SelfContained
from soloist.toolchain.distill.packing import Batch, pack
from soloist.toolchain.distill.teacher import load_teacher, teacher_logits
from soloist.toolchain.distill.train import parts
from soloist.toolchain.distill.work import Distilled, Method, Setup, Work, fit
from soloist.toolchain.student.artifact import Mode
from soloist.toolchain.traces.schema import Run, Turn

NONE, REASON, ACT = 0, 1, 2
SPANS: Mapping[str, int] = {"reason": REASON, "act": ACT}
_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_PREFIX = re.compile(r"(?:(?P<reason>Reasoning|Thought)|Action|Answer)(?: \d+)?:")  # ReAct numbers its steps
_OBSERVED = re.compile(r"^Observation(?: \d+)?:", re.MULTILINE)


class Options(Config):
    """What SAD can be told."""

    teacher: Path | None = Field(
        default=None, description="folder or GGUF of a teacher with the student's vocabulary; none: hard labels"
    )
    reason_weight: float = Field(default=1.0, ge=0, description="weight of reasoning; 0: action-only (ours: 1)")
    act_weight: float = Field(default=1.0, ge=0, description="weight of acting (ours: 1)")
    reduction: Literal["mean", "sum"] = Field(
        default="mean", description="mean over each span's tokens (ours), or the paper's sum over a trajectory's"
    )
    curriculum: bool = Field(default=True, description="from easy to hard, as in the paper; else shuffled")
    alpha: float = Field(default=1.0, ge=0, description="difficulty per reasoning token (ours)")
    beta: float = Field(default=1.0, ge=0, description="difficulty per acting token (ours)")
    gamma: float | None = Field(
        default=None, ge=0, description="difficulty per nat of the teacher's mean entropy (ours: 1 with a teacher)"
    )


# ---------------------------------------------------------------- spans


def segments(text: str, opening: int) -> list[int]:
    """The span of each character of an assistant's text. What stands before the first prefix is `opening`."""
    kinds, kind = [], opening
    for line in _LINE.findall(text):
        found = _PREFIX.match(line)
        if found or line.startswith("####"):
            kind = REASON if found and found["reason"] else ACT
        kinds += [kind] * len(line)
    return kinds


def spanned(messages: Sequence[Message], tokenizer: Any, question_id: str = "", *, opening: int = ACT) -> Example:
    """A conversation as tokens, each trained one with its span; one that reaches over a border is of the later span.

    Raises:
        DataError: the template changes what the assistant says, or the tokenizer cannot tell where tokens stand.
    """
    example = encode(messages, tokenizer, question_id)
    if not tokenizer.is_fast:
        raise DataError("the tokenizer does not say where its tokens stand in a text (no fast version); use another")
    text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=False)
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    kinds = [NONE] * len(text)
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        said = message["content"]
        start = len(tokenizer.apply_chat_template(list(messages[:index]), tokenize=False, add_generation_prompt=True))
        stop = start + len(said)
        if text[start:stop] != said:
            raise DataError(f"chat template: it changes what the assistant says ({question_id or said[:40]!r})")
        own = segments(said, opening)
        end = text.index(tokenizer.eos_token, stop) + len(tokenizer.eos_token)
        kinds[start:end] = own + [own[-1] if own else opening] * (end - stop)
    # the end of a token is exact even where a tokenizer leaves the spaces around a word out of its offsets
    spans = [
        kinds[end - 1] if trained else NONE
        for (_, end), trained in zip(found["offset_mapping"], example.trained, strict=False)
    ]
    if any(trained and not span for span, trained in zip(spans, example.trained, strict=True)):
        raise DataError(f"{question_id or 'a conversation'}: the tokenizer's offsets miss some of what is trained")
    return replace(example, spans=tuple(spans))


# ---------------------------------------------------------------- selection


def is_react(run: Run) -> bool:
    """Whether the agents on the answer's path wrote thoughts and actions as prefixed lines, and called tools so."""
    turns = [run.turns[step] for step in run.path]
    return any(turn.tools and any(map(_PREFIX.match, turn.text.split("\n"))) for turn in turns)


def react_messages(run: Run) -> list[Message]:
    """The run's episode: each turn as the agent wrote it, each tool's result (or error) as a message of its own.

    What the last call returned is left out: nothing is said after it.
    """
    messages: list[Message] = [{"role": "user", "content": run.question.question.strip()}]
    for step in run.path:
        turn = run.turns[step]
        messages.append({"role": "assistant", "content": _said(turn)})
        for use in turn.tools:
            seen = use.result if use.result is not None else use.error
            messages.append({"role": "tool", "content": (seen or "").strip()})
    while messages[-1]["role"] != "assistant":
        messages.pop()
    return messages


def _said(turn: Turn) -> str:
    """A turn's text, with the actions that its model gave as structured calls written out."""
    calls = [use.call.strip() for use in turn.tools]
    missing = [f"Action: {call}" for call in calls if call not in turn.text]
    return "\n".join([turn.text.strip(), *missing]).strip()


def select(runs: Sequence[Run], setup: Setup) -> Selection:
    """The trajectory of every run that ends well: ReAct episodes as they are, others as `sft` takes them.

    An episode may hold a call that failed: the error is an observation like any other. In `cot`
    mode an episode cannot be learned: what it looked up is not in the student.
    """
    kept: list[Group] = []
    rejected: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    for run in runs:
        refuse_split(run)
        found = _trajectory(run, setup)
        if isinstance(found, str):
            rejected[found] += 1
            continue
        example = spanned(found, setup.tokenizer, run.question.id, opening=_opening(run, setup.mode))
        if len(example.ids) > setup.max_length:
            rejected[f"longer than {setup.max_length} tokens"] += 1
            continue
        counted = Counter(example.spans)
        tokens.update({name: counted[kind] for name, kind in SPANS.items()})
        kept.append(Group((example,)))
    return selection(kept, rejected, {f"{name}_tokens": tokens[name] for name in SPANS})


def _trajectory(run: Run, setup: Setup) -> list[Message] | str:
    """What the student should have said, or why the run is rejected."""
    react = is_react(run)
    if react and run.verdict != "correct":
        return "no correct answer"
    if react and setup.mode == "cot":
        return "an episode of tools cannot be told in words"
    if react and not setup.check_steps([step for use in run.trajectory for step in use.steps]):
        return "a worked step does not re-check"
    reason = None if react else reject(run, setup.mode, setup.check_steps)
    messages = react_messages(run) if react else conversation(run, setup.mode)
    if reason or messages is None:
        return reason or "nothing to learn from"
    if any(_OBSERVED.search(message["content"]) for message in messages if message["role"] == "assistant"):
        return "an observation in the agent's own words"
    return messages


def _opening(run: Run, mode: Mode) -> int:
    """The span of what has no prefix: calls act, worked steps and prose reason."""
    if is_react(run):
        return REASON
    return ACT if run.trajectory and mode == "tools" else REASON


# ---------------------------------------------------------------- objective and order


class SpanLoss(SelfContained):
    """The two weighted terms. With a teacher each token's KL(teacher || student), else its cross-entropy."""

    names = ("reason", "act")

    def __init__(self, options: Options, teacher: Student | None = None) -> None:
        self.options = options
        self.teacher = teacher
        self.weights = {"reason": options.reason_weight, "act": options.act_weight}

    def counts(self, groups: Sequence[Group]) -> Mapping[str, float]:
        """Tokens of each span, or trajectories where tokens are summed."""
        examples = [example for group in groups for example in group.examples]
        if self.options.reduction == "sum":
            return dict.fromkeys(self.names, float(len(examples)))
        tokens = Counter(span for example in examples for span in example.spans)
        return {name: float(tokens[kind]) for name, kind in SPANS.items()}

    def terms(self, student: Student, batch: Batch, counts: Mapping[str, float]) -> Mapping[str, Tensor]:
        weights = torch.zeros(batch.targets, device=batch.spans.device)
        for name, kind in SPANS.items():
            weights[batch.spans == kind] = self.weights[name] / max(counts[name], 1.0)
        if self.teacher is None:
            rows = cross_entropies(student, batch, weights)
        else:
            rows = divergences(student, self.teacher, batch, "forward", weights=weights)
        return {name: (rows * (batch.spans == kind)).sum() for name, kind in SPANS.items()}


def difficulties(groups: Sequence[Group], options: Options, teacher: Student | None, part_tokens: int) -> list[float]:
    """The curriculum's C = alpha |reason| + beta |act| + gamma H of each trajectory, H the teacher's mean entropy.

    Raises:
        UsageError: gamma asks for the entropy of a teacher that is not there.
    """
    gamma = float(teacher is not None) if options.gamma is None else options.gamma
    if gamma and teacher is None:
        raise UsageError("method sad: gamma weighs the entropy of a teacher: give `teacher` too, or gamma 0")
    entropy = _entropies(groups, teacher, part_tokens) if teacher is not None and gamma else {}
    found = []
    for index, group in enumerate(groups):
        spans = Counter(span for example in group.examples for span in example.spans)
        found.append(options.alpha * spans[REASON] + options.beta * spans[ACT] + gamma * entropy.get(index, 0.0))
    return found


def _entropies(groups: Sequence[Group], teacher: Student, part_tokens: int) -> dict[int, float]:
    numbered = [Group(group.examples, {"index": index}) for index, group in enumerate(groups)]
    found: dict[int, float] = {}
    for part in parts(numbered, part_tokens):
        batch = pack(part).to(teacher.device)
        rows = row_entropy(teacher_logits(teacher, batch))
        for facts, owners in zip(batch.facts, batch.groups, strict=True):
            mine = (batch.owners >= owners.start) & (batch.owners < owners.stop)
            found[facts["index"]] = round(float(rows[mine].mean()), 4)  # ties must not hang on the last bit
    return found


def train(work: Work) -> Distilled:
    """One pass over the trajectories, from easy to hard unless that is switched off.

    Raises:
        UsageError: no token has a weight, so nothing would be learned.
    """
    options: Options = work.options
    trainer = work.trainer(order="given" if options.curriculum else work.train.order)
    setup = work.setup(trainer.student.tokenizer)
    chosen = work.chosen(setup)
    loss = objective(trainer.student, setup)
    said = {span for example in chosen.examples for span in example.spans}
    if not any(loss.weights[name] and kind in said for name, kind in SPANS.items()):
        raise UsageError(
            "method sad: nothing would be learned: no trajectory holds what reason_weight and act_weight leave "
            "(a call without prefixes is acting); give the other one a weight"
        )
    groups = list(chosen.groups)
    if options.curriculum:
        hard = difficulties(groups, options, loss.teacher, work.train.part_tokens)
        groups = [groups[index] for index in sorted(range(len(groups)), key=hard.__getitem__)]
    fitted = fit(work, trainer, groups, loss, work.folder)
    return Distilled(data=chosen.counts, notes={"hard_label": loss.teacher is None}, **dict(fitted))


def objective(student: Student, setup: Setup) -> SpanLoss:
    """The loss, its teacher loaded if there is one."""
    options = setup.options
    assert isinstance(options, Options)
    teacher = load_teacher(options.teacher, student, setup.max_length) if options.teacher else None
    return SpanLoss(options, teacher)


METHOD = Method(select=select, objective=objective, options=Options, train=train)

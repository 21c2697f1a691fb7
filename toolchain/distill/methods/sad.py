r"""SAD (arXiv 2505.13820): reasoning and acting are imitated apart, observations are only read.

    user        question                                     not trained
    assistant   Thought: I should look it up.                REASON
                Action: search[Exampletown river]            ACT
    tool        the observation                              not trained
    ...
    loss        reason_weight * KL_reason + act_weight * KL_act

A span begins at a line with one of the prefixes and lasts to the next; the prefix itself is trained, for the student
has to write it, and the token that ends a turn belongs to the turn's last span. Observations are messages
of their own, from the tools' results, so nothing quoted in one can open a span. A run whose agent wrote an
`Observation:` into its own text is refused: nothing says what in it was observed and what was invented.
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
    examples_of,
    own_texts,
    refuse_split,
    reject,
    selection,
    worked_lines,
)
from soloist.toolchain.distill.divergence import cross_entropies, divergences, row_entropy
from soloist.toolchain.distill.model import Student
from soloist.toolchain.distill.objective import SelfContained
from soloist.toolchain.distill.packing import Batch
from soloist.toolchain.distill.teacher import load_teacher, teacher_logits
from soloist.toolchain.distill.train import read_in_parts
from soloist.toolchain.distill.work import Distilled, Method, Setup, Work, fit
from soloist.toolchain.traces.schema import Run

NONE, REASON, ACT = 0, 1, 2
SPANS: Mapping[str, int] = {"reason": REASON, "act": ACT}
_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_PREFIX = re.compile(r"(?:(?P<reason>Reasoning|Thought)|Action|Answer)(?: \d+)?:")  # ReAct numbers its steps
_OBSERVED = re.compile(r"^Observation(?: \d+)?:", re.MULTILINE)


class Options(Config):
    """Options of SAD."""

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
        prefix = _PREFIX.match(line)
        if prefix or line.startswith("####"):
            kind = REASON if prefix and prefix["reason"] else ACT
        kinds += [kind] * len(line)
    return kinds


def spanned(messages: Sequence[Message], tokenizer: Any, question_id: str = "", *, opening: int = ACT) -> Example:
    """A conversation as tokens, each trained one with its span; one that reaches over a border is of the later span.

    Raises:
        DataError: the template changes the assistant's text, or the tokenizer does not give the places of its tokens.
    """
    example = encode(messages, tokenizer, question_id)
    if not tokenizer.is_fast:
        raise DataError("the tokenizer does not say where its tokens stand in a text (no fast version); use another")
    text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=False)
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    kinds = [NONE] * len(text)
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        own_text = message["content"]
        start = len(tokenizer.apply_chat_template(list(messages[:index]), tokenize=False, add_generation_prompt=True))
        stop = start + len(own_text)
        if text[start:stop] != own_text:
            raise DataError(f"chat template: it changes the assistant's text ({question_id or own_text[:40]!r})")
        own = segments(own_text, opening)
        end = text.index(tokenizer.eos_token, stop) + len(tokenizer.eos_token)
        kinds[start:end] = own + [own[-1] if own else opening] * (end - stop)
    # the end of a token is exact even where a tokenizer leaves the spaces around a word out of its offsets
    spans = []
    for (_, end), trained in zip(offsets, example.trained, strict=False):
        spans.append(kinds[end - 1] if trained else NONE)
        if trained and not spans[-1]:
            raise DataError(f"{question_id or 'a conversation'}: the tokenizer's offsets miss some of what is trained")
    return replace(example, spans=tuple(spans))


# ---------------------------------------------------------------- selection


def is_react(run: Run) -> bool:
    """Whether the agents on the answer's path wrote thoughts and actions as prefixed lines, and called tools so."""
    for step in run.path:
        turn = run.turns[step]
        if turn.tools and any(map(_PREFIX.match, turn.text.split("\n"))):
            return True
    return False


def react_messages(run: Run) -> list[Message]:
    """The run's episode: each turn as the agent wrote it, each tool's result (or error) as a message of its own.

    A turn's text is followed by the actions that its model gave as structured calls. The last call's result is left
    out: no turn follows it.
    """
    messages: list[Message] = [{"role": "user", "content": run.question.question.strip()}]
    for step in run.path:
        turn = run.turns[step]
        written = [turn.text.strip()]
        for use in turn.tools:
            if use.call.strip() not in turn.text:
                written.append(f"Action: {use.call.strip()}")
        messages.append({"role": "assistant", "content": "\n".join(written).strip()})
        for use in turn.tools:
            seen = use.result if use.result is not None else use.error
            messages.append({"role": "tool", "content": (seen or "").strip()})
    while messages[-1]["role"] != "assistant":
        messages.pop()
    return messages


def select(runs: Sequence[Run], setup: Setup) -> Selection:
    """The trajectory of every run that ends well: ReAct episodes as they are, others as `sft` takes them.

    An episode may hold a call that failed: the error is an observation like any other. In `cot`
    mode an episode cannot be learned: what it looked up is not in the student.
    """
    kept: list[Group] = []
    rejected: Counter[str] = Counter()
    for run in runs:
        refuse_split(run)
        messages = _trajectory(run, setup)
        if isinstance(messages, str):
            rejected[messages] += 1
            continue
        calls = run.trajectory and setup.mode == "tools" and not is_react(run)
        # what has no prefix: calls act, worked steps and prose reason
        example = spanned(messages, setup.tokenizer, run.question.id, opening=ACT if calls else REASON)
        if len(example.ids) > setup.max_length:
            rejected[f"longer than {setup.max_length} tokens"] += 1
            continue
        kept.append(Group((example,)))
    tokens = span_counts(kept)
    return selection(kept, rejected, {"reason_tokens": tokens[REASON], "act_tokens": tokens[ACT]})


def _trajectory(run: Run, setup: Setup) -> list[Message] | str:
    """The conversation the student should have had, or why the run is rejected."""
    react = is_react(run)
    if react and run.verdict != "correct":
        return "no correct answer"
    if react and setup.mode == "cot":
        return "an episode of tools has no answer in words"
    if react and not setup.check_steps(worked_lines(run.trajectory, "")):
        return "a worked step does not re-check"
    reason = None if react else reject(run, setup.mode, setup.check_steps)
    messages = react_messages(run) if react else conversation(run, setup.mode)
    if reason or messages is None:
        return reason or "nothing to learn from"
    if any(map(_OBSERVED.search, own_texts(messages))):
        return "an observation in the agent's own words"
    return messages


def span_counts(groups: Sequence[Group]) -> Counter[int]:
    """How many tokens of the groups lie in each span."""
    tokens: Counter[int] = Counter()
    for example in examples_of(groups):
        tokens.update(example.spans)
    return tokens


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
        if self.options.reduction == "sum":
            return dict.fromkeys(self.names, float(len(examples_of(groups))))
        tokens = span_counts(groups)
        return {"reason": float(tokens[REASON]), "act": float(tokens[ACT])}

    def terms(self, student: Student, batch: Batch, counts: Mapping[str, float]) -> Mapping[str, Tensor]:
        weights = torch.zeros(batch.targets, device=batch.spans.device)
        for name, kind in SPANS.items():
            weights[batch.spans == kind] = self.weights[name] / max(counts[name], 1.0)
        if self.teacher is None:
            rows = cross_entropies(student, batch, weights)
        else:
            rows = divergences(student, self.teacher, batch, "forward", weights=weights)
        return {"reason": (rows * (batch.spans == REASON)).sum(), "act": (rows * (batch.spans == ACT)).sum()}


def difficulties(groups: Sequence[Group], options: Options, teacher: Student | None, part_tokens: int) -> list[float]:
    """The curriculum's C = alpha |reason| + beta |act| + gamma H of each trajectory, H the teacher's mean entropy.

    Raises:
        UsageError: gamma asks for the entropy of a teacher that is not there.
    """
    gamma = float(teacher is not None) if options.gamma is None else options.gamma
    if gamma and teacher is None:
        raise UsageError("method sad: gamma weighs the entropy of a teacher: give `teacher` too, or gamma 0")
    entropy = [0.0] * len(groups)
    if teacher is not None and gamma:
        for batch, numbers in read_in_parts(groups, part_tokens, teacher.device):
            rows = row_entropy(teacher_logits(teacher, batch))
            for number, owners in zip(numbers, batch.groups, strict=True):
                mine = (batch.owners >= owners.start) & (batch.owners < owners.stop)
                entropy[number] = round(float(rows[mine].mean()), 4)  # ties must not hang on the last bit
    difficulty = []
    for group, nats in zip(groups, entropy, strict=True):
        spans = span_counts([group])
        difficulty.append(options.alpha * spans[REASON] + options.beta * spans[ACT] + gamma * nats)
    return difficulty


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
    tokens = span_counts(chosen.groups)
    if not any(weight and tokens[SPANS[name]] for name, weight in loss.weights.items()):
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
    options = setup.options_of(Options)
    teacher = load_teacher(options.teacher, student, setup.max_length) if options.teacher else None
    return SpanLoss(options, teacher)


METHOD = Method(select=select, objective=objective, options=Options, train=train)

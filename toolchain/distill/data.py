"""Traces to training examples: the conversation a student should have had, and which of its tokens are trained.

    tools   user: question · assistant: call [then] · tool: result · assistant: call · …
    cot     user: question · assistant: the tools' worked steps, one a line, then `#### answer`

Of a run without tool calls the final text is learned in both modes. Only the assistant's own words and the
token that ends its turn are trained; prompts, tool results and the template are read, never learned.
The mask comes from rendering the chat template message by message: a template whose prompt is not,
token for token, the beginning of the finished conversation is refused, because a mask would lie.
Rejection sampling keeps a run only if its answer is correct, every worked step re-checks, and (tools)
the last tool's result is the answer. Left out: rewriting or repairing rejected runs.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from soloist.kernels.errors import DataError
from soloist.targets.base import Message
from soloist.toolchain.student.artifact import DataFacts, Mode
from soloist.toolchain.tasks.base import Question, extract, score
from soloist.toolchain.tools.calls import MORE
from soloist.toolchain.traces.schema import Run, ToolUse

CheckSteps = Callable[[Sequence[str]], bool]

END = "<|im_end|>"
# ChatML without a system prompt: a question costs 9 template tokens, not some 30.
STUDENT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Example:
    """One conversation as tokens. `trained[i]` says that token i is one the student must produce.

    `weights` (of each token, empty for all 1) scale its share of the loss; `spans` (of each token, empty
    for all 0) tell a method which kind of text it belongs to.
    """

    messages: tuple[Message, ...]
    ids: tuple[int, ...]
    trained: tuple[bool, ...]
    question_id: str = ""
    weights: tuple[float, ...] = ()
    spans: tuple[int, ...] = ()

    @property
    def targets(self) -> int:
        """How many tokens are trained."""
        return sum(self.trained)

    @property
    def weight(self) -> float:
        """The sum of the trained tokens' weights."""
        if not self.weights:
            return float(self.targets)
        return sum(itertools.compress(self.weights, self.trained))


@dataclass(frozen=True)
class Group:
    """What is learned from together: one conversation, or all the nodes of one question's graph.

    A group is never split over parts of a step. `facts` is what the method's objective knows about it beside
    the tokens (labels, edges, pairs of its conversations by index); it must be plain data.
    """

    examples: tuple[Example, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """How many tokens its conversations have."""
        return sum(len(example.ids) for example in self.examples)

    @property
    def targets(self) -> int:
        """How many tokens of its conversations are trained."""
        return sum(example.targets for example in self.examples)

    @property
    def weight(self) -> float:
        """The sum of the trained tokens' weights."""
        return sum(example.weight for example in self.examples)


def examples_of(groups: Iterable[Group]) -> list[Example]:
    """The conversations of all groups, in order."""
    examples: list[Example] = []
    for group in groups:
        examples += group.examples
    return examples


def count_tokens(groups: Iterable[Group]) -> tuple[int, int]:
    """All tokens of the groups' conversations, and the trained ones among them."""
    tokens, targets = 0, 0
    for group in groups:
        tokens += group.tokens
        targets += group.targets
    return tokens, targets


def total_weight(groups: Iterable[Group]) -> float:
    """The sum of the trained tokens' weights: what a mean over a step's tokens is divided by."""
    return sum(group.weight for group in groups)


def as_groups(items: Iterable[Example | Group]) -> list[Group]:
    """Conversations as groups of one."""
    return [item if isinstance(item, Group) else Group((item,)) for item in items]


@dataclass(frozen=True)
class Selection:
    """The groups kept, how many runs were rejected for which reason, and what else the method says about its choice."""

    groups: tuple[Group, ...]
    rejected: Mapping[str, int]
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def examples(self) -> tuple[Example, ...]:
        return tuple(examples_of(self.groups))

    @property
    def counts(self) -> DataFacts:
        """For manifests and reports: groups kept, and the tokens of their conversations."""
        tokens, targets = count_tokens(self.groups)
        return DataFacts(
            kept=len(self.groups),
            rejected=self.rejected,
            tokens=tokens,
            trained_tokens=targets,
            conversations=len(self.examples),
            notes=self.notes,
        )


def prepare_tokenizer(tokenizer: Any) -> None:
    """Give a ChatML tokenizer the student's template; any other family keeps its own."""
    if {"<|im_start|>", END} <= set(tokenizer.get_vocab()):
        tokenizer.chat_template = STUDENT_TEMPLATE
        tokenizer.eos_token = END
    if not tokenizer.chat_template:
        raise DataError("the base model has no chat template and is not ChatML; choose an instruction-tuned base")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token


def render_ids(tokenizer: Any, messages: Sequence[Message], *, prompt: bool) -> list[int]:
    """Token ids of `messages` under the tokenizer's template; `prompt` opens the assistant's turn."""
    text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=prompt)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def encode(messages: Sequence[Message], tokenizer: Any, question_id: str = "") -> Example:
    """Tokens and mask of a conversation, cut after the last trained token.

    Raises:
        DataError: the template breaks the prefix property, or does not end a turn with the end token.
    """
    ids = render_ids(tokenizer, messages, prompt=False)
    trained = [False] * len(ids)
    last = 0
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        start = len(prompt := render_ids(tokenizer, messages[:index], prompt=True))
        if ids[:start] != prompt:
            raise DataError(
                f"chat template: the prompt before message {index} ({question_id or 'a conversation'}) is not the "
                "beginning of the whole conversation, token for token; the loss mask cannot be trusted. "
                "Use a template without trimming or injected text"
            )
        if tokenizer.eos_token_id not in ids[start:]:
            raise DataError(
                f"chat template: the assistant's turn does not end with the end token '{tokenizer.eos_token}'; "
                "set the tokenizer's eos_token to the one that the template writes"
            )
        last = ids.index(tokenizer.eos_token_id, start) + 1
        trained[start:last] = [True] * (last - start)
    if not last:
        raise DataError(f"{question_id or 'a conversation'}: no assistant message to learn from")
    return Example(tuple(messages), tuple(ids[:last]), tuple(trained[:last]), question_id)


def tool_messages(question: str, uses: Sequence[ToolUse]) -> list[Message]:
    """The conversation of a student that calls tools: each call but the last ends in ` then`."""
    messages: list[Message] = [{"role": "user", "content": question}]
    for index, use in enumerate(uses):
        call = use.call.strip().removesuffix(MORE).rstrip()
        following = index + 1 < len(uses)
        messages.append({"role": "assistant", "content": call + (MORE if following else "")})
        if following:
            messages.append({"role": "tool", "content": (use.result or "").strip()})
    return messages


def conversation(run: Run, mode: Mode) -> list[Message] | None:
    """The conversation the student should have had about the run's question; None if the run holds no answer to it."""
    return messages_of(run.question.question, run.trajectory, _final_text(run), run.answer, mode)


def messages_of(
    question: str, uses: Sequence[ToolUse], text: str, answer: str | None, mode: Mode
) -> list[Message] | None:
    """The student's conversation about a question, from tool calls or else from `text`; None if neither answers it."""
    question = question.strip()
    if uses and mode == "tools":
        return tool_messages(question, uses)
    lines = worked_lines(uses, text)
    if not lines or answer is None:
        return None
    reply = "\n".join(map(str.rstrip, lines)).strip()
    if extract(reply) != answer or "####" not in reply:
        reply += f"\n#### {answer}"
    return [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]


def worked_lines(uses: Sequence[ToolUse], text: str) -> list[str]:
    """The tools' worked steps in order; the lines of `text` where no tool was called."""
    if not uses:
        return text.splitlines()
    lines: list[str] = []
    for use in uses:
        lines += use.steps
    return lines


def own_texts(messages: Iterable[Message]) -> list[str]:
    """The assistant's turns of a conversation."""
    return [message["content"] for message in messages if message["role"] == "assistant"]


def _final_text(run: Run) -> str:
    """The last text on the answer's path that is not empty."""
    for step in reversed(run.path):
        if run.turns[step].text.strip():
            return run.turns[step].text
    return ""


def reject(run: Run, mode: Mode, check_steps: CheckSteps) -> str | None:
    """Why a run must not be learned from; None if it may be."""
    if run.verdict != "correct":
        return "no correct answer"
    return flaw(run.question, run.trajectory, _final_text(run), mode, check_steps)


def flaw(question: Question, uses: Sequence[ToolUse], text: str, mode: Mode, check_steps: CheckSteps) -> str | None:
    """Why the way to a correct answer must not be learned from; None if it may be."""
    if any(use.error is not None for use in uses):
        return "a call on the answer's path failed"
    if not check_steps(worked_lines(uses, text)):
        return "a worked step does not re-check"
    if uses and mode == "tools":
        result = uses[-1].result
        if not (score(result, question) or score(extract(result or ""), question)):
            return "the last tool's result is not the answer"
    return None


def select(
    runs: Iterable[Run],
    tokenizer: Any,
    *,
    check_steps: CheckSteps,
    mode: Mode = "tools",
    max_length: int = 1024,
) -> Selection:
    """Turn runs into examples by rejection sampling.

    Raises:
        DataError: a question that is not of the training split, or nothing left to learn from.
    """
    kept: list[Group] = []
    rejected: Counter[str] = Counter()
    for run in runs:
        refuse_split(run)
        reason = reject(run, mode, check_steps)
        messages = None if reason else conversation(run, mode)
        if messages is None:
            rejected[reason or "nothing to learn from"] += 1
            continue
        example = encode(messages, tokenizer, run.question.id)
        if len(example.ids) > max_length:
            rejected[f"longer than {max_length} tokens"] += 1
            continue
        kept.append(Group((example,)))
    return selection(kept, rejected)


def refuse_split(run: Run) -> None:
    """Raise DataError for a question that may not be trained on."""
    if run.question.split != "train":
        raise DataError(
            f"question {run.question.id}: split '{run.question.split}' may not be trained on; "
            "record traces from training questions only"
        )


def selection(kept: Sequence[Group], rejected: Mapping[str, int], notes: Mapping[str, Any] | None = None) -> Selection:
    """What was kept, or a DataError that says why that is nothing."""
    if not kept:
        why = reasons(rejected) or "there are no traces"
        raise DataError(f"no trace to learn from ({why}); record more, or with a stronger team")
    return Selection(tuple(kept), dict(rejected), dict(notes or {}))


def reasons(rejected: Mapping[str, int]) -> str:
    """`3 x no correct answer, 1 x longer than 1024 tokens`."""
    return ", ".join(f"{count} x {reason}" for reason, count in rejected.items())


def within(chosen: Selection, tokens: int | None, seed: int) -> Selection:
    """At most `tokens` trained tokens of a selection: groups are taken in random order while they still fit.

    Raises:
        DataError: not even one group fits.
    """
    if tokens is None or count_tokens(chosen.groups)[1] <= tokens:
        return chosen
    order = list(range(len(chosen.groups)))
    random.Random(f"{seed}/tokens").shuffle(order)  # noqa: S311 - not cryptography
    left, taken = tokens, [False] * len(order)
    for index in order:
        size = chosen.groups[index].targets
        if size <= left:
            taken[index] = True
            left -= size
    if not any(taken):
        shortest = min(group.targets for group in chosen.groups)
        raise DataError(f"a budget of {tokens} trained tokens is too small: the shortest group has {shortest}")
    kept = tuple(itertools.compress(chosen.groups, taken))
    dropped = {f"over the budget of {tokens} trained tokens": len(order) - len(kept)}
    return replace(chosen, groups=kept, rejected={**chosen.rejected, **dropped})

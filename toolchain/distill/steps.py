"""The steps of a solution, and how good each is.

A step is a line of the student's own turns, so also a tool call. It ends at the line's last token,
where a process reward model reads it. Its label is decided, in this order, by

    rechecked    a call that failed, whose tool's own check refuses it, or arithmetic that does not hold: 0
    answer       the last step: whether the answer is right
    rollouts     the share (soft) of completions sampled after it that reach the right answer, or whether any
                 did (hard): Math-Shepherd
    propagated   without rollouts, the answer's label

That arithmetic holds decides nothing: exact sums of the wrong numbers are wrong too.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from soloist.toolchain.distill.data import CheckSteps, Example
from soloist.toolchain.distill.rollouts import Sampler
from soloist.toolchain.tasks.base import Question
from soloist.toolchain.tools.base import Toolbox
from soloist.toolchain.traces.schema import ToolUse

Kind = Literal["rechecked", "answer", "rollouts", "propagated"]
Beginning = tuple[str, tuple[int, ...]]


def step_ends(ids: Sequence[int], own: Sequence[bool], tokenizer: Any) -> list[int]:
    """The places of the tokens that end a step: a newline after words, or the end of a turn."""
    ends: list[int] = []
    words = False
    for place, token in enumerate(ids):
        if not own[place]:
            continue
        piece = "" if token == tokenizer.eos_token_id else tokenizer.decode([token])
        words = words or bool(piece.strip())
        last = place + 1 == len(ids) or not own[place + 1]
        if words and ("\n" in piece or last):
            ends.append(place)
            words = False
    return ends


def read_at(example: Example, ends: Sequence[int], end_token: int) -> Example:
    """The example with its step ends as the only places that are read, so that nothing else costs logits.

    The token after a place is what a batch "trains" there; the last place needs one more to stand before.
    """
    ids = (*example.ids, end_token)
    read = [False] * len(ids)
    for end in ends:
        read[end + 1] = True
    return Example(example.messages, ids, tuple(read), example.question_id)


@dataclass(frozen=True)
class Tried:
    """One attempt as a conversation of the student's. `uses` are its calls where it calls tools, else empty."""

    question: Question
    example: Example
    right: bool
    uses: tuple[ToolUse, ...] = ()


@dataclass
class Labeller:
    """Labels attempts. Equal beginnings are sampled from once. `counts` says how many steps each kind decided."""

    tokenizer: Any
    check_steps: CheckSteps
    tools: Toolbox | None = None
    sampler: Sampler | None = None
    rollouts: int = 8
    hard: bool = False
    counts: Counter[str] = field(default_factory=Counter)

    def label(self, tried: Sequence[Tried]) -> list[list[float]]:
        """A label in 0..1 for every step of every attempt: a function of them and of torch's random numbers."""
        ends = [step_ends(one.example.ids, one.example.trained, self.tokenizer) for one in tried]
        known = self._sample(tried, ends) if self.sampler is not None else {}
        of_attempts = []
        for one, places in zip(tried, ends, strict=True):
            labels = []
            for index, end in enumerate(places):
                answer: tuple[float, Kind] = (float(one.right), "propagated")
                label, kind = self._decided(one, places, index) or known.get(_beginning(one, end), answer)
                self.counts[kind] += 1
                labels.append(label)
            of_attempts.append(labels)
        return of_attempts

    def _decided(self, one: Tried, ends: Sequence[int], index: int) -> tuple[float, Kind] | None:
        if self._refuted(one, ends, index):
            return 0.0, "rechecked"
        return (float(one.right), "answer") if index + 1 == len(ends) else None

    def _refuted(self, one: Tried, ends: Sequence[int], index: int) -> bool:
        if one.uses:
            own = one.example.trained
            use = one.uses[sum(own[place] and not own[place + 1] for place in range(ends[index]))]  # that turn's
            if use.error is not None or not self.check_steps(use.steps):
                return True
            check = self.tools[use.name].check if self.tools is not None else None
            return check is not None and not check(use.arguments, use.result or "")
        step = slice(ends[index - 1] + 1 if index else 0, ends[index] + 1)
        own_ids = list(itertools.compress(one.example.ids[step], one.example.trained[step]))
        return not self.check_steps([self.tokenizer.decode(own_ids, skip_special_tokens=True)])

    def _sample(self, tried: Sequence[Tried], ends: Sequence[Sequence[int]]) -> dict[Beginning, tuple[float, Kind]]:
        """The label that completions give every beginning that nothing else decides."""
        assert self.sampler is not None
        wanted: dict[Beginning, Question] = {}
        for one, places in zip(tried, ends, strict=True):
            for index, end in enumerate(places):
                if self._decided(one, places, index) is None:
                    wanted[_beginning(one, end)] = one.question
        prompts: list[tuple[int, ...]] = []
        for _, prefix in wanted:
            prompts += [prefix] * self.rollouts
        rollouts = iter(self.sampler.roll(prompts))
        labels: dict[Beginning, tuple[float, Kind]] = {}
        for beginning, question in wanted.items():
            reached = sum(next(rollouts).right(question) for _ in range(self.rollouts))
            labels[beginning] = (float(reached > 0) if self.hard else reached / self.rollouts), "rollouts"
        return labels


def _beginning(one: Tried, end: int) -> Beginning:
    """The question, and everything before the student's next own token after a step."""
    ids, own = one.example.ids, one.example.trained
    after = next((place for place in range(end + 1, len(ids)) if own[place]), len(ids))
    return one.question.id, ids[:after]

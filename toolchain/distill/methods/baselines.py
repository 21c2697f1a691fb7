"""The baselines every distillation must beat: they differ from `sft` only in which conversations are learned.

    answer-only     question -> `#### answer`, in both modes: no work is shown, no tool called, so the student is
                    given none either. Of runs whose answer is right
    random-trace    one attempt of any peer, drawn at random. Right or wrong: nothing is verified, no gold is read
    single-agent    right *first* attempts of one agent, who saw nobody's work, at as many trained tokens as `sft`
    majority-vote   a first attempt with the answer most first attempts give, right or wrong: no gold is read

`random-trace` measures what verification is worth, or with `right=true` what choosing among right traces is
worth. `single-agent` measures what the team is worth: by default its agent is the one whose first attempts are
right most often. Its budget is `max_target_tokens`, else what `sft` selects from the same runs: other questions
than `sft`'s may be among its traces. All its different traces are taken before any is taken twice; where they
are fewer than the budget, whole rounds of them repeat in a new order each, as more epochs would.
`majority-vote` breaks a tie in favor of the answer given first, and takes the first attempt that gives it.
All four are ours to define: the papers name such baselines without saying how they were drawn.
"""

from __future__ import annotations

import contextlib
import itertools
import random
from collections import Counter
from collections.abc import Callable, Sequence

from pydantic import Field

from soloist.kernels.errors import DataError, UsageError
from soloist.targets.base import Message
from soloist.toolchain.core.config import Config
from soloist.toolchain.distill.data import Example, Group, Selection, encode, refuse_split, selection
from soloist.toolchain.distill.methods.attempts import answered_attempts, firsts, right_attempts
from soloist.toolchain.distill.methods.sft import verified
from soloist.toolchain.distill.objective import CrossEntropy
from soloist.toolchain.distill.work import Distilled, Method, Select, Setup, Work
from soloist.toolchain.teams.voting import fold_answer, majority
from soloist.toolchain.traces.graph import graph_of
from soloist.toolchain.traces.schema import Run

One = Callable[[Run], Example | str]
Train = Callable[[Work], Distilled]


def _one_each(runs: Sequence[Run], one: One) -> Selection:
    """What `one` makes of each run: a conversation, or the reason why not."""
    kept: list[Group] = []
    rejected: Counter[str] = Counter()
    for run in runs:
        refuse_split(run)
        made = one(run)
        if isinstance(made, str):
            rejected[made] += 1
        else:
            kept.append(Group((made,)))
    return selection(kept, rejected)


def answers(runs: Sequence[Run], setup: Setup) -> Selection:
    """The bare answer of every run that is right."""

    def one(run: Run) -> Example | str:
        if run.verdict != "correct" or run.answer is None:
            return "no correct answer"
        messages: list[Message] = [
            {"role": "user", "content": run.question.question.strip()},
            {"role": "assistant", "content": f"#### {run.answer}"},
        ]
        example = encode(messages, setup.tokenizer, run.question.id)
        return example if len(example.ids) <= setup.max_length else f"longer than {setup.max_length} tokens"

    return _one_each(runs, one)


class RandomOptions(Config):
    """Of what is drawn."""

    right: bool = Field(default=False, description="draw among right attempts only (our choice: among all)")


def random_traces(runs: Sequence[Run], setup: Setup) -> Selection:
    """One attempt a question, drawn by the seed and the question alone."""
    options = setup.options_of(RandomOptions)

    def one(run: Run) -> Example | str:
        attempts = right_attempts(run, setup) if options.right else answered_attempts(run, setup)
        if isinstance(attempts, str):
            return attempts
        draw = random.Random(f"{setup.seed}/{run.question.id}")  # noqa: S311 - not cryptography
        return draw.choice(attempts).example

    return _one_each(runs, one)


def votes(runs: Sequence[Run], setup: Setup) -> Selection:
    """A first attempt that gives the majority's answer."""

    def one(run: Run) -> Example | str:
        attempts = answered_attempts(run, setup)
        if isinstance(attempts, str):
            return attempts
        agreed, _ = majority([node.answer for node in graph_of(run).nodes if node.attempt == 0])
        for attempt in firsts(attempts):
            if agreed and fold_answer(attempt.node.answer or "") == fold_answer(agreed):
                return attempt.example
        return "no first attempt gives the majority's answer"

    return _one_each(runs, one)


class SingleOptions(Config):
    """Whose attempts are learned."""

    agent: str | None = Field(
        default=None, description="whose attempts (our choice: the agent whose first ones are right most often)"
    )


def strongest(runs: Sequence[Run]) -> str:
    """The agent with the most right first attempts; the first by name of several.

    Raises:
        DataError: no agent answered.
    """
    right: Counter[str] = Counter()
    for run in runs:
        for node in graph_of(run).nodes:
            if node.attempt == 0:
                right[node.agent] += node.verdict == "correct"
    if not right:
        raise DataError("no agent's own attempt is in these traces; the single-agent baseline needs them recorded")
    return min(right, key=lambda agent: (-right[agent], agent))


def single(runs: Sequence[Run], setup: Setup) -> Selection:
    """Right first attempts of one agent, at the budget of tokens.

    Raises:
        UsageError: there is no such agent.
        DataError: none of its first attempts is right, or not one fits the budget.
    """
    options = setup.options_of(SingleOptions)
    agents: set[str] = set()
    for run in runs:
        refuse_split(run)
        agents.update(graph_of(run).agents)
    if options.agent is not None and options.agent not in agents:
        listed = ", ".join(sorted(agents)) or "none"
        raise UsageError(f"agent '{options.agent}' answered nothing here; those who did: {listed}")
    agent = options.agent or strongest(runs)

    def own(run: Run) -> Example | str:
        attempts = right_attempts(run, setup)
        if isinstance(attempts, str):
            return attempts
        for attempt in firsts(attempts):
            if attempt.node.agent == agent:
                return attempt.example
        return f"{agent}'s first attempt is not right"

    pool = _one_each(runs, own)
    budget = setup.max_target_tokens
    if budget is None:
        # splits were looked at before: where sft finds nothing, no run's final answer is right, but an agent's may be
        with contextlib.suppress(DataError):
            budget = sum(group.targets for group in verified(runs, setup).groups)
    groups = fill(pool.groups, budget, setup.seed)
    distinct = len({group.examples[0].ids for group in groups})
    notes = {"agent": agent, "budget": budget, "distinct": distinct, "repeated": len(groups) - distinct}
    return selection(groups, pool.rejected, notes)


def fill(pool: Sequence[Group], budget: int | None, seed: int) -> list[Group]:
    """Groups up to `budget` trained tokens: all of the pool in random order, again and again while all of it fits.

    The last round takes what still fits. Of a budget smaller than the pool there is one round, and no repetition.

    Raises:
        DataError: not one fits.
    """
    if budget is None:
        return list(pool)
    groups: list[Group] = []
    left = budget
    for lap in itertools.count():
        order = list(pool)
        random.Random(f"{seed}/{lap}").shuffle(order)  # noqa: S311 - not cryptography
        for group in order:
            if group.targets <= left:
                groups.append(group)
                left -= group.targets
        if len(groups) < (lap + 1) * len(pool):
            break
    if not groups:
        raise DataError(f"a budget of {budget} trained tokens is too small for any of the agent's traces")
    return groups


def _without_tools(work: Work) -> Distilled:
    """The single pass, and a student that is prompted as it was trained: whoever has tools must write a call."""
    return work.once().model_copy(update={"tools": ()})


def _method(select: Select, options: type[Config] = Config, train: Train | None = None) -> Method:
    return Method(select=select, objective=lambda _student, _setup: CrossEntropy(), options=options, train=train)


ANSWER_ONLY = _method(answers, train=_without_tools)
RANDOM_TRACE = _method(random_traces, RandomOptions)
SINGLE_AGENT = _method(single, SingleOptions)
MAJORITY_VOTE = _method(votes)

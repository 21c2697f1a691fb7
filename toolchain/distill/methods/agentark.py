"""AgentArk's two ways of fine-tuning on a debate (arXiv 2602.03955): one consensus trace, or several different ones.

    rsft   L = -sum_t log p(y_t | y_<t, x)                       one trace y of the consensus a question
    da     L = -(1/k) sum_{i=1..k} sum_t log p(y_t^i | y_<t^i, x)    k structurally different right traces

Both are the cross-entropy of `sft` on other conversations: every right attempt of every peer is a candidate,
not only the one that became the team's answer. The consensus is the majority of the agents' last attempts
(the first given wins a tie); where it is wrong, `rsft` has no trace. `da` takes right attempts whatever the
majority answers, and drops a question with fewer than two of them. Each of its k traces weighs 1/k, so
no question counts more than another; with k = 1 it is `rsft` token for token.

Paper: k of 1 to 3, correct traces only, corrective ones (wrong before, right later, by the same agent)
preferred, the drop. Ours, because the paper's distiller is an unpublished prompt: greedy max-min choice under
`attempts.distance`, and k as the number of traces that stay `apart` from each other. No code was released for
this part, so there is no `released` variant. Left out: stacking one stage on the other.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any, Literal

from pydantic import Field

from soloist.kernels.errors import DataError
from soloist.toolchain.core.config import Config
from soloist.toolchain.distill.data import Group, Selection, refuse_split, selection
from soloist.toolchain.distill.methods.attempts import Attempt, distance, lasts, right_attempts
from soloist.toolchain.distill.objective import CrossEntropy
from soloist.toolchain.distill.work import Method, Setup
from soloist.toolchain.tasks.base import score
from soloist.toolchain.teams.voting import fold_answer, majority
from soloist.toolchain.traces.graph import graph_of
from soloist.toolchain.traces.schema import Run

Choose = Callable[[Run, list[Attempt]], list[Attempt] | str]


class Options(Config):
    """Which right attempts count."""

    corrective: Literal["prefer", "only", "ignore"] = Field(
        default="prefer", description="attempts that were wrong before: taken first (paper), alone, or like any other"
    )


class DiverseOptions(Options):
    """And how many different ones are taken."""

    k_max: int = Field(default=3, ge=1, description="most traces a question (paper: 3)")
    apart: float = Field(
        default=0.1, ge=0, le=1, description="least distance of a further trace from those taken (our choice)"
    )
    alike: Literal["drop", "keep"] = Field(
        default="keep",
        description="questions whose right traces, two or more (paper), are word for word the same: kept with k = 1, "
        "or dropped as if there were one",
    )


def ranked(attempts: Sequence[Attempt], *, corrective: bool) -> list[Attempt]:
    """Corrective attempts first if asked for; then the wording that most attempts share; then the earliest."""
    same = Counter(attempt.example.ids for attempt in attempts)
    return sorted(attempts, key=lambda attempt: (corrective and not attempt.corrective, -same[attempt.example.ids]))


def spread(attempts: Sequence[Attempt], k_max: int, apart: float, *, corrective: bool) -> list[Attempt]:
    """The first of `attempts`, then again and again the one farthest from those taken, while it is `apart` enough.

    Of those far enough the corrective ones come first, if asked for.
    """
    taken = [attempts[0]]
    near = [distance(attempt, taken[0]) for attempt in attempts]
    while len(taken) < k_max:
        far = [index for index, gap in enumerate(near) if gap > 0 and gap >= apart]
        if not far:
            break
        best = max(far, key=lambda index: (corrective and attempts[index].corrective, near[index]))
        taken.append(attempts[best])
        for index, attempt in enumerate(attempts):
            near[index] = min(near[index], distance(attempt, attempts[best]))
    return taken


def gather(
    runs: Sequence[Run], setup: Setup, corrective: str, choose: Choose, *, least: int = 1
) -> tuple[list[list[Attempt]], Counter[str]]:
    """What `choose` takes of each run's right attempts, and how many runs were rejected for which reason.

    Runs with fewer than `least` right attempts are, whether those are corrective or not.

    Raises:
        DataError: a question that may not be trained on, or only corrective traces wanted of runs that
            hold one attempt an agent.
    """
    if corrective == "only" and runs and all(graph_of(run).attempts < 2 for run in runs):
        raise DataError(
            "corrective=only: these traces hold one attempt of each agent (the last round alone?), so none shows a "
            "change of mind; record every round, or use --set corrective=prefer"
        )
    chosen: list[list[Attempt]] = []
    rejected: Counter[str] = Counter()
    for run in runs:
        refuse_split(run)
        attempts = right_attempts(run, setup)
        if isinstance(attempts, list) and len(attempts) < least:
            attempts = f"fewer than {least} correct traces"
        if isinstance(attempts, list) and corrective == "only":
            attempts = [attempt for attempt in attempts if attempt.corrective] or "no corrective trace"
        taken = choose(run, attempts) if isinstance(attempts, list) else attempts
        if isinstance(taken, str):
            rejected[taken] += 1
        else:
            chosen.append(taken)
    return chosen, rejected


def consensus(runs: Sequence[Run], setup: Setup) -> Selection:
    """One right trace of the majority's answer a question."""
    options = setup.options_of(Options)

    def choose(run: Run, attempts: list[Attempt]) -> list[Attempt] | str:
        agreed, _ = majority([node.answer for node in lasts(graph_of(run))])
        answers = {fold_answer(attempt.node.answer or "") for attempt in attempts}
        same = agreed is not None and fold_answer(agreed) in answers
        if not same and not score(agreed, run.question):  # a judge may accept other words
            return "the majority's answer is wrong"
        return ranked(attempts, corrective=options.corrective != "ignore")[:1]

    chosen, rejected = gather(runs, setup, options.corrective, choose)
    return selection(_groups(chosen), rejected, {"corrective": _corrective(chosen)})


def diverse(runs: Sequence[Run], setup: Setup) -> Selection:
    """k structurally different right traces a question, each weighing 1/k."""
    options = setup.options_of(DiverseOptions)
    first = options.corrective != "ignore"

    def choose(_run: Run, attempts: list[Attempt]) -> list[Attempt] | str:
        attempts = ranked(attempts, corrective=first)
        if options.alike == "drop" and all(distance(attempts[0], other) == 0 for other in attempts[1:]):
            return "fewer than two different correct traces"
        return spread(attempts, options.k_max, options.apart, corrective=first)

    chosen, rejected = gather(runs, setup, options.corrective, choose, least=2)
    return selection(_groups(chosen), rejected, _diversity(chosen))


def _groups(chosen: Sequence[Sequence[Attempt]]) -> list[Group]:
    """Of k conversations each token weighs 1/k; a single one is left as it is."""
    groups = []
    for taken in chosen:
        examples = []
        for attempt in taken:
            example, k = attempt.example, len(taken)
            examples.append(replace(example, weights=(1 / k,) * len(example.ids)) if k > 1 else example)
        groups.append(Group(tuple(examples)))
    return groups


def _corrective(chosen: Sequence[Sequence[Attempt]]) -> int:
    return sum(attempt.corrective for attempt in itertools.chain.from_iterable(chosen))


def _diversity(chosen: Sequence[Sequence[Attempt]]) -> dict[str, Any]:
    """How diverse the choice is: the mean k, how often each k, and the mean distance between traces of a question."""
    sizes = sorted(map(len, chosen))
    gaps = []
    for taken in chosen:
        if len(taken) > 1:
            gaps.append(fmean(itertools.starmap(distance, itertools.combinations(taken, 2))))
    return {
        "mean_k": round(fmean(sizes), 3) if chosen else None,
        "k": dict(Counter(map(str, sizes))),
        "mean_distance": round(fmean(gaps), 3) if gaps else None,
        "corrective": _corrective(chosen),
    }


RSFT = Method(select=consensus, objective=lambda _student, _setup: CrossEntropy(), options=Options)
DA = Method(select=diverse, objective=lambda _student, _setup: CrossEntropy(), options=DiverseOptions)

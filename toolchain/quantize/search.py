"""Which unit of a model gets which bits: the least KL increase that fits the budgets.

Each unit (the embedding, a layer's query-key-value …) takes one of several options; an option costs bytes in the file
and bytes streamed for every token, and increases the KL divergence, measured with only this unit quantized. Increases
are added, which small errors of different layers nearly do; the sum is a prediction, and the whole is measured after.

    minimize   sum kl_increase(unit, bits) x(unit, bits),   x in {0, 1},   sum over bits x(unit, bits) = 1
    such that  sum bytes(unit, bits) x(unit, bits) <= B,    sum streamed(unit, bits) x(unit, bits) <= S

Solved exactly by HiGHS, scipy's mixed-integer solver. Left out: increases of pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from soloist.kernels.errors import UsageError
from soloist.targets.base import require


@dataclass(frozen=True)
class Unit:
    """What gets its bits together: matrices by name, and their layer (-1: embedding and head)."""

    name: str
    layer: int
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class Option:
    """Bits of a unit: bytes in the file, bytes streamed per token, increase of KL in nats."""

    bits: int
    bytes: int
    streamed: int
    kl_increase: float


Options = Mapping[str, Sequence[Option]]  # by the name of the unit
Choice = Mapping[str, Option]


def total(choice: Choice, what: str) -> float:
    """Sum of a field over the units."""
    return float(sum(getattr(option, what) for option in choice.values()))


def least(options: Options, what: str) -> int:
    """The smallest sum of a field that a choice can have."""
    size = 0
    for alternatives in options.values():
        size += min(getattr(option, what) for option in alternatives)
    return size


def choose(options: Options, max_bytes: int, max_streamed: int | None = None) -> dict[str, Option]:
    """The option of each unit, by name.

    Raises:
        UsageError: even the smallest options exceed a budget; the message says what they would need.
        MissingExtraError: scipy is not installed.
    """
    for field, limit, where in (
        ("bytes", max_bytes, "in the file"),
        ("streamed", max_streamed, "streamed for a token"),
    ):
        if limit is not None and least(options, field) > limit:
            needed = least(options, field)
            raise UsageError(f"{limit} bytes {where} cannot be met: the smallest options need {needed}")
    owners: list[str] = []
    useful: list[Option] = []
    for unit, alternatives in options.items():
        for option in _useful(alternatives):
            owners.append(unit)
            useful.append(option)
    choice = {owners[place]: useful[place] for place in _solve(owners, useful, max_bytes, max_streamed)}
    assert choice.keys() == options.keys()
    assert total(choice, "bytes") <= max_bytes
    assert max_streamed is None or total(choice, "streamed") <= max_streamed
    return choice


def _useful(alternatives: Sequence[Option]) -> list[Option]:
    """Those that no other beats or equals in all of bytes, streamed bytes and KL."""
    kept: list[Option] = []
    for option in sorted(alternatives, key=lambda o: (o.bytes, o.streamed, o.kl_increase)):
        if not any(other.streamed <= option.streamed and other.kl_increase <= option.kl_increase for other in kept):
            kept.append(option)
    return kept


def _solve(owners: Sequence[str], options: Sequence[Option], max_bytes: int, max_streamed: int | None) -> list[int]:
    """Places of the options to take, one for each owner."""
    optimize, sparse = require("scipy.optimize", "train"), require("scipy.sparse", "train")
    names, rows = np.unique(owners, return_inverse=True)
    one_each = sparse.csr_array((np.ones(len(rows)), (rows, np.arange(len(rows)))), (len(names), len(rows)))
    table = np.array([(option.bytes, option.streamed, option.kl_increase) for option in options])
    constraints = [optimize.LinearConstraint(one_each, 1, 1)]
    for sizes, limit in ((table[:, 0], max_bytes), (table[:, 1], max_streamed)):
        if limit is not None:
            # in the largest unit that all sizes are multiples of: the solver's tolerance is far below one of them
            unit = max(1, int(np.gcd.reduce(sizes.astype(np.int64))))
            constraints.append(optimize.LinearConstraint((sizes / unit)[None], ub=limit // unit))
    # the solver stops at an absolute gap of 1e-6: increases of a thousandth of a nat have to be large numbers
    cost = table[:, 2] * (1e3 / max(float(table[:, 2].max()), 1e-300))
    result = optimize.milp(
        cost,
        integrality=np.ones(len(cost)),
        bounds=optimize.Bounds(0, 1),
        constraints=constraints,
        options={"mip_rel_gap": 0},
    )
    if result.x is None:
        raise UsageError(f"the budgets cannot be met together ({result.message}); raise one of them")
    return list(map(int, np.flatnonzero(result.x > 0.5)))


@dataclass(frozen=True)
class Step:
    """A unit that was given more than its fewest bits: what it bought, for how many bytes."""

    unit: str
    bits: int
    instead_of: int
    bytes: int
    saved: float

    @property
    def per_megabyte(self) -> float:
        """KL saved for a megabyte."""
        return self.saved / (self.bytes / 1e6) if self.bytes else float("inf")


def explain(options: Options, choice: Choice) -> tuple[list[Step], list[Step]]:
    """What was bought, best value first, and what the next bytes would buy."""
    bought: list[Step] = []
    following: list[Step] = []
    for unit, alternatives in options.items():
        smallest = min(alternatives, key=lambda option: option.bytes)
        taken = choice[unit]
        if taken.bytes > smallest.bytes:
            bought.append(_step(unit, smallest, taken))
        steps: list[Step] = []
        for option in alternatives:
            if option.bytes > taken.bytes and option.kl_increase < taken.kl_increase:
                steps.append(_step(unit, taken, option))
        if steps:
            following.append(max(steps, key=_value))
    return sorted(bought, key=_value, reverse=True), sorted(following, key=_value, reverse=True)


def _step(unit: str, before: Option, after: Option) -> Step:
    return Step(unit, after.bits, before.bits, after.bytes - before.bytes, before.kl_increase - after.kl_increase)


def _value(step: Step) -> float:
    return step.per_megabyte

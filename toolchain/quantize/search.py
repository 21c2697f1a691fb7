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


def choose(options: Options, max_bytes: int, max_streamed: int | None = None) -> dict[str, Option]:
    """The option of each unit, by name.

    Raises:
        UsageError: even the smallest options exceed a budget; the message says what they would need.
        MissingExtraError: scipy is not installed.
    """
    _refuse_impossible(options, "bytes", max_bytes, "in the file")
    if max_streamed is not None:
        _refuse_impossible(options, "streamed", max_streamed, "streamed for a token")
    pairs: list[tuple[int, str, Option]] = []
    for number, (unit, alternatives) in enumerate(options.items()):
        pairs += [(number, unit, option) for option in _useful(alternatives)]
    taken = _solve(pairs, len(options), max_bytes, max_streamed)
    choice = {unit: option for (_, unit, option), is_taken in zip(pairs, taken, strict=True) if is_taken}
    assert len(choice) == len(options)
    assert total(choice, "bytes") <= max_bytes
    assert max_streamed is None or total(choice, "streamed") <= max_streamed
    return choice


def _refuse_impossible(options: Options, field: str, limit: int, where: str) -> None:
    least = sum(min(getattr(option, field) for option in alternatives) for alternatives in options.values())
    if least > limit:
        raise UsageError(f"{limit} bytes {where} cannot be met: the smallest options need {least}")


def _useful(alternatives: Sequence[Option]) -> list[Option]:
    """Those that no other beats or equals in all of bytes, streamed bytes and KL."""
    kept: list[Option] = []
    for option in sorted(alternatives, key=lambda o: (o.bytes, o.streamed, o.kl_increase)):
        if not any(other.streamed <= option.streamed and other.kl_increase <= option.kl_increase for other in kept):
            kept.append(option)
    return kept


def _solve(
    pairs: Sequence[tuple[int, str, Option]], units: int, max_bytes: int, max_streamed: int | None
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which of the pairs (number of the unit, its name, option) are taken."""
    optimize, sparse = require("scipy.optimize", "train"), require("scipy.sparse", "train")
    count = len(pairs)
    owner = sparse.csr_array((np.ones(count), ([number for number, _, _ in pairs], range(count))), (units, count))
    constraints = [optimize.LinearConstraint(owner, 1, 1)]
    for field, limit in (("bytes", max_bytes), ("streamed", max_streamed)):
        if limit is None:
            continue
        sizes = np.array([getattr(option, field) for _, _, option in pairs], np.int64)
        # in the largest unit that all sizes are multiples of, so that the solver's tolerance is far below one of them
        unit = max(1, int(np.gcd.reduce(sizes)))
        constraints.append(optimize.LinearConstraint((sizes // unit)[None].astype(float), ub=limit // unit))
    cost = np.array([option.kl_increase for _, _, option in pairs])
    # the solver stops at an absolute gap of 1e-6: increases of a thousandth of a nat have to be large numbers
    cost *= 1e3 / max(float(cost.max()), 1e-300)
    result = optimize.milp(
        cost,
        integrality=np.ones(count),
        bounds=optimize.Bounds(0, 1),
        constraints=constraints,
        options={"mip_rel_gap": 0},
    )
    if result.x is None:
        raise UsageError(f"the budgets cannot be met together ({result.message}); raise one of them")
    return np.asarray(result.x > 0.5)


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
    bought, next_ = [], []
    for unit, alternatives in options.items():
        smallest = min(alternatives, key=lambda option: option.bytes)
        taken = choice[unit]
        if taken.bytes > smallest.bytes:
            bought.append(_step(unit, smallest, taken))
        larger = [o for o in alternatives if o.bytes > taken.bytes and o.kl_increase < taken.kl_increase]
        if larger:
            next_.append(max((_step(unit, taken, option) for option in larger), key=lambda step: step.per_megabyte))
    for steps in (bought, next_):
        steps.sort(key=lambda step: step.per_megabyte, reverse=True)
    return bought, next_


def _step(unit: str, before: Option, after: Option) -> Step:
    return Step(unit, after.bits, before.bits, after.bytes - before.bytes, before.kl_increase - after.kl_increase)

"""Which unit of a model gets which width: the least damage that fits the budgets.

Each unit (the embedding, a layer's query-key-value …) may have one of several widths; a width costs bytes in the file
and bytes streamed for every token, and does damage, the KL divergence measured with only this unit quantized. Damages
are added, which small errors of different layers nearly do; the sum is a prediction, and the whole is measured after.

    minimize   sum damage(unit, width)
    such that  sum bytes(unit, width) <= B,   sum streamed(unit, width) <= S

Solved exactly over bytes rounded up to 1/8192 of the budget (dynamic programming), so a choice never exceeds it; the
second budget, where it binds, enters with a price that is found by bisection. Left out: damage of pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from soloist.kernels.errors import UsageError

_STEPS = 8192
_HALVINGS = 40
_DEAREST = 1e6  # nats a byte: no damage is worth it


@dataclass(frozen=True)
class Option:
    """A width of a unit: bytes in the file, bytes streamed per token, damage in nats."""

    bits: int
    bytes: int
    streamed: int
    damage: float


@dataclass(frozen=True)
class Unit:
    """What gets one width together. `tensors` are names of matrices."""

    name: str
    tensors: tuple[str, ...]
    options: tuple[Option, ...]


Choice = Mapping[str, Option]


def total(choice: Choice, what: str) -> float:
    """Sum of a field over the units."""
    return float(sum(getattr(option, what) for option in choice.values()))


def choose(units: Sequence[Unit], most_bytes: int, most_streamed: int | None = None) -> dict[str, Option]:
    """The option of each unit, by name.

    Raises:
        UsageError: even the smallest widths exceed a budget; the message says what they would need.
    """
    for limit, field in ((most_bytes, "bytes"), (most_streamed, "streamed")):
        least = sum(min(getattr(option, field) for option in unit.options) for unit in units)
        if limit is not None and least > limit:
            what = "bytes in the file" if field == "bytes" else "bytes streamed for a token"
            raise UsageError(f"{limit} {what} cannot be met: the smallest widths need {least}")
    found = _knapsack(units, most_bytes, 0.0)
    if most_streamed is None or total(found, "streamed") <= most_streamed:
        return found
    low, high = 0.0, 1e-12
    while total(_knapsack(units, most_bytes, high), "streamed") > most_streamed and high < _DEAREST:
        low, high = high, high * 8
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        tried = _knapsack(units, most_bytes, middle)
        if total(tried, "streamed") > most_streamed:
            low = middle
        else:
            high, found = middle, tried
    if total(found, "streamed") > most_streamed:  # no price did: the cheapest of all
        found = {unit.name: min(unit.options, key=lambda o: (o.streamed, o.bytes)) for unit in units}
    return found


def _knapsack(units: Sequence[Unit], most_bytes: int, price: float) -> dict[str, Option]:
    """Least damage plus price times streamed bytes, within the bytes."""
    base = sum(min(option.bytes for option in unit.options) for unit in units)
    step = max(1, -(-(most_bytes - base) // _STEPS))
    room = (most_bytes - base) // step
    best: npt.NDArray[np.float64] = np.zeros(room + 1)
    taken: list[npt.NDArray[np.int8]] = []
    for unit in units:
        least = min(option.bytes for option in unit.options)
        tried = np.full((len(unit.options), room + 1), np.inf)
        for row, option in enumerate(unit.options):
            extra = -(-(option.bytes - least) // step)
            if extra <= room:
                tried[row, extra:] = best[: room + 1 - extra] + option.damage + price * option.streamed
        taken.append(tried.argmin(axis=0).astype(np.int8))
        best = tried.min(axis=0)
    place, chosen = room, {}
    for unit, rows in zip(reversed(units), reversed(taken), strict=True):
        option = unit.options[int(rows[place])]
        chosen[unit.name] = option
        place -= -(-(option.bytes - min(o.bytes for o in unit.options)) // step)
    return {unit.name: chosen[unit.name] for unit in units}


@dataclass(frozen=True)
class Step:
    """A unit that was given more than its smallest width: what it bought, for how many bytes."""

    unit: str
    bits: int
    instead_of: int
    bytes: int
    saved: float

    @property
    def per_megabyte(self) -> float:
        """Damage saved for a megabyte."""
        return self.saved / (self.bytes / 1e6) if self.bytes else float("inf")


def explain(units: Sequence[Unit], choice: Choice) -> tuple[list[Step], list[Step]]:
    """What was bought, best value first, and what the next bytes would buy."""
    bought, next_ = [], []
    for unit in units:
        ordered = sorted(unit.options, key=lambda option: option.bytes)
        taken = choice[unit.name]
        if taken.bytes > ordered[0].bytes:
            bought.append(_step(unit, ordered[0], taken))
        larger = [option for option in ordered if option.bytes > taken.bytes and option.damage < taken.damage]
        if larger:
            next_.append(max((_step(unit, taken, option) for option in larger), key=lambda step: step.per_megabyte))
    return sorted(bought, key=_value), sorted(next_, key=_value)


def _step(unit: Unit, before: Option, after: Option) -> Step:
    return Step(unit.name, after.bits, before.bits, after.bytes - before.bytes, before.damage - after.damage)


def _value(step: Step) -> float:
    return -step.per_megabyte

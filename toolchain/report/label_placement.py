"""Puts names beside the points of a chart so that none covers another.

A name stands next to its point, or hangs from it on a vertical pole like a flag. Every label starts at the
best spot that those before it left free; then each in turn is moved while that helps. Enough for a dozen
points, and the same chart always comes out the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from soloist.toolchain.report.svg import text_width


@dataclass(frozen=True)
class Box:
    """A rectangle."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: Box) -> float:
        """The area that both cover."""
        wide = min(self.right, other.right) - max(self.left, other.left)
        high = min(self.bottom, other.bottom) - max(self.top, other.top)
        return wide * high if wide > 0 and high > 0 else 0.0

    def holds(self, other: Box) -> bool:
        across = self.left <= other.left and other.right <= self.right
        return across and self.top <= other.top and other.bottom <= self.bottom


@dataclass(frozen=True)
class Label:
    """A text that belongs to a point whose own mark and whisker span `top` to `bottom`."""

    text: str
    x: float
    y: float
    top: float
    bottom: float
    kind: str


@dataclass(frozen=True)
class Spot:
    """Where a label goes; `pole` is the line that joins it to its point, None when it stands beside it."""

    box: Box
    pole: Box | None
    length: float


def place(labels: Sequence[Label], taken: Sequence[Box], bounds: Box, size: float) -> list[Spot]:
    """A spot for each label, in the given order of importance."""
    choices = []
    for label in labels:
        every = _spots(label, bounds, size)
        choices.append([spot for spot in every if bounds.holds(spot.box)] or every)
    # Where descent ends depends on where it starts: try the order given, left to right, and right to left.
    across = sorted(range(len(labels)), key=lambda i: labels[i].x)
    tries = [_descend(choices, order, taken) for order in (range(len(labels)), across, across[::-1])]
    return min(tries, key=lambda spots: _total(spots, taken))


def _descend(choices: Sequence[Sequence[Spot]], order: Sequence[int], taken: Sequence[Box]) -> list[Spot]:
    chosen: dict[int, Spot] = {}
    for _ in range(8):
        before = dict(chosen)
        for i in order:
            others = [spot for j, spot in chosen.items() if j != i]
            chosen[i] = min(choices[i], key=lambda spot: _cost(spot, others, taken))
        if chosen == before:
            break
    return [chosen[i] for i in range(len(choices))]


def _total(spots: Sequence[Spot], taken: Sequence[Box]) -> float:
    return sum(_cost(spot, [*spots[:i], *spots[i + 1 :]], taken) for i, spot in enumerate(spots))


def _cost(spot: Spot, others: Sequence[Spot], taken: Sequence[Box]) -> float:
    covered = sum(spot.box.overlap(box) for box in taken)
    crossed = 0.0
    for other in others:
        covered += 3 * spot.box.overlap(other.box)
        if other.pole is not None:
            crossed += spot.box.overlap(other.pole)
        if spot.pole is not None:
            crossed += spot.pole.overlap(other.box)
    return spot.length + 60 * (covered > 0) + 8 * covered + 60 * (crossed > 0) + 8 * crossed


def _spots(label: Label, bounds: Box, size: float) -> list[Spot]:
    width, height = text_width(label.text, size), size + 4
    found = []
    for side in (label.x + 11, label.x - 11 - width):
        for shift in (0.0, -6.0, 6.0):
            top = label.y - height / 2 + shift
            found.append(Spot(Box(side, top, side + width, top + height), None, abs(shift) / 3))
    for left in (label.x + 3, label.x - 3 - width):
        level = label.bottom + 3
        while level + height <= bounds.bottom:
            pole = Box(label.x - 1, label.bottom, label.x + 1, level + height)
            found.append(Spot(Box(left, level, left + width, level + height), pole, 8 + level - label.bottom))
            level += 5
        level = label.top - 3 - height
        while level >= bounds.top:
            pole = Box(label.x - 1, level, label.x + 1, label.top)
            found.append(Spot(Box(left, level, left + width, level + height), pole, 8 + label.top - level - height))
            level -= 5
    return found

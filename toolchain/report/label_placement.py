"""Puts names beside the points of a chart so that none lies on another name, mark, whisker or line.

A label stands next to its point, or farther off at the end of a straight line to it. A search with look-ahead finds
spots that leave each other free; enough for a dozen points, and the same chart always comes out the same. Where it
finds none, `Placement.free` is False: the chart then uses numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from soloist.toolchain.report.svg import text_width

_CONFLICT = 1000.0  # what one overlap costs, in pixels of distance: no distance in a chart is worth one
_DISTANCES = range(18, 240, 8)
_DIRECTIONS = 16
_STEPS = 300  # of the search, a few milliseconds each


class Line(NamedTuple):
    """A straight line between two points."""

    x1: float
    y1: float
    x2: float
    y2: float

    def crosses(self, other: Line) -> bool:
        """Whether both have a point in common that is not merely an end."""
        sides = [
            _side(self, other.x1, other.y1) * _side(self, other.x2, other.y2),
            _side(other, self.x1, self.y1) * _side(other, self.x2, self.y2),
        ]
        return max(sides) < 0


def _side(line: Line, x: float, y: float) -> float:
    return (line.x2 - line.x1) * (y - line.y1) - (line.y2 - line.y1) * (x - line.x1)


@dataclass(frozen=True)
class Box:
    """A rectangle; y grows downward."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: Box) -> bool:
        """Whether both cover a common area."""
        across = min(self.right, other.right) > max(self.left, other.left)
        return across and min(self.bottom, other.bottom) > max(self.top, other.top)

    def holds(self, other: Box) -> bool:
        across = self.left <= other.left and other.right <= self.right
        return across and self.top <= other.top and other.bottom <= self.bottom

    def touches(self, line: Line) -> bool:
        """Whether a part of the line lies inside (Liang and Barsky's clipping)."""
        enters, leaves = 0.0, 1.0
        for start, step, low, high in (
            (line.x1, line.x2 - line.x1, self.left, self.right),
            (line.y1, line.y2 - line.y1, self.top, self.bottom),
        ):
            if step == 0:
                if not low < start < high:
                    return False
                continue
            near, far = sorted(((low - start) / step, (high - start) / step))
            enters, leaves = max(enters, near), min(leaves, far)
        return enters < leaves


@dataclass(frozen=True)
class Label:
    """A text that belongs to the point at (x, y). `mark` and `whisker` are what is drawn there and must stay free."""

    text: str
    x: float
    y: float
    mark: Box
    whisker: Box
    kind: str


@dataclass(frozen=True)
class Spot:
    """Where a label goes; `line` joins it to its point, None when it stands right beside it."""

    box: Box
    line: Line | None
    cost: float

    def conflicts(self, other: Spot) -> bool:
        """Whether one of the two labels or lines lies on the other."""
        if self.box.overlaps(other.box):
            return True
        if self.line is not None and other.box.touches(self.line):
            return True
        if other.line is not None and self.box.touches(other.line):
            return True
        return self.line is not None and other.line is not None and self.line.crosses(other.line)


@dataclass(frozen=True)
class Placement:
    """A spot for each label, and whether none of them lies on anything."""

    spots: tuple[Spot, ...]
    free: bool


def place(labels: Sequence[Label], bounds: Box, size: float) -> Placement:
    """A spot for each label inside `bounds`; `size` is that of the font."""
    every = [_spots(i, labels, bounds, size) for i in range(len(labels))]
    free = {i: [spot for spot in spots if spot.cost < _CONFLICT] for i, spots in enumerate(every)}
    chosen = _search(free, [_STEPS])
    if chosen is None:
        return Placement(tuple(spots[0] for spots in every), False)
    for _ in range(3):  # what the search found is free; now nearer, one by one
        for i in sorted(free):
            others = [spot for j, spot in chosen.items() if j != i]
            chosen[i] = next(spot for spot in free[i] if not any(spot.conflicts(other) for other in others))
    return Placement(tuple(chosen[i] for i in range(len(labels))), True)


def _search(choices: Mapping[int, Sequence[Spot]], steps: list[int]) -> dict[int, Spot] | None:
    """A spot for each label so that no two conflict, or None after so many steps or where there is none.

    The label with the fewest spots left goes first; every spot it takes removes those of the others that lie on it,
    and is given up once another has none.
    """
    if not choices:
        return {}
    tightest = min(choices, key=lambda i: (len(choices[i]), i))
    for spot in choices[tightest]:
        if steps[0] <= 0:
            return None
        steps[0] -= 1
        left = {}
        for i, spots in choices.items():
            if i != tightest:
                left[i] = [other for other in spots if not spot.conflicts(other)]
        if all(left.values()):
            chosen = _search(left, steps)
            if chosen is not None:
                return {tightest: spot, **chosen}
    return None


def _spots(index: int, labels: Sequence[Label], bounds: Box, size: float) -> list[Spot]:
    """Every spot a label may take, cheapest first: beside its point, then around it at growing distances."""
    label = labels[index]
    width, height = text_width(label.text, size), size + 4
    spots = []
    for left in (label.x + 11, label.x - 11 - width):
        for shift in (0.0, -6.0, 6.0):
            top = label.y - height / 2 + shift
            box = Box(left, top, left + width, top + height)
            spots.append(Spot(box, None, abs(shift) / 3 + _covered(box, None, index, labels, bounds)))
    for distance in _DISTANCES:
        for step in range(_DIRECTIONS):
            angle = 2 * math.pi * step / _DIRECTIONS
            x, y = label.x + distance * math.cos(angle), label.y + distance * math.sin(angle)
            line = Line(label.x, label.y, x, y)
            for left, top in _corners(x, y, width, height, angle):
                box = Box(left, top, left + width, top + height)
                spots.append(Spot(box, line, 8 + distance + _covered(box, line, index, labels, bounds)))
    return sorted(spots, key=lambda spot: spot.cost)


def _corners(x: float, y: float, width: float, height: float, angle: float) -> list[tuple[float, float]]:
    """Where the upper left corner of a text stands at the end of a line in that direction."""
    if math.cos(angle) > 0.1:
        return [(x, y - height / 2)]
    if math.cos(angle) < -0.1:
        return [(x - width, y - height / 2)]
    # straight up or down: on the end of the line, or to one side of it like a flag
    return [(x - width / 2, y if math.sin(angle) > 0 else y - height), (x + 3, y - height), (x - 3 - width, y - height)]


def _covered(box: Box, line: Line | None, index: int, labels: Sequence[Label], bounds: Box) -> float:
    """What a spot costs by itself: each mark and whisker it lies on, and leaving the chart."""
    count = 0 if bounds.holds(box) else 2
    for i, other in enumerate(labels):
        for drawn in (other.mark, other.whisker):
            count += box.overlaps(drawn)
            count += line is not None and i != index and drawn.touches(line)
    return _CONFLICT * count

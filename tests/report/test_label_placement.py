import random

import pytest

from soloist.toolchain.report.label_placement import Box, Label, Line, place

BOUNDS = Box(48, 4, 428, 320)


def labels_at(points, texts, *, reach=20):
    """Labels of points with a round mark and a whisker."""
    labels = []
    for (x, y), text in zip(points, texts, strict=True):
        mark, whisker = Box(x - 8, y - 8, x + 8, y + 8), Box(x - 2, y - reach, x + 2, y + reach)
        labels.append(Label(text, x, y, mark, whisker, "k-file"))
    return labels


def crowded(seed, count):
    """Points in one corner, as compiled files of one student lie."""
    draw = random.Random(seed)
    return [(draw.uniform(60, 240), draw.uniform(20, 60)) for _ in range(count)]


def lies_on(labels, spots):
    """Every pair of things of which one lies on the other, worked out by sampling the lines."""
    faults = []
    for i, spot in enumerate(spots):
        for j, label in enumerate(labels):
            if spot.box.overlaps(label.mark) or spot.box.overlaps(label.whisker):
                faults.append(f"label {i} on the mark of {j}")
        for j, other in enumerate(spots):
            if i < j and spot.box.overlaps(other.box):
                faults.append(f"label {i} on label {j}")
            if other.line is not None and i != j and any(inside(spot.box, point) for point in along(other.line)):
                faults.append(f"label {i} on the line of {j}")
        for j, label in enumerate(labels):
            if spot.line is not None and i != j and any(inside(label.mark, point) for point in along(spot.line)):
                faults.append(f"line {i} on the mark of {j}")
    return faults


def along(line):
    return [(line.x1 + t / 200 * (line.x2 - line.x1), line.y1 + t / 200 * (line.y2 - line.y1)) for t in range(201)]


def inside(box, point):
    return box.left < point[0] < box.right and box.top < point[1] < box.bottom


@pytest.mark.parametrize("seed", range(10))
def test_names_that_are_placed_freely_lie_on_nothing(seed):
    labels = labels_at(crowded(seed, 6), [f"system {i} 97%" for i in range(6)])
    placed = place(labels, BOUNDS, 12)
    assert len(placed.spots) == len(labels)
    inside_the_chart = all(BOUNDS.holds(spot.box) for spot in placed.spots)
    assert placed.free == (inside_the_chart and lies_on(labels, placed.spots) == [])


@pytest.mark.parametrize("seed", range(10))
def test_numbers_of_twelve_points_always_find_a_free_place(seed):
    points = crowded(seed, 12)
    points = [point for i, point in enumerate(points) if min(map(distance, [point] * i, points[:i]), default=99) > 18]
    labels = labels_at(points, [str(i + 1) for i in range(len(points))])
    placed = place(labels, BOUNDS, 12)
    assert placed.free
    assert lies_on(labels, placed.spots) == []


def distance(one, other):
    return ((one[0] - other[0]) ** 2 + (one[1] - other[1]) ** 2) ** 0.5


def test_a_lone_label_stands_beside_its_point():
    spot = place(labels_at([(100, 100)], ["team 93%"]), BOUNDS, 12).spots[0]
    assert spot.line is None
    assert spot.box.left > 100
    assert spot.box.top < 100 < spot.box.bottom


def test_a_label_without_room_is_placed_but_not_called_free():
    labels = labels_at([(10, 10)], ["a name much longer than the chart"])
    placed = place(labels, Box(0, 0, 40, 40), 12)
    assert len(placed.spots) == 1
    assert not placed.free


@pytest.mark.parametrize(
    ("line", "touches"),
    [
        (Line(0, 5, 20, 5), True),
        (Line(5, 0, 5, 20), True),
        (Line(0, 0, 20, 20), True),
        (Line(0, 20, 4, 12), False),
        (Line(0, 9, 20, 30), False),
        (Line(12, 0, 12, 20), False),
        (Line(0, 10, 20, 10), False),
    ],
)
def test_a_line_touches_a_box_only_inside_it(line, touches):
    assert Box(2, 2, 10, 10).touches(line) == touches
    assert Box(2, 2, 10, 10).touches(Line(line.x2, line.y2, line.x1, line.y1)) == touches


def test_lines_cross_where_they_share_more_than_an_end():
    assert Line(0, 0, 10, 10).crosses(Line(0, 10, 10, 0))
    assert not Line(0, 0, 10, 10).crosses(Line(10, 10, 20, 0))
    assert not Line(0, 0, 10, 10).crosses(Line(0, 1, 10, 11))

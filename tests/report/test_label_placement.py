import random

from soloist.toolchain.report.label_placement import Box, Label, place


def test_labels_do_not_cover_each_other_or_the_points():
    draw = random.Random(3)
    bounds = Box(40, 0, 430, 320)
    for _ in range(20):
        points = [(draw.uniform(60, 180), draw.uniform(20, 60)) for _ in range(6)]
        labels = [Label(f"system {i} 97%", x, y, y - 8, y + 8, "k-file") for i, (x, y) in enumerate(points)]
        taken = [Box(x - 6, y - 6, x + 6, y + 6) for x, y in points]
        boxes = [spot.box for spot in place(labels, taken, bounds, 12)]
        assert len(boxes) == len(labels)
        assert all(bounds.holds(box) for box in boxes)
        for i, one in enumerate(boxes):
            assert all(one.overlap(other) == 0 for other in boxes[i + 1 :])


def test_a_lone_label_stands_beside_its_point():
    spot = place([Label("team 93%", 100, 100, 80, 120, "k-team")], [], Box(0, 0, 400, 300), 12)[0]
    assert spot.pole is None
    assert spot.box.left > 100
    assert spot.box.top < 100 < spot.box.bottom


def test_a_label_without_room_is_still_placed():
    spots = place([Label("a name much longer than the chart", 10, 10, 5, 15, "k-file")], [], Box(0, 0, 40, 40), 12)
    assert len(spots) == 1

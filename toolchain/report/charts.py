"""The curves of the report: accuracy against latency, latency distribution, training, cost.

Emphasis instead of a rainbow: the team is ink, the student the one accent color, all else gray; shapes
and dashes carry the difference too, so nothing depends on seeing color.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from markupsafe import Markup

from soloist.toolchain.report.format import number, percent, seconds, tick_seconds, usd
from soloist.toolchain.report.label_placement import Box, Label, place
from soloist.toolchain.report.schema import Extra, OneOff, System, TrainingPoint
from soloist.toolchain.report.svg import Scale, Svg

WIDTH, HEIGHT = 430.0, 370.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 12.0, 14.0, 48.0
LABEL = 12.5
MOST_NAMED = 8  # points of one drawing whose names still find room beside them
_IMPORTANCE = ("k-head", "k-team", "k-file", "k-student", "k-baseline")  # whose label is placed first

Form = Callable[[float], str]


def kind_class(system: System, headline: str | None) -> str:
    """The style of a system's mark."""
    if system.id == headline:
        return "k-head"
    return {"team": "k-team", "student": "k-student", "artifact": "k-file"}.get(system.kind, "k-baseline")


def _axes(svg: Svg, x: Scale, y: Scale, text: str, forms: tuple[Form, Form], *, most: int = 6) -> None:
    for value in y.ticks():
        svg.line(x.start, y(value), x.end, y(value), "grid")
        svg.text(x.start - 7, y(value) + 4, forms[1](value), "tick", "end")
    for value in x.ticks(most):
        svg.line(x(value), y.start, x(value), y.start + 5, "axis")
        svg.text(x(value), y.start + 19, forms[0](value), "tick", "middle")
    svg.line(x.start, y.start, x.end, y.start, "axis")
    svg.text((x.start + x.end) / 2, svg.height - 6, text, "axis-text", "middle")


def _marker(svg: Svg, system: System, x: float, y: float, kind: str) -> None:
    if system.kind == "team":
        svg.rect(x - 6, y - 6, 12, 12, f"mark {kind}")
    elif kind == "k-baseline":
        svg.path(f"M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6 -6z", f"mark {kind}")
    else:
        svg.circle(x, y, 7 if kind == "k-head" else 5, f"mark {kind}")


def accuracy_charts(
    panels: Sequence[Sequence[System]], names: Mapping[str, str], headline: str | None
) -> tuple[list[Markup], dict[str, int]]:
    """Accuracy with its interval against the median latency, one drawing a panel, and the number of each system.

    A point has its name beside it. More than eight, or names that find no room, are numbers instead, the same in
    every panel, for a legend; no numbers mean that the names stand in the drawings.
    """
    domain = latency_domain([system for systems in panels for system in systems])
    if max(map(len, panels), default=0) <= MOST_NAMED:
        drawn = []
        for systems in panels:
            texts = {s.id: f"{names[s.id]} {percent(s.accuracy.value)}" for s in systems}
            drawn.append(_accuracy_chart(systems, names, texts, headline, domain))
        if all(free for _, free in drawn):
            return [svg.render() for svg, _ in drawn], {}
    numbers: dict[str, int] = {}
    for systems in panels:
        for system in systems:
            numbers.setdefault(system.id, len(numbers) + 1)
    texts = {key: str(number) for key, number in numbers.items()}
    return [_accuracy_chart(systems, names, texts, headline, domain)[0].render() for systems in panels], numbers


def _accuracy_chart(
    systems: Sequence[System],
    names: Mapping[str, str],
    texts: Mapping[str, str],
    headline: str | None,
    domain: tuple[float, float],
) -> tuple[Svg, bool]:
    """One panel, and whether no text in it lies on anything."""
    split = systems[0].split
    best = ", ".join(
        f"{names[s.id]} {percent(s.accuracy.value)} at {seconds(s.latency_s.p50)}"
        for s in sorted(systems, key=lambda s: -s.accuracy.value)
    )
    svg = Svg(f"picture-{split}", WIDTH, HEIGHT, f"Accuracy against median latency, {split}", best + ".")
    x = Scale(*domain, LEFT, WIDTH - RIGHT, log=True)
    y = Scale(0, 1, HEIGHT - BOTTOM, TOP)
    _axes(svg, x, y, "median seconds per question, log scale", (tick_seconds, percent))
    labels = []
    for system in systems:
        px, py = x(system.latency_s.p50), y(system.accuracy.value)
        low, high = y(system.accuracy.low), y(system.accuracy.high)
        kind = kind_class(system, headline)
        svg.line(px, low, px, high, f"whisker {kind}")
        mark, whisker = Box(px - 8, py - 8, px + 8, py + 8), Box(px - 2, high, px + 2, low)
        labels.append(Label(texts[system.id], px, py, mark, whisker, kind))
    labels.sort(key=lambda label: _IMPORTANCE.index(label.kind))
    placed = place(labels, Box(LEFT + 2, TOP - 10, WIDTH - 2, HEIGHT - BOTTOM - 2), LABEL)
    for spot in placed.spots:
        if spot.line is not None:
            svg.line(*spot.line, "leader")
    for system in sorted(systems, key=lambda s: s.id == headline):
        _marker(svg, system, x(system.latency_s.p50), y(system.accuracy.value), kind_class(system, headline))
    for label, spot in zip(labels, placed.spots, strict=True):
        svg.text((spot.box.left + spot.box.right) / 2, spot.box.bottom - 4, label.text, f"label {label.kind}", "middle")
    return svg, placed.free


def latency_domain(systems: Sequence[System]) -> tuple[float, float]:
    """One latency axis for all panels."""
    values = [max(s.latency_s.p50, 1e-4) for s in systems]
    return min(values) / 1.7, max(values) * 2.6


def ecdf_chart(extras: Sequence[Extra], names: Mapping[str, str], kinds: Mapping[str, str], key: str) -> Markup:
    """Share of questions answered within t seconds, log t."""
    values = [max(v, 1e-4) for extra in extras for v in extra.latencies]
    middles = "; ".join(f"{names[e.system]} {seconds(e.latencies[len(e.latencies) // 2])}" for e in extras)
    svg = Svg(
        key, WIDTH, 300, f"Share of {extras[0].split} questions answered within a time", f"Half within: {middles}."
    )
    x = Scale(min(values) / 1.1, max(values) * 1.1, LEFT, WIDTH - RIGHT, log=True)
    y = Scale(0, 1, 300 - BOTTOM, TOP)
    _axes(svg, x, y, "seconds per question, log scale", (tick_seconds, percent))
    for extra in sorted(extras, key=lambda e: kinds[e.system].startswith(("k-team", "k-head"))):
        n, points = len(extra.latencies), []
        for i, value in enumerate(extra.latencies):
            points += [(x(value), y(i / n)), (x(value), y((i + 1) / n))]
        svg.polyline([*points, (x.end, y(1))], f"curve {kinds[extra.system]}")
    return svg.render()


def training_chart(training: Sequence[TrainingPoint], key: str) -> Markup:
    """Loss over the steps, raw and as a running mean."""
    first, last = training[0], training[-1]
    svg = Svg(
        key,
        WIDTH,
        250,
        "Training loss",
        f"From {number(first.loss)} at step {first.step} to {number(last.loss)} at step {last.step}.",
    )
    return _curve(svg, [(p.step, p.loss) for p in training], "step · loss")


def speed_chart(training: Sequence[TrainingPoint], key: str) -> Markup | None:
    """Tokens per second over the steps; None where none were logged."""
    points = [(p.step, p.tokens_per_second) for p in training if p.tokens_per_second is not None]
    if len(points) < 2:
        return None
    values = sorted(value for _, value in points)
    svg = Svg(key, WIDTH, 250, "Training speed", f"Tokens per second, median {number(values[len(values) // 2])}.")
    return _curve(svg, [(step, value) for step, value in points], "step · tokens per second")


def _curve(svg: Svg, points: Sequence[tuple[float, float]], text: str) -> Markup:
    top = max(value for _, value in points) * 1.05 or 1.0
    low, high = points[0][0], points[-1][0]
    x = Scale(low, high if high > low else low + 1, LEFT, svg.width - RIGHT)
    y = Scale(0, top, svg.height - BOTTOM, TOP)
    _axes(svg, x, y, text, (number, number))
    svg.polyline([(x(a), y(b)) for a, b in points], "curve raw")
    # A centered window: noise goes, and the curve does not lag behind its points.
    reach, smooth = max(1, len(points) // 30), []
    for i, (step, _) in enumerate(points):
        side = min(reach, i, len(points) - 1 - i)
        near = points[i - side : i + side + 1]
        smooth.append((x(step), y(sum(value for _, value in near) / len(near))))
    svg.polyline(smooth, "curve k-head")
    return svg.render()


def spend_chart(spend: OneOff, team: float, student: float, even: int, key: str) -> Markup:
    """Dollars spent in all after n questions, both axes logarithmic; the lines cross at break-even."""
    once = (spend.recording or 0) + (spend.training or 0) + (spend.evaluation or 0)
    last = 10 ** math.ceil(math.log10(max(even, 10)) + 0.7)
    svg = Svg(
        key,
        WIDTH,
        300,
        "Dollars spent after n questions",
        f"The team starts at nothing and costs {usd(team)} a question, the student starts at {usd(once)} and costs "
        f"{usd(student)}; they meet at {even:,} questions.",
    )
    first = max(1.0, even / 300)
    bottom = max(min(team * first, once + student * first), 1e-9)
    x = Scale(first, last, LEFT + 12, WIDTH - 2.5 * RIGHT, log=True)
    y = Scale(bottom / 1.5, max(team * last, once + student * last) * 1.5, 300 - BOTTOM, TOP, log=True)
    _axes(svg, x, y, "questions answered, log scale", (number, usd), most=5)
    steps = [first * (last / first) ** (i / 60) for i in range(61)]
    svg.polyline([(x(n), y(team * n)) for n in steps], "curve k-team")
    svg.polyline([(x(n), y(once + student * n)) for n in steps], "curve k-head")
    svg.circle(x(even), y(team * even), 5, "mark k-head")
    svg.line(x(even), y(team * even), x(even), y.start, "leader")
    svg.text(x(even) + 8, y.start - 8, f"{even:,}", "label k-head")
    svg.text(x.end, y(team * last) - 8, "team", "label k-team", "end")
    svg.text(x.end, y(once + student * last) + 36, "student", "label k-head", "end")
    return svg.render()

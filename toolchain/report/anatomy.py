"""One real debate of the team, drawn and written out.

    lanes     one per agent, in order of first appearance
    columns   time from left to right: rounds, or steps where a team takes rounds more than once
    edges     by kind, told apart by color and dash; the path that made the answer is drawn bold

The drawing is the map, the text below it the territory: everything in it is readable there too, in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from soloist.toolchain.report.svg import Svg, clip
from soloist.toolchain.report.template import render_template
from soloist.toolchain.traces.schema import EdgeKind, Run, Turn

BOX_W, BOX_H, GAP_X, LANE, SIDE, HEAD = 126.0, 44.0, 50.0, 70.0, 112.0, 30.0
MARKS = {"correct": "✓", "wrong": "✗", "absent": "∅", "unknown": "–"}


class Link(NamedTuple):
    """How a kind of link is called: in the legend, and between two turns of the transcript."""

    name: str
    phrase: str


LINKS: dict[EdgeKind, Link] = {
    "agrees": Link("agrees", "agrees with"),
    "disputes": Link("disputes", "disagrees with"),
    "corrects": Link("corrects", "corrected by"),
    "tool": Link("tool result", "uses the result of"),
    "influence": Link("influence", "has seen"),
    "continuity": Link("same agent goes on", "goes on from"),
}
NO_ANSWER = {"correct": "correct", "wrong": "wrong", "absent": "no answer", "unknown": "not judged"}
FEEDS: tuple[EdgeKind, ...] = ("influence", "tool", "continuity")


def columns(run: Run) -> list[int]:
    """The column of each turn: time from left to right, turns that could have been taken at once below each other.

    A turn opens a new column when its agent already stands in the last one, or when it needed a turn there:
    it was shown it, or judges it from another role. Peers who merely agree or not stay together.
    """
    chosen: list[int] = []
    for turn in run.turns:
        last = chosen[-1] if chosen else 0
        together = {i for i, column in enumerate(chosen) if column == last}
        needed = {
            edge.source
            for edge in run.edges
            if edge.target == turn.id and (edge.kind in FEEDS or run.turns[edge.source].role != turn.role)
        }
        opens = bool(together & needed) or any(run.turns[i].agent == turn.agent for i in together)
        chosen.append(last + opens)
    return chosen


def graph(run: Run, key: str) -> Markup:
    """The drawing."""
    lanes = {agent: i for i, agent in enumerate(dict.fromkeys(turn.agent for turn in run.turns))}
    column = columns(run)
    width = SIDE + (max(column, default=0) + 1) * (BOX_W + GAP_X)
    svg = Svg(
        key,
        width,
        HEAD + len(lanes) * LANE + 6,
        f"One debate of the team {run.team}",
        f"{len(run.turns)} turns of {len(lanes)} agents, {len(run.edges)} links; ends with "
        f"{run.answer or 'no answer'} ({run.verdict}). The text below says the same in words.",
    )
    for agent, lane in lanes.items():
        y = HEAD + lane * LANE
        svg.rect(0, y, width, LANE, "lane even" if lane % 2 else "lane")
        svg.text(10, y + LANE / 2 + 4, clip(agent, 14), "agent")
    _steps(svg, run, column)
    place = [
        (SIDE + column[turn.id] * (BOX_W + GAP_X), HEAD + lanes[turn.agent] * LANE + (LANE - BOX_H) / 2)
        for turn in run.turns
    ]
    steps = set(zip(run.path, run.path[1:], strict=False))
    for edge in sorted(run.edges, key=lambda e: (e.source, e.target) in steps):
        bold = " bold" if (edge.source, edge.target) in steps else ""
        # Two ports on each side, so that being shown a turn and judging it do not hide each other.
        port = -8 if edge.kind in FEEDS else 8
        (x1, y1), (x2, y2) = place[edge.source], place[edge.target]
        _link(svg, (x1, y1 + port), (x2, y2 + port), f"edge e-{edge.kind}{bold}")
    for turn in run.turns:
        _box(svg, turn, place[turn.id], turn.id in run.path)
    return svg.render(f"width:100%;min-width:{width:.0f}px;max-width:{1.3 * width:.0f}px")


def _steps(svg: Svg, run: Run, column: Sequence[int]) -> None:
    rounds = [{t.round for t in run.turns if column[t.id] == c} for c in range(max(column, default=-1) + 1)]
    flat = [number for own in rounds for number in sorted(own)]
    named = flat == sorted(flat) and all(len(own) == 1 for own in rounds)
    spans: dict[str, list[int]] = {}
    for c, own in enumerate(rounds):
        spans.setdefault(f"round {min(own)}" if named else f"step {c + 1}", []).append(c)
    for text, own_columns in spans.items():
        left = SIDE + own_columns[0] * (BOX_W + GAP_X)
        right = SIDE + own_columns[-1] * (BOX_W + GAP_X) + BOX_W
        svg.text((left + right) / 2, 18, text, "tick", "middle")
        svg.line(left, 24, right, 24, "axis")


def _link(svg: Svg, source: tuple[float, float], target: tuple[float, float], kind: str) -> None:
    (x1, y1), (x2, y2) = source, target
    middle1, middle2 = y1 + BOX_H / 2, y2 + BOX_H / 2
    if x2 <= x1:  # the same column: an arc on the right
        x1, x2 = x1 + BOX_W, x2 + BOX_W
        bend = 22 + abs(y2 - y1) / 14
        d = (
            f"M{x1:.1f} {middle1:.1f}C{x1 + bend:.1f} {middle1:.1f} {x2 + bend:.1f} {middle2:.1f} "
            f"{x2 + 5:.1f} {middle2:.1f}"
        )
        head = f"M{x2 + 1:.1f} {middle2:.1f}l7 -4v8z"
    else:
        x1 += BOX_W
        far = (x2 - x1) / 2
        # A link along one lane that passes other boxes bows upward around them.
        lift = -0.75 * LANE if y1 == y2 and x2 - x1 > GAP_X + 1 else 0.0
        d = (
            f"M{x1:.1f} {middle1:.1f}C{x1 + far:.1f} {middle1 + lift:.1f} {x2 - far:.1f} {middle2 + lift:.1f} "
            f"{x2 - 5:.1f} {middle2:.1f}"
        )
        head = f"M{x2 - 1:.1f} {middle2:.1f}l-7 -4v8z"
    svg.path(d, kind)
    svg.path(head, f"head {kind}")


def _box(svg: Svg, turn: Turn, at: tuple[float, float], on_path: bool) -> None:
    x, y = at
    svg.rect(x, y, BOX_W, BOX_H, f"turn v-{turn.verdict}{' bold' if on_path else ''}", radius=6)
    answer = turn.answer if turn.answer is not None else turn.text or "no answer"
    svg.text(x + 9, y + 18, f"{turn.id + 1}  {MARKS[turn.verdict]} {clip(answer, 12)}", "turn-head")
    below = turn.role
    if turn.tools:
        below = f"⚙ {turn.tools[0].name}" + (f" +{len(turn.tools) - 1}" if len(turn.tools) > 1 else "")
    svg.text(x + 9, y + 35, clip(below, 17), "turn-sub")


def section(run: Run) -> Markup:
    """The whole anatomy of one run: its drawing, and everything that was said."""
    return render_template(
        "anatomy.html.j2", run=run, graph=graph(run, "anatomy"), LINKS=LINKS, MARKS=MARKS, NO_ANSWER=NO_ANSWER
    )

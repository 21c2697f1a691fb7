"""The little SVG we need, with every text escaped on its way in.

Colors are classes of the page's style sheet, so that one drawing serves light, dark and print. Written
by hand instead of a plotting library: the page must stay small, self-contained and readable to a screen
reader, and needs five kinds of marks.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def printable(text: str) -> str:
    """The text with U+FFFD for each character that HTML forbids."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def esc(text: str) -> str:
    """Any text as harmless text or attribute value."""
    return str(escape(printable(text)))


def clip(text: str, limit: int) -> str:
    """One line of at most `limit` characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def text_width(text: str, size: float) -> float:
    """A generous guess of how wide a line of text is: fonts differ between machines."""
    return 0.64 * size * len(text)


@dataclass
class Svg:
    """A drawing of a fixed inner size that scales to its box. `key` makes its ids unique on the page."""

    key: str
    width: float
    height: float
    title: str
    description: str
    parts: list[str] = field(default_factory=list)

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        self.parts.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{esc(kind)}"/>')

    def rect(self, x: float, y: float, width: float, height: float, kind: str, *, radius: float = 0) -> None:
        size = f'width="{width:.1f}" height="{height:.1f}" rx="{radius:g}"'
        self.parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" {size} class="{esc(kind)}"/>')

    def circle(self, x: float, y: float, radius: float, kind: str) -> None:
        self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" class="{esc(kind)}"/>')

    def path(self, d: str, kind: str, more: str = "") -> None:
        self.parts.append(f'<path d="{d}" class="{esc(kind)}"{more}/>')

    def text(self, x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> None:
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{esc(kind)}">{esc(text)}</text>'
        )

    def polyline(self, points: Sequence[tuple[float, float]], kind: str) -> None:
        self.path("M" + " L".join(f"{x:.1f} {y:.1f}" for x, y in points), kind)

    def render(self, style: str = "") -> Markup:
        """The drawing as HTML that a template takes as it is."""
        key = esc(self.key)
        look = f' style="{esc(style)}"' if style else ""
        return Markup(  # noqa: S704  every text in it went through `esc`
            f'<svg viewBox="0 0 {self.width:g} {self.height:g}" role="img" aria-labelledby="{key}-t {key}-d"{look}>'
            f'<title id="{key}-t">{esc(self.title)}</title><desc id="{key}-d">{esc(self.description)}</desc>'
            + "".join(self.parts)
            + "</svg>"
        )


@dataclass(frozen=True)
class Scale:
    """Maps values to positions, linearly or by their logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log(max(value, 1e-12)), math.log(low), math.log(high)
        return self.start + (self.end - self.start) * ((value - low) / (high - low) if high > low else 0.5)

    def ticks(self, most: int = 6) -> list[float]:
        """Round values inside the scale, at most about `most`."""
        if self.log:
            return _log_ticks(self.low, self.high, most)
        raw = (self.high - self.low) / max(1, most - 1)
        unit = 10 ** math.floor(math.log10(raw)) if raw > 0 else 1.0
        step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= raw * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [round(k * step, 10) for k in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    ticks: list[float] = []
    for mantissas in ((1, 2, 5), (1, 3), (1,)):
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [m * 10.0**p for p, m in itertools.product(powers, mantissas) if low <= m * 10.0**p <= high]
        if len(ticks) <= most:
            return ticks
    return ticks[:: math.ceil(len(ticks) / most)]

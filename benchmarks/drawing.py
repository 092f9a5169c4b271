"""Lines over two logarithmic axes as SVG, by hand: readable on light and dark paper, and small enough to keep in the repository."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 780, 420
LEFT, RIGHT, TOP, BOTTOM = 70, 250, 50, 60
COLOURS = ("#0b7285", "#e8590c", "#5f3dc4", "#2b8a3e", "#c2255c", "#868e96", "#a6761d")
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #343a40 } .title { font-size: 15px; font-weight: 600 } .grid { stroke: #dee2e6 }
@media (prefers-color-scheme: dark) { text { fill: #dee2e6 } .grid { stroke: #495057 } }
"""

Series = Mapping[str, Sequence[tuple[float, float]]]


def lines(title: str, across: str, up: str, series: Series, *, limit: tuple[str, float] | None = None) -> str:
    """`series` are points (x, y), both above 0; a series of one point is a dot. `limit` is a dashed line with its name.

    Names stand at the end of their lines; the lines are told apart by colour and by the shape of their points.
    """
    points = [each for found in series.values() for each in found]
    if not points:
        raise ValueError("nothing to draw: give at least one point")
    heights = [y for _, y in points] + ([limit[1]] if limit else [])
    x = _Axis([x for x, _ in points], LEFT, WIDTH - RIGHT)
    y = _Axis(heights, HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">',
        f"<style>{STYLE}</style>",
        f'<text class="title" x="{LEFT}" y="26">{escape(title)}</text>',
    ]
    for value in x.ticks:
        parts.append(f'<line class="grid" x1="{x(value):.1f}" x2="{x(value):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text x="{x(value):.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{short(value)}</text>')
    for value in y.ticks:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{short(value)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 16}" text-anchor="middle">{escape(across)}</text>')
    parts.append(f'<text x="{LEFT}" y="{TOP - 8}">{escape(up)}</text>')
    if limit:
        at = y(limit[1])
        dashes = 'stroke="#868e96" stroke-dasharray="6 4"'
        parts.append(f'<line {dashes} x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{LEFT + 6}" y="{at - 5:.1f}">{escape(limit[0])}</text>')
    ends = _apart({name: y(sorted(found)[-1][1]) for name, found in series.items() if found})
    for number, (name, found) in enumerate((name, sorted(found)) for name, found in series.items() if found):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in found)
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{path}"/>')
        parts += [_mark(number, x(a), y(b), colour, f"{name}: {short(b)} at {short(a)}") for a, b in found]
        last = x(found[-1][0])
        parts.append(f'<text x="{last + 10:.1f}" y="{ends[name] + 4:.1f}" style="fill: {colour}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def short(value: float) -> str:
    """1,500,000 as 1.5 M; three digits at most."""
    for size, name in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{name}"
    return f"{value:.3g}"


class _Axis:
    """From values to places; ticks at 1, 2 and 5 of each power of ten, or at 1 alone where those would be many."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        if min(values) <= 0:
            raise ValueError("a logarithmic axis has no place for 0 and less")
        low, high = math.log10(min(values)), math.log10(max(values))
        slack = max(0.08, 0.06 * (high - low))
        self.low, self.high, self.start, self.end = low - slack, high + slack, start, end
        powers = range(math.floor(self.low) - 1, math.ceil(self.high) + 1)
        for steps in ((1,), (1, 2, 5), tuple(range(1, 10))):
            self.ticks = [step * 10.0**power for power in powers for step in steps]
            self.ticks = [each for each in self.ticks if self.low <= math.log10(each) <= self.high]
            if len(self.ticks) >= 4:
                break

    def __call__(self, value: float) -> float:
        return self.start + (math.log10(value) - self.low) / (self.high - self.low) * (self.end - self.start)


def _apart(wanted: Mapping[str, float], gap: float = 16) -> dict[str, float]:
    """Names that would stand on each other are moved down."""
    found: dict[str, float] = {}
    below = -math.inf
    for name, place in sorted(wanted.items(), key=lambda each: each[1]):
        below = found[name] = max(place, below + gap)
    return found


def _mark(number: int, x: float, y: float, colour: str, said: str) -> str:
    title = f"<title>{escape(said)}</title>"
    if number % 3 == 0:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}">{title}</circle>'
    if number % 3 == 1:
        return f'<rect x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8" fill="{colour}">{title}</rect>'
    corners = f"{x:.1f},{y - 5:.1f} {x + 5:.1f},{y + 4:.1f} {x - 5:.1f},{y + 4:.1f}"
    return f'<polygon points="{corners}" fill="{colour}">{title}</polygon>'

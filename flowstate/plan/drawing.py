"""A flow drawn: as a tree of text, as Mermaid, or as SVG that needs nothing else and is read on light and on dark ground."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from flowstate.plan.graph import Box, Graph

#: Pixels: of a character of the font, of a line, and between things.
WIDE, LINE, EDGE, ACROSS, DOWN = 7.3, 18, 12, 56, 22
#: Characters of a line in a drawn box; what is longer is cut.
LONGEST = 46
_ROLES = {"source": "source", "step": "step", "view": "view", "rows": "rows", "sink": "sink"}


def text(graph: Graph) -> str:
    """A line for each box and each of its facts, what it feeds below it."""
    lines: list[str] = []

    def tell(box: Box, head: str, rest: str) -> None:
        lines.append(f"{head}{_title(box)}")
        fed = graph.after(box.number)
        lines.extend(f"{rest}{'│ ' if fed else '  '}  {each}" for each in box.facts)
        for place, each in enumerate(fed):
            last = place == len(fed) - 1
            tell(each, f"{rest}{'└─ ' if last else '├─ '}", f"{rest}{'   ' if last else '│  '}")

    for each in graph.first:
        tell(each, "", "")
    return "\n".join(lines) + "\n"


def _title(box: Box) -> str:
    return box.name if box.kind in ("step", "rows") else f"{_ROLES[box.kind]} {box.name}"


def mermaid(graph: Graph) -> str:
    """A flowchart, from left to right."""
    shapes = {
        "source": ("[(", ")]"),
        "step": ("[", "]"),
        "view": ("([", "])"),
        "rows": ("[", "]"),
        "sink": ("[/", "/]"),
    }
    lines = ["flowchart LR"]
    for box in graph.boxes:
        begin, end = shapes[box.kind]
        label = "<br/>".join(_mermaid(each) for each in (_title(box), *box.facts))
        lines.append(f'    n{box.number}{begin}"{label}"{end}')
    lines += [f"    n{since} --> n{to}" for since, to in graph.arrows]
    return "\n".join(lines) + "\n"


def _mermaid(label: str) -> str:
    return "".join(each if each.isalnum() or each in " .,:/=_-()'+*" else f"#{ord(each)};" for each in label)


def svg(graph: Graph) -> str:
    """A picture without scripts, fonts or anything from elsewhere. All that a flow says is text in it."""
    places = _places(graph)
    wide = max((x + width for x, _, width, _ in places.values()), default=0.0) + EDGE
    high = max((y + height for _, y, _, height in places.values()), default=0.0) + EDGE
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide:.0f}" height="{high:.0f}" viewBox="0 0 {wide:.0f} {high:.0f}" '
        'role="img" class="flowstate-flow">',
        f"<title>{escape(', '.join(_title(each) for each in graph.boxes))}</title>",
        _STYLE,
    ]
    for since, to in graph.arrows:
        x, y, width, height = places[since]
        there_x, there_y, _, there_height = places[to]
        parts.append(_arrow(x + width, y + height / 2, there_x, there_y + there_height / 2))
    for box in graph.boxes:
        parts += _drawn(box, *places[box.number])
    return "\n".join([*parts, "</svg>"]) + "\n"


_STYLE = """<style>
.flowstate-flow { color: #1f2328; --ground: #ffffff; --source: #0969da; --view: #1a7f37; --sink: #8250df; --quiet: #59636e; }
@media (prefers-color-scheme: dark) {
  .flowstate-flow { color: #f0f6fc; --ground: #0d1117; --source: #4493f8; --view: #3fb950; --sink: #ab7df8; --quiet: #9198a1; }
}
.flowstate-flow text { font: 12px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; fill: currentColor; }
.flowstate-flow .name { font-weight: 600; }
.flowstate-flow .fact { fill: var(--quiet); }
.flowstate-flow rect { fill: var(--ground); stroke: var(--quiet); stroke-width: 1.2; }
.flowstate-flow .source rect { stroke: var(--source); }
.flowstate-flow .view rect { stroke: var(--view); stroke-width: 2; }
.flowstate-flow .sink rect { stroke: var(--sink); }
.flowstate-flow path { fill: none; stroke: var(--quiet); stroke-width: 1.2; }
.flowstate-flow .head { fill: var(--quiet); stroke: none; }
</style>"""


def _drawn(box: Box, x: float, y: float, width: float, height: float) -> Iterator[str]:
    yield f'<g class="{box.kind}">'
    columns = "\n".join(f"{name}  {kind}" for name, kind in box.columns)
    yield f"<title>{escape(columns)}</title>"
    yield f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="6"/>'
    for number, (line, style) in enumerate(_lines(box)):
        yield f'<text x="{x + EDGE:.1f}" y="{y + EDGE + 12 + number * LINE:.1f}" class="{style}">{escape(line)}</text>'
    yield "</g>"


def _lines(box: Box) -> list[tuple[str, str]]:
    return [(_cut(_title(box)), "name"), *((_cut(each), "fact") for each in box.facts)]


def _cut(line: str) -> str:
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"


def _arrow(x: float, y: float, there_x: float, there_y: float) -> str:
    middle = (x + there_x) / 2
    curve = f"M{x:.1f} {y:.1f} C{middle:.1f} {y:.1f} {middle:.1f} {there_y:.1f} {there_x - 6:.1f} {there_y:.1f}"
    head = f"M{there_x:.1f} {there_y:.1f} l-7 -4 v8 z"
    return f'<path d="{curve}"/><path class="head" d="{head}"/>'


def _places(graph: Graph) -> dict[int, tuple[float, float, float, float]]:
    """x, y, width and height of each box: a column for each step from the source, in each the order of what feeds it."""
    depth: dict[int, int] = {}
    before: dict[int, list[int]] = {}
    for since, to in graph.arrows:
        before.setdefault(to, []).append(since)
    for box in graph.boxes:
        depth[box.number] = 1 + max((depth[each] for each in before.get(box.number, ())), default=-1)
    sizes = {
        box.number: (
            2 * EDGE + WIDE * max(len(line) for line, _ in _lines(box)),
            2 * EDGE + LINE * len(_lines(box)) - 4.0,
        )
        for box in graph.boxes
    }
    found: dict[int, tuple[float, float, float, float]] = {}
    x = float(EDGE)
    for column in range(max(depth.values(), default=-1) + 1):
        here = [number for number, each in depth.items() if each == column]
        wishes = {
            number: sum(found[each][1] + found[each][3] / 2 for each in before[number]) / len(before[number])
            if number in before
            else 0.0
            for number in here
        }
        y = float(EDGE)
        for number in sorted(here, key=lambda each: (wishes[each], each)):
            width, height = sizes[number]
            if len(graph.arrows) and number in before and len(here) == 1:
                y = max(y, wishes[number] - height / 2)
            found[number] = (x, y, width, height)
            y += height + DOWN
        x += max(sizes[number][0] for number in here) + ACROSS
    return found

"""Pictures of what a command shows at a terminal: its bytes on a grid of signs; grids as SVG, one, or many that follow one another."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from html import escape
from itertools import groupby

PARTS = re.compile(
    r"\x1b\[([0-9;?]*)[ -/]*([@-~])|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[=>]|\x1b[()].|([\x00-\x1f])|([^\x00-\x1f\x1b]+)"
)
#: What is drawn at once: words with one space between them.
WORDS = re.compile(r"\S+(?: \S+)*")
#: Width of a sign and height of a line, in pixels; space around; the bar of the window.
SIGN, LINE, SPACE, BAR = 8.4, 19, 16, 30


@dataclass(frozen=True)
class Style:
    """`colour`: a number of the terminal's palette, or None for that of text."""

    colour: int | None = None
    bold: bool = False
    dim: bool = False
    underlined: bool = False
    reversed: bool = False

    def set(self, codes: Sequence[int]) -> Style:
        style, rest = self, list(codes)
        while rest:
            code = rest.pop(0)
            if code == 0:
                style = Style()
            elif code in (1, 2, 4, 7):
                style = replace(style, **{{1: "bold", 2: "dim", 4: "underlined", 7: "reversed"}[code]: True})
            elif code in (22, 24, 27):
                off = {22: ("bold", "dim"), 24: ("underlined",), 27: ("reversed",)}[code]
                style = replace(style, **dict.fromkeys(off, False))
            elif 30 <= code <= 37 or 90 <= code <= 97:
                style = replace(style, colour=code - 30 if code < 90 else code - 82)
            elif code == 39:
                style = replace(style, colour=None)
            elif code in (38, 48):
                told, rest = rest[: 2 if rest[:1] == [5] else 4], rest[2 if rest[:1] == [5] else 4 :]
                if code == 38 and told[:1] == [5] and told[1] < 16:
                    style = replace(style, colour=told[1])
        return style


Row = tuple[tuple[str, Style], ...]
PLAIN = Style()


@dataclass
class Grid:
    """As much of a terminal as flowstate's commands use of it: text, colours, moves, and erasing."""

    columns: int
    lines: int
    style: Style = PLAIN
    row: int = 0
    column: int = 0
    signs: list[list[tuple[str, Style]]] = field(default_factory=list)
    _most: int = 0

    def feed(self, text: str) -> None:
        for moves, action, control, shown in PARTS.findall(text):
            if shown:
                for each in shown:
                    self._put(each)
            elif control == "\n":
                self.row += 1
                self._top()
            elif control == "\r":
                self.column = 0
            elif control == "\b":
                self.column = max(0, self.column - 1)
            elif action:
                self._act(action, moves)

    def rows(self) -> list[Row]:
        """What is seen: the last lines, without the empty ones at their end."""
        found = [tuple(each) for each in self.signs[self._top() :]]
        while found and all(sign == " " for sign, _ in found[-1]):
            found.pop()
        return found

    def _top(self) -> int:
        """How many lines have moved out of sight."""
        self._most = max(self._most, self.row + 1 - self.lines, 0)
        return self._most

    def text(self) -> str:
        return "\n".join("".join(sign for sign, _ in row).rstrip() for row in self.rows())

    def _put(self, sign: str) -> None:
        if self.column >= self.columns:
            self.row, self.column = self.row + 1, 0
        self._line()[self.column] = (sign, self.style)
        self.column += 1

    def _line(self) -> list[tuple[str, Style]]:
        while len(self.signs) <= self.row:
            self.signs.append([(" ", PLAIN)] * self.columns)
        return self.signs[self.row]

    def _act(self, action: str, moves: str) -> None:
        if moves.startswith("?"):
            if action == "h" and moves == "?1049":
                self.signs, self.row, self.column, self._most = [], 0, 0, 0
            return
        numbers = [int(each or 0) for each in moves.split(";")]
        first = max(1, numbers[0])
        if action == "m":
            self.style = self.style.set(numbers)
        elif action == "H":
            self.row, self.column = self._top() + first - 1, max(1, numbers[-1]) - 1 if len(numbers) > 1 else 0
        elif action in "ABCDG":
            self.row = max(0, self.row + {"A": -first, "B": first}.get(action, 0))
            self.column = first - 1 if action == "G" else max(0, self.column + {"C": first, "D": -first}.get(action, 0))
        elif action in "JK":
            line, whole = self._line(), numbers[0] == 2
            start = 0 if whole or numbers[0] == 1 else self.column
            end = self.column + 1 if numbers[0] == 1 else self.columns
            line[start:end] = [(" ", PLAIN)] * (end - start)
            if action == "J" and numbers[0] == 0:
                del self.signs[self.row + 1 :]


@dataclass(frozen=True)
class Theme:
    """`palette`: the sixteen colours of a terminal."""

    ground: str
    bar: str
    text: str
    palette: tuple[str, ...]


LIGHT = Theme(
    "#ffffff", "#eaeef2", "#1f2328",
    ("#24292f", "#cf222e", "#116329", "#7d4e00", "#0969da", "#8250df", "#1b7c83", "#6e7781",
     "#57606a", "#a40e26", "#1a7f37", "#633c01", "#218bff", "#a475f9", "#3192aa", "#8c959f"),
)  # fmt: skip
DARK = Theme(
    "#0d1117", "#21262d", "#e6edf3",
    ("#484f58", "#ff7b72", "#3fb950", "#d29922", "#58a6ff", "#bc8cff", "#39c5cf", "#b1bac4",
     "#6e7681", "#ffa198", "#56d364", "#e3b341", "#79c0ff", "#d2a8ff", "#56d4dd", "#f0f6fc"),
)  # fmt: skip


def svg(frames: Sequence[tuple[Sequence[Row], float]], theme: Theme, title: str, columns: int, lines: int) -> str:
    """Frames, each with the seconds for which it is shown. Who wants no motion sees the last one."""
    wide, high = columns * SIGN + 2 * SPACE, lines * LINE + 2 * SPACE + BAR
    known: dict[str, str] = {}
    film = []
    for number, (rows, _) in enumerate(frames):
        for at, row in enumerate(rows):
            drawn = _drawn(row, theme)
            if drawn:
                name = known.setdefault(drawn, f"r{len(known)}")
                film.append(f'<use href="#{name}" y="{number * high + at * LINE:.0f}"/>')
    total = sum(seconds for _, seconds in frames)
    stops, passed = [], 0.0
    for number, (_, seconds) in enumerate(frames):
        stops.append(f"{100 * passed / total:.3f}%{{transform:translateY({-number * high:.0f}px)}}")
        passed += seconds
    last = f"transform:translateY({-(len(frames) - 1) * high:.0f}px)"
    moving = (
        f"@keyframes film{{{''.join(stops)}}}.film{{animation:film {total:.1f}s step-end infinite}}"
        f"@media(prefers-reduced-motion:reduce){{.film{{animation:none;{last}}}}}"
        if len(frames) > 1
        else ""
    )
    dots = "".join(
        f'<circle cx="{20 + 18 * each}" cy="15" r="5" fill="{theme.palette[8]}" opacity=".5"/>' for each in range(3)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide:.0f} {high}" width="{wide:.0f}" height="{high}" role="img">'
        f"<title>{escape(title)}</title><style>text{{font:14px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;"
        f"fill:{theme.text};white-space:pre}}.b{{font-weight:700}}.d{{opacity:.6}}"
        f"{''.join(f'.c{number}{{fill:{colour}}}' for number, colour in enumerate(theme.palette))}{moving}</style>"
        f'<defs>{"".join(f"""<g id="{name}">{drawn}</g>""" for drawn, name in known.items())}</defs>'
        f'<rect width="{wide:.0f}" height="{high}" rx="8" fill="{theme.ground}" stroke="{theme.bar}"/>'
        f'<path d="M0 {BAR}V8a8 8 0 0 1 8-8h{wide - 16:.0f}a8 8 0 0 1 8 8v{BAR - 8}z" fill="{theme.bar}"/>{dots}'
        f'<text x="{wide / 2:.0f}" y="20" text-anchor="middle" class="d">{escape(title)}</text>'
        f'<svg x="{SPACE}" y="{BAR + SPACE}" width="{columns * SIGN:.0f}" height="{lines * LINE}"><g class="film">'
        f"{''.join(film)}</g></svg></svg>\n"
    )


def _drawn(row: Row, theme: Theme) -> str:
    """The signs of a row in pieces of one style, each as wide as its signs whatever the font."""
    drawn, column = "", 0
    for style, group in groupby(row, key=lambda each: each[1]):
        text = "".join(sign for sign, _ in group)
        names = [f"c{style.colour}"] * (style.colour is not None)
        names += [name for name, on in (("b", style.bold), ("d", style.dim)) if on]
        look = f' class="{" ".join(names)}"' if names else ""
        ground = theme.text if style.colour is None else theme.palette[style.colour]
        if style.underlined or style.reversed:
            place = 'height="1" y="17"' if style.underlined else f'height="{LINE}"'
            drawn += f'<rect x="{column * SIGN:.1f}" {place} width="{len(text) * SIGN:.1f}" fill="{ground}"{look}/>'
        if style.reversed:
            look = f' style="fill:{theme.ground}"'
        for word in WORDS.finditer(text):
            left, width = (column + word.start()) * SIGN, len(word[0]) * SIGN
            drawn += f'<text x="{left:.1f}" y="14" textLength="{width:.1f}"{look}>{escape(word[0], quote=False)}</text>'
        column += len(text)
    return drawn

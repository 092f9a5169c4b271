"""What ``flowstate top`` shows of a moment: lines of coloured text for a terminal of any size, one plain line, or one JSON object.

Colours are those of the terminal's own palette, so that they can be read on light and on dark ground; nothing is said by colour alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from io import StringIO

from rich.console import Console
from rich.text import Text

from flowstate.command.rows import printable
from flowstate.command.sight import Course, PartitionSight, Sight, SplitSight
from flowstate.view import troubles

#: Of states that are as they should be; every other one is yellow, and those below red.
GOOD, BAD = ("live", "running", "ended", "finished"), ("failed", "away", "vacant", "down", "fenced", "stopped")
KEYS = "q quits"
#: Columns of the terminal that a column which shrinks keeps.
LEAST = 12
#: Seconds for which it is told what happened, and how much of it.
RECENT, HAPPENED = 300.0, 4


@dataclass(frozen=True)
class Column:
    """`weight`: the greater, the sooner it is left out where there is no room. Of one that `shrinks`, the end of a long cell is shown."""

    name: str
    cells: Sequence[str]
    right: bool = True
    weight: int = 0
    shrinks: bool = False

    @property
    def width(self) -> int:
        return max(Text(each).cell_len for each in (self.name, *self.cells))


def screen(sight: Sight, course: Course, width: int, height: int, now: float) -> list[Text]:
    """At most `height` lines. What is wrong comes before what is long."""
    lines = [*_head(sight, course, width, now), Text()]
    for each in sight.troubles:
        lines += _wrapped(Text.assemble(("! ", "bold red"), printable(each)), width)
    if sight.troubles:
        lines.append(Text())
    happened = recent(sight, now)
    for each in happened:
        lines += _wrapped(Text(each, "dim"), width)
    if happened:
        lines.append(Text())
    tables = [_partitions(sight, course, now), _split_columns(sight, course), _sinks(sight)]
    left = height - len(lines) - 1
    for title, columns, styles in tables:
        if left < 3 or not columns or not columns[0].cells:
            continue
        shown = _table(title, columns, styles, width, left - 1)
        lines += [*shown, Text()]
        left -= len(shown) + 1
    lines = lines[: max(0, height - 1)]
    lines += [Text()] * (height - 1 - len(lines))
    foot = Text(KEYS, "dim")
    foot.truncate(width)
    return [*lines, foot][:height]


def recent(sight: Sight, now: float) -> list[str]:
    """What happened lately, the newest first. A trouble is told by itself as long as it stands."""
    found = [each for each in sight.events if now - each["at"] < RECENT and each["kind"] not in ("began", "trouble")][
        -HAPPENED:
    ]
    return [f"{span(now - each['at'])} ago: {printable(each['words'])}" for each in reversed(found)]


def painted(lines: Sequence[Text], width: int) -> str:
    """With the escapes of a terminal, each line cleared to its end; from the top of the screen."""
    out = StringIO()
    console = Console(file=out, force_terminal=True, width=width, height=len(lines) + 1, legacy_windows=False)
    for each in lines:
        console.print(each, end="", soft_wrap=True, highlight=False)
        out.write("\x1b[K\r\n")
    return "\x1b[H" + out.getvalue().removesuffix("\r\n") + "\x1b[J"


def plain(lines: Sequence[Text]) -> str:
    """As text without escapes."""
    return "".join(each.plain.rstrip() + "\n" for each in lines).rstrip("\n") + "\n"


def line(sight: Sight, course: Course, now: float) -> str:
    """One line, for what is no terminal."""
    parts = [f"{sight.job} {sight.state}", *(text for text, _ in _figures(sight, course, now))]
    return ", ".join(parts) + "".join(f"; ! {printable(each)}" for each in sight.troubles)


def as_json(sight: Sight, course: Course) -> str:
    """One object: figures of the job, its troubles, and of each partition, split and sink."""

    def delay(watermark: int | None) -> float | None:
        return None if watermark is None else round(sight.at - watermark / 1e6, 3)

    def age(at: float | None) -> float | None:
        return None if at is None else round(max(0.0, sight.at - at), 3)

    def rate(name: str, number: int | None = None) -> float | None:
        found = course.rate(name, number)
        return None if found is None else round(found, 3)

    told = {
        "at": sight.at,
        "job": sight.job,
        "state": sight.state,
        "run": sight.run,
        "workers": sight.workers,
        "rows_per_second": rate("rows"),
        "queries_per_second": rate("queries"),
        "rows": sight.total("rows"),
        "keys": sight.total("keys"),
        "bytes": sight.total("bytes"),
        "watermark_delay": delay(sight.watermark),
        "snapshot": sight.snapshot,
        "snapshot_age": age(sight.saved_at),
        "troubles": list(sight.troubles),
        "events": [dict(each) for each in sight.events],
        "partitions": [
            {
                "partition": each.number,
                "state": each.state,
                "epoch": each.epoch,
                "place": each.place,
                "rows_per_second": rate("rows", each.number),
                "queries_per_second": rate("queries", each.number),
                "rows": each.rows,
                "keys": each.keys,
                "bytes": each.bytes,
                "waiting": each.waiting,
                "watermark_delay": delay(each.watermark),
                "snapshot_age": age(each.saved_at),
                "position": dict(each.position),
            }
            for each in sight.partitions
        ],
        "splits": [
            {
                "split": each.split,
                "label": each.label,
                "reader": each.reader,
                "offset": each.offset,
                "behind": each.behind,
                "lag": each.lag,
                "per_second": course.advance(each.split),
            }
            for each in sight.splits
        ],
        "sinks": [dict(each) for each in sight.sinks],
    }
    return json.dumps(told, ensure_ascii=False, separators=(",", ":"), default=str)


# parts


def _head(sight: Sight, course: Course, width: int, now: float) -> list[Text]:
    about = [] if sight.run is None else [f"run {sight.run}"]
    count = len(sight.partitions)
    about.append(f"{count} partition{'s' * (count != 1)}")
    if sight.workers:
        about.append(f"{sight.workers} worker{'s' * (sight.workers != 1)}")
    first = Text.assemble((printable(sight.job), "bold"), "  ", (sight.state, f"bold {_style(sight.state)}"))
    first.append("  " + ", ".join(about), "dim")
    second = Text()
    for text, style in _figures(sight, course, now):
        if second:
            second.append("   ")
        second.append(text, style)
    return [*_wrapped(first, width), *_wrapped(second, width)]


def _figures(sight: Sight, course: Course, now: float) -> list[tuple[str, str]]:
    """What is known of the job in all, with a style each."""
    found: list[tuple[str, str]] = []
    if (rate := course.rate("rows")) is not None:
        found.append((f"{_per_second(rate)} rows/s", "bold"))
    if (queries := course.rate("queries")) is not None:
        found.append((f"{_per_second(queries)} queries/s", ""))
    if (keys := sight.total("keys")) is not None:
        found.append((f"{keys:,} keys", ""))
    if (held := sight.total("bytes")) is not None:
        found.append((size(held), ""))
    lags = [each.lag for each in sight.splits if each.lag is not None]
    if lags:
        found.append((f"lag {sum(lags):,}", ""))
    if sight.watermark is not None:
        found.append((f"watermark {span(now - sight.watermark / 1e6)} behind", ""))
    if sight.saved_at is not None:
        found.append((f"snapshot {sight.snapshot} saved {span(now - sight.saved_at)} ago", ""))
    return found


Table = tuple[str, list[Column], list[str]]


def _partitions(sight: Sight, course: Course, now: float) -> Table:
    parts = sorted(sight.partitions, key=lambda each: (each.state in GOOD, each.number))

    def column(name: str, cell: Callable[[PartitionSight], str], weight: int, right: bool = True) -> Column:
        return Column(name, [cell(each) for each in parts], right, weight)

    columns = [
        column("partition", lambda each: str(each.number), 0),
        column("state", lambda each: each.state, 0, right=False),
        column("rows/s", lambda each: _per_second(course.rate("rows", each.number)), 1),
        column("rows", lambda each: _count(each.rows), 6),
        column("keys", lambda each: _count(each.keys), 2),
        column("memory", lambda each: "" if each.bytes is None else size(each.bytes), 4),
        column("watermark", lambda each: "" if each.watermark is None else span(now - each.watermark / 1e6), 2),
        column("saved", lambda each: "" if each.saved_at is None else span(now - each.saved_at), 3),
        column("queries/s", lambda each: _per_second(course.rate("queries", each.number)), 5),
        column("waiting", lambda each: _count(each.waiting), 7),
        column("epoch", lambda each: str(each.epoch), 8),
        column("worker", lambda each: each.place.rpartition("://")[2], 9, right=False),
    ]
    return "partitions", _known(columns), ["" if each.state in GOOD else _style(each.state) for each in parts]


def _split_columns(sight: Sight, course: Course) -> Table:
    def column(name: str, cell: Callable[[SplitSight], str], weight: int, right: bool = True) -> Column:
        return Column(name, [cell(each) for each in sight.splits], right, weight)

    columns = [
        replace(column("split", lambda each: printable(each.label), 0, right=False), shrinks=True),
        column("offset", lambda each: _count(each.offset), 1),
        column("offsets/s", lambda each: _per_second(course.advance(each.split)), 2),
        column("lag", lambda each: _count(each.lag), 1),
        column("behind", lambda each: _count(each.behind) if each.behind else "", 3),
        column("reader", lambda each: "" if each.reader is None else str(each.reader), 4),
    ]
    return "splits", _known(columns), ["yellow" if each.behind else "" for each in sight.splits]


def _sinks(sight: Sight) -> Table:
    def column(name: str, key: str, weight: int, right: bool = True) -> Column:
        return Column(
            name, ["" if each[key] is None else printable(str(each[key])) for each in sight.sinks], right, weight
        )

    columns = [
        column("sink", "sink", 0),
        column("partition", "partition", 1),
        column("kind", "kind", 2, False),
        column("view", "view", 1, False),
        column("waiting", "waiting", 1),
        Column(
            "oldest",
            [span(each["waiting_seconds"]) if each["waiting_seconds"] else "" for each in sight.sinks],
            weight=2,
        ),
        column("rejected", "rejected", 3),
        replace(column("to", "url", 4, False), shrinks=True),
    ]
    return "sinks", columns, ["red" if each["problem"] else "" for each in sight.sinks]


def _known(columns: list[Column]) -> list[Column]:
    """Without those of which nothing is known."""
    return [each for each in columns if any(each.cells)]


def _table(title: str, columns: list[Column], styles: list[str], width: int, height: int) -> list[Text]:
    """As many columns as there is room for, the last one cut; and as many rows."""
    chosen = list(columns)
    while (beyond := sum(each.width + 2 for each in chosen) - 2 - width) > 0:
        soft = next((place for place, each in enumerate(chosen) if each.shrinks and each.width > LEAST), None)
        heaviest = max(chosen, key=lambda each: each.weight)
        if soft is not None:
            chosen[soft] = _shrunk(chosen[soft], max(LEAST, chosen[soft].width - beyond))
        elif heaviest.weight > 0:
            chosen.remove(heaviest)
        else:
            break
    count = len(chosen[0].cells)
    rows = range(count if count <= height - 1 else max(0, height - 2))
    lines = [_row([each.name for each in chosen], chosen, "dim underline", width)]
    lines += [_row([each.cells[row] for each in chosen], chosen, styles[row], width) for row in rows]
    if len(rows) < count:
        lines.append(Text(f"and {count - len(rows)} more {title}", "dim"))
    return lines


def _shrunk(column: Column, width: int) -> Column:
    cells = []
    for each in column.cells:
        shown = Text(each)
        while shown.cell_len > width:
            shown = Text("…" + shown.plain[2 if shown.plain[0] == "…" else 1 :])
        cells.append(shown.plain)
    return replace(column, cells=cells)


def _row(cells: list[str], columns: list[Column], style: str, width: int) -> Text:
    row = Text(style=style)
    for place, (cell, column) in enumerate(zip(cells, columns, strict=True)):
        room = " " * (column.width - Text(cell).cell_len)
        row.append(("  " if place else "") + (room + cell if column.right else cell + room))
    row.truncate(width, overflow="ellipsis")
    return row


def _wrapped(text: Text, width: int) -> list[Text]:
    console = Console(file=StringIO(), width=max(1, width), color_system=None)
    return list(text.wrap(console, max(1, width))) or [Text()]


def _style(state: str) -> str:
    return "green" if state in GOOD else "red" if state in BAD else "yellow"


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def _per_second(rate: float | None) -> str:
    return "" if rate is None else f"{rate:,.0f}" if rate >= 10 or rate == 0 else f"{rate:.1f}"


def size(number: float) -> str:
    """Bytes."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" or number >= 100 else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:,.1f} TB"


def span(seconds: float) -> str:
    """A length of time, as exact as it matters."""
    seconds = max(0.0, seconds)
    if seconds < 10:
        return f"{seconds:.1f} s"
    return troubles.span(seconds) if seconds < 172_800 else f"{seconds / 86_400:,.0f} d"

"""Rows and answers as HTML, for notebooks. Everything that comes from data is text, never markup; long things are cut, and say so."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import pyarrow as pa

from flowstate.plan.position import FOREVER, NEVER
from flowstate.view.answer import Answer

#: Rows and columns of a table, characters of a cell, splits of a position that are shown.
MOST_ROWS, MOST_COLUMNS, LONGEST, MOST_SPLITS = 20, 30, 60, 3
_CELL = "padding:.15em .6em;white-space:nowrap;border-bottom:1px solid color-mix(in srgb,currentColor 20%,transparent)"
_QUIET = "opacity:.75;font-size:90%"


def table(names: Sequence[str], rows: Iterable[Sequence[Any]], caption: str = "") -> str:
    """`names` stand above the columns. A value is shown as text; numbers stand at the right."""
    shown = names[:MOST_COLUMNS]
    more = "" if len(names) <= MOST_COLUMNS else f'<th style="{_CELL}">and {len(names) - MOST_COLUMNS} more</th>'
    head = "".join(f'<th style="{_CELL};text-align:left">{escape(cut(each))}</th>' for each in shown) + more
    lines = "".join("<tr>" + "".join(_cell(each) for each in row[:MOST_COLUMNS]) + "</tr>" for row in rows)
    told = f'<caption style="caption-side:bottom;text-align:left;{_QUIET}">{caption}</caption>' if caption else ""
    style = "border-collapse:collapse;font-variant-numeric:tabular-nums"
    return f'<table style="{style}"><thead><tr>{head}</tr></thead><tbody>{lines}</tbody>{told}</table>'


def _cell(value: Any) -> str:
    number = isinstance(value, int | float) or type(value).__name__ == "Decimal"
    side = "right" if number and not isinstance(value, bool) else "left"
    text = '<span style="opacity:.5">null</span>' if value is None else escape(cut(_text(value)))
    return f'<td style="{_CELL};text-align:{side}">{text}</td>'


def _text(value: Any) -> str:
    if isinstance(value, datetime.datetime):
        text = value.isoformat(sep=" ")
        return text.removesuffix("+00:00") + ("Z" if text.endswith("+00:00") else "")
    return str(value)


def cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def moment(watermark: int) -> str:
    """Microseconds as people write a time; nothing for none."""
    if not NEVER < watermark < FOREVER:
        return ""
    return f"{datetime.datetime.fromtimestamp(watermark / 1e6, datetime.UTC):%Y-%m-%d %H:%M:%S}Z"


def rows(data: pa.Table, now: float, more: bool = False) -> str:
    """The first rows of `data`, with what their schema says of the answer. `more`: there are others than these. `now` is Unix time."""
    shown = data.slice(0, MOST_ROWS)
    answer = Answer.of(data.schema)
    counted = f"{data.num_rows:,} row{'' if data.num_rows == 1 else 's'}"
    if more or data.num_rows > MOST_ROWS:
        counted = f"the first {shown.num_rows:,} rows" + ("" if more else f" of {data.num_rows:,}")
    columns = [_values(each) for each in shown.columns]
    lines = list(zip(*columns, strict=True)) if columns else []
    return table(data.schema.names, lines, " · ".join([counted, *([] if answer is None else said(answer, now))]))


def _values(column: pa.ChunkedArray) -> list[Any]:
    if pa.types.is_timestamp(column.type) and column.type.unit == "ns":  # Python has no nanoseconds
        column = column.cast(pa.string())
    return list(column.to_pylist())


def said(answer: Answer, now: float) -> list[str]:
    """How fresh it is and how far it goes, as pieces of HTML."""
    age = max(0.0, now - answer.as_of)
    origin = "live" if answer.live else f"<b>from what was saved</b>, {age:,.1f} s old"
    pieces = [origin + (", at one position" if answer.consistent else "")]
    if watermark := moment(answer.watermark):
        pieces.append(f"watermark {watermark}")
    offsets: dict[str, int] = {}
    for part in answer.parts:
        for split, place in part.position.items():
            offsets[split] = min(place[0], offsets.get(split, place[0]))
    position = [f"{escape(cut(split))}: {offset:,}" for split, offset in sorted(offsets.items())]
    if position:
        left = len(position) - MOST_SPLITS
        pieces.append("up to " + ", ".join(position[:MOST_SPLITS]) + (f" and {left:,} splits more" if left > 0 else ""))
    return pieces

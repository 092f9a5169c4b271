"""Rows on standard output: aligned text for people, or JSON or CSV for what comes after a pipe.

JSON and CSV are those of the sinks (`flowstate.sink.json_text`, and so of HTTP): decimals and integers have all their digits, times are ISO
8601. Everything is UTF-8, whatever the locale.
"""

from __future__ import annotations

import json
import os
import select
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Protocol

import pyarrow as pa

from flowstate.errors import InvalidFlow
from flowstate.sink import json_text
from flowstate.sink.file_formats import Csv

#: Rows by which the widths of columns are chosen; those that come later keep to them, and stand out where they are longer.
LOOK = 1000


def write(data: bytes) -> None:
    """To standard output, at once. Raises BrokenPipeError when nobody reads there any more."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(1, rest) :]


def abandoned() -> bool:
    """Whether standard output is a pipe that nobody reads any more."""
    if not hasattr(select, "poll"):
        return False
    poll = select.poll()
    poll.register(1, 0)  # errors are told without being asked for
    return any(event & (select.POLLERR | select.POLLNVAL) for _, event in poll.poll(0))


class Writer(Protocol):
    """Rows of one schema, in batches."""

    def write(self, rows: pa.RecordBatch) -> None: ...

    def close(self) -> None:
        """Nothing comes any more."""


def writer_of(kind: str, schema: pa.Schema) -> Writer:
    """`kind`: text, json or csv. Raises InvalidFlow for a type that it has no text for."""
    match kind:
        case "json":
            return JsonRows(schema)
        case "csv":
            return CsvRows(schema)
    return TextRows(schema)


def write_rows(kind: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> int:
    """All of them; how many there were."""
    writer, count = writer_of(kind, schema), 0
    for each in batches:
        writer.write(each)
        count += each.num_rows
    writer.close()
    return count


class JsonRows:
    """An object a line."""

    def __init__(self, schema: pa.Schema) -> None:
        for each in schema:
            if not json_text.supports(each.type):
                raise InvalidFlow("a column of this type has no JSON; cast it", column=each.name, type=str(each.type))

    def write(self, rows: pa.RecordBatch) -> None:
        write(b"".join(each + b"\n" for each in json_rows(rows)))

    def close(self) -> None: ...


def json_rows(rows: pa.RecordBatch | pa.Table) -> list[bytes]:
    """The object of each row."""
    return json_text.rows(rows if isinstance(rows, pa.Table) else pa.Table.from_batches([rows]))


class CsvRows:
    """A header, and a line a row."""

    def __init__(self, schema: pa.Schema) -> None:
        for each in schema:
            if pa.types.is_nested(each.type) or not json_text.supports(each.type):
                message = "a column of this type has no CSV; ask with --json, or cast it"
                raise InvalidFlow(message, column=each.name, type=str(each.type))
        self._format = Csv(None)
        self._header = self._format.encode(schema.empty_table())
        write(self._header)

    def write(self, rows: pa.RecordBatch) -> None:
        if rows.num_rows:
            write(self._format.encode(pa.Table.from_batches([rows]))[len(self._header) :])

    def close(self) -> None: ...


class TextRows:
    """Columns side by side under their names; numbers at the right."""

    def __init__(self, schema: pa.Schema) -> None:
        self._lines = Lines(schema.names, [is_number(each.type) for each in schema])
        self._held: list[list[str]] = []

    def write(self, rows: pa.RecordBatch) -> None:
        lines = [list(each) for each in zip(*map(cells, rows.columns), strict=True)]
        if self._lines.widths is not None:
            return self._lines.write(lines)
        self._held += lines
        if len(self._held) >= LOOK:
            self._flush()

    def close(self) -> None:
        if self._lines.widths is None:
            self._flush()

    def _flush(self) -> None:
        self._lines.write(self._held)
        self._held = []


class Lines:
    """Lines of cells, as wide as those are that are written first."""

    def __init__(self, names: Sequence[str], right: Sequence[bool]) -> None:
        self._names, self._right = [printable(each) for each in names], list(right)
        self.least = [0] * len(self._names)
        self.marks = "", ""  # what the line of the names begins and ends with
        self.widths: list[int] | None = None

    def write(self, lines: Sequence[Sequence[str]]) -> None:
        """With the names above them, the first time."""
        if self.widths is None:
            widths = [max(map(width, column)) for column in zip(self._names, *lines, strict=True)]
            self.widths = [max(pair) for pair in zip(widths, self.least, strict=True)]
            begin, end = self.marks
            write(f"{begin}{self._line(self._names)}{end}\n".encode(errors="replace"))
        write("".join(self._line(each) + "\n" for each in lines).encode(errors="replace"))

    def _line(self, line: Sequence[str]) -> str:
        assert self.widths is not None
        padded = []
        for cell, wide, right in zip(line, self.widths, self._right, strict=True):
            room = " " * (wide - width(cell))
            padded.append(room + cell if right else cell + room)
        return "  ".join(padded).rstrip()


def table_text(names: Sequence[str], lines: Sequence[Sequence[str]], right: Sequence[int] = ()) -> None:
    """A small table at once; `right` are the places of columns of numbers."""
    Lines(names, [place in right for place in range(len(names))]).write(lines)


def is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def cells(column: pa.Array) -> list[str]:
    """Each value as people read it: as JSON writes it, but text without its quotes."""
    if not json_text.supports(column.type):
        return [printable("null" if each is None else str(each)) for each in column.to_pylist()]
    texts = json_text.texts(column).to_pylist()
    return [printable(json.loads(each)) if each.startswith('"') else printable(each) for each in texts]


def printable(text: str) -> str:
    """What has signs that would move a terminal's cursor, or colour it, is written with escapes."""
    return text if text.isprintable() else json.dumps(text)


def width(text: str) -> int:
    """Columns of a terminal."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(each) else 2 if unicodedata.east_asian_width(each) in "WF" else 1 for each in text
    )

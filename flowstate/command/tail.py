"""``flowstate tail``: the rows that a view has, or those of one key, and then what changes in them, until nobody wants to know any more."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from flowstate.command.place import key_of
from flowstate.command.rows import Lines, abandoned, cells, is_number, json_rows, width, write
from flowstate.errors import InvalidFlow
from flowstate.sink import json_text
from flowstate.view.changes import Change
from flowstate.view.directory import ViewInfo
from flowstate_flight.client import FlightReader
from flowstate_flight.lookups import equals_any

#: Seconds between two looks at whether anybody still reads what is written.
LOOK = 0.25


def tail(reader: FlightReader, view: str, key: Sequence[str], resume: str | None, kind: str) -> None:
    """`kind`: text or json. Ends when standard output is a pipe that nobody reads any more. Raises Unavailable when a part of the job is
    away for long, InvalidFlow."""
    info = reader.info(view)
    told: Told = JsonChanges(info) if kind == "json" else TextChanges(info)
    with reader.changes(view, None, equals_any(key_of(info, key)) if key else None, resume) as changes:
        while not abandoned():
            change = changes.take(LOOK)
            if change is not None:
                told.tell(change)


class Told:
    """A line for each change. Positions at which nothing is new are not told, nor is that a beginning forgets what was before."""

    def __init__(self, info: ViewInfo) -> None:
        self._keys = list(info.keys)
        self._begun, self._news = False, True

    def tell(self, change: Change) -> None:
        if change.kind == "position":
            if self._news:
                self.position(change)
            self._begun, self._news = True, False
            return
        self._news = True
        match change.kind:
            case "reset":
                if self._begun:
                    self.reset(change)
            case "rows":
                self.rows(change)
            case "removed":
                self.removed(change)

    def position(self, change: Change) -> None: ...

    def reset(self, change: Change) -> None: ...

    def rows(self, change: Change) -> None: ...

    def removed(self, change: Change) -> None: ...


class JsonChanges(Told):
    """``{"change": "rows", "row": {...}}``, ``{"change": "removed", "key": {...}}``, ``{"change": "reset", "partition": 0}``, and when all
    this adds up to the state at one position, ``{"change": "position", "position": {split: [offset, floors]}, "resume": "..."}``."""

    def __init__(self, info: ViewInfo) -> None:
        super().__init__(info)
        for each in info.schema:
            if not json_text.supports(each.type):
                raise InvalidFlow("a column of this type has no JSON", column=each.name, type=str(each.type))

    def position(self, change: Change) -> None:
        assert change.answer is not None
        places: dict[str, Any] = {}
        for part in change.answer.parts:  # the least: what every part has applied
            for split, place in part.position.items():
                places[split] = min(places.get(split, place), place)
        self._line({"change": "position", "position": places, "resume": change.resume})

    def reset(self, change: Change) -> None:
        self._line({"change": "reset", "partition": change.partition})

    def rows(self, change: Change) -> None:
        if change.missed:
            self._line({"change": "missed", "rows": change.missed})
        self._all(b'{"change":"rows","row":', change.rows)

    def removed(self, change: Change) -> None:
        self._all(b'{"change":"removed","key":', change.rows.select(self._keys))

    def _all(self, head: bytes, rows: pa.RecordBatch) -> None:
        write(b"".join(head + each + b"}\n" for each in json_rows(rows)))

    def _line(self, data: dict[str, Any]) -> None:
        write(json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")


class TextChanges(Told):
    """A column says what each line is: a row as it is now, a key whose rows are gone, or that everything is told anew."""

    KINDS = ("row", "removed", "reset", "missed")

    def __init__(self, info: ViewInfo) -> None:
        super().__init__(info)
        self._names = info.schema.names
        self._lines = Lines(["change", *self._names], [False, *(is_number(each.type) for each in info.schema)])

    def position(self, change: Change) -> None:
        if not self._begun and self._lines.widths is None:
            self._lines.write([])  # there is no row yet; whoever looks sees that it has begun

    def reset(self, change: Change) -> None:
        self._write("reset", [[""] * len(self._names)])

    def rows(self, change: Change) -> None:
        if change.missed:
            self._write("missed", [[str(change.missed), *[""] * (len(self._names) - 1)]])
        self._write("row", list(zip(*map(cells, change.rows.columns), strict=True)))

    def removed(self, change: Change) -> None:
        keys = {name: cells(change.rows.column(name)) for name in self._keys}
        blank = [""] * change.rows.num_rows
        self._write("removed", list(zip(*(keys.get(name, blank) for name in self._names), strict=True)))

    def _write(self, kind: str, lines: Sequence[Sequence[str]]) -> None:
        if self._lines.widths is None:
            self._lines.least = [max(map(width, self.KINDS)), *[0] * len(self._names)]
        self._lines.write([[kind, *each] for each in lines])

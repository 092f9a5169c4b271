"""A view as a Mapping: a key to the table of its rows, read live at every access."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from html import escape
from typing import Any, Unpack

import pyarrow as pa
import pyarrow.compute as pc

from flowstate.clock import SystemClock
from flowstate.errors import InvalidFlow
from flowstate.view.directory import ViewInfo
from flowstate.view.freshness import LATEST, Asked, Freshness, refined
from flowstate.view.html import MOST_ROWS
from flowstate.view.html import rows as rows_html
from flowstate.view.notebook import plot, watch
from flowstate_flight.changes import Changes
from flowstate_flight.client import FlightReader
from flowstate_flight.keys import key_text


class ViewMapping(Mapping[Any, pa.Table]):
    """``view[key]`` is a `pa.Table` of all windows of a key; a tuple for a composite key; with the window's start as a further
    value, just that row. KeyError when nothing is there.

    Iterating gives the routing keys, each once, as they stand in that moment; `len` counts them. A key of several columns is a
    tuple.

    How fresh an answer must be is said by `at`, or by the keyword arguments of `lookup` and `to_table`: `max_age`, `at_least`,
    `consistent`, `snapshot` (see `flowstate.view.freshness`). What cannot be had is refused with `Unavailable`.
    """

    def __init__(self, reader: FlightReader, view: str, fresh: Freshness = LATEST) -> None:
        self._reader = reader
        self._name = view
        self._fresh = fresh

    def at(self, **asked: Unpack[Asked]) -> ViewMapping:
        """The same view, read as fresh as this: ``view.at(max_age=0)[key]``."""
        return ViewMapping(self._reader, self._name, refined(self._fresh, asked))

    @property
    def info(self) -> ViewInfo:
        return self._reader.info(self._name)

    @property
    def schema(self) -> pa.Schema:
        return self.info.schema

    def __getitem__(self, key: Any) -> pa.Table:
        if isinstance(key, list | slice):
            raise InvalidFlow(f"one key at a time: view {self._name!r} is keyed by {key_text(self.info)}; see lookup")
        table = self._reader.lookup(self._name, key, fresh=self._fresh)
        if table.num_rows == 0:
            raise KeyError(key)
        return table

    def __iter__(self) -> Iterator[Any]:
        columns = [column.to_pylist() for column in self._keys().columns]
        return iter(columns[0] if len(columns) == 1 else list(zip(*columns, strict=True)))

    def __len__(self) -> int:
        return int(self._keys().num_rows)

    def lookup(self, keys: Any, columns: Sequence[str] | None = None, **asked: Unpack[Asked]) -> pa.Table:
        """The rows of many keys in one request; those that are not there give no row."""
        return self._reader.lookup(self._name, keys, columns, refined(self._fresh, asked))

    def to_table(
        self, columns: Sequence[str] | None = None, filter: pc.Expression | None = None, **asked: Unpack[Asked]
    ) -> pa.Table:
        """Everything, or the rows for which `filter` is true."""
        return self._reader.scan(self._name, columns, filter, fresh=refined(self._fresh, asked))

    def changes(
        self, columns: Sequence[str] | None = None, filter: pc.Expression | None = None, resume: str | None = None
    ) -> Changes:
        """First the rows that there are, then whatever changes in them, as an iterator of `flowstate.view.changes.Change` that goes on
        until it is closed. `resume` is what the last position said; what is told then continues from there."""
        if replace(self._fresh, max_age=None) != LATEST:
            raise InvalidFlow("changes are those of the live view; ask for them there", view=self._name)
        return self._reader.changes(self._name, columns, filter, resume)

    def __repr__(self) -> str:
        info = self.info
        values = [f"{each.name}: {each.type}" for each in info.schema if each.name not in info.keys]
        keyed = (
            f" keyed by {key_text(info)}"
            if info.keys
            else ", one row"
            if info.kind == "keyed"
            else ", rows as they came"
        )
        cut = f", in cut {self._fresh.cut}" if self._fresh.cut is not None else ""
        return f"<view {self._name!r} of job {self._reader.directory().job!r}{keyed} -> ({', '.join(values)}){cut}>"

    def _repr_html_(self) -> str:
        return self._drawn(None)

    def watch(self, key: Any = None, *, every: float = 0.5, seconds: float | None = None) -> None:
        """In a notebook: the first rows, or those of one key, drawn anew in their place every `every` seconds, until they are interrupted
        (or `seconds` are over)."""
        watch(lambda: self._drawn(key), every, seconds)

    def plot(self, column: str | None = None, **asked: Unpack[Asked]) -> Any:
        """An `altair.Chart` of one aggregate (the first that is a number): a line over the windows for each key, or a bar for each
        key; of the 20 greatest keys. Needs ``pip install 'flowstate[notebook]'``."""
        info = self.info
        if column is not None and column not in info.schema.names:
            raise InvalidFlow("there is no such column", view=self._name, column=column)
        return plot(self.to_table(**asked), info, column)

    def _drawn(self, key: Any) -> str:
        """As HTML: what it is, and its first rows."""
        info = self.info
        if key is not None:
            data, more = self._reader.lookup(self._name, key, fresh=self._fresh), False
        else:
            data = self._reader.scan(self._name, limit=MOST_ROWS + 1, fresh=self._fresh)
            more = data.num_rows > MOST_ROWS
        if info.keys:
            data = data.sort_by([(each, "ascending") for each in info.keys])
        keyed = f" keyed by {key_text(info)}" if info.keys else ""
        return (
            f"<div><b>view {escape(self._name)}</b>{escape(keyed)}</div>{rows_html(data, SystemClock().wall(), more)}"
        )

    def _keys(self) -> pa.Table:
        info = self.info
        if not info.routing_keys:
            raise InvalidFlow(f"view {self._name!r} has no key; use to_table()")
        names = list(info.routing_keys)
        table = self._reader.scan(self._name, names, fresh=self._fresh)
        if set(info.routing_keys) == set(info.keys):
            return table
        return table.group_by(names).aggregate([]).select(names)

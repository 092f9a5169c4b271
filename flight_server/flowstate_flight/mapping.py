"""A view as a Mapping: a key to the table of its rows, read live at every access."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import EllipsisType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from flowstate.errors import InvalidFlow
from flowstate.view.directory import ViewInfo
from flowstate_flight.client import FlightReader
from flowstate_flight.keys import key_text


class ViewMapping(Mapping[Any, pa.Table]):
    """``view[key]`` is a `pa.Table` of all windows of a key; a tuple for a composite key; with the window's start as a further
    value, just that row. KeyError when nothing is there.

    Iterating gives the routing keys, each once, as they stand in that moment; `len` counts them. A key of several columns is a
    tuple. With `cut`, everything is read in that cut.

    `max_age`, in seconds: how old an answer may be where a partition is away and its last saved state is read instead. None: any age,
    0: live answers alone. What cannot be had is refused with `Unavailable` (see `flowstate.view.saved`).
    """

    def __init__(self, reader: FlightReader, view: str, cut: int | None = None, max_age: float | None = None) -> None:
        self._reader = reader
        self._name = view
        self._cut = cut
        self._max_age = checked_age(max_age)

    def with_max_age(self, max_age: float | None) -> ViewMapping:
        """The same view, read by this `max_age`: ``view.with_max_age(0)[key]``."""
        return ViewMapping(self._reader, self._name, self._cut, max_age)

    @property
    def info(self) -> ViewInfo:
        return self._reader.info(self._name)

    @property
    def schema(self) -> pa.Schema:
        return self.info.schema

    def __getitem__(self, key: Any) -> pa.Table:
        if isinstance(key, list | slice):
            raise InvalidFlow(f"one key at a time: view {self._name!r} is keyed by {key_text(self.info)}; see lookup")
        table = self._reader.lookup(self._name, key, cut=self._cut, max_age=self._max_age)
        if table.num_rows == 0:
            raise KeyError(key)
        return table

    def __iter__(self) -> Iterator[Any]:
        columns = [column.to_pylist() for column in self._keys().columns]
        return iter(columns[0] if len(columns) == 1 else list(zip(*columns, strict=True)))

    def __len__(self) -> int:
        return int(self._keys().num_rows)

    def lookup(
        self, keys: Any, columns: Sequence[str] | None = None, *, max_age: float | EllipsisType | None = ...
    ) -> pa.Table:
        """The rows of many keys in one request; those that are not there give no row."""
        return self._reader.lookup(self._name, keys, columns, self._cut, self._age(max_age))

    def to_table(
        self,
        columns: Sequence[str] | None = None,
        filter: pc.Expression | None = None,
        *,
        max_age: float | EllipsisType | None = ...,
    ) -> pa.Table:
        """Everything, or the rows for which `filter` is true."""
        return self._reader.scan(self._name, columns, filter, cut=self._cut, max_age=self._age(max_age))

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
        cut = f", in cut {self._cut}" if self._cut is not None else ""
        return f"<view {self._name!r} of job {self._reader.directory().job!r}{keyed} -> ({', '.join(values)}){cut}>"

    def _age(self, given: float | EllipsisType | None) -> float | None:
        return self._max_age if isinstance(given, EllipsisType) else checked_age(given)

    def _keys(self) -> pa.Table:
        info = self.info
        if not info.routing_keys:
            raise InvalidFlow(f"view {self._name!r} has no key; use to_table()")
        names = list(info.routing_keys)
        table = self._reader.scan(self._name, names, cut=self._cut, max_age=self._max_age)
        if set(info.routing_keys) == set(info.keys):
            return table
        return table.group_by(names).aggregate([]).select(names)


def checked_age(max_age: object) -> float | None:
    """A `max_age` as a person gives it: seconds, not negative, or None. Raises InvalidFlow."""
    if max_age is None:
        return None
    if not isinstance(max_age, int | float) or isinstance(max_age, bool) or not max_age >= 0:
        message = (
            "max_age is a number of seconds, 0 for live answers alone, or None for what was saved last, however old"
        )
        raise InvalidFlow(message, got=repr(max_age))
    return float(max_age)

"""A reader for a principal: the same reads, of what is there for her (`visible`). For services that read on behalf of others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from flowstate.errors import InvalidFlow, did_you_mean
from flowstate.view.columns import chosen
from flowstate.view.directory import Directory, ViewInfo
from flowstate.view.freshness import LATEST, Freshness
from flowstate.view.rights import Action, Principal
from flowstate_flight.changes import Changes
from flowstate_flight.client import FlightReader
from flowstate_flight.expression import encode_filter
from flowstate_flight.keys import key_batch
from flowstate_flight.visible import UNREADABLE, RowFilter, row_filter, seen_by


class RestrictedReader:
    """A `FlightReader` as a principal may use it: the same reads, by the same names, of what is there for her. It leaves the reader open;
    making one costs nothing."""

    def __init__(self, reader: FlightReader, who: Principal, action: Action = "read") -> None:
        self._reader, self._who, self._action = reader, who, action
        self._filters: dict[str, RowFilter | None] = {}

    def directory(self) -> Directory:
        return self._seen(self._reader.directory())

    def views(self) -> list[str]:
        return self._who.views(self._reader.views(), self._action)

    def info(self, view: str) -> ViewInfo:
        try:  # a name that may not be seen is looked for as long as one that is not there
            return self._reader.info(view if self._who.may(self._action, view) else "")
        except InvalidFlow:
            directory = self._reader.directory()
            views = self._who.views(directory.views, self._action)
            raise InvalidFlow(f"job {directory.job!r} has no view {view!r}{did_you_mean(view, views)}") from None

    def make_cut(self, timeout: float = 5.0) -> dict[str, Any]:
        return self._reader.make_cut(timeout)

    def moment(self, fresh: Freshness) -> Freshness:
        return self._reader.moment(fresh)

    def lookup(self, view: str, keys: Any, columns: Sequence[str] | None = None, fresh: Freshness = LATEST) -> pa.Table:
        rows = self._filter(view)
        if rows is None:
            return self._reader.lookup(view, keys, columns, fresh)
        info = self.info(view)
        schema = info.schema if columns is None else chosen(view, info.schema, columns)
        try:
            found = self._reader.lookup(view, keys, None, fresh)
        except InvalidFlow as error:
            if "key" not in error.facts:
                raise
            # A row that cannot be read, perhaps another's: what is not there could be read.
            left = rows.keys(key_batch(info, keys))
            if left.num_rows:
                raise InvalidFlow(UNREADABLE) from None
            answer = self._reader.scan(view, info.schema.names[:1], limit=0, fresh=fresh).schema.metadata
            return schema.with_metadata(answer).empty_table()
        return found.filter(rows.rows).select(schema.names)

    def scan(
        self,
        view: str,
        columns: Sequence[str] | None = None,
        filter: pc.Expression | None = None,
        partitions: Sequence[int] | None = None,
        limit: int | None = None,
        fresh: Freshness = LATEST,
    ) -> pa.Table:
        return self.scan_reader(view, columns, filter, partitions, limit, fresh).read_all()

    def scan_reader(
        self,
        view: str,
        columns: Sequence[str] | None = None,
        filter: pc.Expression | None = None,
        partitions: Sequence[int] | None = None,
        limit: int | None = None,
        fresh: Freshness = LATEST,
    ) -> pa.RecordBatchReader:
        rows = self._filter(view)
        if rows is None:
            return self._reader.scan_reader(view, columns, filter, partitions, limit, fresh)
        info = self.info(view)
        schema = info.schema if columns is None else chosen(view, info.schema, columns)
        wanted, condition, after = list(schema.names), rows.rows, None
        if filter is not None:
            encoded, needed = encode_filter(filter, info.schema)
            if encoded is not None:  # comparisons alone, which fail on no value: both may be evaluated at once
                condition = condition & filter
            else:
                after = filter
                wanted += [name for name in needed if name not in wanted]
        try:
            found = self._reader.scan_reader(
                view, wanted, condition, partitions, limit if after is None else None, fresh
            )
        except InvalidFlow as error:
            raise hidden(error) from None
        return pa.RecordBatchReader.from_batches(
            schema.with_metadata(found.schema.metadata), _rest(found, schema.names, after, limit)
        )

    def changes(
        self,
        view: str,
        columns: Sequence[str] | None = None,
        filter: pc.Expression | None = None,
        resume: str | None = None,
    ) -> Changes:
        rows = self._filter(view)
        if rows is None:
            return self._reader.changes(view, columns, filter, resume)
        # A filter of changes is made of comparisons alone, which fail on no value: both may be evaluated at once.
        both = rows.rows if filter is None else rows.rows & filter
        return self._reader.changes(view, columns, both, resume, hidden=True)

    def _filter(self, view: str) -> RowFilter | None:
        """Of a view that is there."""
        if view not in self._filters:
            self._filters[view] = row_filter(self._who, self.info(view), self._action)
        return self._filters[view]

    def _seen(self, directory: Directory) -> Directory:
        found = seen_by(self._who, directory, self._action)
        return replace(directory, views={}) if found is None else found


def _rest(
    found: pa.RecordBatchReader, names: list[str], after: pc.Expression | None, limit: int | None
) -> Iterator[pa.RecordBatch]:
    """Of rows that may be seen, those for which `after` is true, at most `limit`."""
    left = limit
    try:
        for each in found:
            batch = (each if after is None else each.filter(after)).select(names)
            if left is not None:
                batch = batch.slice(0, left)
                left -= batch.num_rows
            yield batch
            if left == 0:
                return
    except InvalidFlow as error:
        raise hidden(error) from None
    finally:
        found.close()


def hidden(error: InvalidFlow) -> InvalidFlow:
    """An error that names a row names one that the principal may not see."""
    return InvalidFlow(UNREADABLE) if "key" in error.facts else error

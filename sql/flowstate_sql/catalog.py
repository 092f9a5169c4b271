"""A view as DuckDB sees it: a dataset whose scans are Flight streams, or lookups where a filter fixes the keys (`keyed`).

DuckDB trusts a dataset: it does not apply again what it has pushed down. What it pushes is only what Arrow evaluates in the same
way (not, for example, a float comparison that NaN would decide differently), and the reader applies every filter exactly, in the
partitions or, where Substrait cannot carry it, here. So the answer is the same as over one table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset

from flowstate.view.answer import Answer
from flowstate.view.directory import ViewInfo
from flowstate.view.freshness import LATEST, Freshness
from flowstate_sql.keyed import keyed


class Reader(Protocol):
    """What SQL needs of a reader: `flowstate_flight.FlightReader`, or one over saved snapshots."""

    def views(self) -> list[str]: ...

    def info(self, view: str) -> ViewInfo: ...

    def scan_reader(
        self,
        view: str,
        columns: Sequence[str] | None = None,
        filter: pc.Expression | None = None,
        partitions: Sequence[int] | None = None,
        limit: int | None = None,
        fresh: Freshness = LATEST,
    ) -> pa.RecordBatchReader: ...

    def moment(self, fresh: Freshness) -> Freshness: ...


@runtime_checkable
class KeyReader(Reader, Protocol):
    """A reader that finds rows by their keys, too."""

    def lookup(
        self, view: str, keys: Any, columns: Sequence[str] | None = None, fresh: Freshness = LATEST
    ) -> pa.Table: ...


class LiveDataset(pyarrow.dataset.Dataset):
    """A view, each scan of which reads it anew. `seen` is told the answer of every scan, as it begins."""

    def __init__(
        self,
        reader: Reader,
        info: ViewInfo,
        fresh: Freshness,
        seen: Callable[[str, Answer], None],
    ) -> None:
        # the base's own __init__ wants a C++ dataset; DuckDB asks for `schema` and `scanner` and nothing else
        self._reader = reader
        self._info = info
        self._fresh = fresh
        self._seen = seen

    @property
    def schema(self) -> pa.Schema:
        return self._info.schema.remove_metadata()

    def scanner(
        self, columns: Sequence[str] | None = None, filter: pc.Expression | None = None, **options: Any
    ) -> LiveScanner:
        return LiveScanner(self, columns, filter)

    def read(self, columns: Sequence[str] | None, filter: pc.Expression | None) -> pa.RecordBatchReader:
        names = list(columns) if columns is not None else None
        if names == []:
            names = self._info.schema.names[:1]  # only the number of rows is asked for
        found = self._looked_up(names, filter) if filter is not None else None
        if found is not None:
            schema, stream = found.schema, found.to_reader()
        else:
            stream = self._reader.scan_reader(self._info.name, names, filter, fresh=self._fresh)
            schema = stream.schema
        answer = Answer.of(schema)
        if answer is not None:
            self._seen(self._info.name, answer)
        return stream

    def _looked_up(self, names: Sequence[str] | None, filter: pc.Expression) -> pa.Table | None:
        """The same as a scan, if the filter fixes the keys; None if it does not. A cut has no index."""
        if self._fresh.cut is not None or self._fresh.consistent or not isinstance(self._reader, KeyReader):
            return None
        found = keyed(filter, self._info)
        if found is None:
            return None
        if found.exact:
            return self._reader.lookup(self._info.name, found.keys, names, self._fresh)
        rows = self._reader.lookup(self._info.name, found.keys, None, self._fresh).filter(filter)
        return rows if names is None else rows.select(list(names))


class LiveScanner:
    """One scan; DuckDB calls `to_reader` when the query runs."""

    def __init__(self, dataset: LiveDataset, columns: Sequence[str] | None, filter: pc.Expression | None) -> None:
        self._dataset = dataset
        self._columns = columns
        self._filter = filter

    def to_reader(self) -> pa.RecordBatchReader:
        return self._dataset.read(self._columns, self._filter)

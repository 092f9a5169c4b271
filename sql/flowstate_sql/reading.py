"""Cursors that read the rows of a partition under one name, kept for the next query over rows like these.

To give a cursor something to read, to bind a query, and to end the cursor takes DuckDB as long as a query over few rows. So a cursor stays,
with its name for the rows and the last query without parameters bound over it; each run gives it other rows.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset

#: Cursors that are kept, of all schemas, and characters of a query that is.
KEPT, LONGEST = 8, 4096


class Reading:
    """A cursor that sees rows of `schema` as `name`. Used by one thread at a time."""

    def __init__(self, cursor: duckdb.DuckDBPyConnection, name: str, schema: pa.Schema) -> None:
        self.cursor, self.schema = cursor, schema
        self._rows = _Rows(schema)
        self._bound: tuple[str, duckdb.DuckDBPyRelation] | None = None
        cursor.register(name, self._rows)

    def run(self, query: str, values: Mapping[str, Any], batches: Iterator[pa.RecordBatch]) -> pa.Table:
        """The answer to a SELECT over the rows in `batches`, which it reads once. Raises what DuckDB does."""
        self._rows.batches = batches
        try:
            if values:
                return self.cursor.sql(query, params=dict(values)).to_arrow_table()
            if self._bound is not None and self._bound[0] == query:
                return self._bound[1].to_arrow_table()
            relation = self.cursor.sql(query)
            self._bound = (query, relation) if len(query) <= LONGEST else None
            return relation.to_arrow_table()
        finally:
            self._rows.batches = None


class Readings:
    """The kept ones of one DuckDB. Thread safe."""

    def __init__(self, cursor: Callable[[], duckdb.DuckDBPyConnection], name: str) -> None:
        self._cursor, self._name = cursor, name
        self._idle: list[Reading] = []
        self._lock = threading.Lock()

    @contextmanager
    def of(self, schema: pa.Schema) -> Iterator[Reading]:
        """One for rows of `schema`. It is kept if what it is used for ends well."""
        reading = self._take(schema)
        try:
            yield reading
        except BaseException:
            reading.cursor.close()
            raise
        with self._lock:
            self._idle.append(reading)
            gone = self._idle.pop(0) if len(self._idle) > KEPT else None
        if gone is not None:
            gone.cursor.close()

    def _take(self, schema: pa.Schema) -> Reading:
        with self._lock:
            for at in range(len(self._idle) - 1, -1, -1):
                if self._idle[at].schema.equals(schema, check_metadata=True):
                    return self._idle.pop(at)
        return Reading(self._cursor(), self._name, schema)


class _Rows(pyarrow.dataset.Scanner):
    """What DuckDB scans: all columns of batches that are there for one scan."""

    def __init__(self, schema: pa.Schema) -> None:
        # the base's own __init__ wants a C++ scanner; DuckDB asks for these two and nothing else
        self._schema = schema
        self.batches: Iterator[pa.RecordBatch] | None = None

    @property
    def projected_schema(self) -> pa.Schema:
        return self._schema

    def to_reader(self) -> pa.RecordBatchReader:
        batches, self.batches = self.batches, None
        if batches is None:
            raise ValueError("rows are read once")
        return pa.RecordBatchReader.from_batches(self._schema, batches)

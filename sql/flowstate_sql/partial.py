"""What a partition computes of a query: a DuckDB over its rows alone, where these are.

It runs in the worker (the handler of `flowstate_flight.partial`), and in the asker's process for partitions that are read from what was
saved. Anyone who may query the view can send a text, so DuckDB is locked, the query is checked anew, and it is bounded in time and in
memory; nothing goes to a disk.
"""

from __future__ import annotations

import datetime
import json
import threading
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

import duckdb
import pyarrow as pa

from flowstate.clock import SystemClock
from flowstate.errors import FlowstateError, InvalidFlow
from flowstate_sql.kept import Kept
from flowstate_sql.key_values import Held, KeyValues
from flowstate_sql.lengths import LONGEST_PARTIAL, LONGEST_VALUES
from flowstate_sql.limits import Watch
from flowstate_sql.lockdown import check_nesting
from flowstate_sql.locked import LOCKED
from flowstate_sql.reading import Reading, Readings
from flowstate_sql.split import SPLIT
from flowstate_sql.syntax import ROWS, NotSplit, Syntax, nodes

#: Layouts of exported states are those of one version.
ENGINE = f"duckdb {duckdb.__version__}"
#: One thread, Flight's own, computes each query; all of a process share the memory. What needs more is computed by the asker.
RESOURCES = {"threads": "1", "memory_limit": "1GB", "temp_directory": ""}
LONGEST = 30.0  # seconds that one query computes
_ZONES = 8
_VALUES = (type(None), bool, int, float, str, bytes, Decimal, datetime.datetime, datetime.date, datetime.time)


@dataclass(frozen=True)
class PartialQuery:
    """A SELECT over `ROWS`, the values of its parameters by name, and the zone in which it reads times."""

    sql: str
    values: Mapping[str, Any] = field(default_factory=dict)
    time_zone: str = "UTC"

    def to_text(self) -> str:
        """Raises NotSplit for a value that would not come to the same elsewhere, and for a query that is too long."""
        if len(self.sql) > LONGEST_PARTIAL:
            raise NotSplit("it is too long")
        data = {"engine": ENGINE, "sql": self.sql, "zone": self.time_zone}
        if self.values:
            data["values"] = b64encode(_values_out(self.values)).decode()
        return json.dumps(data)

    @staticmethod
    def of_text(text: str) -> PartialQuery:
        """Raises InvalidFlow."""
        try:
            data = json.loads(text)
            engine, sql, zone = data["engine"], data["sql"], data["zone"]
            f"{sql}{zone}".encode()  # half of a surrogate pair is no text
            raw = b64decode(data["values"], validate=True) if "values" in data else None
            values = {} if raw is None else _values_in(raw)
        except (
            LookupError,
            ArithmeticError,
            ValueError,
            TypeError,
            RuntimeError,
            OSError,
            StopIteration,
            pa.ArrowException,
        ):
            raise InvalidFlow("'partial' of a ticket is no partial query; ask for the rows") from None
        if not isinstance(sql, str) or not isinstance(zone, str):
            raise InvalidFlow("'partial' of a ticket is no partial query; ask for the rows")
        if raw is not None and len(raw) > LONGEST_VALUES:
            raise InvalidFlow(
                "a partition computes nothing over long parameters; ask for the rows", limit=LONGEST_VALUES
            )
        if engine != ENGINE:
            raise InvalidFlow(
                "this service computes partial queries by another engine; ask for the rows", engine=ENGINE
            )
        return PartialQuery(sql, values, zone)


def answer_partial(
    schema: pa.Schema, batches: Iterator[pa.RecordBatch], text: str, keys: Sequence[str] = ()
) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """A `flowstate_flight.partial.PartialHandler`. What the rows themselves raise is raised as it is."""
    try:
        query = PartialQuery.of_text(text)
        engine = _engine(query.time_zone)
        engine.check(query.sql)
        rows = batches
        if keys and not query.values:
            sql, schema, rows = engine.key_values.taken(query.sql, schema, keys, batches)
            query = replace(query, sql=sql)
        with engine.readings.of(schema) as reading, _bounded(reading.cursor):
            found = compute(reading, rows, query)
    finally:
        close = getattr(batches, "close", None)
        if close is not None:
            close()
    return found.schema, iter(found.to_batches(max_chunksize=1 << 14))


def compute(reading: Reading, batches: Iterator[pa.RecordBatch], query: PartialQuery) -> pa.Table:
    """The answer over the rows in `batches`. Raises InvalidFlow, and what reading them raises."""
    raised: list[FlowstateError] = []

    def guarded() -> Iterator[pa.RecordBatch]:
        try:
            yield from batches
        except FlowstateError as error:
            raised.append(error)
            raise

    try:
        return reading.run(query.sql, query.values, guarded())
    except (duckdb.Error, ValueError, TypeError) as error:
        if raised:
            raise raised[0] from None
        text = " ".join(str(error).split())
        raise InvalidFlow(text.partition(": ")[2] or text) from error


class _Late:
    """A `limits.Watched`: interrupts what a cursor runs beyond `LONGEST`, and never what it runs after that."""

    def __init__(self, cursor: duckdb.DuckDBPyConnection, until: float) -> None:
        self._cursor, self._until = cursor, until
        self._lock, self._ended = threading.Lock(), False

    def look(self, now: float) -> None:
        with self._lock:
            if now > self._until and not self._ended:
                self._cursor.interrupt()

    def end(self) -> None:
        with self._lock:
            self._ended = True


@contextmanager
def _bounded(cursor: duckdb.DuckDBPyConnection) -> Iterator[None]:
    late = _Late(cursor, _clock.monotonic() + LONGEST)
    _watch.add(late)
    try:
        yield
    finally:
        late.end()
        _watch.remove(late)


class _Engine:
    """One locked DuckDB; queries run on cursors of it at the same time, and see nothing of each other."""

    def __init__(self, time_zone: str) -> None:
        self._connection = duckdb.connect(":memory:", config={**LOCKED, **RESOURCES})
        try:
            self._connection.execute("set global TimeZone = $zone", {"zone": time_zone})
        except duckdb.Error as error:
            self._connection.close()
            raise InvalidFlow(f"there is no time zone {time_zone!r}") from error
        self._connection.execute("set global lock_configuration = true")
        self._syntax = Syntax(self._connection)
        self._checked = Kept[bool]()
        self._lock = threading.Lock()  # a DuckDB connection refuses a second thread
        self.readings = Readings(self.cursor, ROWS)
        self.key_values = KeyValues(self.cursor, self.readings, _held, time_zone)

    def cursor(self) -> duckdb.DuckDBPyConnection:
        with self._lock:
            return self._connection.cursor()

    def check(self, sql: str) -> None:
        """Raises InvalidFlow if `sql` is anything but one harmless SELECT over `ROWS`."""
        with self._lock:
            if not self._checked.get(sql):
                try:
                    if len(sql) > LONGEST_PARTIAL:
                        raise NotSplit("it is too long")
                    check_nesting(sql)
                    node = self._syntax.tree(sql)
                    self._syntax.check_select(node)
                    if node["from_table"]["table_name"] != ROWS:
                        raise NotSplit("it reads another table")
                    if not {each["function_name"] for each in nodes(node) if self._syntax.is_aggregate(each)} <= SPLIT:
                        raise NotSplit("it has an aggregate that needs all values at once")
                except (NotSplit, InvalidFlow, duckdb.Error, KeyError, TypeError, IndexError, RecursionError) as error:
                    raise InvalidFlow(
                        "a partition does not compute this query; ask for the rows", reason=str(error)
                    ) from None
                self._checked.put(sql, True, len(sql))


_clock = SystemClock()
_watch = Watch(_clock)
_held = Held()
_engines: dict[str, _Engine] = {}
_engines_lock = threading.Lock()


def _engine(time_zone: str) -> _Engine:
    """The one that was used longest ago makes room; what it computes, it computes to the end."""
    with _engines_lock:
        found = _engines.pop(time_zone, None) or _Engine(time_zone)
        while len(_engines) >= _ZONES:
            del _engines[next(iter(_engines))]
        _engines[time_zone] = found
        return found


def _values_out(values: Mapping[str, Any]) -> bytes:
    if not all(type(each) in _VALUES for each in values.values()):
        raise NotSplit("a parameter is of a kind that does not travel")
    try:
        batch = pa.record_batch([pa.array([each]) for each in values.values()], names=list(values))
    except (pa.ArrowException, OverflowError, ValueError):
        raise NotSplit("a parameter is of a kind that does not travel") from None
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def _values_in(raw: bytes) -> dict[str, Any]:
    with pa.ipc.open_stream(pa.py_buffer(raw)) as reader:
        batch = reader.read_next_batch()
    batch.validate(full=True)
    (row,) = batch.to_pylist()
    return dict(row)

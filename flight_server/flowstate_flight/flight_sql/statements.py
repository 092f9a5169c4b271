"""Queries: a handle is the query itself with the rows that were bound to it, so that nothing is kept here, no handle leaks, and another
gateway may go on with it.

Binding answers with a new handle, which every driver takes for the next calls. Bound rows travel in tickets, so they are bounded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyarrow as pa

from flowstate.errors import InternalError, InvalidFlow
from flowstate.view.freshness import Freshness
from flowstate.view.sql import Described, RunSql, Statement
from flowstate_flight.flight_sql.call import Call, to_driver
from flowstate_flight.flight_sql.columns import sent_batch, sent_schema
from flowstate_flight.flight_sql.messages import Message
from flowstate_flight.protobuf import Fields, write

#: Bytes of the rows that may be bound to a query.
MAX_BOUND = 1 << 20
#: Rows that may be bound: the query runs once for each.
MAX_ROWS = 1_000
#: The answers of the views that a query read, in the metadata of the schema of its rows: JSON, view -> as in ``flowstate.answer``.
ANSWERS = b"flowstate.answers"

_NUMBERED = re.compile(r"\$?\d+")
Parameters = Sequence[Any] | Mapping[str, Any] | None


@dataclass(frozen=True)
class Query:
    """A query, the names of its parameters if it names them, and what was bound, as an Arrow IPC stream."""

    sql: str
    names: tuple[str, ...] = ()
    bound: bytes | None = None

    def handle(self) -> bytes:
        message: Fields = [(1, self.sql.encode())]
        if self.bound is not None:
            message.append((2, self.bound))
        return write([*message, *((3, each.encode()) for each in self.names)])

    @staticmethod
    def of(handle: bytes | None) -> Query:
        """Raises InvalidFlow for what `handle` did not make."""
        message = Message(handle or b"")
        return Query(message.text(1) or "", tuple(message.texts(3)), message.raw(2))

    def prepared(self, described: Described) -> Query:
        """The same, with the names of its parameters, unless they have numbers."""
        names = described.parameters.names
        if all(_NUMBERED.fullmatch(each) for each in names):
            return self
        return replace(self, names=tuple(each.removeprefix("$") for each in names))

    def bind(self, rows: pa.Table) -> Query:
        """Raises InvalidFlow if that is too much."""
        if rows.num_columns == 0:
            return replace(self, bound=None)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, rows.schema) as writer:
            writer.write_table(rows)
        bound = sink.getvalue().to_pybytes()
        if rows.num_rows > MAX_ROWS or len(bound) > MAX_BOUND:
            message = "too many parameters for one query; bind fewer rows at a time"
            raise InvalidFlow(message, rows=rows.num_rows, bytes=len(bound), limit_rows=MAX_ROWS, limit_bytes=MAX_BOUND)
        return replace(self, bound=bound)

    def parameters(self) -> list[Parameters]:
        """The values of each execution; one without any if nothing was bound. Raises InvalidFlow."""
        if self.bound is None:
            return [None]
        try:
            table = pa.ipc.open_stream(self.bound).read_all()
            table.validate(full=True)
            table = table.rename_columns([str(each) for each in range(table.num_columns)])
            columns = [_values(each) for each in table.columns]
        except (pa.ArrowException, OSError, EOFError, ValueError, OverflowError):
            raise InvalidFlow("the parameters are no sound Arrow data, or hold a value that Python cannot") from None
        rows = [list(each) for each in zip(*columns, strict=True)]
        if not self.names:
            return list(rows)
        if len(self.names) != table.num_columns:
            message = "the query takes another number of parameters"
            raise InvalidFlow(message, takes=len(self.names), given=table.num_columns)
        return [dict(zip(self.names, each, strict=True)) for each in rows]


def describe(sql: RunSql, query: Query, call: Call) -> Described:
    """What a query gives, with what is bound to it. The types of the bound values decide: drivers compare with what comes."""
    found = query.parameters()
    first = found[0] if found else None
    if isinstance(first, Mapping):
        first = list(first.values())
    return sql.describe(query.sql, first, who=call.who)


def execute(sql: RunSql, query: Query, call: Call, fresh: Freshness) -> Execution:
    """Begin a query, for the first of its bound rows. Raises what `RunSql.run` raises."""
    rows = query.parameters()
    if not rows:
        raise InvalidFlow("nothing was bound to the parameters of this query")
    run = partial(sql.run, query.sql, fresh=fresh, who=call.who, timeout=call.timeout, cancelled=call.cancelled)
    try:
        return Execution(call, run(rows[0]), [partial(run, each) for each in rows[1:]])
    except BaseException:
        call.ended()
        raise


class Execution:
    """The rows of a query, once: those of each execution after those of the one before, all in the first one's schema. However it is left,
    also before the first row was asked for, what runs is cancelled, and the call is asked no more whether it is."""

    def __init__(self, call: Call, first: Statement, others: Sequence[Callable[[], Statement]]) -> None:
        self.closed = False
        self.statement = first
        self._call, self._others = call, others
        self._batches: Iterator[pa.RecordBatch] | None = None  # not before it is asked: it holds this object
        self.schema = sent_schema(first.schema, call.reads)

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        return self

    def __next__(self) -> pa.RecordBatch:
        try:
            if self._batches is None:
                self._batches = iter(()) if self.closed else self._all()
            return next(self._batches)
        except BaseException as error:
            self.close()
            if isinstance(error, StopIteration | GeneratorExit):
                raise
            raise to_driver(error) from None

    def _all(self) -> Iterator[pa.RecordBatch]:
        yield from self._sent(self.statement)
        for each in self._others:
            self.statement.cancel()  # it is at its end
            self.statement = each()
            yield from self._sent(self.statement)

    def _sent(self, statement: Statement) -> Iterator[pa.RecordBatch]:
        for each in statement.batches():
            try:
                yield sent_batch(each, self.schema)
            except (pa.ArrowException, ValueError) as error:
                reason = str(error).partition("\n")[0][:200]
                message = "the rows of these parameters have other types; bind one row at a time"
                if not self._others:
                    raise InternalError("a query gave other columns than it was said to give", reason=reason) from None
                raise InvalidFlow(message, reason=reason) from None

    def close(self) -> None:
        """Safe to repeat."""
        if not self.closed:
            self.closed = True
            self._batches = None
            self._call.ended()
            self.statement.cancel()

    def __del__(self) -> None:
        self.close()


def _values(column: pa.ChunkedArray) -> list[Any]:
    kind = column.type
    if pa.types.is_timestamp(kind) and kind.unit == "ns":  # Python knows microseconds
        column = column.cast(pa.timestamp("us", kind.tz), safe=False)
    return list(column.to_pylist())

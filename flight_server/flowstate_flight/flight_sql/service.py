"""The requests of Flight SQL. Every method may be called from any thread, and raises Flight errors that drivers show as they are."""

from __future__ import annotations

import functools
import json
import threading
import weakref
from collections.abc import Callable, Iterator
from importlib import metadata as packages
from typing import Any, TypeVar

import pyarrow as pa
from pyarrow import flight

from flowstate.errors import InvalidFlow
from flowstate.view.directory import ViewInfo
from flowstate.view.sql import RunSql
from flowstate_flight.client import FlightReader
from flowstate_flight.flight_sql.call import Call, to_driver
from flowstate_flight.flight_sql.columns import parameter_schema, sent_schema
from flowstate_flight.flight_sql.messages import Message, pack, unpack
from flowstate_flight.flight_sql.metadata import CATALOG, SCHEMA, metadata, metadata_schema
from flowstate_flight.flight_sql.statements import ANSWERS, MAX_BOUND, Execution, Query, describe, execute
from flowstate_flight.protobuf import write
from flowstate_flight.restricted import RestrictedReader

Method = TypeVar("Method", bound=Callable[..., Any])
Read = tuple[pa.Schema, Iterator[pa.RecordBatch]]
_STATEMENTS = ("CommandStatementQuery", "CommandPreparedStatementQuery")
_CHANGES = (
    "CommandStatementUpdate",
    "CommandPreparedStatementUpdate",
    "CommandStatementIngest",
    "CommandStatementSubstraitPlan",
)
_OPTIONS = {"catalog": CATALOG, "schema": SCHEMA}
#: Of the protocol, beside those of every service.
SQL_ACTIONS = [
    ("CreatePreparedStatement", "prepare a query; the body is an ActionCreatePreparedStatementRequest"),
    ("ClosePreparedStatement", "forget a prepared query; the body is an ActionClosePreparedStatementRequest"),
    ("SetSessionOptions", "refuses every catalog and schema but the only ones"),
    ("GetSessionOptions", "the catalog and the schema"),
    ("CloseSession", "nothing is kept, so nothing is closed"),
    ("CancelFlightInfo", "end a query that runs here; the body is a CancelFlightInfoRequest"),
]
# SetSessionOptions: why an option was not set; CloseSession and CancelFlightInfo: what became of it
_BAD_NAME, _BAD_VALUE, _CLOSED, _CANCELLED, _NOT_CANCELLABLE = 1, 2, 1, 1, 3


def _told(method: Method) -> Method:
    @functools.wraps(method)
    def wrapped(self: FlightSql, *arguments: Any) -> Any:
        try:
            return method(self, *arguments)
        except BaseException as error:
            raise to_driver(error) from None

    return wrapped  # type: ignore[return-value]


class FlightSql:
    """Over the views that `reader` reads, with queries run by `sql`."""

    def __init__(self, reader: FlightReader, sql: RunSql) -> None:
        self._reader, self._sql = reader, sql
        self._version = packages.version("flowstate")
        self._lock = threading.Lock()
        # weak: one that nobody reads any more must end, and only its own end tells that
        self._running: weakref.WeakKeyDictionary[Execution, tuple[str, bytes]] = weakref.WeakKeyDictionary()

    @_told
    def flight_info(self, call: Call, descriptor: flight.FlightDescriptor) -> flight.FlightInfo:
        name, message = unpack(descriptor.command)
        ticket = descriptor.command
        if name == "CommandStatementQuery":
            query = _query(name, message)
            ticket = pack("TicketStatementQuery", write([(1, query.handle())]))
        schema = self._schema(call, name, message)
        return flight.FlightInfo(schema, descriptor, [flight.FlightEndpoint(ticket, [])], -1, -1)

    @_told
    def schema(self, call: Call, command: bytes) -> pa.Schema:
        return self._schema(call, *unpack(command))

    def _schema(self, call: Call, name: str, message: Message) -> pa.Schema:
        if name in _STATEMENTS:
            return sent_schema(describe(self._sql, _query(name, message), call).schema, call.reads)
        _refuse_changes(name)
        return metadata_schema(name, message)

    @_told
    def read(self, call: Call, ticket: bytes) -> Read:
        """The rows that a ticket stands for."""
        name, message = unpack(ticket)
        if name not in (*_STATEMENTS, "TicketStatementQuery"):
            _refuse_changes(name)
            table = metadata(name, message, _Tables(self._reader, self._sql, call), self._version, call.reads)
            return table.schema, iter(table.to_batches())
        query = _query(name, message)
        # Bound to several rows it runs several times: in one cut, if in any.
        fresh = self._reader.moment(call.fresh) if query.bound is not None else call.fresh
        execution = execute(self._sql, query, call, fresh)
        with self._lock:
            self._running[execution] = (call.who.name, bytes(ticket))
        answers = {view: each.to_data() for view, each in execution.statement.answers.items()}
        return execution.schema.with_metadata({ANSWERS: json.dumps(answers).encode()}), execution

    @_told
    def bind(self, call: Call, command: bytes, reader: Any) -> bytes:
        """Rows that are put to a prepared query: a DoPutPreparedStatementResult with the handle that has them."""
        name, message = unpack(command)
        _refuse_changes(name)
        if name != "CommandPreparedStatementQuery":
            raise InvalidFlow("this command of Flight SQL takes no data", command=name[:100])
        batches, size = [], 0
        for chunk in reader:
            if chunk.data is not None:
                batches.append(chunk.data)
                size += chunk.data.nbytes
            if size > MAX_BOUND:
                raise InvalidFlow("too many parameters for one query; bind fewer rows at a time", limit_bytes=MAX_BOUND)
        rows = pa.Table.from_batches(batches, reader.schema)
        return write([(1, Query.of(message.raw(1)).bind(rows).handle())])

    @_told
    def action(self, call: Call, kind: str, body: bytes) -> list[bytes]:
        """The results of one of `SQL_ACTIONS`."""
        if kind == "CreatePreparedStatement":
            query = Query(unpack(body)[1].text(1) or "")
            described = describe(self._sql, query, call)
            schema = sent_schema(described.schema, call.reads).serialize().to_pybytes()
            result = [(1, query.prepared(described).handle()), (2, schema)]
            if len(described.parameters):
                result.append((3, parameter_schema(described.parameters).serialize().to_pybytes()))
            return [pack("ActionCreatePreparedStatementResult", write([*result]))]
        if kind == "ClosePreparedStatement":
            return []
        if kind == "SetSessionOptions":
            return [_refused_options(Message(body))]
        if kind == "GetSessionOptions":
            options = [(name.encode(), write([(1, value.encode())])) for name, value in _OPTIONS.items()]
            return [write([(1, write([(1, name), (2, value)])) for name, value in options])]
        if kind == "CloseSession":
            return [write([(1, _CLOSED)])]
        return [write([(1, _CANCELLED if self._cancel(call, Message(body)) else _NOT_CANCELLABLE)])]

    def _cancel(self, call: Call, request: Message) -> bool:
        """Cancel what runs for the endpoints of a FlightInfo; whether anything did."""
        info = request.message(1)
        tickets = [Message(each).message(1) for each in (info.all(3) if info is not None else [])]
        asked = {(call.who.name, each.raw(1)) for each in tickets if each is not None}
        found = [each for each, key in self._under_way() if key in asked]
        for each in found:
            each.statement.cancel()
        return bool(found)

    def _under_way(self) -> list[tuple[Execution, tuple[str, bytes]]]:
        with self._lock:
            return [(each, key) for each, key in self._running.items() if not each.closed]


class _Tables:
    """What is there for the caller. System tables are those of SQL that are no views."""

    def __init__(self, reader: FlightReader, sql: RunSql, call: Call) -> None:
        self._reader = RestrictedReader(reader, call.who, "sql")
        self._sql, self._call = sql, call

    def views(self) -> list[str]:
        return self._reader.views()

    def info(self, view: str) -> ViewInfo:
        return self._reader.info(view)

    def system(self) -> list[str]:
        statement = self._sql.run("select table_name from information_schema.tables", who=self._call.who)
        try:
            names = [name for each in statement.batches() for name in each.column(0).to_pylist()]
        finally:
            statement.cancel()
        return [each for each in names if each not in self.views()]

    def columns(self, table: str) -> pa.Schema:
        quoted = table.replace('"', '""')
        return self._sql.describe(f'select * from "{quoted}"', who=self._call.who).schema


def _query(name: str, message: Message) -> Query:
    return Query(message.text(1) or "") if name == "CommandStatementQuery" else Query.of(message.raw(1))


def _refuse_changes(name: str) -> None:
    if name in _CHANGES:
        raise InvalidFlow(
            "views are read only; ask with a SELECT, in a query and not in an update or a batch", command=name
        )


def _refused_options(asked: Message) -> bytes:
    """A SetSessionOptionsResult: nothing can be set but to what it is."""
    refused = []
    for each in asked.all(1):
        entry = Message(each)
        name, value = entry.text(1) or "", entry.message(2)
        if name not in _OPTIONS:
            refused.append((name, _BAD_NAME))
        elif value is None or value.raw(1) != _OPTIONS[name].encode():
            refused.append((name, _BAD_VALUE))
    return write([(1, write([(1, name.encode()), (2, write([(1, why)]))])) for name, why in refused])

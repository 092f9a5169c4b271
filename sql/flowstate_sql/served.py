"""SQL for others: single SELECTs over the views of one job, each as its principal may ask, within limits.

Every principal has a DuckDB of her own, so that nothing of one is ever in reach of another. A query is read before it is run (`lockdown`),
and runs on a cursor of its own over a reader that shows what is there for her and nothing else; there is no other way to the job from here.
"""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import duckdb
import pyarrow as pa

from flowstate.clock import Clock, SystemClock
from flowstate.errors import InvalidFlow, Unavailable
from flowstate.store import Store
from flowstate.view.answer import Answer
from flowstate.view.freshness import LATEST, Freshness
from flowstate.view.rights import ANYBODY, Principal
from flowstate.view.sql import Described
from flowstate_flight.client import FlightReader
from flowstate_sql import parameters
from flowstate_sql.kept import Kept
from flowstate_sql.limits import Limits, Slots, Watch
from flowstate_sql.lockdown import LONGEST_QUERY, Named, check, check_nesting, explained, unknown_view
from flowstate_sql.restricted import RestrictedSplitReader
from flowstate_sql.session import Session
from flowstate_sql.statement import Running, StatementReader
from flowstate_sql.system import Facts, SystemReader
from flowstate_sql.travel import Past, parsed, spread, travels

Params = Sequence[Any] | Mapping[str, Any] | None
#: Principals whose DuckDB is kept.
PRINCIPALS = 64
#: Seconds that `close` waits for what it has cancelled.
GRACE = 2.0


class ServedSql:
    """A `flowstate.view.sql.RunSql`. It leaves `reader` open."""

    def __init__(
        self,
        reader: FlightReader,
        limits: Limits | None = None,
        *,
        store: Store | None = None,
        status: Callable[[], Mapping[str, Any]] | None = None,
        time_zone: str = "UTC",
        clock: Clock | None = None,
    ) -> None:
        """`store` and `status`: where the system tables of snapshots and sinks come from (see `system.Facts`)."""
        self._reader, self._limits = reader, limits or Limits()
        self._time_zone, self._clock = time_zone, clock or SystemClock()
        self._pool = ThreadPoolExecutor(self._limits.at_once, thread_name_prefix="sql")
        self._facts = Facts(ThreadPoolExecutor(8, thread_name_prefix="sql-partitions"), store, status)
        self._slots, self._watch = Slots(self._limits, self._clock), Watch(self._clock)
        self._lock = threading.Lock()
        self._principals: dict[str, _Own] = {}
        self._closed = False

    def describe(self, query: str, params: Sequence[Any] | None = None, *, who: Principal = ANYBODY) -> Described:
        running, statement = self._begin(query, LATEST, who, None, _never)
        given = None if params is None else list(params)
        return running.only(statement, statement.reader, partial(_described, statement, given))

    def run(
        self,
        query: str,
        params: Params = None,
        *,
        fresh: Freshness = LATEST,
        who: Principal = ANYBODY,
        timeout: float | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Running:
        if timeout is not None and not timeout > 0:
            raise InvalidFlow("a timeout is a positive number of seconds", got=timeout)
        running, statement = self._begin(query, fresh, who, timeout, cancelled or _never)
        statement.params = params
        running.begin(statement, statement.reader)
        return running

    def close(self) -> None:
        """Cancel what runs, and wait for its end, two seconds at most."""
        with self._lock:
            self._closed = True
            owns = list(self._principals.values())
            self._principals.clear()
        for each in self._watch.all():
            if isinstance(each, Running):
                each.cancel()
        until, pause = self._clock.monotonic() + GRACE, threading.Event()
        while self._slots.taken() and self._clock.monotonic() < until:
            pause.wait(0.01)
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._facts.pool.shutdown(wait=False, cancel_futures=True)
        for own in owns:
            own.retire()

    def _begin(
        self, query: str, fresh: Freshness, who: Principal, timeout: float | None, cancelled: Callable[[], bool]
    ) -> tuple[Running, _OnCursors]:
        """A statement that has a slot and is watched. Nothing of its text has been looked at: that takes time, too."""
        if not isinstance(query, str):
            raise InvalidFlow("a query is text", got=type(query).__name__)
        if not who.may("sql"):
            raise InvalidFlow("there is no right to SQL; ask by keys and tickets instead, or who runs this job for it")
        self._slots.take(who.name, cancelled)
        try:
            own = self._own(who)
        except BaseException:
            self._slots.give_back(who.name)
            raise
        running = self._running(own, timeout, cancelled)
        return running, _OnCursors(own, query, fresh, running.ended)

    def _own(self, who: Principal) -> _Own:
        with self._lock:
            if self._closed:
                raise Unavailable("no SQL is served here any more", retry_after=1.0)
            own = self._principals.pop(who.name, None)
            if own is not None and own.who is not who:  # somebody with other rights, by the same name
                own.retire()
                own = None
            if own is None:
                while len(self._principals) >= PRINCIPALS:
                    self._principals.pop(next(iter(self._principals))).retire()
                reader = SystemReader(RestrictedSplitReader(self._reader, who), self._facts)
                own = _Own(who, reader, self._limits, self._time_zone)
            self._principals[who.name] = own  # whoever asked last stands last
            own.enter()
            return own

    def _running(self, own: _Own, timeout: float | None, cancelled: Callable[[], bool]) -> Running:
        seconds = min(self._limits.seconds, timeout or self._limits.seconds)

        def released() -> None:
            self._watch.remove(running)
            if running.broken:
                self._forget(own)
            own.leave()
            self._slots.give_back(own.who.name)

        deadline = self._clock.monotonic() + seconds
        running = Running(self._pool, self._limits, cancelled, deadline, seconds, released)
        self._watch.add(running)
        return running

    def _forget(self, own: _Own) -> None:
        with self._lock:
            if self._principals.get(own.who.name) is own:
                del self._principals[own.who.name]
        own.retire()


@dataclass(frozen=True)
class _Parsed:
    """What a text alone tells. `travels`: there are views at snapshots in it."""

    explains: str
    text: str
    tree: Any
    named: Named
    travels: bool


@dataclass(frozen=True)
class _Read:
    """A query that may be run. `explains` is what stands before it; `past` are views at snapshots, as it names them now."""

    explains: str
    text: str
    tree: Any
    views: Mapping[str, str]
    past: Sequence[Past]


class _Own:
    """What one principal has: a DuckDB, and a reader of what is there for her. Closed when it is retired and nobody is in it."""

    def __init__(self, who: Principal, reader: SystemReader, limits: Limits, time_zone: str) -> None:
        self.who, self.reader = who, reader
        self.session: Session = _OwnSession(
            reader, time_zone=time_zone, memory_limit=f"{max(1, limits.memory // 1000)}KB"
        )
        listed = "select view_name from duckdb_views() where internal and schema_name <> 'information_schema'"
        with contextlib.closing(self.session._cursor()) as cursor:
            self._built_in = frozenset(str(name).lower() for (name,) in cursor.sql(listed).fetchall())
        self._lock = threading.Lock()
        self._parsed = Kept[_Parsed]()
        self._inside, self._retired = 0, False

    def enter(self) -> None:
        with self._lock:
            self._inside += 1

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1
        self._close_if_idle()

    def retire(self) -> None:
        with self._lock:
            self._retired = True
        self._close_if_idle()

    def _close_if_idle(self) -> None:
        with self._lock:
            if self._retired and self._inside == 0:
                with contextlib.suppress(duckdb.Error):
                    self.session.close()

    def read(self, cursor: duckdb.DuckDBPyConnection, query: str) -> _Read:
        """Raises InvalidFlow for what may not be asked."""
        found = self._parse(cursor, query)
        views = self._views(found.named.tables)
        text, past = spread(found.text, found.tree, views) if found.travels else (found.text, [])
        return _Read(found.explains, text, found.tree, views, past)

    def parameter_types(self, cursor: duckdb.DuckDBPyConnection, read: _Read) -> dict[str, pa.DataType]:
        columns: dict[str, pa.DataType] = {}
        for view in read.views.values():
            for each in self.reader.info(view).schema:
                columns.setdefault(each.name.lower(), parameters.plain(each.type))

        def type_of(name: str) -> pa.DataType | None:
            try:
                return cursor.sql(f"select null::{name}").limit(0).to_arrow_table().schema.field(0).type
            except duckdb.Error:
                return None

        return parameters.types(read.tree, columns, type_of)

    def _views(self, tables: frozenset[str]) -> dict[str, str]:
        """Those of `tables`, lower case, by their names. A name that is not known may be that of a new view."""
        views = {each.lower(): each for each in self.reader.views()}
        for name in sorted(tables - set(views)):
            with contextlib.suppress(InvalidFlow):
                self.reader.info(name)
            views = {each.lower(): each for each in self.reader.views()}
            if name not in views:
                raise unknown_view(name, list(views.values()))
        return {name: views[name] for name in tables}

    def _parse(self, cursor: duckdb.DuckDBPyConnection, query: str) -> _Parsed:
        found = self._parsed.get(query)
        if found is not None:
            return found
        try:
            length = len(query.encode())
        except UnicodeEncodeError:
            raise InvalidFlow("a query is text that can be written as UTF-8") from None
        if length > LONGEST_QUERY or "\0" in query:
            message = "a query is text without null characters, and not too long"
            raise InvalidFlow(message, bytes=length, limit=LONGEST_QUERY)
        found = self._parsed_anew(cursor, query)
        with self._lock:
            self._parsed.put(query, found, length)
        return found

    def _parsed_anew(self, cursor: duckdb.DuckDBPyConnection, query: str) -> _Parsed:
        explains, rest = explained(query)
        try:
            check_nesting(rest)
            text, statements = parsed(cursor, rest)
            if len(statements) != 1:
                raise InvalidFlow("one SELECT at a time", statements=len(statements))
            return _Parsed(explains, text, statements, check(statements, self._built_in), travels(statements))
        except duckdb.InterruptException:
            raise
        except duckdb.Error as error:
            message = " ".join(str(error).split()).partition(": ")[2]
            raise InvalidFlow(message[:500] or "the query cannot be read") from None
        except RecursionError:
            raise InvalidFlow("the query is nested too deeply; divide it with WITH") from None


class _OwnSession(Session):
    def _plan(self, asking: Any, named: set[str] | None) -> Any:
        for view in asking.views:
            reason = self._reader.apart(view)  # type: ignore[attr-defined]
            if reason is not None:
                return reason
        return super()._plan(asking, named)


class _OnCursors:
    """One query on a session, with a reader of its own: its relation, and every cursor that was made for it."""

    def __init__(self, own: _Own, query: str, fresh: Freshness, ended: Callable[[], bool]) -> None:
        self.own, self.params = own, cast("Params", None)
        self.reader = StatementReader(own.reader, ended)
        self._query = query
        self._made = _Cursors(own.session._connection)
        self._session = copy.copy(own.session)
        self._session._reader, self._session._fresh, self._session._last = self.reader, fresh, None
        self._session._connection = self._made  # type: ignore[assignment]

    def relation(self) -> duckdb.DuckDBPyRelation:
        read = self.read()
        return self.relation_of(read.explains + read.text)

    def relation_of(self, query: str) -> duckdb.DuckDBPyRelation:
        return self._session.sql(query, self.params)

    def read(self) -> _Read:
        """Raises InvalidFlow for what may not be asked."""
        found = self.own.read(self.cursor(), self._query)
        self.reader.past = {each.name: each for each in found.past}
        return found

    def cursor(self) -> duckdb.DuckDBPyConnection:
        return self._session._cursor()

    @property
    def answers(self) -> Mapping[str, Answer]:
        return self._session.last_answers

    def interrupt(self) -> None:
        for each in list(self._made.cursors):
            with contextlib.suppress(duckdb.Error):
                each.interrupt()

    def close(self) -> None:
        for each in list(self._made.cursors):
            with contextlib.suppress(duckdb.Error):
                each.close()


class _Cursors:
    """A DuckDB connection that notes the cursors it makes. Under the session's lock."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection
        self.cursors: list[duckdb.DuckDBPyConnection] = []

    def cursor(self) -> duckdb.DuckDBPyConnection:
        made = self._connection.cursor()
        self.cursors.append(made)
        return made


def _described(statement: _OnCursors, given: list[Any] | None) -> Described:
    read = statement.read()
    names = parameters.names(read.tree)
    values = [None] * len(names) if given is None else given
    if names and all(each.isdigit() for each in names):
        statement.params = values
    elif names or values:
        if len(names) != len(values):
            raise InvalidFlow("the query takes another number of parameters", takes=len(names), given=len(values))
        statement.params = dict(zip(names, values, strict=True))
    relation = statement.relation_of(("explain " if read.explains else "") + read.text)
    schema = relation.limit(0).to_arrow_table().schema.remove_metadata()
    schema = pa.schema([each.with_name(name) for each, name in zip(schema, relation.columns, strict=True)])
    kinds = statement.own.parameter_types(statement.cursor(), read)
    known = zip(names, [*values, *[None] * len(names)], strict=False)
    fields = [pa.field(parameters.field_name(each), _kind(kinds.get(each), value)) for each, value in known]
    return Described(schema, pa.schema(fields))


def _kind(kind: pa.DataType | None, value: Any) -> pa.DataType:
    """The type of a parameter: what was inferred, or that of its value, or text."""
    if kind is not None or value is None:
        return kind or pa.string()
    try:
        return pa.scalar(value).type
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        return pa.string()


def _never() -> bool:
    return False

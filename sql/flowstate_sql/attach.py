"""Live views beside the tables of the user, in the user's own DuckDB connection.

DuckDB keeps what Python registers on the one cursor where it was registered, and gives it no schema. So `attach` makes two things: an
in-memory database called `name`, with a view per live view, which all cursors see and nothing of which is written to the user's database;
and on the connection itself a registered dataset per live view, ``"name.view"``, which these views read. Another cursor of the connection
needs the second part, too: `Attached.use`. Columns and filters are pushed through the views into the partitions.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Unpack

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from flowstate.errors import InvalidFlow, Unavailable, did_you_mean
from flowstate.view.answer import Answer
from flowstate.view.directory import ViewInfo
from flowstate.view.freshness import LATEST, Asked, Freshness, refined
from flowstate_flight import FlightReader
from flowstate_sql.catalog import LiveDataset

_lock = threading.Lock()
_attached: weakref.WeakKeyDictionary[duckdb.DuckDBPyConnection, dict[str, Attached]] = weakref.WeakKeyDictionary()


def attach(
    connection: duckdb.DuckDBPyConnection,
    source: str | Sequence[str] | FlightReader,
    name: str | None = None,
    *,
    job: str | None = None,
    options: Mapping[str, Any] | None = None,
    **asked: Unpack[Asked],
) -> Attached:
    """Make the views of a running job readable as ``name.view`` in `connection`, each query over the state of its moment.

    `source` is the address of a worker or gateway, ``grpc://host:port``, or several; or a reader, which stays open. `name` is that of the
    job if left out, and `job` is needed only where several run. `options` go to `FlightReader`: credentials, TLS, patience. `asked` says
    how fresh every answer must be (`max_age`, `at_least`, `consistent`, `snapshot`); with ``consistent=True`` all queries read one cut,
    made now and by each `Attached.refresh`. Raises InvalidFlow, and Unavailable if no worker answers."""
    fresh = refined(LATEST, asked)
    reader = source if isinstance(source, FlightReader) else FlightReader(source, job, **(options or {}))
    try:
        attached = Attached(connection, reader, name or reader.directory().job, fresh)
    except BaseException:
        if reader is not source:
            reader.close()
        raise
    if reader is not source:
        attached._closing = weakref.finalize(attached, reader.close)
        attached._closing.atexit = False  # the reader sees to that itself
    return attached


def detach(connection: duckdb.DuckDBPyConnection, name: str) -> None:
    """Undo `attach`: the views are gone, and the connections to the job closed. Raises InvalidFlow if nothing of this name is attached."""
    with _lock:
        known = dict(_attached.get(connection, {}))
    found = known.get(name.lower())
    if found is None:
        names = [each.name for each in known.values()]
        raise InvalidFlow(f"nothing is attached to this connection as {name!r}{did_you_mean(name, names)}")
    found.detach()


class Attached:
    """The views of one job in one DuckDB database; a context manager that detaches them at its end."""

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, reader: FlightReader, name: str, fresh: Freshness
    ) -> None:
        self.name = name
        # weak, since what is registered there holds this, and Python could not end such a circle
        self._connection = weakref.ref(connection)
        self._reader = reader
        self._asked = fresh
        self._fresh = self._moment(fresh)
        self._answers: dict[str, Answer] = {}
        self._views: dict[str, _View] = {}
        self._detached = False
        self._lock = threading.RLock()
        self._closing: weakref.finalize[..., Any] | None = None
        with _duckdb_errors():
            _outside_a_transaction(connection)
            with contextlib.closing(connection.cursor()) as cursor:
                self._begin(cursor)
                try:
                    self._arrange(cursor)
                    self.use(connection)
                except BaseException:
                    cursor.execute(f"detach {_quoted(name)}")
                    raise

    @property
    def views(self) -> list[str]:
        """Their names, without that of the database."""
        return list(self._views)

    @property
    def last_answers(self) -> Mapping[str, Answer]:
        """By view what its last scan saw: position, watermark, age and origin of its partitions."""
        return dict(self._answers)

    def use(self, cursor: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyConnection:
        """Make the views readable on another cursor of the same database, such as that of a thread, too; returns it. Again after a
        `refresh` that has found new views."""
        self._check()
        with self._lock, _duckdb_errors():
            for view, dataset in self._views.items():
                cursor.register(f"{self.name}.{view}", dataset)
        with _lock:
            _attached.setdefault(cursor, {})[self.name.lower()] = self
        return cursor

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """A new cursor on which the views are readable."""
        return self.use(self._user_connection().cursor())

    def refresh(self, **asked: Unpack[Asked]) -> None:
        """Take note of views that have appeared, changed or gone since, and with ``consistent`` make a new cut. What is `asked` counts from
        now on: ``refresh(at_least=...)`` reads your own writes."""
        self._check()
        connection = self._user_connection()
        with self._lock, _duckdb_errors():
            _outside_a_transaction(connection)
            wanted = refined(self._asked, asked)
            self._reader.refresh()
            self._fresh = self._moment(wanted)
            self._asked = wanted
            gone = set(self._views)
            with contextlib.closing(connection.cursor()) as cursor:
                self._arrange(cursor)
            for view in gone - set(self._views):
                connection.unregister(f"{self.name}.{view}")
            self.use(connection)

    def detach(self) -> None:
        """Take the views away again. Queries of other cursors that still read them fail. Safe to repeat."""
        with self._lock:
            if self._detached:
                return
            connection = self._connection()
            if connection is not None:
                with (
                    _duckdb_errors(),
                    contextlib.suppress(duckdb.ConnectionException),
                ):  # suppressed: the user has closed it
                    connection.sql(f"detach database if exists {_quoted(self.name)}")
                    for view in self._views:
                        connection.unregister(f"{self.name}.{view}")
            self._detached = True
        with _lock:
            for known in list(_attached.values()):
                if known.get(self.name.lower()) is self:
                    del known[self.name.lower()]
        if self._closing is not None:
            self._closing()

    def __enter__(self) -> Attached:
        return self

    def __exit__(self, *exception: object) -> None:
        self.detach()

    def _begin(self, cursor: duckdb.DuckDBPyConnection) -> None:
        taken = "select database_name from duckdb_databases() union all select schema_name from duckdb_schemas()"
        if self.name.lower() in {str(each).lower() for (each,) in cursor.execute(taken).fetchall()}:
            message = f"this connection has a database or a schema {self.name!r} already; choose another with name="
            raise InvalidFlow(message)
        cursor.execute(f"attach ':memory:' as {_quoted(self.name)} (read_write)")

    def _arrange(self, cursor: duckdb.DuckDBPyConnection) -> None:
        """Make the views of the database those of the job; `cursor` is in no transaction of the user."""
        database = _quoted(self.name)
        views = {view: _View(self, self._reader.info(view)) for view in self._reader.views()}
        for view, dataset in views.items():
            known = self._views.get(view)
            if known is not None and known.schema.equals(dataset.schema):
                views[view] = known
                continue
            source = f"{self.name}.{view}"
            cursor.register(source, dataset)
            body = f"select * from temp.main.{_quoted(source)}"
            cursor.execute(f"create or replace view {database}.main.{_quoted(view)} as {body}")
        for view in set(self._views) - set(views):
            cursor.execute(f"drop view if exists {database}.main.{_quoted(view)}")
        self._views = views

    def _moment(self, wanted: Freshness) -> Freshness:
        """With a cut, where one is wanted, that is kept for all queries to come."""
        fresh = self._reader.moment(wanted)
        if not wanted.consistent or fresh.cut is None:
            return fresh
        self._reader.keep_cut({"cut": fresh.cut})
        return Freshness(cut=fresh.cut)

    def _user_connection(self) -> duckdb.DuckDBPyConnection:
        connection = self._connection()
        if connection is None:
            raise InvalidFlow("the connection that this was attached to is gone; attach to another one")
        return connection

    def _check(self) -> None:
        if self._detached:
            raise InvalidFlow(f"{self.name!r} was detached; attach it again")

    def _saw(self, view: str, answer: Answer) -> None:
        self._answers[view] = answer


class _View(LiveDataset):
    """A view as it was when it was attached, read as fresh as is asked when it is read."""

    def __init__(self, attached: Attached, info: ViewInfo) -> None:
        super().__init__(attached._reader, info, LATEST, attached._saw)
        self._attached = attached

    def read(self, columns: Sequence[str] | None, filter: pc.Expression | None) -> pa.RecordBatchReader:
        """DuckDB takes what comes for what it was told when the view was attached, so that is compared."""
        attached, info = self._attached, self._info
        attached._check()
        now = self._reader.info(info.name).schema
        names = info.schema.names if columns is None else columns
        for name in names:
            if name not in now.names or now.field(name).type != info.schema.field(name).type:
                message = (
                    f"view {info.name!r} has changed since it was attached; call refresh() on what attach() returned"
                )
                raise InvalidFlow(message, column=name)
        fresh = attached._fresh
        try:
            return LiveDataset(self._reader, info, fresh, attached._saw).read(names, filter)
        except Unavailable as error:
            if fresh.cut is None:
                raise
            message = "the cut that is read here is not to be had any more; refresh() makes a new one"
            raise Unavailable(message, cut=fresh.cut, retry_after=error.retry_after, reason=error.message) from error


def _outside_a_transaction(connection: duckdb.DuckDBPyConnection) -> None:
    """What is registered in a transaction goes away when it is rolled back, without a word."""
    first, second = (connection.sql("select txid_current()").fetchall() for _ in range(2))
    if first == second:
        raise InvalidFlow("this connection is in a transaction; commit it first, or use a cursor() of its own")


@contextlib.contextmanager
def _duckdb_errors() -> Iterator[None]:
    try:
        yield
    except duckdb.ResourceInUseException as error:
        message = "this connection is busy in another thread, or has a result that is not fetched to its end; use a cursor() of its own"
        raise InvalidFlow(message) from error
    except duckdb.Error as error:
        text = " ".join(str(error).split())
        raise InvalidFlow(text.partition(": ")[2] or text) from error


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'

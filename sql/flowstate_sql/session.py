"""DuckDB over the views of a job: queries only, nothing but views in reach."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import duckdb

from flowstate.errors import InvalidFlow, did_you_mean
from flowstate.view.answer import Answer
from flowstate.view.freshness import LATEST, Asked, Freshness, refined
from flowstate_sql.catalog import LiveDataset, Reader
from flowstate_sql.pushdown import named_tables, unknown_table

#: No files, no network, no Python variables of the caller, no extensions; locked, so that no query can change it back.
LOCKED = {
    "enable_external_access": "false",
    "python_enable_replacements": "false",
    "allow_community_extensions": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
}
_NAMES_KEPT = 256


class Session:
    """``session.sql(...)`` is a DuckDB relation. It runs when it is fetched, and again each time, over the state of that moment.

    Everything is read as `fresh` as that, or as is asked for in `sql`. A relation with ``consistent=True`` reads all its views in one cut,
    made when the relation is; running it again gives the same. Safe from several threads; each relation has a DuckDB cursor of its own.
    """

    def __init__(
        self,
        reader: Reader,
        fresh: Freshness = LATEST,
        *,
        time_zone: str = "UTC",
        memory_limit: str | None = None,
    ) -> None:
        """`time_zone` is the one in which DuckDB reads and truncates times; `memory_limit` like ``"4GB"``."""
        self._reader = reader
        self._fresh = fresh
        limit = {"memory_limit": memory_limit} if memory_limit else {}
        self._connection = duckdb.connect(":memory:", config={**LOCKED, **limit})
        try:
            self._connection.execute("set global TimeZone = $zone", {"zone": time_zone})
        except duckdb.Error as error:
            self._connection.close()
            raise InvalidFlow(f"there is no time zone {time_zone!r}") from error
        self._connection.execute("set global lock_configuration = true")
        self._lock = threading.Lock()  # a DuckDB connection refuses a second thread
        self._named: dict[str, set[str] | None] = {}
        self._last: _Query | None = None

    @property
    def last_answers(self) -> Mapping[str, Answer]:
        """What the last query that ran saw: view -> position, watermark, age and origin of its partitions."""
        last = self._last
        return {} if last is None else dict(last.answers)

    def sql(
        self,
        query: str,
        params: Sequence[Any] | Mapping[str, Any] | None = None,
        **asked: Unpack[Asked],
    ) -> duckdb.DuckDBPyRelation:
        """A relation over one SELECT; `params` are the values of ``$1`` or ``$name``. Raises InvalidFlow."""
        fresh = refined(self._fresh, asked)
        with self._lock:
            cursor = self._connection.cursor()
            try:
                _admit(cursor, query)
                if query not in self._named:
                    if len(self._named) >= _NAMES_KEPT:
                        self._named.clear()
                    self._named[query] = named_tables(cursor, query)
                named = self._named[query]
            except duckdb.Error as error:
                raise InvalidFlow(_text(error)) from error
        views = self._reader.views()
        chosen = [view for view in views if named is None or view.lower() in named]
        if named is not None and named - {view.lower() for view in chosen}:
            chosen = views  # it also names something of DuckDB's catalog, which may list them, or a view unknown so far
        fresh = self._reader.moment(fresh)
        running = _Query(self)
        for view in chosen:
            cursor.register(view, LiveDataset(self._reader, self._reader.info(view), fresh, running.saw))
        try:
            relation = cursor.sql(query, params=params)
        except duckdb.CatalogException as error:
            missing = unknown_table(named, views, str(error))
            if missing is None:
                raise InvalidFlow(_text(error)) from error
            raise InvalidFlow(f"there is no view {missing!r}{did_you_mean(missing, views)}") from error
        except (duckdb.Error, ValueError, TypeError) as error:
            raise InvalidFlow(_text(error)) from error
        if relation is None:
            raise InvalidFlow("this statement gives no rows; ask with a SELECT")
        return relation

    def close(self) -> None:
        """Free DuckDB. Relations end with it."""
        self._connection.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Query:
    """The answers that the scans of one relation gave, the newest of each view."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.answers: dict[str, Answer] = {}

    def saw(self, view: str, answer: Answer) -> None:
        self.answers[view] = answer
        self._session._last = self


def _admit(cursor: duckdb.DuckDBPyConnection, query: str) -> None:
    """Exactly one statement, and a SELECT."""
    statements = cursor.extract_statements(query)
    if len(statements) != 1:
        raise InvalidFlow("one SELECT at a time", statements=len(statements))
    if statements[0].type != duckdb.StatementType.SELECT:
        raise InvalidFlow("views are read only; ask with a SELECT", statement=statements[0].type.name)


def _text(error: BaseException) -> str:
    """DuckDB's message, which is helpful, in one line and without its kind."""
    text = " ".join(str(error).split())
    return text.partition(": ")[2] or text

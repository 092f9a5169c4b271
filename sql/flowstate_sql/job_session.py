"""The SQL of whoever runs a job: a session that has the system tables and saved snapshots, too."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Unpack

import duckdb

from flowstate.errors import InvalidFlow
from flowstate.store import Store
from flowstate.view.freshness import LATEST, Asked, Freshness
from flowstate.view.rights import ANYBODY
from flowstate_flight.client import FlightReader
from flowstate_sql.lockdown import check_nesting, explained
from flowstate_sql.restricted import RestrictedSplitReader
from flowstate_sql.session import Session
from flowstate_sql.statement import StatementReader
from flowstate_sql.system import Facts, SystemReader
from flowstate_sql.travel import Past, parsed, spread

_MOMENT = re.compile(r"\bat\s*\(", re.IGNORECASE)


class _Reader(StatementReader):
    """Remembers every view at a snapshot that a relation reads, and lists those of the query that is being bound."""

    def __init__(self, reader: SystemReader) -> None:
        super().__init__(reader, lambda: False)
        self.known: dict[str, Past] = {}
        self.past = self.known
        self.listed: Sequence[str] = ()

    def views(self) -> list[str]:
        return [*self._reader.views(), *self.listed]


class JobSession(Session):
    """A `Session` with the system tables, and views ``AT (SNAPSHOT => 3)``."""

    def __init__(
        self,
        reader: FlightReader,
        fresh: Freshness = LATEST,
        *,
        store: Store | None = None,
        status: Callable[[], Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> None:
        """`store` and `status` as for `system.Facts`; `options` are those of a `Session`."""
        self._asking = ThreadPoolExecutor(8, thread_name_prefix="sql-partitions")
        self._system = _Reader(SystemReader(RestrictedSplitReader(reader, ANYBODY), Facts(self._asking, store, status)))
        self._bound = threading.Lock()
        super().__init__(self._system, fresh, **options)

    def sql(
        self, query: str, params: Sequence[Any] | Mapping[str, Any] | None = None, **asked: Unpack[Asked]
    ) -> duckdb.DuckDBPyRelation:
        past: list[Past] = []
        if _MOMENT.search(query):
            query, past = self._spread(query)
        if not past:
            return super().sql(query, params, **asked)
        with self._bound:
            self._system.known.update({each.name: each for each in past})
            self._system.listed = [each.name for each in past]
            try:
                return super().sql(query, params, **asked)
            finally:
                self._system.listed = ()

    def close(self) -> None:
        super().close()
        self._asking.shutdown(wait=False, cancel_futures=True)

    def _spread(self, query: str) -> tuple[str, list[Past]]:
        """What cannot be read is left to the session, which says why."""
        before, rest = explained(query)
        views = {each.lower(): each for each in self._system.views()}
        with contextlib.closing(self._cursor()) as cursor:
            try:
                check_nesting(rest)
                text, tree = parsed(cursor, rest)
            except (InvalidFlow, duckdb.Error):
                return query, []
        text, past = spread(text, tree, views)
        return before + text, past

    def _plan(self, asking: Any, named: set[str] | None) -> Any:
        for view in asking.views:
            reason = self._system.apart(view)
            if reason is not None:
                return reason
        return super()._plan(asking, named)

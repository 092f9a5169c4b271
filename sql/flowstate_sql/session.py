"""DuckDB over the views of a job: queries only, nothing but views in reach."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import duckdb
import pyarrow as pa

from flowstate.clock import SystemClock
from flowstate.errors import InvalidFlow, did_you_mean
from flowstate.view.answer import Answer
from flowstate.view.directory import ViewInfo
from flowstate.view.freshness import LATEST, Asked, Freshness, refined
from flowstate_sql.catalog import LiveDataset, Reader
from flowstate_sql.explain import How, admitted, lines, ran
from flowstate_sql.kept import Kept
from flowstate_sql.locked import LOCKED
from flowstate_sql.pushdown import named_tables, unknown_table
from flowstate_sql.split import PARTS
from flowstate_sql.syntax import chosen_values
from flowstate_sql.tiers import Planner, ProbeDataset, Pushed, SplitPlan, SplitReader, named_values


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
        """`time_zone` is the one in which DuckDB reads and truncates times; `memory_limit` like ``"4GB"``: what takes more is refused, and
        nothing is written to a disk."""
        self._reader = reader
        self._fresh = fresh
        limit = {"memory_limit": memory_limit, "temp_directory": ""} if memory_limit else {}
        self._connection = duckdb.connect(":memory:", config={**LOCKED, **limit, **_threads()})
        try:
            self._connection.execute("set global TimeZone = $zone", {"zone": time_zone})
        except duckdb.Error as error:
            self._connection.close()
            raise InvalidFlow(f"there is no time zone {time_zone!r}") from error
        self._connection.execute("set global lock_configuration = true")
        self._lock = threading.Lock()  # a DuckDB connection refuses a second thread
        self._texts = Kept[_Text]()
        self._planner = Planner(self._cursor, time_zone)
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
        """A relation over one SELECT; `params` are the values of ``$1`` or ``$name``. ``EXPLAIN select ...`` gives lines of text: who is
        asked for what (`explain`). Raises InvalidFlow."""
        fresh = refined(self._fresh, asked)
        cursor, text = self._read(query)
        query, how, named = text.query, text.how, text.named
        views = self._reader.views()
        chosen = [view for view in views if named is None or view.lower() in named]
        if named is not None and named - {view.lower() for view in chosen}:
            chosen = views  # it also names something of DuckDB's catalog, which may list them, or a view unknown so far
        asking = _Asking(query, params, self._reader.moment(fresh), {view: self._reader.info(view) for view in chosen})
        plan = self._plan(asking, named)
        running = _Query(self)
        try:
            if isinstance(plan, SplitPlan):
                relation = self._in_parts(cursor, asking, plan, running)
            else:
                relation = self._in_full(cursor, text.parsed, asking, running)
            if relation is not None and how != "run":
                return self._explained(asking, plan, relation if how == "analyze" else None, running)
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

    def _read(self, query: str) -> tuple[duckdb.DuckDBPyConnection, _Text]:
        """A new cursor, and what the text tells. Raises InvalidFlow."""
        with self._lock:
            cursor = self._connection.cursor()
            found = self._texts.get(query)
            if found is None:
                try:
                    inner, parsed, how = admitted(cursor, query)
                    found = _Text(inner, parsed, how, named_tables(cursor, inner))
                except duckdb.Error as error:
                    raise InvalidFlow(_text(error)) from error
                self._texts.put(query, found, len(query))
        return cursor, found

    def _cursor(self) -> duckdb.DuckDBPyConnection:
        with self._lock:
            return self._connection.cursor()

    def _plan(self, asking: _Asking, named: set[str] | None) -> SplitPlan | str:
        """How it is computed in parts, or why it is not."""
        if not isinstance(self._reader, SplitReader):
            return "what is read here has no partitions that compute"
        if named is None or len(named) != 1 or len(asking.views) != 1:
            return "it does not read one view alone"
        (info,) = asking.views.values()
        return self._planner.plan(asking.query, info, named_values(asking.params))

    def _in_parts(
        self, cursor: duckdb.DuckDBPyConnection, asking: _Asking, plan: SplitPlan, running: _Query
    ) -> duckdb.DuckDBPyRelation | None:
        assert isinstance(self._reader, SplitReader)
        (info,) = asking.views.values()
        values = named_values(asking.params)
        parts = self._planner.dataset(self._reader, info, plan, values, asking.fresh, running.saw)
        cursor.register(PARTS, parts)
        return cursor.sql(plan.merging, params=chosen_values(plan.merge_names, values))

    def _in_full(
        self, cursor: duckdb.DuckDBPyConnection, parsed: duckdb.Statement, asking: _Asking, running: _Query
    ) -> duckdb.DuckDBPyRelation | None:
        for view, info in asking.views.items():
            cursor.register(view, LiveDataset(self._reader, info, asking.fresh, running.saw))
        return cursor.sql(parsed, params=asking.params)

    def _explained(
        self, asking: _Asking, plan: SplitPlan | str, relation: duckdb.DuckDBPyRelation | None, running: _Query
    ) -> duckdb.DuckDBPyRelation:
        scans: list[tuple[str, Pushed]] = []
        if isinstance(plan, SplitPlan):
            (info,) = asking.views.values()
            scans = [(info.name, self._planner.pushed(plan, info, named_values(asking.params)))]
        else:
            cursor, probes = self._cursor(), {view: ProbeDataset(info.schema) for view, info in asking.views.items()}
            for view, probe in probes.items():
                cursor.register(view, probe)
            cursor.sql(asking.query, params=asking.params).fetchall()
            scans = [(view, pushed) for view, probe in probes.items() for pushed in probe.scans]
        read = {view for view, _ in scans}
        text = lines(self._reader, plan, scans, [view for view in asking.views if view not in read])
        if relation is not None:
            clock = SystemClock()
            begun = clock.monotonic()
            rows = relation.to_arrow_table().num_rows
            text += ran(running.answers, rows, clock.monotonic() - begun)
        cursor = self._cursor()
        cursor.register("explanation", pa.table({"explanation": text}))
        return cursor.sql("from explanation")

    def close(self) -> None:
        """Free DuckDB. Relations end with it."""
        self._connection.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _threads() -> dict[str, str]:
    """What DuckDB is set to where this process may not run on all cores: it takes a thread for each, which would wait for one another."""
    if not hasattr(os, "sched_getaffinity"):
        return {}
    own, all_cores = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    return {"threads": str(own)} if own < all_cores else {}


@dataclass(frozen=True)
class _Text:
    """What a text alone tells: the SELECT in it, also parsed, which takes DuckDB half as long as to bind it; what is to be done with that;
    and the names of its tables (see `named_tables`)."""

    query: str
    parsed: duckdb.Statement
    how: How
    named: set[str] | None


@dataclass(frozen=True)
class _Asking:
    """A query, as fresh as it is to be, and the views that it may read."""

    query: str
    params: Sequence[Any] | Mapping[str, Any] | None
    fresh: Freshness
    views: Mapping[str, ViewInfo]


class _Query:
    """The answers that the scans of one relation gave, the newest of each view."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.answers: dict[str, Answer] = {}

    def saw(self, view: str, answer: Answer) -> None:
        self.answers[view] = answer
        self._session._last = self


def _text(error: BaseException) -> str:
    """DuckDB's message, which is helpful, in one line and without its kind."""
    text = " ".join(str(error).split())
    return text.partition(": ")[2] or text

"""How a query is answered: by the owners of the keys that it names, by parts of it computed in the partitions, or over all rows.

1. A condition that fixes the routing keys asks their owners alone. DuckDB pushes it into the scan of the view, which becomes a lookup
   (`keyed`) or, of many keys, a scan of their owners; the reader sees to that.
2. A query of aggregates over one view (`split`) is computed in every partition over its own rows, and only groups travel. What it pushes
   down is found out by running it over nothing (`pushed`), so that the first holds for it, too.
3. Everything else runs here, over the rows and columns that are pushed down of each view.

Parts are worth their trouble where they are fewer than rows: with more than half as many (measured: 100,000 rows, of one partition) each
group is made twice, here and there, for less than half of the bytes. So what groups by all keys of the view is not split, nor what reads a
few keys with a row each; and parts tell how many rows they are made of: where they turn out to be more than half, the next `MANY_FOR` runs
of the same parts go by the rows.

All give the same. Where a partition does not compute its part (an older worker, too little memory, no right to), the part is computed here
over its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from types import NoneType
from typing import Any, Protocol, runtime_checkable

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset

from flowstate.errors import InvalidFlow
from flowstate.view.answer import Answer
from flowstate.view.directory import ViewInfo
from flowstate.view.freshness import LATEST, Freshness
from flowstate_flight.partial import Partial
from flowstate_sql.catalog import Reader
from flowstate_sql.kept import Kept
from flowstate_sql.keyed import keyed
from flowstate_sql.partial import PartialQuery, answer_partial, compute
from flowstate_sql.reading import Reading
from flowstate_sql.split import MADE_OF, PARTS, split
from flowstate_sql.syntax import ROWS, NotSplit, Syntax, chosen_values

#: Groups that are too few to matter, and runs by the rows after which parts are tried again.
FEW_GROUPS, MANY_FOR = 1000, 100


@runtime_checkable
class SplitReader(Reader, Protocol):
    """A reader whose partitions compute parts of queries, as `flowstate_flight.FlightReader`."""

    def partial_reader(
        self,
        view: str,
        partial: Partial,
        columns: Sequence[str] | None = None,
        filter: pc.Expression | None = None,
        fresh: Freshness = LATEST,
    ) -> pa.RecordBatchReader: ...

    def asked(self, view: str, filter: pc.Expression | None = None) -> list[int]: ...


@dataclass(frozen=True)
class Pushed:
    """What DuckDB pushes into a scan; `columns` None means all."""

    columns: tuple[str, ...] | None = None
    filter: pc.Expression | None = None


@dataclass(frozen=True)
class SplitPlan:
    """A query in two. The parts read `columns` of the view, and `schema` is theirs; `filter` is what is pushed down, unless that `depends`
    on the values of parameters. `merging` is `merge`, parsed."""

    partial: str
    merge: str
    merging: duckdb.Statement
    partial_names: frozenset[str]
    merge_names: frozenset[str]
    schema: pa.Schema
    columns: tuple[str, ...]
    filter: pc.Expression | None
    depends: bool


@dataclass
class _Many:
    """Parts that were nearly as many as rows, and the times since that the rows were asked for instead."""

    groups: int
    rows: int
    runs: int = 0


class Planner:
    """Plans by the text of the query; those of the last ones are kept."""

    def __init__(self, cursor: Callable[[], duckdb.DuckDBPyConnection], time_zone: str) -> None:
        """`cursor` gives a new one of the locked session."""
        self.cursor, self._time_zone = cursor, time_zone
        self._known = Kept[SplitPlan | str]()
        self._whole = Kept[str]()  # texts that are not split, whatever they are asked with
        self._many = Kept[_Many]()  # by view and partial query

    def plan(self, query: str, info: ViewInfo, values: Mapping[str, Any]) -> SplitPlan | str:
        """How `query`, over one view, is split; or why it is not."""
        if (reason := self._whole.get(query)) is not None:
            return reason
        key = (query, info.name, info.schema.remove_metadata(), self._types_of(values))
        found = self._known.get(key)
        if found is None:
            with closing(self.cursor()) as cursor:
                found = self._planned(cursor, query, info, values)
            self._known.put(key, found, len(query))
        if isinstance(found, SplitPlan) and (many := self._many.get((info.name, found.partial))) is not None:
            many.runs += 1
            if many.runs <= MANY_FOR:
                return f"it made {many.groups} groups of {many.rows} rows when it was computed in parts last"
            self._many.drop((info.name, found.partial))
        return found

    def _types_of(self, values: Mapping[str, Any]) -> tuple[Any, ...]:
        """What DuckDB takes the values of parameters for, or what tells that as well."""
        if all(type(each) in (str, bool, int, float, NoneType) for each in values.values()):
            return tuple(
                (
                    name,
                    type(each),
                    (each < 0, (each if each >= 0 else ~each).bit_length()) if type(each) is int else None,
                )
                for name, each in values.items()
            )
        select = "select " + ", ".join(f"${at}" for at in range(1, len(values) + 1))
        with closing(self.cursor()) as cursor:
            types = cursor.sql(select, params=list(values.values())).types
        return tuple(zip(values, map(str, types), strict=True))

    def made(self, view: str, partial: str, parts: pa.Table) -> None:
        """Take note of how many groups became of how many rows."""
        if parts.num_rows >= FEW_GROUPS and MADE_OF in parts.schema.names:
            rows = pc.sum(parts.column(MADE_OF)).as_py()
            if 2 * parts.num_rows > rows:
                self._many.put((view, partial), _Many(parts.num_rows, rows), len(partial))

    def _planned(
        self, cursor: duckdb.DuckDBPyConnection, query: str, info: ViewInfo, values: Mapping[str, Any]
    ) -> SplitPlan | str:
        empty = info.schema.remove_metadata().empty_table()

        def types(sql: str, names: frozenset[str]) -> list[str]:
            return [str(each) for each in cursor.sql(sql, params=chosen_values(names, values)).types]

        try:
            syntax = Syntax(cursor)
            whole = syntax.tree(query)
            try:
                syntax.check_select(whole)
                syntax.check_grouped(whole)
            except NotSplit as reason:
                self._whole.put(query, str(reason), len(query))
                raise
            cursor.register(info.name, empty)
            wanted = cursor.sql(query, params=dict(values) or None)
            cursor.register(ROWS, empty)
            found = split(syntax, whole, info, wanted.columns, types)
            values_of_parts = chosen_values(found.partial_names, values)
            PartialQuery(found.partial, values_of_parts or {}).to_text()
            pushed, schema = push(cursor, found.partial, info, values_of_parts)
            if pushed.filter is not None and info.keys == info.routing_keys and keyed(pushed.filter, info) is not None:
                raise NotSplit("its condition fixes the keys")
            cursor.register(PARTS, schema.empty_table())
            (merging,) = cursor.extract_statements(found.merge)
            merged = cursor.sql(merging, params=chosen_values(found.merge_names, values))
            if merged.columns != wanted.columns or merged.types != wanted.types:
                raise NotSplit("its parts would come to other types")
        except NotSplit as reason:
            return str(reason)
        except RecursionError:
            return "it is nested deeply"
        except (duckdb.Error, ValueError, TypeError, KeyError, IndexError, NotImplementedError) as error:
            return f"DuckDB refuses to: {' '.join(str(error).split())[:200]}"
        return SplitPlan(
            found.partial,
            found.merge,
            merging,
            found.partial_names,
            found.merge_names,
            schema,
            found.columns,
            pushed.filter,
            bool(found.partial_names),
        )

    def pushed(self, plan: SplitPlan, info: ViewInfo, values: Mapping[str, Any]) -> Pushed:
        """What the parts read of the view."""
        if not plan.depends:
            return Pushed(plan.columns, plan.filter)
        cursor = self.cursor()
        try:
            found, _ = push(cursor, plan.partial, info, chosen_values(plan.partial_names, values))
            return Pushed(plan.columns, found.filter)
        finally:
            cursor.close()

    def dataset(
        self,
        reader: SplitReader,
        info: ViewInfo,
        plan: SplitPlan,
        values: Mapping[str, Any],
        fresh: Freshness,
        seen: Seen,
    ) -> PartsDataset:
        """The parts, computed anew by each scan."""
        pushed = self.pushed(plan, info, values)
        query = PartialQuery(plan.partial, chosen_values(plan.partial_names, values) or {}, self._time_zone)
        return PartsDataset(reader, info, plan, pushed, query, fresh, seen, self)


Seen = Callable[[str, Answer], None]


class PartsDataset(pyarrow.dataset.Dataset):
    """`PARTS` as DuckDB reads it."""

    def __init__(
        self,
        reader: SplitReader,
        info: ViewInfo,
        plan: SplitPlan,
        pushed: Pushed,
        query: PartialQuery,
        fresh: Freshness,
        seen: Seen,
        planner: Planner,
    ) -> None:
        # as catalog.LiveDataset, not the base's own __init__
        self._reader, self._info, self._plan, self._pushed = reader, info, plan, pushed
        self._query, self._fresh, self._seen, self._planner = query, fresh, seen, planner

    @property
    def schema(self) -> pa.Schema:
        return self._plan.schema

    def scanner(
        self, columns: Sequence[str] | None = None, filter: pc.Expression | None = None, **options: Any
    ) -> _Scanner:
        def read() -> pa.RecordBatchReader:
            table = self.read()
            self._planner.made(self._info.name, self._plan.partial, table)
            if filter is not None:
                table = table.filter(filter)
            names = self.schema.names if columns is None else list(columns) or self.schema.names[:1]
            return table.select(names).to_reader()

        return _Scanner(read)

    def read(self) -> pa.Table:
        view, pushed = self._info.name, self._pushed
        columns = list(pushed.columns or ()) or self._info.schema.names[:1]
        partial = Partial(self._query.to_text(), self._plan.schema, answer_partial)
        try:
            stream = self._reader.partial_reader(view, partial, columns, pushed.filter, self._fresh)
        except InvalidFlow:
            return self._computed_here(columns)
        self._note(stream)
        return stream.read_all().replace_schema_metadata()

    def _computed_here(self, columns: list[str]) -> pa.Table:
        stream = self._reader.scan_reader(self._info.name, columns, self._pushed.filter, fresh=self._fresh)
        self._note(stream)
        cursor = self._planner.cursor()
        try:
            return compute(Reading(cursor, ROWS, stream.schema.remove_metadata()), iter(stream), self._query)
        finally:
            cursor.close()

    def _note(self, stream: pa.RecordBatchReader) -> None:
        answer = Answer.of(stream.schema)
        if answer is not None:
            self._seen(self._info.name, answer)


class ProbeDataset(pyarrow.dataset.Dataset):
    """A view without rows, that notes what is pushed into each scan of it."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema.remove_metadata()
        self.scans: list[Pushed] = []

    @property
    def schema(self) -> pa.Schema:
        return self._schema

    def scanner(
        self, columns: Sequence[str] | None = None, filter: pc.Expression | None = None, **options: Any
    ) -> _Scanner:
        names = self._schema.names if columns is None else list(columns) or self._schema.names[:1]

        def read() -> pa.RecordBatchReader:
            self.scans.append(Pushed(None if columns is None else tuple(columns), filter))
            return self._schema.empty_table().select(names).to_reader()

        return _Scanner(read)


class _Scanner:
    """DuckDB calls `to_reader` when the query runs."""

    def __init__(self, read: Callable[[], pa.RecordBatchReader]) -> None:
        self._read = read

    def to_reader(self) -> pa.RecordBatchReader:
        return self._read()


def push(
    cursor: duckdb.DuckDBPyConnection, partial: str, info: ViewInfo, values: Mapping[str, Any] | None
) -> tuple[Pushed, pa.Schema]:
    """What a partial query pushes into the scan of its view, and the schema of what it gives: it runs over no rows."""
    probe = ProbeDataset(info.schema)
    cursor.register(ROWS, probe)
    schema = cursor.sql(partial, params=dict(values) if values else None).to_arrow_table().schema
    return (probe.scans[0] if len(probe.scans) == 1 else Pushed()), schema


def named_values(params: Sequence[Any] | Mapping[str, Any] | None) -> dict[str, Any]:
    """Parameters by name; those of a list have numbers."""
    if params is None:
        return {}
    if isinstance(params, Mapping):
        return dict(params)
    return {str(at): value for at, value in enumerate(params, 1)}

"""The compiled flow: what the running parts are told, frozen and picklable.

`api` builds nodes, `plan.compile` turns them into one `JobPlan`; nobody below `runtime` sees a node. A job has *sources*, each
read once; *routes*, each of which prepares the rows of one source for one table; and *sinks*. Names that begin with ``__`` are in the
state and never in what anybody sees.

Path of a row (names of columns are those of `plan.position`): source gives decoded columns + `__offset` (+ `__time`); the reader
adds `__watermark`; `Route.prepare` evaluates the steps, keys, window and inputs and splits the rows into those in time, the late
and the failed; `exchange.route` sends rows of a *keyed* table to the owner of their key, rows of an *append* table (late rows,
dead letters, streams on their way to a sink) to the owner of their split.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa

from flowstate.plan.describe import describe, differences, fingerprint
from flowstate.plan.evaluate import Prepared, Step, prepare
from flowstate.plan.expr import Expr
from flowstate.plan.window import WindowSpec

__all__ = [
    "DEAD_LETTERS",
    "DEAD_LETTER_SCHEMA",
    "EPOCH",
    "REVISION",
    "REVISIONS",
    "AggregateSpec",
    "AppendSpec",
    "JobPlan",
    "Prepared",
    "Route",
    "ScanSpec",
    "SinkSpec",
    "TableSpec",
    "queryable",
]  # fmt: skip

DEAD_LETTERS = "dead_letters"

#: Schema of the table `dead_letters`. `raw` is the record's payload as it stood in the log; `view` names the view (or the internal
#: table of a stream that goes to a sink) whose expressions failed, or is null when the record could not be read at all. `recorded` is
#: the log's own time of the record.
DEAD_LETTER_SCHEMA = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("view", pa.string()),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("raw", pa.binary()),
        pa.field("recorded", pa.timestamp("us", "UTC")),
    ]
)


@dataclass(frozen=True)
class ScanSpec:
    """A source: `kind` is ``kafka``, ``files`` or ``arrow``; `options` are its own; `lateness` and `max_ahead` in microseconds.

    `name` is unique in the job and names the source in messages, dead letters and split identities.
    """

    name: str
    kind: Literal["kafka", "files", "arrow"]
    schema: pa.Schema
    event_time: str | None = None
    lateness: int = 0
    max_ahead: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)  # may hold secrets


@dataclass(frozen=True)
class AggregateSpec:
    """One aggregate column: `function` is one of len, count, sum, min, max, mean, var, std, first, last.

    `input` names the column of the routed batch it reads (None for len). `result_type` is the type a query sees.
    `options` holds e.g. ``ddof``.
    """

    name: str
    function: str
    input: str | None
    input_type: pa.DataType | None
    result_type: pa.DataType
    options: Mapping[str, Any] = field(default_factory=dict)


#: The aggregate that counts the rows applied to a key, in tables whose `changes()` go to a sink: saved like any other, seen by nobody.
REVISIONS = "__revision"


@dataclass(frozen=True)
class TableSpec:
    """A keyed table, as state and queries know it.

    A routed batch for it has the columns: each plain key by its name, then ``<window>`` and ``<window>_end`` if it has a window
    (timestamps of the event-time column's type), then the distinct inputs of the aggregates, then `__offset`, and `__time` if
    `ordered` (some aggregate is first/last). The table's own columns are: plain keys, window start and end, aggregates but the hidden.
    """

    name: str
    keys: tuple[pa.Field, ...]
    window: WindowSpec | None
    aggregates: tuple[AggregateSpec, ...]
    time_type: pa.DataType | None = None

    @property
    def key_schema(self) -> pa.Schema:
        """Plain keys, then the window's start and end."""
        fields = list(self.keys)
        if self.window is not None:
            fields += [
                pa.field(self.window.name, self.time_type, nullable=False),
                pa.field(self.window.end_name, self.time_type, nullable=False),
            ]
        return pa.schema(fields)

    @property
    def schema(self) -> pa.Schema:
        """What a query sees."""
        return pa.schema([*self.key_schema, *(pa.field(each.name, each.result_type) for each in self.visible)])

    @property
    def visible(self) -> tuple[AggregateSpec, ...]:
        """The aggregates that a query sees."""
        return tuple(each for each in self.aggregates if not each.name.startswith("__"))

    @property
    def counts_revisions(self) -> bool:
        """Whether `TableView.revisions` and `changed` can be asked."""
        return any(each.name == REVISIONS for each in self.aggregates)

    @property
    def ordered(self) -> bool:
        return any(each.function in ("first", "last") for each in self.aggregates)

    @property
    def routing_keys(self) -> tuple[str, ...]:
        """The key columns whose hash picks the owner: the plain keys, so that all windows of a key are together; a table that
        is keyed by its window alone is spread by the window's start."""
        if self.keys:
            return tuple(each.name for each in self.keys)
        return (self.window.name,) if self.window else ()


@dataclass(frozen=True)
class AppendSpec:
    """A table of rows as they came (late rows of a view, dead letters, a stream on its way to a sink): `split` and `offset` columns, then
    `columns`.

    It keeps the newest `keep_rows` rows of each split (0: none) and the exact count of all. An `internal` one cannot be asked.
    """

    name: str
    schema: pa.Schema
    keep_rows: int = 10_000
    internal: bool = False


#: What a row of `changes()` has beside the view's columns: which incarnation of the state it is of, and how many rows had been applied to
#: its key. Compared as (epoch, revision), the greatest is what holds.
EPOCH, REVISION = "_epoch", "_revision"


@dataclass(frozen=True)
class SinkSpec:
    """An output of rows of `table`.

    `mode`: ``final`` (a keyed table's rows, once their windows have closed), ``append`` (rows of an append table, once each: a stateless
    stream, late rows, dead letters), ``changes`` (a keyed table's rows whenever they changed between two saves, with `EPOCH` and
    `REVISION`). `columns` are (column of the table, name that it goes out under); empty: all, as they are. `keys` are the names, as they
    go out, of the columns that identify a row of a keyed table; empty for ``append``.
    """

    kind: Literal["parquet", "csv", "json", "kafka", "http"]
    table: str
    url: str
    mode: Literal["final", "append", "changes"] = "final"
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)  # may hold secrets
    columns: tuple[tuple[str, str], ...] = ()
    keys: tuple[str, ...] = ()

    @property
    def identity(self) -> tuple[str, str, str]:
        """What makes it the same sink in the next run. With its place among the sinks of the job it is part of the plan's fingerprint:
        manifests know sinks by number, so a sink that took the number of another would lose rows or write them twice."""
        return (self.kind, self.table, self.mode)

    def schema(self, table: TableSpec | AppendSpec) -> pa.Schema:
        """The columns that go out, of rows of `table`."""
        fields = list(table.schema)
        if self.columns:
            fields = [table.schema.field(column).with_name(name) for column, name in self.columns]
        if self.mode == "changes":
            fields += [pa.field(name, pa.int64(), nullable=False) for name in (EPOCH, REVISION)]
        return pa.schema(fields)

    def outgoing(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """Rows of the table (with `EPOCH` and `REVISION`, if the mode is ``changes``) under the names that they go out under."""
        if not self.columns:
            return rows
        fields = [rows.schema.field(column).with_name(name) for column, name in self.columns]
        columns = [rows.column(column) for column, _ in self.columns]
        return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields))


@dataclass(frozen=True, eq=False)
class Route:
    """How the rows of a source become rows of a keyed table: `steps` one after the other, then `keys`, window and `inputs`.

    With `append`, how they become rows of an append table: every row that passes the steps, with its split and offset before its columns,
    to the owner of its split; no keys, no window, no inputs.

    `table` names the keyed table, `late_table` the table of its late rows (None if its windows never close), `source` is the
    number of the source in `JobPlan.sources`. `keys` and `inputs` are named expressions over the columns after the steps;
    `window` lies over the column `window_column` there. `schema` is that of the routed batch, `late_schema` that of late rows.
    """

    table: str
    late_table: str | None
    source: int
    steps: tuple[Step, ...]
    keys: tuple[tuple[str, Expr], ...]
    window: WindowSpec | None
    window_column: str | None
    inputs: tuple[tuple[str, Expr], ...]
    schema: pa.Schema
    late_schema: pa.Schema | None
    append: bool = False

    def prepare(self, batch: pa.RecordBatch, split: str) -> Prepared:
        """The rows of `batch` (the scan's columns, `__offset`, and `__watermark` and `__time` if the scan has an event time) for
        this table. A pure function of each row: how rows are cut into batches does not matter. Raises for no value in a row."""
        return prepare(self, batch, split)


@dataclass(frozen=True, eq=False)
class JobPlan:
    """A whole flow; two are the same if their fingerprints are. `tables` maps a name to its `TableSpec` or `AppendSpec`: the keyed
    views, ``<view>_late`` for each view whose windows close, ``_stream_<n>`` for each stream that goes to sinks, and `dead_letters`."""

    sources: tuple[ScanSpec, ...]
    routes: tuple[Route, ...]
    tables: Mapping[str, TableSpec | AppendSpec]
    sinks: tuple[SinkSpec, ...] = ()

    @property
    def views(self) -> dict[str, TableSpec | AppendSpec]:
        """The tables that can be asked."""
        return queryable(self.tables)

    @property
    def name(self) -> str:
        """What a job of this plan is called if nobody says: its first view, or else its first source."""
        return next((each.table for each in self.routes if not each.append), self.sources[0].name)

    def describe(self) -> dict[str, Any]:
        """What gives the state its meaning, as plain JSON data: the same in every process and run. User functions are known by
        their qualified names. Brokers, credentials, places of files and of output are not in it: they may change under a job."""
        return describe(self)

    @property
    def fingerprint(self) -> str:
        """Digest of `describe()`: snapshots of one plan are read by another only if they are equal."""
        return fingerprint(self.describe())

    def differences(self, description: Mapping[str, Any]) -> list[str]:
        """In which ways this plan differs from the one of `description`, as sentences ("..., was ..., is ..."); empty if none."""
        return differences(description, self.describe())


def queryable(tables: Mapping[str, TableSpec | AppendSpec]) -> dict[str, TableSpec | AppendSpec]:
    """Those that readers see."""
    return {name: each for name, each in tables.items() if not (isinstance(each, AppendSpec) and each.internal)}

"""The stages of a flow as the user builds them: a frozen tree from outputs back to scans, each node with its schema.

A node refuses what cannot work when it is built, with a hint. Two outputs that hang on the same node share it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa

from flowstate.errors import InvalidFlow, did_you_mean
from flowstate.plan.evaluate import Step
from flowstate.plan.expr import Aggregate, Expr, col, to_expr
from flowstate.plan.schema import check_columns, check_key, check_name, check_unique
from flowstate.plan.spec import DEAD_LETTER_SCHEMA, EPOCH, REVISION, ScanSpec
from flowstate.plan.window import Period, Window, WindowSpec, duration_text, period_text


class Node:
    """Base of nodes. `schema` is that of its rows; `input` is the node before it, None for a scan."""

    schema: pa.Schema

    @property
    def input(self) -> Node | None:
        return None

    def explain(self) -> str:
        """The flow up to here, a line for each node, the scan first."""
        before = [] if self.input is None else [self.input.explain()]
        return "\n".join([*before, str(self)])


@dataclass(frozen=True, eq=False)
class Scan(Node):
    """A source of rows."""

    spec: ScanSpec
    schema: pa.Schema = field(init=False)

    def __post_init__(self) -> None:
        schema, event_time = self.spec.schema, self.spec.event_time
        object.__setattr__(self, "schema", check_columns(schema, f"scan_{self.spec.kind}"))
        check_name(self.spec.name, "source")
        if event_time is None:
            return
        if event_time not in schema.names:
            raise InvalidFlow(f"event_time names no column: {event_time!r}{did_you_mean(event_time, schema.names)}")
        type_ = schema.field(event_time).type
        if not (pa.types.is_timestamp(type_) or pa.types.is_date32(type_)):
            raise InvalidFlow(
                "event_time needs a column of type timestamp or date32", column=event_time, type=str(type_)
            )

    def __str__(self) -> str:
        event_time = "" if self.spec.event_time is None else f", event_time={self.spec.event_time!r}"
        if self.spec.lateness:
            event_time += f", lateness={duration_text(self.spec.lateness)!r}"
        return f"scan_{self.spec.kind}({self.spec.name!r}{event_time}): {columns_text(self.schema)}"


@dataclass(frozen=True, eq=False)
class Transform(Node):
    """Select, with_columns, filter, explode or map_batches: a step over another node."""

    before: Node
    step: Step
    schema: pa.Schema = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "schema", self.step.schema_after(self.before.schema))

    @property
    def input(self) -> Node:
        return self.before

    def __str__(self) -> str:
        return f"{self.step}: {columns_text(self.schema)}"


@dataclass(frozen=True, eq=False)
class Grouped(Node):
    """One row for each key (and window), with an aggregate in each further column."""

    before: Node
    keys: tuple[tuple[str, Expr], ...]
    window: WindowSpec | None
    window_column: str | None
    aggregates: tuple[tuple[str, Aggregate], ...]
    schema: pa.Schema = field(init=False)

    def __post_init__(self) -> None:
        before = self.before.schema
        fields = [pa.field(name, expr.type_in(before)) for name, expr in self.keys]
        for each in fields:
            check_key(each.name, each.type)
        if self.window is not None:
            type_ = self.window.time_type
            fields += [pa.field(name, type_, nullable=False) for name in (self.window.name, self.window.end_name)]
        fields += [pa.field(name, aggregate.type_in(before)) for name, aggregate in self.aggregates]
        check_unique([each.name for each in fields], "column")
        object.__setattr__(self, "schema", pa.schema(fields))

    @property
    def input(self) -> Node:
        return self.before

    def __str__(self) -> str:
        keys = [f"{name}={expr}" for name, expr in self.keys]
        if self.window is not None:
            keys.append(f"{self.window.name}={window_text(self.window, self.window_column)}")
        aggregates = ", ".join(f"{name}={aggregate}" for name, aggregate in self.aggregates)
        return f"group_by({', '.join(keys)}).agg({aggregates}): {columns_text(self.schema)}"


@dataclass(frozen=True, eq=False)
class View(Node):
    """A keyed table with a name, that can be asked."""

    before: Grouped
    name: str
    schema: pa.Schema = field(init=False)

    def __post_init__(self) -> None:
        check_name(self.name, "view")
        if not self.name.isidentifier():
            raise InvalidFlow("a view has a name of letters, digits and _, so that SQL can say it", view=self.name)
        object.__setattr__(self, "schema", self.before.schema)

    @property
    def input(self) -> Node:
        return self.before

    def __str__(self) -> str:
        return f"view({self.name!r})"


@dataclass(frozen=True, eq=False)
class Final(Node):
    """The rows of a view whose windows have closed: each once, and never changed again."""

    before: View
    schema: pa.Schema = field(init=False)

    def __post_init__(self) -> None:
        if not _closes(self.before):
            raise InvalidFlow(
                "only windows that close have final rows: group by a window with grace, like month=window('at', every='1mo', "
                "grace='3d')",
                view=self.before.name,
            )
        object.__setattr__(self, "schema", self.before.schema)

    @property
    def input(self) -> Node:
        return self.before

    def __str__(self) -> str:
        return "final()"


@dataclass(frozen=True, eq=False)
class Changes(Node):
    """Revisions of the rows of a view: its columns, then `EPOCH` and `REVISION`."""

    before: View
    schema: pa.Schema = field(init=False)

    def __post_init__(self) -> None:
        for name in (EPOCH, REVISION):
            if name in self.before.schema.names:
                raise InvalidFlow(
                    f"changes() adds the columns {EPOCH} and {REVISION}; give the view's column another name",
                    view=self.before.name, column=name,
                )  # fmt: skip
        added = [pa.field(name, pa.int64(), nullable=False) for name in (EPOCH, REVISION)]
        object.__setattr__(self, "schema", pa.schema([*self.before.schema, *added]))

    @property
    def input(self) -> Node:
        return self.before

    def __str__(self) -> str:
        return "changes()"


@dataclass(frozen=True, eq=False)
class Late(Node):
    """The rows that came after their window had closed: `split` and `offset`, then the columns of the stream that was grouped."""

    before: View
    schema: pa.Schema = field(init=False)

    def __post_init__(self) -> None:
        if not _closes(self.before):
            raise InvalidFlow(
                "only windows that close have late rows: group by a window with grace, like month=window('at', every='1mo', "
                "grace='3d')",
                view=self.before.name,
            )
        object.__setattr__(self, "schema", placed_schema(self.before.before.before.schema))

    @property
    def input(self) -> Node:
        return self.before

    def __str__(self) -> str:
        return "late()"


@dataclass(frozen=True, eq=False)
class DeadLetters(Node):
    """What could not be read or computed, of all sources of the job."""

    schema: pa.Schema = DEAD_LETTER_SCHEMA

    def __str__(self) -> str:
        return "dead_letters()"


@dataclass(frozen=True, eq=False)
class Sink(Node):
    """An output of rows to a place outside."""

    before: Node
    kind: Literal["parquet", "csv", "json", "kafka", "http"]
    url: str
    options: Mapping[str, Any]
    schema: pa.Schema = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "schema", self.before.schema)

    @property
    def input(self) -> Node:
        return self.before

    def __str__(self) -> str:
        return f"sink_{self.kind}({shown_url(self.url)!r})"


def shown_url(url: str) -> str:
    """Without its query, which may hold a secret."""
    place, query, _ = url.partition("?")
    return place + "?..." if query else place


def _closes(view: View) -> bool:
    window = view.before.window
    return window is not None and (window.grace is not None or window.keep is not None)


def placed_schema(schema: pa.Schema) -> pa.Schema:
    """Of rows of a stream with their place: `split` and `offset`, then the stream's columns; one of theirs that is called so gets another
    name."""
    fields = [pa.field("split", pa.string(), nullable=False), pa.field("offset", pa.int64(), nullable=False)]
    names = {"split", "offset", *schema.names}
    for each in schema:
        name = each.name
        if name in ("split", "offset"):
            while name in names:
                name += "_value"
            names.add(name)
        fields.append(each.with_name(name))
    return pa.schema(fields)


def columns_text(schema: pa.Schema) -> str:
    return ", ".join(f"{each.name} {each.type}" for each in schema)


def named_expressions(positional: Sequence[Any], named: Mapping[str, Any], what: str) -> tuple[tuple[str, Expr], ...]:
    """Columns as the user names them: texts are columns, keywords give names, the rest has its own."""
    found: list[tuple[str, Expr]] = []
    for each in positional:
        for one in each if isinstance(each, (list, tuple)) else [each]:
            expr = col(one) if isinstance(one, str) else _refuse_window(one, what)
            found.append((check_name(expr.name, "column"), expr))
    for name, each in named.items():
        found.append((check_name(name, "column"), col(each) if isinstance(each, str) else _refuse_window(each, what)))
    check_unique([name for name, _ in found], "column")
    return tuple(found)


def _refuse_window(value: Any, what: str) -> Expr:
    if isinstance(value, Window):
        if what == "group_by":
            raise InvalidFlow("a window needs a name: group_by(month=window('at', every='1mo'))")
        raise InvalidFlow("a window is a key of group_by; to round times down use col('at').dt.truncate('1h')")
    if isinstance(value, Aggregate):
        raise InvalidFlow(f"{what} takes no aggregate; write group_by(...).agg(...)", aggregate=str(value))
    return to_expr(value)


def window_text(window: WindowSpec, column: str | None) -> str:
    """As a flow writes it."""
    options = [f"every={period_text(window.every)!r}"]
    if window.offset != Period():
        options.append(f"offset={period_text(window.offset)!r}")
    options += [
        f"{name}={duration_text(value)!r}"
        for name, value in (("grace", window.grace), ("keep", window.keep))
        if value is not None
    ]
    return f"window({column!r}, {', '.join(options)})"


def scan_of(node: Node) -> Scan:
    while not isinstance(node, Scan):
        assert node.input is not None
        node = node.input
    return node


def grouped(before: Node, positional: Sequence[Any], named: Mapping[str, Any], aggregates: Mapping[str, Any],
            more: Sequence[Any] = ()) -> Grouped:  # fmt: skip
    """The node of ``group_by(*positional, **named).agg(*more, **aggregates)``."""
    windows = {name: each for name, each in named.items() if isinstance(each, Window)}
    keys = named_expressions(
        positional, {name: each for name, each in named.items() if name not in windows}, "group_by"
    )
    if len(windows) > 1:
        raise InvalidFlow("a view has at most one window; make a view for each", windows=sorted(windows))
    if not keys and not windows:
        raise InvalidFlow("group_by needs a key; for one total of everything write group_by(all=lit(0))")
    outputs: list[tuple[str, Aggregate]] = []
    for name, each in [*((None, each) for each in more), *aggregates.items()]:
        if not isinstance(each, Aggregate):
            raise InvalidFlow("agg takes aggregates such as col('amount').sum() or len()", column=name, got=str(each))
        outputs.append((check_name(each.name if name is None else name, "column"), each))
    if not outputs:
        raise InvalidFlow("agg needs an aggregate, such as n=len()")
    for name, window in windows.items():
        check_name(name, "column")
        if window.column not in before.schema.names:
            raise InvalidFlow(f"there is no column {window.column!r}{did_you_mean(window.column, before.schema.names)}")
        scan = scan_of(before)
        if (window.grace is not None or window.keep is not None) and scan.spec.event_time is None:
            raise InvalidFlow(
                "grace and keep need a clock in the data: name the time column of the source with event_time=...",
                window=name, source=scan.spec.name,
            )  # fmt: skip
        spec = window.named(name, before.schema.field(window.column).type)
        return Grouped(before, keys, spec, window.column, tuple(outputs))
    return Grouped(before, keys, None, None, tuple(outputs))

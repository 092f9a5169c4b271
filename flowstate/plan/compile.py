"""From the outputs of a flow to its plan: sources read once, a route for each view and each stream that goes out, tables, sinks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import pyarrow as pa

from flowstate.errors import InvalidFlow
from flowstate.plan.evaluate import Step
from flowstate.plan.expr import Aggregate, Call, Expr
from flowstate.plan.nodes import (
    Changes,
    DeadLetters,
    Final,
    Grouped,
    Late,
    Node,
    Scan,
    Sink,
    Transform,
    View,
    placed_schema,
)
from flowstate.plan.places import check_places
from flowstate.plan.position import OFFSET, TIME
from flowstate.plan.spec import (
    DEAD_LETTER_SCHEMA,
    DEAD_LETTERS,
    REVISIONS,
    AggregateSpec,
    AppendSpec,
    JobPlan,
    Route,
    ScanSpec,
    SinkSpec,
    TableSpec,
)  # fmt: skip

Stream = Scan | Transform


def compile(outputs: Sequence[Node]) -> JobPlan:
    """The plan of a job with these outputs: views and sinks. The view of a sink is part of the job without being named."""
    views: list[View] = []
    streams: list[Stream] = []
    for output in outputs:
        before = output.before if isinstance(output, Sink) else output
        if isinstance(before, Scan | Transform):
            if not isinstance(output, Sink):
                raise InvalidFlow(
                    "rows are no output by themselves; end them with a sink, such as .sink_parquet(url), or with "
                    ".group_by(...).agg(...).view('name')",
                    output=str(output),
                )
            if all(before is not each for each in streams):
                streams.append(before)
        elif not isinstance(before, DeadLetters):
            view = _view(output)
            if all(view is not each for each in views):
                views.append(view)
        elif not isinstance(output, Sink):
            raise InvalidFlow("dead_letters() is no output by itself; end it with a sink, such as .sink_json(url)")
    if not views and not streams:
        message = "a job needs an output: a view, or a sink of rows"
        hint = "; dead_letters() are those of the job's other outputs" if outputs else ""
        raise InvalidFlow(message + hint)
    revisions = {
        each.before.before.name for each in outputs if isinstance(each, Sink) and isinstance(each.before, Changes)
    }
    scans: list[Scan] = []
    routes: list[Route] = []
    tables: dict[str, TableSpec | AppendSpec] = {}

    def add(route: Route, *made: TableSpec | AppendSpec) -> None:
        for each in made:
            if each.name in tables or each.name == DEAD_LETTERS:
                raise InvalidFlow(
                    "two tables of the job have the same name; name the views differently", table=each.name
                )
            tables[each.name] = each
        routes.append(route)

    for view in views:
        source, steps = _steps(view.before.before, scans)
        table, route = _route(view, source, steps, view.name in revisions)
        late = [] if route.late_table is None else [AppendSpec(route.late_table, route.late_schema)]
        add(route, table, *late)
    for number, stream in enumerate(streams):
        source, steps = _steps(stream, scans)
        add(*_stream(stream, _stream_table(number), source, steps))
    _refuse_twice(
        [scan.spec.name for scan in scans],
        "two sources have the same name; build both views on one scan, or give each scan its own name=...", "source",
    )  # fmt: skip
    tables[DEAD_LETTERS] = AppendSpec(DEAD_LETTERS, DEAD_LETTER_SCHEMA)
    sinks = [_sink(output, streams, tables) for output in outputs if isinstance(output, Sink)]
    check_places(sinks, [scan.spec for scan in scans])
    return JobPlan(tuple(_spec(scan) for scan in scans), tuple(routes), tables, tuple(sinks))


def _sink(output: Sink, streams: Sequence[Stream], tables: Mapping[str, TableSpec | AppendSpec]) -> SinkSpec:
    before, options = output.before, dict(output.options)
    if isinstance(before, Final | Changes):
        table = tables[before.before.name]
        assert isinstance(table, TableSpec)
        mode: Literal["final", "changes"] = "final" if isinstance(before, Final) else "changes"
        return SinkSpec(output.kind, table.name, output.url, mode, options, (), tuple(table.key_schema.names))
    if isinstance(before, Late):
        return SinkSpec(output.kind, _late_table(before.before), output.url, "append", options)
    if isinstance(before, DeadLetters):
        return SinkSpec(output.kind, DEAD_LETTERS, output.url, "append", options)
    name = _stream_table(next(number for number, each in enumerate(streams) if each is before))
    columns = tuple(zip(tables[name].schema.names[2:], before.schema.names, strict=True))  # not the row's place
    return SinkSpec(output.kind, name, output.url, "append", options, columns)


def _stream_table(number: int) -> str:
    return f"_stream_{number + 1}"


def _late_table(view: View) -> str:
    return f"{view.name}_late"


def _stream(stream: Stream, name: str, source: int, steps: tuple[Step, ...]) -> tuple[Route, AppendSpec]:
    schema = placed_schema(stream.schema)
    route = Route(
        table=name,
        late_table=None,
        source=source,
        steps=steps,
        keys=(),
        window=None,
        window_column=None,
        inputs=(),
        schema=schema,
        late_schema=None,
        append=True,
    )
    return route, AppendSpec(name, schema, keep_rows=0, internal=True)


def _spec(scan: Scan) -> ScanSpec:
    return scan.spec


def _refuse_twice(names: Sequence[str], message: str, fact: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise InvalidFlow(message, **{fact: name})


def _view(output: Node) -> View:
    """The view that an output of keyed rows hangs on."""
    if isinstance(output, View):
        return output
    if isinstance(output, Sink):
        if isinstance(output.before, Final | Changes | Late):
            return output.before.before
        raise InvalidFlow(
            "a sink takes rows, or the final(), changes() or late() rows of a view",
            sink=str(output),
            input=str(output.before),
        )
    if isinstance(output, Final | Changes | Late):
        raise InvalidFlow(
            f"{output} is no output by itself; end it with a sink, such as .sink_parquet(url)", view=output.before.name
        )
    if isinstance(output, Grouped):
        raise InvalidFlow("an output needs a name; end it with .view('name')", output=str(output))
    raise InvalidFlow("this is no part of a flow", got=repr(output))


def _steps(node: Node, scans: list[Scan]) -> tuple[int, tuple[Step, ...]]:
    """The number of the scan that `node` hangs on, which is added to `scans` if it is new, and the steps from there."""
    steps: list[Step] = []
    while isinstance(node, Transform):
        steps.append(node.step)
        node = node.before
    if not isinstance(node, Scan):
        raise InvalidFlow("a view cannot feed another view in this version", input=str(node))
    if all(node is not each for each in scans):
        scans.append(node)
    return next(at for at, each in enumerate(scans) if each is node), tuple(reversed(steps))


def _route(view: View, source: int, steps: tuple[Step, ...], revisions: bool) -> tuple[TableSpec, Route]:
    group, before = view.before, view.before.before.schema
    keys = tuple(pa.field(name, expr.type_in(before)) for name, expr in group.keys)
    taken = {each.name for each in keys} | ({group.window.name, group.window.end_name} if group.window else set())
    inputs: dict[str, tuple[str, Expr]] = {}  # text of an expression -> its column in routed batches
    aggregates = []
    for name, aggregate in group.aggregates:
        column, type_ = None, None
        expr = _input(aggregate, before)
        if expr is not None:
            if str(expr) not in inputs:
                column = _free(str(expr), taken)
                taken.add(column)
                inputs[str(expr)] = (column, expr)
            column, type_ = inputs[str(expr)][0], expr.type_in(before)
        result = aggregate.type_in(before)
        aggregates.append(AggregateSpec(name, aggregate.function, column, type_, result, dict(aggregate.options)))
    if revisions:
        aggregates.append(AggregateSpec(REVISIONS, "len", None, None, pa.int64()))
    table = TableSpec(
        view.name, keys, group.window, tuple(aggregates), group.window.time_type if group.window else None
    )
    late_schema = None
    if group.window is not None and (group.window.grace is not None or group.window.keep is not None):
        late_schema = placed_schema(before)
    route = Route(
        table=view.name,
        late_table=None if late_schema is None else _late_table(view),
        source=source,
        steps=steps,
        keys=group.keys,
        window=group.window,
        window_column=group.window_column,
        inputs=tuple(inputs.values()),
        schema=_routed_schema(table, {column: expr.type_in(before) for column, expr in inputs.values()}),
        late_schema=late_schema,
    )
    return table, route


def _input(aggregate: Aggregate, before: pa.Schema) -> Expr | None:
    expr = aggregate.input
    if aggregate.function == "sum" and expr is not None and pa.types.is_boolean(expr.type_in(before)):
        return Call("cast", (expr,), (("type", pa.int64()),))
    return expr


def _free(name: str, taken: set[str]) -> str:
    while name in taken or name.startswith("__"):
        name = f"of {name}"
    return name


def _routed_schema(table: TableSpec, inputs: dict[str, pa.DataType]) -> pa.Schema:
    fields = [
        *table.key_schema,
        *(pa.field(name, type_) for name, type_ in inputs.items()),
        pa.field(OFFSET, pa.int64()),
    ]
    return pa.schema([*fields, pa.field(TIME, pa.int64())] if table.ordered else fields)

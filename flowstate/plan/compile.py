"""From the outputs of a flow to its plan: sources read once, a route for each view, tables, sinks."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from flowstate.errors import InvalidFlow
from flowstate.plan.evaluate import Step
from flowstate.plan.expr import Aggregate, Call, Expr
from flowstate.plan.nodes import Changes, Final, Grouped, Node, Scan, Sink, Transform, View
from flowstate.plan.position import OFFSET, TIME
from flowstate.plan.spec import (
    DEAD_LETTER_SCHEMA,
    DEAD_LETTERS,
    AggregateSpec,
    AppendSpec,
    JobPlan,
    Route,
    ScanSpec,
    SinkSpec,
    TableSpec,
)  # fmt: skip


def compile(outputs: Sequence[Node]) -> JobPlan:
    """The plan of a job with these outputs: views and sinks. The view of a sink is part of the job without being named."""
    views: list[View] = []
    sinks: list[SinkSpec] = []
    for output in outputs:
        view = _view(output)
        if all(view is not each for each in views):
            views.append(view)
        if isinstance(output, Sink):
            sinks.append(SinkSpec("parquet", view.name, output.url, "final", dict(output.options)))
    if not views:
        raise InvalidFlow("a job needs an output: a view, or a sink of its final() rows")
    _refuse_twice([f"{sink.url}" for sink in sinks], "two sinks write to the same place; give each its own", "url")
    scans: list[Scan] = []
    routes: list[Route] = []
    tables: dict[str, TableSpec | AppendSpec] = {}
    for view in views:
        scan, steps = _steps(view.before.before)
        if all(scan is not each for each in scans):
            scans.append(scan)
        table, route = _route(view, next(at for at, each in enumerate(scans) if each is scan), steps)
        made: list[TableSpec | AppendSpec] = [table]
        if route.late_table is not None:
            made.append(AppendSpec(route.late_table, route.late_schema))
        for each in made:
            if each.name in tables or each.name == DEAD_LETTERS:
                raise InvalidFlow(
                    "two tables of the job have the same name; name the views differently", table=each.name
                )
            tables[each.name] = each
        routes.append(route)
    _refuse_twice(
        [scan.spec.name for scan in scans],
        "two sources have the same name; build both views on one scan, or give each scan its own name=...", "source",
    )  # fmt: skip
    tables[DEAD_LETTERS] = AppendSpec(DEAD_LETTERS, DEAD_LETTER_SCHEMA)
    return JobPlan(tuple(_spec(scan) for scan in scans), tuple(routes), tables, tuple(sinks))


def _spec(scan: Scan) -> ScanSpec:
    return scan.spec


def _refuse_twice(names: Sequence[str], message: str, fact: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise InvalidFlow(message, **{fact: name})


def _view(output: Node) -> View:
    if isinstance(output, View):
        return output
    if isinstance(output, Sink):
        if isinstance(output.before, Final):
            return output.before.before
        raise InvalidFlow(
            "a sink takes the final() rows of a view in this version", sink=str(output), input=str(output.before)
        )
    if isinstance(output, Final):
        raise InvalidFlow("final() is no output by itself; end it with .sink_parquet(...)", view=output.before.name)
    if isinstance(output, Changes):
        raise InvalidFlow("changes() has no sink in this version; start the view itself", view=output.before.name)
    if isinstance(output, Grouped):
        raise InvalidFlow("an output needs a name; end it with .view('name')", output=str(output))
    if isinstance(output, (Scan, Transform)):
        raise InvalidFlow(
            "an output of a job is a view, or a sink of its final() rows; write .group_by(...).agg(...).view('name')",
            output=str(output),
        )
    raise InvalidFlow("this is no part of a flow", got=repr(output))


def _steps(node: Node) -> tuple[Scan, tuple[Step, ...]]:
    steps: list[Step] = []
    while isinstance(node, Transform):
        steps.append(node.step)
        node = node.before
    if not isinstance(node, Scan):
        raise InvalidFlow("a view cannot feed another view in this version", input=str(node))
    return node, tuple(reversed(steps))


def _route(view: View, source: int, steps: tuple[Step, ...]) -> tuple[TableSpec, Route]:
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
    table = TableSpec(
        view.name, keys, group.window, tuple(aggregates), group.window.time_type if group.window else None
    )
    late_schema = None
    if group.window is not None and (group.window.grace is not None or group.window.keep is not None):
        late_schema = _late_schema(before)
    route = Route(
        table=view.name,
        late_table=None if late_schema is None else f"{view.name}_late",
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


def _late_schema(before: pa.Schema) -> pa.Schema:
    """`split` and `offset`, then the stream's columns; a column of theirs that is called so gets another name."""
    fields = [pa.field("split", pa.string(), nullable=False), pa.field("offset", pa.int64(), nullable=False)]
    names = {"split", "offset", *before.names}
    for each in before:
        name = each.name
        if name in ("split", "offset"):
            while name in names:
                name += "_value"
            names.add(name)
        fields.append(each.with_name(name))
    return pa.schema(fields)

"""The stateless part of a flow, run over record batches: steps, keys, window, inputs, lateness.

Vectors first: a batch is computed as a whole. Only where that fails is it halved, for the step or expression that failed, again and
again, until the rows whose values make it fail stand alone; they are reported with a reason and everything else goes on. So a flow
without failures pays nothing, and the result is that of doing every row by itself, however rows are cut into batches.

Hidden columns (`plan.position.HIDDEN`) travel along through every step. A record that `explode` turns into several rows succeeds
or fails as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flowstate.errors import InternalError, InvalidFlow, did_you_mean
from flowstate.plan.expr import Expr
from flowstate.plan.expr_functions import ValuesFailed
from flowstate.plan.position import HIDDEN, OFFSET, TIME, WATERMARK
from flowstate.plan.schema import check_columns, check_unique
from flowstate.plan.window import microseconds

if TYPE_CHECKING:
    from flowstate.plan.spec import Route

#: Schema of `Prepared.failed`.
FAILED_SCHEMA = pa.schema(
    [pa.field("offset", pa.int64(), nullable=False), pa.field("reason", pa.string(), nullable=False)]
)

_LONGEST_REASON = 500


class RowFailed(Exception):
    """Some row's values have no result: at the places `rows`, each with a reason; if it is empty, trying fewer rows tells which."""

    def __init__(self, message: str, rows: Mapping[int, str] | None = None) -> None:
        super().__init__(message)
        self.rows = rows or {}


@dataclass(frozen=True)
class Prepared:
    """A batch made ready for a table. `rows` has the route's schema; `late` the late table's (None if windows never close);
    `failed` has `offset` and `reason` of the records whose expressions failed, each once."""

    rows: pa.RecordBatch
    late: pa.RecordBatch | None
    failed: pa.RecordBatch


class Step(Protocol):
    """One stateless step. `str` of it is part of the plan's fingerprint."""

    def schema_after(self, schema: pa.Schema) -> pa.Schema:
        """Visible columns after the step over visible columns before it. `InvalidFlow` if the step does not fit them."""

    def run(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The step over visible and hidden columns. Raises if the values of some row make it fail."""


def computed(name: str, expr: Expr, batch: pa.RecordBatch) -> pa.Array:
    """`expr` over `batch`, with an error that names it."""
    try:
        return expr.evaluate(batch)
    except (pa.ArrowException, ValueError, OverflowError) as error:
        if isinstance(error, MemoryError):
            raise
        text = str(expr)
        where = f"in {text if text == name else f'{name} = {text}'}"
        rows = error.rows if isinstance(error, ValuesFailed) else {}
        raise RowFailed(f"{error} {where}", {at: _short(f"{reason} {where}") for at, reason in rows.items()}) from error


def _hidden(batch: pa.RecordBatch) -> list[str]:
    return [name for name in HIDDEN if batch.schema.get_field_index(name) >= 0]


def _visible(batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch.select([name for name in batch.schema.names if name not in HIDDEN])


def _with_hidden(columns: Sequence[pa.Array], schema: pa.Schema, batch: pa.RecordBatch) -> pa.RecordBatch:
    hidden = _hidden(batch)
    fields = [*schema, *(batch.schema.field(name) for name in hidden)]
    return pa.RecordBatch.from_arrays([*columns, *(batch.column(name) for name in hidden)], schema=pa.schema(fields))


@dataclass(frozen=True, eq=False)
class Select:
    """Only these columns; with `keep`, these added to (or in place of) those that there are."""

    columns: tuple[tuple[str, Expr], ...]
    keep: bool = False

    def _all(self, names: Sequence[str]) -> list[tuple[str, Expr | None]]:
        new = dict(self.columns)
        if not self.keep:
            return list(self.columns)
        return [(name, new.get(name)) for name in names] + [each for each in self.columns if each[0] not in names]

    def schema_after(self, schema: pa.Schema) -> pa.Schema:
        check_unique([name for name, _ in self.columns], "column")
        return pa.schema(
            [
                schema.field(name) if expr is None else pa.field(name, expr.type_in(schema))
                for name, expr in self._all(schema.names)
            ]
        )

    def run(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        arrays, fields = [], []
        for name, expr in self._all([name for name in batch.schema.names if name not in HIDDEN]):
            array = batch.column(name) if expr is None else computed(name, expr, batch)
            arrays.append(array)
            fields.append(batch.schema.field(name) if expr is None else pa.field(name, array.type))
        return _with_hidden(arrays, pa.schema(fields), batch)

    def __str__(self) -> str:
        return (
            f"{'with_columns' if self.keep else 'select'}({', '.join(f'{name}={expr}' for name, expr in self.columns)})"
        )


@dataclass(frozen=True, eq=False)
class Filter:
    """Only the rows for which `predicate` is true."""

    predicate: Expr

    def schema_after(self, schema: pa.Schema) -> pa.Schema:
        type_ = self.predicate.type_in(schema)
        if not pa.types.is_boolean(type_):
            raise InvalidFlow(
                "filter needs a condition that is true or false", expression=str(self.predicate), type=str(type_)
            )
        return schema

    def run(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        return batch.filter(computed("filter", self.predicate, batch))

    def __str__(self) -> str:
        return f"filter({self.predicate})"


@dataclass(frozen=True)
class Explode:
    """A row for each element of the lists in `columns` (of one length in each row); an empty list or null gives one row of null."""

    columns: tuple[str, ...]

    def schema_after(self, schema: pa.Schema) -> pa.Schema:
        for name in self.columns:
            if name not in schema.names:
                raise InvalidFlow(f"there is no column {name!r}{did_you_mean(name, schema.names)}")
            type_ = schema.field(name).type
            if not (pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_)):
                raise InvalidFlow("explode needs a column of lists", column=name, type=str(type_))
        return pa.schema(
            [pa.field(each.name, each.type.value_type) if each.name in self.columns else each for each in schema]
        )

    def run(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        lengths = [np.asarray(pc.fill_null(pc.list_value_length(batch.column(name)), 0)) for name in self.columns]
        if any((each != lengths[0]).any() for each in lengths[1:]):
            raise RowFailed(f"lists of different lengths in {self}")
        length = lengths[0].astype(np.int64)
        parents = pa.array(np.repeat(np.arange(batch.num_rows, dtype=np.int64), np.maximum(length, 1)))
        # The place of each row's element among all elements; a row that stands for an empty list has none.
        present = np.repeat(length > 0, np.maximum(length, 1))
        element = pa.array(np.cumsum(present) - 1, pa.int64(), mask=~present)
        arrays, fields = [], []
        for field, column in zip(batch.schema, batch.columns, strict=True):
            if field.name in self.columns:
                arrays.append(pc.list_flatten(column).take(element))
                fields.append(pa.field(field.name, field.type.value_type))
            else:
                arrays.append(column.take(parents))
                fields.append(field)
        return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))

    def __str__(self) -> str:
        return f"explode({', '.join(self.columns)})"


@dataclass(frozen=True)
class MapBatches:
    """The user's own function from RecordBatch to RecordBatch of `schema`, over visible columns.

    What it gives for a row may not depend on which rows stand beside it. If it returns as many rows as it got, they are taken to be
    those rows, in order. If not, it is asked about fewer rows, down to one, so that every row it returns belongs to the row it came
    from; with `per_row` it is always asked about one row (for a function that both drops and multiplies rows).
    """

    function: Callable[[pa.RecordBatch], pa.RecordBatch]
    schema: pa.Schema
    per_row: bool = False

    def schema_after(self, schema: pa.Schema) -> pa.Schema:
        return check_columns(self.schema, "map_batches")

    def run(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        schema = self.schema.remove_metadata()
        if batch.num_rows == 0:
            return _with_hidden([pa.array([], each.type) for each in schema], schema, batch)
        if not self.per_row or batch.num_rows == 1:
            result = self._checked(self.function(_visible(batch)), schema)
            if result.num_rows == 0:
                return self.run(batch.slice(0, 0))
            if result.num_rows == batch.num_rows:
                return _with_hidden(result.columns, schema, batch)
            if batch.num_rows == 1:
                return _with_hidden(result.columns, schema, batch.take(pa.array(np.zeros(result.num_rows, np.int64))))
        half = 1 if self.per_row else batch.num_rows // 2
        pieces = [self.run(batch.slice(at, half)) for at in range(0, batch.num_rows, half)]
        return pa.concat_batches(pieces)

    def _checked(self, result: Any, schema: pa.Schema) -> pa.RecordBatch:
        if isinstance(result, pa.Table):
            result = pa.concat_batches(result.to_batches()) if result.num_rows else schema.empty_table().to_batches()
        if isinstance(result, list) and not result:
            return pa.RecordBatch.from_arrays([pa.array([], each.type) for each in schema], schema=schema)
        if not isinstance(result, pa.RecordBatch):
            raise RowFailed(f"{self} returned {type(result).__name__}, not a RecordBatch")
        if sorted(result.schema.names) != sorted(schema.names):
            raise RowFailed(f"{self} returned columns {result.schema.names}, declared are {schema.names}")
        columns = [result.column(each.name) for each in schema]
        for each, column in zip(schema, columns, strict=True):
            if column.type != each.type:
                raise RowFailed(f"{self} returned {each.name!r} as {column.type}, declared is {each.type}")
            if column.null_count and not each.nullable:
                raise RowFailed(f"{self} returned null in {each.name!r}, declared is not null")
        return pa.RecordBatch.from_arrays(columns, schema=schema)

    def __str__(self) -> str:
        function = self.function
        name = getattr(function, "__qualname__", type(function).__qualname__)
        fields = ", ".join(f"{each.name}: {each.type}" for each in self.schema)
        return (
            f"map_batches({getattr(function, '__module__', '')}.{name}, {fields}{', per_row' if self.per_row else ''})"
        )


def prepare(route: Route, batch: pa.RecordBatch, split: str) -> Prepared:
    """See `Route.prepare`."""
    failed: dict[int, str] = {}
    data = batch
    for step in route.steps:
        data = _stepped(step, data, failed)
    if route.append:
        return Prepared(_placed(data, split, route.schema), None, _lost(failed))
    while True:
        known = len(failed)
        columns = _columns(route, data, failed)
        if columns is not None:
            return _divided(route, data, columns, split, failed)
        if len(failed) == known:
            raise InternalError("an expression fails over rows none of which fails", view=route.table)
        data = _without(data, failed)


def _stepped(step: Step, data: pa.RecordBatch, failed: dict[int, str]) -> pa.RecordBatch:
    known = len(failed)
    pieces = _pieces(step.run, data, failed)
    result = pieces[0] if len(pieces) == 1 else pa.concat_batches([step.run(data.slice(0, 0)), *pieces])
    return result if len(failed) == known else _without(result, failed)


def _pieces(run: Callable[[pa.RecordBatch], Any], data: pa.RecordBatch, failed: dict[int, str]) -> list[Any]:
    """What `run` gives for `data` without the rows that make it fail, which are added to `failed`: offset and reason."""
    try:
        return [run(data)]
    except MemoryError:
        raise
    except Exception as error:
        if data.num_rows == 0:
            raise InternalError("a flow fails without rows") from error
        if data.num_rows == 1:
            failed.setdefault(data.column(OFFSET)[0].as_py(), _reason(error))
            return []
        if isinstance(error, RowFailed) and error.rows:
            offsets = data.column(OFFSET).to_numpy()
            for at, reason in error.rows.items():
                failed.setdefault(int(offsets[at]), reason)
            return _pieces(run, _without(data, failed), failed)
    half = data.num_rows // 2
    return _pieces(run, data.slice(0, half), failed) + _pieces(run, data.slice(half), failed)


def _reason(error: Exception) -> str:
    expected = isinstance(error, (RowFailed, pa.ArrowException))
    return _short(str(error) if expected else f"{type(error).__name__}: {error}")


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_REASON else text[:_LONGEST_REASON] + "..."


def _without(data: pa.RecordBatch, failed: Mapping[int, str]) -> pa.RecordBatch:
    """All rows of a record go with the one that failed."""
    offsets = data.column(OFFSET).to_numpy()
    return data.filter(pa.array(~np.isin(offsets, np.fromiter(failed, np.int64, len(failed)))))


@lru_cache(256)
def _empty(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array([], each.type) for each in schema], schema=schema)


def _computed(named: Iterable[tuple[str, Expr]], data: pa.RecordBatch, failed: dict[int, str]) -> list[pa.Array] | None:
    arrays = []
    for name, expr in named:
        try:
            arrays.append(computed(name, expr, data))
        except RowFailed:
            _pieces(lambda rows, name=name, expr=expr: computed(name, expr, rows), data, failed)  # type: ignore[misc]
            return None
    return arrays


def _columns(route: Route, data: pa.RecordBatch, failed: dict[int, str]) -> list[pa.Array] | None:
    """The columns of the routed batch, or None if rows have failed: then they are to be computed again without those."""
    arrays = _computed(route.keys, data, failed)
    if arrays is None:
        return None
    if route.window is not None:
        times = data.column(route.window_column)
        if times.null_count:
            reason = f"null event time: {route.window_column!r} is null, so the row has no window"
            for offset in data.column(OFFSET).filter(pc.is_null(times)).to_pylist():
                failed.setdefault(offset, reason)
            return None
        try:
            arrays += route.window.assign(times)
        except pa.ArrowException:
            _pieces(lambda rows: _windowed(route, rows), data, failed)
            return None
    inputs = _computed(route.inputs, data, failed)
    if inputs is None:
        return None
    arrays += [*inputs, data.column(OFFSET)]
    if route.schema.get_field_index(TIME) >= 0:
        has_time = data.schema.get_field_index(TIME) >= 0
        # Without event time, rows are ordered by split and offset alone.
        arrays.append(data.column(TIME) if has_time else pa.array(np.zeros(data.num_rows, np.int64)))
    return arrays


def _windowed(route: Route, rows: pa.RecordBatch) -> None:
    assert route.window is not None
    try:
        route.window.assign(rows.column(route.window_column))
    except pa.ArrowException as error:
        raise RowFailed(f"{error} in {route.window.name} = window({route.window_column!r})") from error


def _divided(
    route: Route, data: pa.RecordBatch, columns: list[pa.Array], split: str, failed: Mapping[int, str]
) -> Prepared:
    """Rows in time, and late ones."""
    lost = _lost(failed)
    rows = pa.RecordBatch.from_arrays(columns, schema=route.schema)
    if route.window is None or route.late_schema is None:
        return Prepared(rows, None, lost)
    ends = microseconds(rows.column(route.window.end_name))
    marks = data.column(WATERMARK).to_numpy()
    # Watermarks ascend, so that one comparison tells that there is no late row among them.
    if not len(ends) or route.window.closes(int(ends.min())) > marks[-1]:
        return Prepared(rows, _empty(route.late_schema), lost)
    late = route.window.closes_array(ends) <= marks
    if not late.any():
        return Prepared(rows, _empty(route.late_schema), lost)
    missed = _placed(data.filter(pa.array(late)), split, route.late_schema)
    return Prepared(rows.filter(pa.array(~late)), missed, lost)


def _placed(data: pa.RecordBatch, split: str, schema: pa.Schema) -> pa.RecordBatch:
    """Rows of an append table: split and offset, then the visible columns."""
    columns = [pa.repeat(pa.scalar(split), data.num_rows), data.column(OFFSET), *_visible(data).columns]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _lost(failed: Mapping[int, str]) -> pa.RecordBatch:
    if not failed:
        return _empty(FAILED_SCHEMA)
    columns = [pa.array(list(failed), pa.int64()), pa.array(list(failed.values()), pa.string())]
    return pa.RecordBatch.from_arrays(columns, schema=FAILED_SCHEMA)

"""Naive twins: what the fast code must agree with, written so that it is plainly right.

`ReferenceTable` is keyed aggregation over Python values: it remembers the inputs of every row per key, and computes each result from
scratch, exactly, when asked.
"""

from __future__ import annotations

import decimal
import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import pyarrow as pa

from flowstate.errors import InvalidFlow
from flowstate.plan.position import NEVER, OFFSET, TIME
from flowstate.plan.spec import AggregateSpec, TableSpec

Key = tuple[Any, ...]


@dataclass
class _Row:
    """One input row: the values of the table's inputs, and its place in the order of first and last."""

    inputs: dict[str, Any]
    order: tuple[int, int, int]


@dataclass
class ReferenceTable:
    """Keyed aggregation of a `TableSpec`, slow and plain. `apply`, `rows` and `expire` mean what `KeyedTable`'s do."""

    spec: TableSpec
    kept: dict[Key, tuple[tuple[Any, ...], list[_Row]]] = field(default_factory=dict)

    def apply(self, batch: pa.RecordBatch, split_rank: int = 0) -> None:
        names = self.spec.key_schema.names
        keys = (
            list(zip(*(plain(batch.column(name)) for name in names), strict=True)) if names else [()] * batch.num_rows
        )
        wanted = {each.input for each in self.spec.aggregates if each.input is not None}
        inputs = {name: plain(batch.column(name)) for name in wanted}
        offsets = plain(batch.column(OFFSET)) if OFFSET in batch.schema.names else range(batch.num_rows)
        times = plain(batch.column(TIME)) if TIME in batch.schema.names else [NEVER] * batch.num_rows
        for row, key in enumerate(keys):
            _, rows = self.kept.setdefault(tuple(map(canonical, key)), (key, []))
            order = (times[row], split_rank, offsets[row])
            rows.append(_Row({name: values[row] for name, values in inputs.items()}, order))

    def expire(self, upto_us: int) -> int:
        """Forget the windows that expire at or before `upto_us`; how many rows went."""
        window = self.spec.window
        if window is None:
            return 0
        place = self.spec.key_schema.get_field_index(window.end_name)
        gone = [
            key
            for key, (values, _) in self.kept.items()
            if window.expires(micros(values[place], window.time_type)) <= upto_us
        ]
        for key in gone:
            del self.kept[key]
        return len(gone)

    @property
    def rows(self) -> int:
        return len(self.kept)

    def revisions(self) -> dict[Key, int]:
        """How many rows were applied to each key."""
        return {key: len(rows) for key, (_, rows) in self.kept.items()}

    def results(self, which: Callable[[Key], bool] = lambda key: True) -> pa.RecordBatch:
        """All result rows whose key satisfies `which`, in the order of first appearance."""
        schema = self.spec.schema
        columns: list[list[Any]] = [[] for _ in schema]
        for key, rows in self.kept.values():
            if not which(key):
                continue
            for column, value in zip(columns, key, strict=False):
                column.append(value)
            for column, each in zip(columns[len(key) :], self.spec.visible, strict=True):
                column.append(aggregate(each, rows))
        arrays = [typed(values, kind) for values, kind in zip(columns, schema.types, strict=True)]
        return pa.RecordBatch.from_arrays(arrays, schema=schema)


def plain(column: pa.Array) -> list[Any]:
    """Values as Python's own; times and durations as int64 in the unit of their type."""
    return raw(column).to_pylist()


def raw(column: pa.Array) -> pa.Array:
    """Temporal columns as the integers that they are."""
    kind = column.type
    if pa.types.is_temporal(kind):
        return column.view(pa.int32() if kind.bit_width == 32 else pa.int64())
    return column


def typed(values: list[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_temporal(kind):
        width = pa.int32() if kind.bit_width == 32 else pa.int64()
        return pa.array(values, width).view(kind)
    return pa.array(values, kind)


def micros(value: int, kind: pa.DataType) -> int:
    """A time in the unit of its type as microseconds, rounded down."""
    if pa.types.is_date32(kind):
        return value * 86_400_000_000
    if pa.types.is_date64(kind):
        return value * 1000
    return {"s": value * 1_000_000, "ms": value * 1000, "us": value, "ns": value // 1000}[kind.unit]


def canonical(value: Any) -> Any:
    """Equal keys are equal: one NaN, one zero, and True is not 1."""
    if isinstance(value, float):
        return ("nan",) if math.isnan(value) else (value + 0.0,)
    return (type(value).__name__, value)


def aggregate(spec: AggregateSpec, rows: list[_Row]) -> Any:
    """The result of one aggregate over all rows of a key, null handling as in Polars."""
    if spec.function == "len":
        return len(rows)
    assert spec.input is not None
    assert spec.input_type is not None
    if spec.function in ("first", "last"):
        # Rows of one place (one record that gave several) stand in the order in which they came.
        ranked = sorted(rows, key=lambda row: row.order)
        return ranked[0 if spec.function == "first" else -1].inputs[spec.input]
    values = [row.inputs[spec.input] for row in rows if row.inputs[spec.input] is not None]
    if spec.function == "count":
        return len(values)
    if spec.function == "sum":
        return _fitting(spec, _total(values, spec.input_type))
    if spec.function in ("min", "max"):
        return _extreme(spec.function, values)
    if not values:
        return None
    if spec.function == "mean":
        return _mean(spec, values)
    if spec.function in ("var", "std"):
        return _spread(spec, [float(value) for value in values])
    raise InvalidFlow("there is no such aggregate", function=spec.function)


def _total(values: Iterable[Any], kind: pa.DataType) -> Any:
    if pa.types.is_floating(kind):
        return math.fsum(values) if all(map(math.isfinite, values)) else sum(values)
    with decimal.localcontext(prec=200):
        return sum(values, decimal.Decimal(0).scaleb(-kind.scale) if pa.types.is_decimal(kind) else 0)


def _fitting(spec: AggregateSpec, total: Any) -> Any:
    try:
        typed([total], spec.result_type)
    except (pa.ArrowInvalid, OverflowError) as error:
        raise InvalidFlow("a sum does not fit its type", aggregate=spec.name) from error
    return total


def _extreme(function: str, values: list[Any]) -> Any:
    """Least or greatest; NaN counts only if there is nothing else, and -0.0 is less than 0.0."""
    numbers = [value for value in values if value == value]
    if not numbers:
        return values[0] if values else None

    def order(value: Any) -> Any:
        return (value, math.copysign(1.0, value)) if isinstance(value, float) else value

    return min(numbers, key=order) if function == "min" else max(numbers, key=order)


def _mean(spec: AggregateSpec, values: list[Any]) -> Any:
    assert spec.input_type is not None
    if pa.types.is_floating(spec.input_type):
        return _total(values, spec.input_type) / len(values)
    exact = sum(map(Fraction, values), Fraction(0)) / len(values)
    if pa.types.is_floating(spec.result_type):
        return float(exact)
    if pa.types.is_decimal(spec.result_type):
        scaled = round(exact * 10**spec.result_type.scale)  # half to even
        with decimal.localcontext(prec=200):
            return decimal.Decimal(scaled).scaleb(-spec.result_type.scale)
    return round(exact)


def _spread(spec: AggregateSpec, values: list[float]) -> float | None:
    ddof = int(spec.options.get("ddof", 1))
    if len(values) <= ddof:
        return None
    if not all(map(math.isfinite, values)):
        return math.nan
    middle = statistics.fmean(values)
    spread = math.fsum((value - middle) ** 2 for value in values) / (len(values) - ddof)
    return math.sqrt(spread) if spec.function == "std" else spread

"""Aggregates: what each keeps per row, and how values become state, state merges, and state becomes a result.

The empty state of all is zeros. `fold` and `merge` only describe the work, as lines of a program for `kernels.fold.run`; `result`
reads state columns. Nulls are treated as Polars does: a sum ignores them and is 0 when there is nothing else; min, max and mean are
then null; count counts the others; var and std of no more than `ddof` values are null; first and last take nulls like any value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from flowstate.errors import InvalidFlow
from flowstate.plan.keys import key_array
from flowstate.plan.spec import AggregateSpec
from flowstate.state.cells import (
    CELL,
    FLAG,
    FLOAT64,
    INT64,
    StateColumn,
    flags_of,
    from_values,
    sum_results,
    sum_to_floats,
    validity_buffer,
)

#: Operations and program columns: those of `kernels.fold`, which is imported only when kernels are needed.
LEN, COUNT, ADD_WORD, SUM_WORD, SUM_DECIMAL, SUM_WIDE, ADD_WIDE, SUM_FLOAT, SPREAD, MERGE_SPREAD, EXTREME, ORDERED = (
    range(12)
)
OPERATION, COLUMN, VALUES, VALIDITY, FIRST, FLAGS, KIND, SIGN, OFFSETS, SECOND, THIRD, RANKS, FIELDS = range(13)
WORD, FLOAT, DECIMAL, BYTES = range(4)

Line = npt.NDArray[np.int64]
#: Gives the buffer of a state column by its place in `columns`; of a column of text, the offsets and the data of its values.
Read = Callable[[int], Any]


@dataclass
class Inputs:
    """A batch's input columns in the layouts that kernels read, each made once; holds their memory until the fold is
    done. `order` is (times, ranks, offsets), for first and last."""

    columns: Mapping[str, pa.Array]
    order: tuple[Line, Line, Line] | None = None
    held: list[Any] = field(default_factory=list)
    made: dict[Any, Any] = field(default_factory=dict)

    def values(self, name: str, *, floats: bool = False) -> pa.Array:
        """int64, float64, decimal128, or text; `floats` makes any number a float64."""
        found = self.made.get((name, floats))
        if found is None:
            column = self.columns[name]
            if floats and not pa.types.is_float64(column.type):
                found = column.cast(pa.float64())
            elif pa.types.is_uint64(column.type):
                found = column.cast(pa.decimal128(20, 0))
            else:
                found = key_array(column)[1]
            self.made[name, floats] = found
            self.held.append(found)
        return found

    def address(self, values: npt.NDArray[Any]) -> int:
        self.held.append(values)
        return int(values.ctypes.data)


class Aggregate(Protocol):
    """One aggregate of a table. `first` is the number of its first state column."""

    spec: AggregateSpec
    columns: tuple[StateColumn, ...]
    first: int

    def fold(self, inputs: Inputs) -> list[Line]: ...

    def merge(self, parts: Mapping[str, pa.Array], inputs: Inputs) -> list[Line]: ...

    def result(self, read: Read, rows: int) -> pa.Array:
        """The result of each row. Raises `cells.DoesNotFit`."""
        ...


def _line(operation: int, column: int) -> Line:
    line = np.zeros(FIELDS, np.int64)
    line[OPERATION], line[COLUMN] = operation, column
    return line


def _with_values(line: Line, values: pa.Array, width: int) -> Line:
    """Point the line at the values and validity of a fixed-width array."""
    buffers = values.buffers()
    line[VALUES] = (buffers[1].address if buffers[1] is not None else 0) + values.offset * width
    if buffers[0] is not None and values.null_count:
        line[VALIDITY], line[FIRST] = buffers[0].address, values.offset
    return line


def _added(operation: int, column: int, values: pa.Array, width: int) -> Line:
    return _with_values(_line(operation, column), values, width)


@dataclass
class Length:
    """len: rows."""

    spec: AggregateSpec
    first: int
    columns: tuple[StateColumn, ...] = (StateColumn("count", INT64),)

    def fold(self, inputs: Inputs) -> list[Line]:
        return [_line(LEN, self.first)]

    def merge(self, parts: Mapping[str, pa.Array], inputs: Inputs) -> list[Line]:
        return [_added(ADD_WORD, self.first, parts["count"], 8)]

    def result(self, read: Read, rows: int) -> pa.Array:
        return from_values(self.spec.result_type, pa.Array.from_buffers(pa.int64(), rows, [None, read(0)]))


@dataclass
class Count(Length):
    """count: values that are not null."""

    def fold(self, inputs: Inputs) -> list[Line]:
        assert self.spec.input is not None
        return [_count(self.first, inputs.columns[self.spec.input], inputs)]


def _count(column: int, values: pa.Array, inputs: Inputs) -> Line:
    if not values.null_count:
        return _line(LEN, column)
    line, validity = _line(COUNT, column), values.buffers()[0]
    if validity is None:  # a column of type null, or a union, has no bits to show
        inputs.held.append(bits := np.packbits(np.asarray(values.is_valid()), bitorder="little"))
        line[VALIDITY] = bits.ctypes.data
    else:
        line[VALIDITY], line[FIRST] = validity.address, values.offset
    return line


def _is_wide(kind: pa.DataType) -> bool:
    return bool(pa.types.is_decimal128(kind) and kind.precision > 18)


def _sum_column(kind: pa.DataType) -> StateColumn:
    if pa.types.is_floating(kind):
        return StateColumn("sum", FLOAT64)
    scale = kind.scale if pa.types.is_decimal(kind) else 0
    return StateColumn("sum", pa.decimal256(76, scale) if _is_wide(kind) else pa.decimal128(38, scale))


def _sum(kind: pa.DataType, column: int, values: pa.Array) -> Line:
    if pa.types.is_floating(kind):
        return _added(SUM_FLOAT, column, values, 8)
    if pa.types.is_decimal(values.type):
        return _added(SUM_WIDE if _is_wide(kind) else SUM_DECIMAL, column, values, 16)
    return _added(SUM_WORD, column, values, 8)


def _merge_sum(column: int, part: pa.Array) -> Line:
    if pa.types.is_floating(part.type):
        return _added(SUM_FLOAT, column, part, 8)
    if pa.types.is_decimal256(part.type):
        return _added(ADD_WIDE, column, part, 32)
    return _added(SUM_DECIMAL, column, part, 16)


@dataclass
class Sum:
    """sum: integers and decimals exactly, in 128 bits, or 256 for decimals of more than 18 digits."""

    spec: AggregateSpec
    first: int
    columns: tuple[StateColumn, ...] = ()

    def __post_init__(self) -> None:
        self.columns = (_sum_column(self._kind),)
        self._results = sum_results(self.columns[0].type, self.spec.result_type)

    @property
    def _kind(self) -> pa.DataType:
        assert self.spec.input_type is not None
        return self.spec.input_type

    def fold(self, inputs: Inputs) -> list[Line]:
        assert self.spec.input is not None
        return [_sum(self._kind, self.first, inputs.values(self.spec.input))]

    def merge(self, parts: Mapping[str, pa.Array], inputs: Inputs) -> list[Line]:
        return [_merge_sum(self.first, parts["sum"])]

    def result(self, read: Read, rows: int) -> pa.Array:
        return self._results(read(0), rows)


@dataclass
class Mean(Sum):
    """mean: the exact sum, and the count; divided when read."""

    def __post_init__(self) -> None:
        self.columns = (_sum_column(self._kind), StateColumn("count", INT64))

    def fold(self, inputs: Inputs) -> list[Line]:
        assert self.spec.input is not None
        return [*super().fold(inputs), _count(self.first + 1, inputs.columns[self.spec.input], inputs)]

    def merge(self, parts: Mapping[str, pa.Array], inputs: Inputs) -> list[Line]:
        return [_merge_sum(self.first, parts["sum"]), _added(ADD_WORD, self.first + 1, parts["count"], 8)]

    def result(self, read: Read, rows: int) -> pa.Array:
        counts = np.frombuffer(read(1), np.int64, rows)
        sums = sum_to_floats(self.columns[0].type, read(0), rows)
        with np.errstate(all="ignore"):
            means = sums / counts
        return from_values(self.spec.result_type, pa.array(means, pa.float64(), mask=counts == 0))


@dataclass
class Spread:
    """var and std, by count, mean and sum of squared distances."""

    spec: AggregateSpec
    first: int
    columns: tuple[StateColumn, ...] = (
        StateColumn("count", INT64),
        StateColumn("mean", FLOAT64),
        StateColumn("squares", FLOAT64),
    )

    def fold(self, inputs: Inputs) -> list[Line]:
        assert self.spec.input is not None
        return [_added(SPREAD, self.first, inputs.values(self.spec.input, floats=True), 8)]

    def merge(self, parts: Mapping[str, pa.Array], inputs: Inputs) -> list[Line]:
        line = _added(MERGE_SPREAD, self.first, parts["count"], 8)
        for place, name in ((SECOND, "mean"), (THIRD, "squares")):
            line[place] = parts[name].buffers()[1].address + parts[name].offset * 8
        return [line]

    def result(self, read: Read, rows: int) -> pa.Array:
        counts, squares = np.frombuffer(read(0), np.int64, rows), np.frombuffer(read(2), np.float64, rows)
        ddof = int(self.spec.options.get("ddof", 1))
        with np.errstate(all="ignore"):
            spread = squares / (counts - ddof)
            if self.spec.function == "std":
                spread = np.sqrt(spread)
        return from_values(self.spec.result_type, pa.array(spread, pa.float64(), mask=counts <= ddof))


def _value_kind(kind: pa.DataType) -> int:
    types = pa.types
    if types.is_floating(kind):
        return FLOAT
    if types.is_decimal(kind) or types.is_uint64(kind):
        return DECIMAL
    is_text = (
        types.is_large_string(kind) or types.is_large_binary(kind) or types.is_string(kind) or types.is_binary(kind)
    )
    if is_text or types.is_string_view(kind) or types.is_binary_view(kind) or types.is_fixed_size_binary(kind):
        return BYTES
    return WORD


def _value_column(kind: pa.DataType) -> StateColumn:
    types = {FLOAT: FLOAT64, WORD: INT64, BYTES: CELL}
    if _value_kind(kind) != DECIMAL:
        return StateColumn("value", types[_value_kind(kind)])
    return StateColumn("value", pa.decimal128(38, 0 if pa.types.is_uint64(kind) else kind.scale))


def _with_value(line: Line, values: pa.Array) -> Line:
    """Point the line at values of any kind."""
    if pa.types.is_decimal(values.type):
        return _with_values(line, values, 16)
    if _value_kind(values.type) != BYTES:
        return _with_values(line, values, 8)
    _, offsets, data = values.buffers()
    line[VALUES] = data.address if data is not None else 0
    large = pa.types.is_large_string(values.type) or pa.types.is_large_binary(values.type)
    # The low bit of the address marks 32-bit offsets: offsets are aligned.
    line[OFFSETS] = offsets.address + (values.offset * 8 if large else values.offset * 4 + 1)
    return line


@dataclass
class Extreme:
    """min and max. NaN counts only when there is nothing else."""

    spec: AggregateSpec
    first: int
    columns: tuple[StateColumn, ...] = ()

    def __post_init__(self) -> None:
        assert self.spec.input_type is not None
        self.columns = (StateColumn("flag", FLAG), _value_column(self.spec.input_type))

    def _program(self, values: pa.Array, flags: npt.NDArray[np.uint8] | None, inputs: Inputs) -> Line:
        assert self.spec.input_type is not None
        line = _with_value(_line(EXTREME, self.first), values)
        line[KIND], line[SIGN] = _value_kind(self.spec.input_type), 1 if self.spec.function == "min" else -1
        line[FLAGS] = 0 if flags is None else inputs.address(flags)
        return line

    def fold(self, inputs: Inputs) -> list[Line]:
        assert self.spec.input is not None
        values = inputs.values(self.spec.input)
        return [self._program(values, flags_of(values, 0) if values.null_count else None, inputs)]

    def merge(self, parts: Mapping[str, pa.Array], inputs: Inputs) -> list[Line]:
        return [self._program(parts["value"], np.ascontiguousarray(parts["flag"].to_numpy()), inputs)]

    def result(self, read: Read, rows: int) -> pa.Array:
        place = len(self.columns) - 1
        validity = validity_buffer(np.frombuffer(read(0), np.uint8, rows) == 1)
        assert self.spec.input_type is not None
        return from_values(self.spec.result_type, _kept(self.columns[place].type, read(place), validity, rows))


def _kept(kind: pa.DataType, values: Any, validity: pa.Buffer | None, rows: int) -> pa.Array:
    if kind == CELL:
        return pa.Array.from_buffers(kind, rows, [validity, *values])
    return pa.Array.from_buffers(kind, rows, [validity, values])


@dataclass
class Ordered(Extreme):
    """first and last, by (event time, rank of the split, offset)."""

    def __post_init__(self) -> None:
        assert self.spec.input_type is not None
        places = tuple(StateColumn(name, INT64) for name in ("time", "rank", "offset"))
        self.columns = (StateColumn("flag", FLAG), *places, _value_column(self.spec.input_type))

    def _ordered(
        self, values: pa.Array, flags: npt.NDArray[np.uint8], order: tuple[Any, Any, Any], inputs: Inputs
    ) -> Line:
        line = self._program(values, flags, inputs)
        line[OPERATION], line[SIGN] = ORDERED, 1 if self.spec.function == "first" else -1
        line[SECOND], line[RANKS], line[THIRD] = (inputs.address(each) for each in order)
        return line

    def fold(self, inputs: Inputs) -> list[Line]:
        assert self.spec.input is not None
        assert inputs.order is not None
        values = inputs.values(self.spec.input)
        return [self._ordered(values, flags_of(values, 2), inputs.order, inputs)]

    def merge(self, parts: Mapping[str, pa.Array], inputs: Inputs) -> list[Line]:
        flags, *order = (np.ascontiguousarray(parts[name].to_numpy()) for name in ("flag", "time", "rank", "offset"))
        return [self._ordered(parts["value"], flags, (order[0], order[1], order[2]), inputs)]


_KINDS: Mapping[str, Callable[[AggregateSpec, int], Aggregate]] = {
    "len": Length, "count": Count, "sum": Sum, "mean": Mean, "var": Spread, "std": Spread, "min": Extreme, "max": Extreme,
    "first": Ordered, "last": Ordered,
}  # fmt: skip


def aggregates_of(specs: tuple[AggregateSpec, ...]) -> list[Aggregate]:
    """The aggregates of a table, their state columns numbered one after the other."""
    made: list[Aggregate] = []
    column = 0
    for spec in specs:
        if spec.function not in _KINDS:
            raise InvalidFlow(
                "there is no such aggregate", aggregate=spec.name, function=spec.function, known=sorted(_KINDS)
            )
        made.append(_KINDS[spec.function](spec, column))
        column += len(made[-1].columns)
    return made

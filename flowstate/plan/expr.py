"""Expressions over the columns of a stream, in the words of Polars: ``(col("price") * col("items")).sum()``.

An expression is a frozen tree, picklable, and written the same way by `str` in every process (the plan's fingerprint is made of it).
It works row by row: the value for a row depends on that row alone. What a type cannot say (an integer overflow, a division of
integers by zero, a cast that loses something) is an error of the row, never a wrong value. The only place where rows are told
apart before they are computed is ``when`` (`expr_choice`): a branch is evaluated for the rows that take it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

import numpy as np
import pyarrow as pa

from flowstate.errors import FlowstateError, InvalidFlow, did_you_mean
from flowstate.plan import expr_functions as functions
from flowstate.plan.expr_aggregate import Aggregate as Aggregate
from flowstate.plan.expr_namespaces import Struct, Text, Time
from flowstate.plan.schema import check_name, literal_type

Value: TypeAlias = Any  # pa.Array or pa.Scalar; pyarrow has no types


class Expr:
    """Base of expressions. Subclasses give `_value` (an array as long as the batch, or a scalar), `__str__` and `_root`."""

    def _value(self, batch: pa.RecordBatch) -> Value:
        raise NotImplementedError

    def _root(self) -> str:
        """The name of the column that the expression gives when it is not named."""
        raise NotImplementedError

    @property
    def name(self) -> str:
        return self._root()

    def evaluate(self, batch: pa.RecordBatch) -> pa.Array:
        """One value for each row. `pa.ArrowException` if the values of some row make it fail."""
        value = self._value(batch)
        if isinstance(value, pa.Scalar):
            return pa.repeat(value, batch.num_rows)
        return value.combine_chunks() if isinstance(value, pa.ChunkedArray) else value

    def type_in(self, schema: pa.Schema) -> pa.DataType:
        """The type of the values over columns of `schema`. `InvalidFlow` if a column or function does not fit."""
        empty = pa.RecordBatch.from_arrays([pa.array([], each.type) for each in schema], schema=schema)
        try:
            return self.evaluate(empty).type
        except FlowstateError:
            raise
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise InvalidFlow(f"this cannot be computed: {error}", expression=str(self)) from error

    def __repr__(self) -> str:
        return str(self)

    def __bool__(self) -> NoReturn:
        raise InvalidFlow("an expression has no truth value; combine conditions with & | ~ (in brackets), not with and, or, not",
                          expression=str(self))  # fmt: skip

    def __iter__(self) -> NoReturn:
        raise InvalidFlow("an expression cannot be looped over", expression=str(self))

    __hash__ = object.__hash__

    def alias(self, name: str) -> Expr:
        return Alias(self, check_name(name, "column"))

    def __add__(self, other: Any) -> Expr:
        return call("+", self, other)

    def __radd__(self, other: Any) -> Expr:
        return call("+", other, self)

    def __sub__(self, other: Any) -> Expr:
        return call("-", self, other)

    def __rsub__(self, other: Any) -> Expr:
        return call("-", other, self)

    def __mul__(self, other: Any) -> Expr:
        return call("*", self, other)

    def __rmul__(self, other: Any) -> Expr:
        return call("*", other, self)

    def __truediv__(self, other: Any) -> Expr:
        return call("/", self, other)

    def __rtruediv__(self, other: Any) -> Expr:
        return call("/", other, self)

    def __floordiv__(self, other: Any) -> Expr:
        return call("//", self, other)

    def __rfloordiv__(self, other: Any) -> Expr:
        return call("//", other, self)

    def __mod__(self, other: Any) -> Expr:
        return call("%", self, other)

    def __rmod__(self, other: Any) -> Expr:
        return call("%", other, self)

    def __neg__(self) -> Expr:
        return call("negative", self)

    def __eq__(self, other: Any) -> Expr:  # type: ignore[override]
        return call("==", self, other)

    def __ne__(self, other: Any) -> Expr:  # type: ignore[override]
        return call("!=", self, other)

    def __lt__(self, other: Any) -> Expr:
        return call("<", self, other)

    def __le__(self, other: Any) -> Expr:
        return call("<=", self, other)

    def __gt__(self, other: Any) -> Expr:
        return call(">", self, other)

    def __ge__(self, other: Any) -> Expr:
        return call(">=", self, other)

    def __and__(self, other: Any) -> Expr:
        return call("&", self, other)

    def __rand__(self, other: Any) -> Expr:
        return call("&", other, self)

    def __or__(self, other: Any) -> Expr:
        return call("|", self, other)

    def __ror__(self, other: Any) -> Expr:
        return call("|", other, self)

    def __invert__(self) -> Expr:
        return call("not", self)

    def is_null(self) -> Expr:
        return call("is_null", self)

    def is_not_null(self) -> Expr:
        return call("is_not_null", self)

    def fill_null(self, value: Any) -> Expr:
        """`value` where there is null, in the type of this expression."""
        return call("fill_null", self, value)

    def cast(self, type_: pa.DataType) -> Expr:
        """The same value in another type. A value that does not fit, or would lose something, fails its row."""
        if not isinstance(type_, pa.DataType):
            raise InvalidFlow("cast takes an Arrow type such as pa.int64()", got=repr(type_))
        return call("cast", self, type=type_)

    def is_in(self, values: Sequence[Any]) -> Expr:
        """Whether the value is one of `values`; null for null."""
        if isinstance(values, (str, bytes)) or not isinstance(values, (list, tuple, set, frozenset)):
            raise InvalidFlow("is_in takes a list of values", got=repr(values))
        # A set has no order of its own that is the same in two processes, and the plan's text must be.
        ordered = sorted(values, key=repr) if isinstance(values, (set, frozenset)) else values
        return call("is_in", self, values=tuple(ordered))

    def explode(self) -> NoReturn:
        raise InvalidFlow("explode changes the number of rows: write stream.explode('column')", expression=str(self))

    @property
    def str(self) -> Text:
        return Text(self, call)

    @property
    def dt(self) -> Time:
        return Time(self, call)

    @property
    def struct(self) -> Struct:
        return Struct(self, call)

    def sum(self) -> Aggregate:
        return Aggregate("sum", self)

    def count(self) -> Aggregate:
        """How many values are not null."""
        return Aggregate("count", self)

    def min(self) -> Aggregate:
        return Aggregate("min", self)

    def max(self) -> Aggregate:
        return Aggregate("max", self)

    def mean(self) -> Aggregate:
        return Aggregate("mean", self)

    def var(self, ddof: int = 1) -> Aggregate:
        return Aggregate("var", self, (("ddof", _ddof(ddof)),))

    def std(self, ddof: int = 1) -> Aggregate:
        return Aggregate("std", self, (("ddof", _ddof(ddof)),))

    def first(self) -> Aggregate:
        """The value of the first row by (event time, split, offset); null if it is null there."""
        return Aggregate("first", self)

    def last(self) -> Aggregate:
        """The value of the last row by (event time, split, offset); null if it is null there."""
        return Aggregate("last", self)


def _ddof(ddof: int) -> int:
    if not isinstance(ddof, int) or ddof < 0:
        raise InvalidFlow("ddof is 0 or more", ddof=ddof)
    return ddof


def _text(value: Any) -> str:
    return value.isoformat() if hasattr(value, "isoformat") else repr(value)


@dataclass(frozen=True, eq=False, repr=False)
class Column(Expr):
    column: str

    def _value(self, batch: pa.RecordBatch) -> Value:
        at = batch.schema.get_field_index(self.column)
        if at < 0:
            known = [each for each in batch.schema.names if not each.startswith("__")]
            raise InvalidFlow(f"there is no column {self.column!r}{did_you_mean(self.column, known)}")
        return batch.column(at)

    def _root(self) -> str:
        return self.column

    def __str__(self) -> str:
        return self.column if self.column.isidentifier() else f"col({self.column!r})"


@dataclass(frozen=True, eq=False, repr=False)
class Literal(Expr):
    """A constant. Without a `type` it takes one that suits what it is combined with."""

    value: Any
    type: pa.DataType | None = None

    def _value(self, batch: pa.RecordBatch) -> Value:
        return self.beside(None)

    def beside(self, peer: pa.DataType | None) -> pa.Scalar:
        """The constant next to an operand of type `peer`."""
        return pa.scalar(self.value, self.type or literal_type(self.value, peer, str(self)))

    def _root(self) -> str:
        return "literal"

    def __str__(self) -> str:
        return _text(self.value) + (f"::{self.type}" if self.type is not None else "")


@dataclass(frozen=True, eq=False, repr=False)
class Alias(Expr):
    input: Expr
    alias_name: str

    def _value(self, batch: pa.RecordBatch) -> Value:
        return self.input._value(batch)

    def _root(self) -> str:
        return self.alias_name

    def __str__(self) -> str:
        return str(self.input)


@dataclass(frozen=True, eq=False, repr=False)
class Call(Expr):
    """A function of `expr_functions.FUNCTIONS` over other expressions."""

    function: str
    inputs: tuple[Expr, ...]
    options: tuple[tuple[str, Any], ...] = ()

    def _value(self, batch: pa.RecordBatch) -> Value:
        function = functions.FUNCTIONS[self.function]
        plain = [unnamed(each) for each in self.inputs]
        # Constants without a type wait until the type of the other operand is known.
        values = [None if isinstance(each, Literal) else each._value(batch) for each in plain]
        peer = next((value.type for value in values if value is not None), None)
        values = [
            each.beside(peer) if isinstance(each, Literal) else value for each, value in zip(plain, values, strict=True)
        ]
        where = str(self)
        if all(isinstance(value, pa.Scalar) for value in values):
            return function([pa.repeat(value, 1) for value in values], dict(self.options), where)[0]
        return functions.apply(function, values, dict(self.options), where)

    def _root(self) -> str:
        return self.inputs[0]._root()

    def __str__(self) -> str:
        if self.function in functions.OPERATORS:
            return f"({self.inputs[0]} {self.function} {self.inputs[1]})"
        options = [f"{name}={_option(value)}" for name, value in self.options]
        return f"{self.function}({', '.join([*map(str, self.inputs), *options])})"


def _option(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_text, value))}]"
    return str(value) if isinstance(value, pa.DataType) else _text(value)


def unnamed(expr: Expr) -> Expr:
    """Without its aliases."""
    while isinstance(expr, Alias):
        expr = expr.input
    return expr


class Unfinished:
    """A ``when`` that waits for its ``otherwise`` (`expr_choice`)."""

    def refuse(self) -> NoReturn:
        raise InvalidFlow("a when(...).then(...) ends with .otherwise(...); for null write .otherwise(None)")


def call(function: str, *inputs: Any, **options: Any) -> Expr:
    """A function over expressions and constants."""
    return Call(function, tuple(map(to_expr, inputs)), tuple(options.items()))


def to_expr(value: Any) -> Expr:
    """An expression as it is; a plain value as a constant."""
    if isinstance(value, Expr):
        return value
    if isinstance(value, (Aggregate, Unfinished)):
        value.refuse()
    return lit(value)


def col(name: str) -> Expr:
    """The column called `name`."""
    return Column(check_name(name, "column"))


def lit(value: Any, type: pa.DataType | None = None) -> Expr:
    """A constant, in a type of its own if one is given."""
    if isinstance(value, pa.Scalar):
        value, type = value.as_py(), type or value.type
    elif isinstance(value, np.generic):
        value = value.item()
    literal = Literal(value, type)
    try:
        literal.beside(None)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise InvalidFlow(f"a constant does not fit its type: {error}", value=value, type=str(type)) from error
    return literal


def len() -> Aggregate:
    """How many rows a key has."""
    return Aggregate("len")

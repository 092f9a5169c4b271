"""Rules about names and types: what columns may be, what two operands have in common, what an aggregate gives."""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from flowstate.errors import InvalidFlow

_SIGNED = {8: pa.int8(), 16: pa.int16(), 32: pa.int32(), 64: pa.int64()}
_DIGITS = {8: (3, 3), 16: (5, 5), 32: (10, 10), 64: (19, 20)}  # decimal digits of signed and unsigned integers
_UNITS = ("s", "ms", "us", "ns")


def check_name(name: object, what: str) -> str:
    """`name` as the name of a column or view that a user may choose."""
    if not isinstance(name, str) or not name:
        raise InvalidFlow(f"the name of a {what} is a text of at least one letter", name=name)
    if name.startswith("__"):
        raise InvalidFlow(f"names that begin with '__' are reserved; choose another name for this {what}", name=name)
    return name


def check_unique(names: Iterable[str], what: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InvalidFlow(f"two {what}s have the same name; rename one with .alias(...) or name=...", name=name)
        seen.add(name)


def check_columns(schema: pa.Schema, what: str) -> pa.Schema:
    """`schema` as that of a stream: unique names that are not reserved, types that can be computed with; metadata dropped."""
    if not isinstance(schema, pa.Schema):
        raise InvalidFlow(f"{what} needs schema=pa.schema({{'name': pa.string(), ...}})", got=type(schema).__name__)
    if not schema.names:
        raise InvalidFlow(f"{what} needs a schema with a column at least")
    for each in schema:
        check_name(each.name, "column")
        if pa.types.is_dictionary(each.type) or pa.types.is_run_end_encoded(each.type):
            raise InvalidFlow(
                "a column of a stream has a plain type; use the type of its values",
                column=each.name,
                type=str(each.type),
            )
    check_unique(schema.names, "column")
    return schema.remove_metadata()


def is_text(type_: pa.DataType) -> bool:
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_))


def is_number(type_: pa.DataType) -> bool:
    return bool(pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_decimal(type_))


def check_key(name: str, type_: pa.DataType) -> None:
    """Types by whose values rows can be grouped."""
    kinds = pa.types
    if not (
        kinds.is_boolean(type_) or kinds.is_integer(type_) or kinds.is_float32(type_) or kinds.is_float64(type_)
        or is_text(type_) or kinds.is_binary(type_) or kinds.is_large_binary(type_) or kinds.is_fixed_size_binary(type_)
        or kinds.is_date(type_) or kinds.is_timestamp(type_) or kinds.is_decimal128(type_)
    ):  # fmt: skip
        raise InvalidFlow(
            "rows can be grouped by bool, integers, floats, text, binary, dates, timestamps and decimals; cast this key, "
            "or take a field of it",
            key=name, type=str(type_),
        )  # fmt: skip


def digits(type_: pa.DataType) -> int:
    """Decimal digits that hold every value of an integer type."""
    return _DIGITS[type_.bit_width][1 if pa.types.is_unsigned_integer(type_) else 0]


def as_decimal(type_: pa.DataType) -> pa.DataType:
    """The decimal type that holds every value of an integer or decimal type."""
    return pa.decimal128(digits(type_), 0) if pa.types.is_integer(type_) else type_


def decimal_type(precision: int, scale: int) -> pa.DataType:
    return pa.decimal128(precision, scale) if precision <= 38 else pa.decimal256(min(precision, 76), scale)


def common_type(left: pa.DataType, right: pa.DataType, where: str) -> pa.DataType:
    """The type in which two operands meet, or `InvalidFlow` that says what to cast. `where` is the expression's text."""
    kinds = pa.types
    if left == right or kinds.is_null(right):
        return left
    if kinds.is_null(left):
        return right
    if kinds.is_integer(left) and kinds.is_integer(right):
        return _common_integer(left, right)
    if is_number(left) and is_number(right):
        floats = [each for each in (left, right) if kinds.is_floating(each)]
        decimals = [each for each in (left, right) if kinds.is_decimal(each)]
        if floats and decimals:
            raise InvalidFlow(
                "a float and a decimal do not mix, because the result would not be exact; use decimal.Decimal('...') or cast one",
                expression=where, types=f"{left}, {right}",
            )  # fmt: skip
        if floats:
            small = all(
                (kinds.is_floating(each) and each.bit_width <= 32) or each.bit_width <= 16 for each in (left, right)
            )
            return pa.float32() if small else pa.float64()
        one, two = as_decimal(left), as_decimal(right)
        scale = max(one.scale, two.scale)
        return decimal_type(max(one.precision - one.scale, two.precision - two.scale) + scale, scale)
    if is_text(left) and is_text(right):
        return pa.large_string()
    if kinds.is_timestamp(left) and kinds.is_timestamp(right) and (left.tz is None) == (right.tz is None):
        return pa.timestamp(max(left.unit, right.unit, key=_UNITS.index), left.tz)
    if kinds.is_duration(left) and kinds.is_duration(right):
        return pa.duration(max(left.unit, right.unit, key=_UNITS.index))
    raise InvalidFlow("these types do not go together; cast one of them", expression=where, types=f"{left}, {right}")


def _common_integer(left: pa.DataType, right: pa.DataType) -> pa.DataType:
    unsigned = [pa.types.is_unsigned_integer(each) for each in (left, right)]
    if unsigned[0] == unsigned[1]:
        return left if left.bit_width >= right.bit_width else right
    signless, signed = (left, right) if unsigned[0] else (right, left)
    return _SIGNED[max(signed.bit_width, min(64, 2 * signless.bit_width))]


def literal_type(value: Any, peer: pa.DataType | None, where: str) -> pa.DataType:
    """The type that a plain Python value takes beside an operand of type `peer` (None: alone), so that ``int32 + 1`` is int32."""
    kinds = pa.types
    if value is None:
        return pa.null() if peer is None else peer
    if isinstance(value, bool):
        return pa.bool_()
    if isinstance(value, int):
        if peer is not None and (kinds.is_floating(peer) or (kinds.is_integer(peer) and _fits(value, peer))):
            return peer
        if peer is not None and kinds.is_decimal(peer):
            return decimal_type(max(1, len(str(abs(value)))), 0)
        if _fits(value, pa.int64()):
            return pa.int64()
        if _fits(value, pa.uint64()):
            return pa.uint64()
        raise InvalidFlow("an integer has at most 64 bits; use decimal.Decimal", expression=where, value=value)
    if isinstance(value, float):
        return pa.float32() if peer is not None and kinds.is_float32(peer) else pa.float64()
    if isinstance(value, decimal.Decimal):
        return _decimal_literal(value, where)
    if isinstance(value, str):
        return peer if peer is not None and is_text(peer) else pa.string()
    if isinstance(value, bytes):
        return peer if peer is not None and (kinds.is_binary(peer) or kinds.is_large_binary(peer)) else pa.binary()
    if isinstance(value, datetime.datetime):
        if peer is not None and kinds.is_timestamp(peer) and (peer.tz is None) == (value.tzinfo is None):
            return pa.timestamp("us" if peer.unit != "ns" else "ns", peer.tz)
        return pa.timestamp("us", None if value.tzinfo is None else "UTC")
    if isinstance(value, datetime.date):
        return pa.date32()
    if isinstance(value, datetime.timedelta):
        return pa.duration("us")
    raise InvalidFlow(
        "a constant is None, bool, int, float, Decimal, str, bytes, date, datetime or timedelta",
        type=type(value).__name__,
    )


def _fits(value: int, type_: pa.DataType) -> bool:
    bits = type_.bit_width
    return (
        0 <= value < 2**bits if pa.types.is_unsigned_integer(type_) else -(2 ** (bits - 1)) <= value < 2 ** (bits - 1)
    )


def _decimal_literal(value: decimal.Decimal, where: str) -> pa.DataType:
    if not value.is_finite():
        raise InvalidFlow("a decimal constant is a finite number", expression=where, value=str(value))
    _, figures, exponent = value.as_tuple()
    assert isinstance(exponent, int)
    scale = max(0, -exponent)
    precision = max(len(figures) + max(0, exponent), scale, 1)
    if precision > 38:
        raise InvalidFlow("a decimal constant has at most 38 digits", expression=where, value=str(value))
    return pa.decimal128(precision, scale)


def aggregate_type(function: str, input_type: pa.DataType | None, where: str) -> pa.DataType:
    """The type of an aggregate over values of `input_type` (None for `len`), or `InvalidFlow`."""
    kinds = pa.types
    if function in ("len", "count"):
        return pa.int64()
    assert input_type is not None
    if function in ("sum", "mean", "var", "std"):
        if kinds.is_boolean(input_type) and function == "sum":
            return pa.int64()
        if not is_number(input_type) or kinds.is_decimal256(input_type) or kinds.is_float16(input_type):
            raise InvalidFlow(
                f"{function} needs numbers (integers, float32, float64, decimal128); cast the column first",
                aggregate=where, type=str(input_type),
            )  # fmt: skip
        if function != "sum":
            return pa.float64()
        if kinds.is_integer(input_type):
            return pa.uint64() if kinds.is_unsigned_integer(input_type) else pa.int64()
        return pa.float64() if kinds.is_floating(input_type) else pa.decimal128(38, input_type.scale)
    check_value(function, input_type, where)
    return input_type


def check_value(function: str, type_: pa.DataType, where: str) -> None:
    """Types whose values can be kept (first, last) and ordered (min, max)."""
    try:
        check_key(where, type_)
    except InvalidFlow:
        if pa.types.is_duration(type_) or pa.types.is_time(type_):
            return
        raise InvalidFlow(
            f"{function} works on bool, numbers, text, binary, dates and timestamps; cast the column or take a field of it",
            aggregate=where, type=str(type_),
        ) from None  # fmt: skip

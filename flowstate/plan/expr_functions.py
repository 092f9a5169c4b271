"""What the functions of expressions do, in pyarrow compute: arrays and scalars in, an array out.

Each gets its operands, its options and the text of its expression (for messages). Types alone decide about `InvalidFlow`, so that a
flow that was built never meets one; values decide about `pa.ArrowInvalid`. Kernels that wrap or truncate silently are not used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from flowstate.errors import InvalidFlow, did_you_mean
from flowstate.plan.schema import as_decimal, common_type, is_number, is_text
from flowstate.plan.window import Window, every_period

if TYPE_CHECKING:
    pass

Value: TypeAlias = Any  # pa.Array or pa.Scalar; pyarrow has no types
Kernel = Callable[[Value, Value], pa.Array]
Function = Callable[[list[Value], Mapping[str, Any], str], pa.Array]


class ValuesFailed(pa.ArrowInvalid):
    """A function has no result for some rows: `rows` has their places in the batch, each with the kernel's message."""

    def __init__(self, rows: Mapping[int, str]) -> None:
        super().__init__(next(iter(rows.values())))
        self.rows = dict(rows)

    def within(self, places: Any) -> ValuesFailed:
        """The same for the batch of which the rows at `places` were taken."""
        return ValuesFailed({int(places[at]): reason for at, reason in self.rows.items()})


def apply(function: Function, values: list[Value], options: Mapping[str, Any], where: str) -> pa.Array:
    """`function` over operands of which one at least is an array. Kernels say that they failed, not where: halving tells."""
    try:
        return function(values, options, where)
    except MemoryError:
        raise
    except pa.ArrowException:
        found: dict[int, str] = {}
        stretches = [(0, next(len(each) for each in values if not isinstance(each, pa.Scalar)))]
        while stretches:
            start, length = stretches.pop()
            part = [each if isinstance(each, pa.Scalar) else each.slice(start, length) for each in values]
            try:
                function(part, options, where)
            except pa.ArrowException as error:
                if length == 1:
                    found[start] = str(error)
                elif length > 1:
                    half = length // 2
                    stretches += [(start + half, length - half), (start, half)]
        if not found:
            raise
        raise ValuesFailed(found) from None


OPERATORS = ("+", "-", "*", "/", "//", "%", "==", "!=", "<", "<=", ">", ">=", "&", "|")


def to_type(value: Value, type_: pa.DataType) -> Value:
    """A checked cast, except that integers become the nearest float."""
    if value.type == type_:
        return value
    nearest = pa.types.is_floating(type_) and (pa.types.is_integer(value.type) or pa.types.is_floating(value.type))
    return pc.cast(value, type_, safe=not nearest)


def _meet(values: list[Value], where: str) -> tuple[Value, Value, pa.DataType]:
    type_ = common_type(values[0].type, values[1].type, where)
    return to_type(values[0], type_), to_type(values[1], type_), type_


def _refuse(what: str, where: str, *values: Value) -> InvalidFlow:
    return InvalidFlow(what, expression=where, types=", ".join(str(value.type) for value in values))


def _arithmetic(symbol: str) -> Function:
    kernel: Kernel = {"+": pc.add_checked, "-": pc.subtract_checked, "*": pc.multiply_checked}[symbol]
    floating: Kernel = {"+": pc.add, "-": pc.subtract, "*": pc.multiply}[symbol]

    def compute(values: list[Value], options: Mapping[str, Any], where: str) -> pa.Array:
        left, right = values
        if symbol == "+" and is_text(left.type) and is_text(right.type):
            left, right, type_ = _meet(values, where)
            return pc.binary_join_element_wise(left, right, pa.scalar("", type_))
        if any(pa.types.is_temporal(each.type) for each in values):
            return _temporal(symbol, kernel, left, right, where)
        if not all(is_number(each.type) or pa.types.is_null(each.type) for each in values):
            raise _refuse(f"{symbol} needs numbers; cast the operands first", where, *values)
        if any(pa.types.is_decimal(each.type) for each in values):
            common_type(left.type, right.type, where)  # refuses floats
            return _decimal(symbol, kernel, left, right, where)
        left, right, type_ = _meet(values, where)
        return floating(left, right) if pa.types.is_floating(type_) else kernel(left, right)

    return compute


def _decimal(symbol: str, kernel: Kernel, left: Value, right: Value, where: str) -> pa.Array:
    """Exact, in as many digits as the result may need; beyond 38 it must fit into 38."""
    one, two = (as_decimal(each.type) for each in (left, right))
    one, two = (two if pa.types.is_null(one) else one), (one if pa.types.is_null(two) else two)
    if symbol == "*":
        scale, precision = one.scale + two.scale, one.precision + two.precision + 1
    else:
        scale = max(one.scale, two.scale)
        precision = max(one.precision - one.scale, two.precision - two.scale) + scale + 1
    if scale > 38:
        raise _refuse("the result has more than 38 decimal places; cast an operand to fewer", where, left, right)
    result = pa.decimal128(min(38, precision), scale)
    left, right = to_type(left, one), to_type(right, two)
    if precision > 38:
        # The wide type holds the exact result of the kernel; only then it is asked whether 38 digits do.
        room = 76 - precision
        if room < 0:
            raise _refuse("the result may have more than 76 digits; cast an operand to fewer", where, left, right)
        left, right = (
            to_type(each, pa.decimal256(type_.precision, type_.scale)) for each, type_ in ((left, one), (right, two))
        )
    return to_type(kernel(left, right), result)


def _temporal(symbol: str, kernel: Kernel, left: Value, right: Value, where: str) -> pa.Array:
    kinds = pa.types
    if symbol != "*" and kinds.is_duration(left.type) and kinds.is_duration(right.type):
        left, right, _ = _meet([left, right], where)
        return kernel(left, right)
    if symbol == "-" and kinds.is_timestamp(left.type) and kinds.is_timestamp(right.type):
        left, right, _ = _meet([left, right], where)
        return kernel(left, right)
    if symbol == "+" and kinds.is_duration(left.type):
        left, right = right, left
    if symbol != "*" and kinds.is_timestamp(left.type) and kinds.is_duration(right.type):
        return kernel(left, to_type(right, pa.duration(left.type.unit)))
    raise _refuse(
        f"{symbol} works on two durations, two timestamps or a timestamp and a duration; cast first", where, left, right
    )


def _divide(values: list[Value], options: Mapping[str, Any], where: str) -> pa.Array:
    _no_decimals("/", values, where)
    left, right, type_ = _meet(values, where)
    if not pa.types.is_floating(type_):
        # Of integers: the quotient is a float, but dividing by zero has no value.
        return pc.divide_checked(to_type(left, pa.float64()), to_type(right, pa.float64()))
    return pc.divide(left, right)


def _no_decimals(symbol: str, values: list[Value], where: str) -> None:
    if any(pa.types.is_decimal(each.type) for each in values):
        raise _refuse(
            f"{symbol} of decimals is not exact: multiply by a decimal.Decimal, or cast to float64", where, *values
        )
    if not all(is_number(each.type) for each in values):
        raise _refuse(f"{symbol} needs numbers; cast the operands first", where, *values)


def _whole_parts(values: list[Value], where: str, symbol: str) -> tuple[pa.Array, pa.Array, pa.DataType]:
    """Quotient rounded down, and the rest, which has the sign of the divisor."""
    _no_decimals(symbol, values, where)
    left, right, type_ = _meet(values, where)
    if pa.types.is_floating(type_):
        quotient = pc.floor(pc.divide(left, right))
        return quotient, pc.subtract(left, pc.multiply(quotient, right)), type_
    quotient = pc.divide_checked(left, right)
    rest = pc.subtract(left, pc.multiply(quotient, right))
    zero, one = pa.scalar(0, type_), pa.scalar(1, type_)
    below = pc.and_(pc.not_equal(rest, zero), pc.not_equal(pc.less(rest, zero), pc.less(right, zero)))
    if not pa.types.is_unsigned_integer(type_):
        quotient = pc.if_else(below, pc.subtract(quotient, one), quotient)
        rest = pc.if_else(below, pc.add(rest, right), rest)
    return quotient, rest, type_


def _floor_divide(values: list[Value], options: Mapping[str, Any], where: str) -> pa.Array:
    return _whole_parts(values, where, "//")[0]


def _modulo(values: list[Value], options: Mapping[str, Any], where: str) -> pa.Array:
    return _whole_parts(values, where, "%")[1]


def _negative(values: list[Value], options: Mapping[str, Any], where: str) -> pa.Array:
    (value,) = values
    if (not is_number(value.type) and not pa.types.is_duration(value.type)) or pa.types.is_unsigned_integer(value.type):
        raise _refuse("unary - needs signed numbers; cast the operand first", where, value)
    return pc.negate(value) if pa.types.is_floating(value.type) else pc.negate_checked(value)


def _comparison(kernel: Kernel) -> Function:
    def compute(values: list[Value], options: Mapping[str, Any], where: str) -> pa.Array:
        left, right = values
        if pa.types.is_integer(left.type) and pa.types.is_integer(right.type):
            mixed = pa.types.is_unsigned_integer(left.type) != pa.types.is_unsigned_integer(right.type)
            type_ = pa.decimal128(20, 0) if mixed else common_type(left.type, right.type, where)
            return kernel(to_type(left, type_), to_type(right, type_))
        left, right, type_ = _meet(values, where)
        if pa.types.is_nested(type_):
            raise _refuse("lists and structs cannot be compared; compare a field", where, *values)
        return kernel(left, right)

    return compute


def _logic(kernel: Callable[..., pa.Array], symbol: str) -> Function:
    def compute(values: list[Value], options: Mapping[str, Any], where: str) -> pa.Array:
        if not all(pa.types.is_boolean(each.type) or pa.types.is_null(each.type) for each in values):
            raise _refuse(
                f"{symbol} needs conditions that are true or false; put comparisons in brackets: (a > 1) & (b < 2)",
                where,
                *values,
            )
        return kernel(*(to_type(each, pa.bool_()) for each in values))

    return compute


def _fill_null(values: list[Value], options: Mapping[str, Any], where: str) -> pa.Array:
    value, other = values
    if not pa.types.is_null(value.type) and common_type(value.type, other.type, where) != value.type:
        integers = pa.types.is_integer(value.type) and pa.types.is_integer(other.type)
        decimals = pa.types.is_decimal(value.type) and not pa.types.is_floating(other.type)
        if not integers and not decimals and not is_text(value.type):
            raise _refuse("fill_null keeps the type; cast the column, or the value, first", where, *values)
    type_ = other.type if pa.types.is_null(value.type) else value.type
    return pc.coalesce(to_type(value, type_), to_type(other, type_))


def _cast(values: list[Value], options: Mapping[str, Any], where: str) -> pa.Array:
    (value,), type_ = values, options["type"]
    if pa.types.is_date32(type_) and pa.types.is_timestamp(value.type):
        return _date(values, options, where)
    return to_type(value, type_)


def _is_in(values: list[Value], options: Mapping[str, Any], where: str) -> pa.Array:
    (value,) = values
    try:
        known = pa.array(list(options["values"]), value.type)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise InvalidFlow(f"is_in has a value that is not of the column's type: {error}", expression=where) from error
    return pc.if_else(pc.is_valid(value), pc.is_in(value, value_set=known), pa.scalar(None, pa.bool_()))


def _text_function(compute: Callable[[Value, Mapping[str, Any]], pa.Array]) -> Function:
    def checked(values: list[Value], options: Mapping[str, Any], where: str) -> pa.Array:
        if not is_text(values[0].type):
            raise _refuse(".str needs text; cast the column to pa.string() first", where, *values)
        return compute(values[0], options)

    return checked


def _slice(value: Value, options: Mapping[str, Any]) -> pa.Array:
    start, length = options["offset"], options["length"]
    stop = None if length is None else start + length
    if stop is not None and start < 0 <= stop:
        stop = None
    return pc.utf8_slice_codeunits(value, start, stop)


def _strip(value: Value, options: Mapping[str, Any]) -> pa.Array:
    characters = options["characters"]
    return pc.utf8_trim_whitespace(value) if characters is None else pc.utf8_trim(value, characters)


def contains(value: Value, options: Mapping[str, Any]) -> pa.Array:
    return (pc.match_substring if options["literal"] else pc.match_substring_regex)(value, options["pattern"])


def _time_function(compute: Callable[[Value], pa.Array]) -> Function:
    def checked(values: list[Value], options: Mapping[str, Any], where: str) -> pa.Array:
        if not (pa.types.is_timestamp(values[0].type) or pa.types.is_date32(values[0].type)):
            raise _refuse(".dt needs a timestamp or date32; cast the column first", where, *values)
        return compute(values[0])

    return checked


def _part(kernel: Callable[[Value], pa.Array]) -> Function:
    return _time_function(lambda value: to_type(kernel(value), pa.int64()))


def _local(value: Value) -> Value:
    return value if pa.types.is_date32(value.type) or value.type.tz is None else pc.local_timestamp(value)


def _date(values: list[Value], options: Mapping[str, Any], where: str) -> pa.Array:
    (value,) = values
    if pa.types.is_date32(value.type):
        return value
    if not pa.types.is_timestamp(value.type):
        raise _refuse(".dt needs a timestamp or date32; cast the column first", where, value)
    return pc.cast(pc.floor_temporal(_local(value), unit="day"), pa.date32())


def _truncate(values: list[Value], options: Mapping[str, Any], where: str) -> pa.Array:
    """The start of the window of length `every` that holds the value; hours and less by the clock on the wall of the zone."""
    (value,) = values
    if not (pa.types.is_timestamp(value.type) or pa.types.is_date32(value.type)):
        raise _refuse(".dt needs a timestamp or date32; cast the column first", where, value)
    every = every_period(options["every"])
    spec = Window("", every).named("truncate", value.type)
    if spec.time_zone is None or not every.microseconds:
        return spec.assign(value)[0]
    wall = pc.local_timestamp(value)
    down = Window("", every).named("truncate", wall.type).assign(wall)[0]
    # The wall clock's distance from UTC at the value itself tells which of two equal hours is meant, unless the clock was set in
    # between; then the start is what the clock showed before.
    bare = value.cast(pa.int64())
    near = pc.subtract(bare, pc.subtract(wall.cast(pa.int64()), down.cast(pa.int64()))).cast(value.type)
    same = pc.equal(pc.local_timestamp(near), down)
    if pc.all(same).as_py() is not False:
        return near
    shown = pc.assume_timezone(down, spec.time_zone, ambiguous="earliest", nonexistent="earliest")
    # Comparing as numbers, because the kernel knows no zones.
    earlier = pc.min_element_wise(shown.cast(value.type).cast(pa.int64()), bare, skip_nulls=False)
    return pc.if_else(same, near, earlier.cast(value.type))


def _field(values: list[Value], options: Mapping[str, Any], where: str) -> pa.Array:
    (value,), name = values, options["name"]
    if not pa.types.is_struct(value.type):
        raise _refuse(".struct needs a struct column", where, value)
    names = [value.type.field(at).name for at in range(value.type.num_fields)]
    if name not in names:
        raise InvalidFlow(f"there is no field {name!r}{did_you_mean(name, names)}", expression=where)
    return pc.struct_field(value, names.index(name))


FUNCTIONS: dict[str, Function] = {
    "+": _arithmetic("+"),
    "-": _arithmetic("-"),
    "*": _arithmetic("*"),
    "/": _divide,
    "//": _floor_divide,
    "%": _modulo,
    "==": _comparison(pc.equal),
    "!=": _comparison(pc.not_equal),
    "<": _comparison(pc.less),
    "<=": _comparison(pc.less_equal),
    ">": _comparison(pc.greater),
    ">=": _comparison(pc.greater_equal),
    "&": _logic(pc.and_kleene, "&"),
    "|": _logic(pc.or_kleene, "|"),
    "not": _logic(pc.invert, "~"),
    "negative": _negative,
    "is_null": lambda values, options, where: pc.is_null(values[0]),
    "is_not_null": lambda values, options, where: pc.is_valid(values[0]),
    "fill_null": _fill_null,
    "cast": _cast,
    "is_in": _is_in,
    "upper": _text_function(lambda value, options: pc.utf8_upper(value)),
    "lower": _text_function(lambda value, options: pc.utf8_lower(value)),
    "contains": _text_function(contains),
    "starts_with": _text_function(lambda value, options: pc.starts_with(value, options["prefix"])),
    "ends_with": _text_function(lambda value, options: pc.ends_with(value, options["suffix"])),
    "slice": _text_function(_slice),
    "strip": _text_function(_strip),
    "len_chars": _text_function(lambda value, options: to_type(pc.utf8_length(value), pa.int64())),
    "year": _part(pc.year),
    "month": _part(pc.month),
    "day": _part(pc.day),
    "hour": _part(pc.hour),
    "minute": _part(pc.minute),
    "second": _part(pc.second),
    "weekday": _part(lambda value: pc.day_of_week(value, count_from_zero=False, week_start=1)),
    "date": _date,
    "truncate": _truncate,
    "field": _field,
}

"""What a value in JSON or CSV text means for each Arrow type: the complete, exact and slow reading, one value at a time.

It decides whenever the fast readers are surprised, so every rule of strictness stands here. A value that does not fit is refused
with a reason (`Unreadable`); nothing is rounded, wrapped, trimmed or guessed:

* integers are integer literals (``1.0`` is not one) within the type's range;
* decimals are numbers or text of a number, exact, with no more decimals (after trailing zeros) than the type takes;
* floats are finite; a decimal literal means the nearest float;
* timestamps are ISO 8601 text, or integers in the column's unit; text without a zone means UTC, and a timestamp type without a
  zone holds UTC; digits finer than the unit must be zero;
* dates are ISO text or integers in the type's unit, times of day ISO text or integers in the unit, durations integers in the unit;
* binary is the text's UTF-8 bytes; text is text only.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date
from decimal import Context, Decimal
from functools import cache
from typing import Any

import pyarrow as pa


class Unreadable(Exception):
    """Why a record cannot be read, for people. Never leaves the decoder."""


class Number(str):
    """A JSON number, as it was written."""

    __slots__ = ()


class Pairs(list[tuple[str, Any]]):
    """A JSON object, with its names as they came, also when one came twice."""

    __slots__ = ()


Reading = Callable[[Any, str], Any]

_INTEGER = re.compile(r"-?\d{1,40}", re.ASCII)
_DECIMAL = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,6})?", re.ASCII)
_FLOAT = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_DATE = re.compile(r"(\d{4})-(\d\d)-(\d\d)", re.ASCII)
_CLOCK = r"(\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,12}))?)?"
_TIME_OF_DAY = re.compile(_CLOCK, re.ASCII)
_TIMESTAMP = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)(?:[T ](\d\d)(?::(\d\d)(?::(\d\d)(?:\.(\d{1,12}))?)?)?(?:(Z)|([+-])(\d\d)(?::?(\d\d))?)?)?",
    re.ASCII,
)
_UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_EXACT = Context(prec=200, Emax=999_999, Emin=-999_999)
_EPOCH = date(1970, 1, 1).toordinal()


def shown(value: Any) -> str:
    """A value as a reason quotes it: short."""
    text = str(value) if isinstance(value, Number) else repr(value)
    if isinstance(value, Pairs):
        text = "an object"
    elif isinstance(value, list):
        text = "a list"
    elif isinstance(value, bool) or value is None:
        text = {True: "true", False: "false", None: "null"}[value]
    return text if len(text) <= 80 else text[:77] + "..."


def wrong(path: str, value: Any, kind: object) -> Unreadable:
    return Unreadable(f"field {path!r}: {shown(value)} is not of type {kind}")


@cache
def reading(kind: pa.DataType) -> Reading:
    """The function ``(value, path) -> value for pa.array`` for columns of `kind`. Nulls are None everywhere."""
    make = _maker(kind)
    if make is None:
        raise NotImplementedError(str(kind))
    value_of = make(kind)

    def read(value: Any, path: str) -> Any:
        return None if value is None else value_of(value, path)

    return read


def _maker(kind: pa.DataType) -> Callable[[pa.DataType], Reading] | None:
    is_ = pa.types
    for test, make in (
        (is_.is_boolean, _boolean),
        (is_.is_integer, _integer),
        (is_.is_float16, None),
        (is_.is_floating, _floating),
        (is_.is_decimal, _decimal),
        (lambda each: is_.is_string(each) or is_.is_large_string(each) or is_.is_string_view(each), _text),
        (lambda each: is_.is_binary(each) or is_.is_large_binary(each) or is_.is_binary_view(each), _bytes),
        (is_.is_timestamp, _timestamp),
        (is_.is_date, _date),
        (is_.is_time, _time_of_day),
        (is_.is_duration, _duration),
        (lambda each: is_.is_list(each) or is_.is_large_list(each), _list),
        (is_.is_struct, _struct),
    ):
        if test(kind):
            return make
    return None


def readable(kind: pa.DataType) -> bool:
    """Whether text can be read into `kind` at all, with everything nested in it."""
    if _maker(kind) is None:
        return False
    if pa.types.is_struct(kind):
        return all(readable(kind.field(each).type) for each in range(kind.num_fields))
    return not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) or readable(kind.value_type)


def _boolean(kind: pa.DataType) -> Reading:
    def read(value: Any, path: str) -> bool:
        if not isinstance(value, bool):
            raise wrong(path, value, kind)
        return value

    return read


def _whole(value: Any, path: str, kind: object, low: int, high: int) -> int:
    if not isinstance(value, Number) or not _INTEGER.fullmatch(value):
        if isinstance(value, Number) and value.lstrip("-").isdigit():
            raise Unreadable(f"field {path!r}: {shown(value)} is out of range for {kind}")
        raise wrong(path, value, kind)
    number = int(value)
    if not low <= number <= high:
        raise Unreadable(f"field {path!r}: {shown(value)} is out of range for {kind}")
    return number


def _integer(kind: pa.DataType) -> Reading:
    bits = kind.bit_width
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if pa.types.is_signed_integer(kind) else (0, (1 << bits) - 1)
    return lambda value, path: _whole(value, path, kind, low, high)


def _floating(kind: pa.DataType) -> Reading:
    def read(value: Any, path: str) -> float:
        if not isinstance(value, Number) or not _FLOAT.fullmatch(value):
            raise wrong(path, value, kind)
        # By way of Arrow's own reader, so that float32 is rounded once and not first to a double.
        number = pa.scalar(str(value).lstrip("+")).cast(kind).as_py()
        if number in (float("inf"), float("-inf")):
            raise Unreadable(f"field {path!r}: {shown(value)} is out of range for {kind}")
        return float(number)

    return read


def _decimal(kind: pa.DataType) -> Reading:
    def read(value: Any, path: str) -> Decimal:
        if not isinstance(value, str) or not _DECIMAL.fullmatch(value):
            raise wrong(path, value, kind)
        number = Decimal(str(value))  # exact, whatever the number of digits
        _, digits, exponent = number.as_tuple()
        assert isinstance(exponent, int)  # The pattern has no NaN or infinity.
        if -exponent > kind.scale and number:
            decimals = len("".join(map(str, digits)).rstrip("0")) - len(digits) - exponent
            if decimals > kind.scale:
                raise Unreadable(
                    f"field {path!r}: {shown(value)} has {decimals} decimals, the type {kind} takes {kind.scale}"
                )
        if number and number.adjusted() >= kind.precision - kind.scale:
            raise Unreadable(f"field {path!r}: {shown(value)} is out of range for {kind}")
        return number if exponent == -kind.scale else number.quantize(Decimal((0, (1,), -kind.scale)), context=_EXACT)

    return read


def encoded(value: Any, path: str, kind: object) -> bytes:
    if not isinstance(value, str) or isinstance(value, Number):
        raise wrong(path, value, kind)
    try:
        return value.encode()
    except UnicodeEncodeError:
        raise Unreadable(f"field {path!r}: the text has half of a surrogate pair, which is not Unicode") from None


def _text(kind: pa.DataType) -> Reading:
    def read(value: Any, path: str) -> str:
        encoded(value, path, kind)
        return str(value)

    return read


def _bytes(kind: pa.DataType) -> Reading:
    return lambda value, path: encoded(value, path, kind)


def _fraction(digits: str | None, unit: str, value: Any, path: str, kind: object) -> int:
    """Digits behind the second, in `unit`."""
    wanted = len(str(_UNITS[unit])) - 1
    given = (digits or "").rstrip("0")
    if len(given) > wanted:
        raise Unreadable(f"field {path!r}: {shown(value)} is finer than the unit of {kind}")
    return int(given.ljust(wanted, "0") or "0")


def _days(year: str, month: str, day: str, value: Any, path: str, kind: object) -> int:
    try:
        return date(int(year), int(month), int(day)).toordinal() - _EPOCH
    except ValueError:
        raise Unreadable(f"field {path!r}: {shown(value)} is not a date of the calendar, for {kind}") from None


def _within_int64(number: int, value: Any, path: str, kind: object) -> int:
    # Arrow's null-free range is all of int64, but pandas and DuckDB read the smallest as missing.
    if not -(2**63) < number < 2**63:
        raise Unreadable(f"field {path!r}: {shown(value)} is out of range for {kind}")
    return number


def _timestamp(kind: pa.DataType) -> Reading:
    unit = _UNITS[kind.unit]

    def read(value: Any, path: str) -> int:
        if isinstance(value, Number):
            return _whole(value, path, kind, -(2**63) + 1, 2**63 - 1)
        match = _TIMESTAMP.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            raise wrong(path, value, kind)
        year, month, day, hour, minute, second, fraction, _, sign, zone_hour, zone_minute = match.groups()
        if int(hour or 0) > 23 or int(minute or 0) > 59 or int(second or 0) > 59:
            raise wrong(path, value, kind)
        if int(zone_hour or 0) > 23 or int(zone_minute or 0) > 59:
            raise wrong(path, value, kind)
        days = _days(year, month, day, value, path, kind)
        seconds = days * 86_400 + int(hour or 0) * 3_600 + int(minute or 0) * 60 + int(second or 0)
        seconds -= (-1 if sign == "-" else 1) * (int(zone_hour or 0) * 3_600 + int(zone_minute or 0) * 60)
        return _within_int64(seconds * unit + _fraction(fraction, kind.unit, value, path, kind), value, path, kind)

    return read


def _date(kind: pa.DataType) -> Reading:
    def read(value: Any, path: str) -> int:
        if isinstance(value, Number):
            if pa.types.is_date32(kind):
                return _whole(value, path, kind, -(2**31), 2**31 - 1)
            number = _whole(value, path, kind, -(2**63) + 1, 2**63 - 1)
            if number % 86_400_000:
                raise Unreadable(f"field {path!r}: {shown(value)} is not a whole day, for {kind}")
            return number
        match = _DATE.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            raise wrong(path, value, kind)
        year, month, day = match.groups()
        days = _days(year, month, day, value, path, kind)
        return days if pa.types.is_date32(kind) else days * 86_400_000

    return read


def _time_of_day(kind: pa.DataType) -> Reading:
    unit = _UNITS[kind.unit]

    def read(value: Any, path: str) -> int:
        if isinstance(value, Number):
            return _whole(value, path, kind, 0, 86_400 * unit - 1)
        match = _TIME_OF_DAY.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            raise wrong(path, value, kind)
        hour, minute, second, fraction = match.groups()
        if int(hour) > 23 or int(minute) > 59 or int(second or 0) > 59:
            raise wrong(path, value, kind)
        seconds = int(hour) * 3_600 + int(minute) * 60 + int(second or 0)
        return seconds * unit + _fraction(fraction, kind.unit, value, path, kind)

    return read


def _duration(kind: pa.DataType) -> Reading:
    return lambda value, path: _whole(value, path, kind, -(2**63) + 1, 2**63 - 1)


def _list(kind: pa.DataType) -> Reading:
    item = reading(kind.value_type)
    required = not kind.value_field.nullable

    def read(value: Any, path: str) -> list[Any]:
        if not isinstance(value, list) or isinstance(value, Pairs):
            raise wrong(path, value, kind)
        if required and any(each is None for each in value):
            raise Unreadable(f"field {path!r}: an element is required, but null")
        return [item(each, f"{path}[{index}]") for index, each in enumerate(value)]

    return read


def _struct(kind: pa.DataType) -> Reading:
    fields = [kind.field(each) for each in range(kind.num_fields)]
    readings = {each.name: reading(each.type) for each in fields}

    def read(value: Any, path: str) -> dict[str, Any]:
        if not isinstance(value, Pairs):
            raise wrong(path, value, kind)
        row = read_pairs(value, readings, path + ".")
        for field in fields:
            if not field.nullable and row[field.name] is None:
                raise Unreadable(f"field {path + '.' + field.name!r} is required, but missing or null")
        return row

    return read


def read_pairs(pairs: Pairs, readings: dict[str, Reading], path: str = "") -> dict[str, Any]:
    """The known names of an object, None where missing; unknown names are ignored, a known name given twice is refused."""
    row: dict[str, Any] = {}
    for name, value in pairs:
        read = readings.get(name)
        if read is None:
            continue
        if name in row:
            raise Unreadable(f"field {path + name!r} is given twice")
        row[name] = read(value, path + name)
    for name in readings:
        row.setdefault(name, None)
    return row

"""Arrow rows as JSON text, column by column, exactly: what `flowstate.source` reads back as the same values.

* decimals, integers and floats are JSON numbers with all their digits; timestamps are ISO 8601 (with a zone: in UTC, ending in ``Z``;
  without: bare), dates and times of day ISO text, durations integers in the column's unit, as are times outside the years 1 to 9999,
  which ISO 8601 has no text for; null is ``null``;
* what JSON has no numbers for is text: ``"NaN"``, ``"Infinity"``, ``"-Infinity"``;
* binary is its text where it is UTF-8, else ``{"base64": "..."}``: a dead letter goes out whatever its bytes.

The last two are refused by a schema of numbers or binary, never misread.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_TEXT = pa.large_string()
_SPECIAL = r'["\\\x00-\x1f\x7f]'
_UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_DAY = 86_400
#: Days of the years 1 to 9999: the first one, and the one after the last.
_FIRST_DAY, _LAST_DAY = -719_162, 2_932_897
_NO_NUMBERS = {"nan": '"NaN"', "inf": '"Infinity"', "-inf": '"-Infinity"', "-nan": '"NaN"'}


def supports(kind: pa.DataType) -> bool:
    """Whether values of this type, with everything nested in it, have a JSON text."""
    is_ = pa.types
    if is_.is_dictionary(kind) or is_.is_list(kind) or is_.is_large_list(kind) or is_.is_fixed_size_list(kind):
        return supports(kind.value_type)
    if is_.is_struct(kind):
        return all(supports(kind.field(each).type) for each in range(kind.num_fields))
    return is_.is_null(kind) or _maker(kind) is not None


def rows(table: pa.Table) -> list[bytes]:
    """One JSON object per row, without a line's end."""
    found: list[bytes] = []
    for batch in table.to_batches():
        texts = _object(batch.schema.names, batch.columns, batch.num_rows)
        found += texts.cast(pa.large_binary()).to_pylist()
    return found


def arrays(table: pa.Table) -> list[bytes]:
    """One JSON array per row: its values, without names or spaces."""
    found: list[bytes] = []
    for batch in table.to_batches():
        parts: list[Any] = [_scalar("[")]
        for index, column in enumerate(batch.columns):
            parts += [_scalar(","), texts(column)] if index else [texts(column)]
        joined = pc.binary_join_element_wise(*parts, _scalar("]"), _scalar(""))
        found += joined.cast(pa.large_binary()).to_pylist()
    return found


def texts(values: pa.Array) -> pa.Array:
    """The JSON text of each value, as large_string; ``null`` for nulls, so that none is missing."""
    kind = values.type
    is_ = pa.types
    if is_.is_dictionary(kind):
        return texts(values.cast(kind.value_type))
    if is_.is_null(kind):
        return pa.array(["null"] * len(values), _TEXT)
    if is_.is_struct(kind):
        names = [kind.field(each).name for each in range(kind.num_fields)]
        return _nulled(_object(names, values.flatten(), len(values)), values)
    if is_.is_list(kind) or is_.is_large_list(kind) or is_.is_fixed_size_list(kind):
        return _nulled(_lists(values), values)
    make = _maker(kind)
    if make is None:
        raise NotImplementedError(str(kind))
    return pc.fill_null(make(values), pa.scalar("null", _TEXT))


def _maker(kind: pa.DataType) -> Callable[[pa.Array], pa.Array] | None:
    is_ = pa.types
    for test, make in (
        (is_.is_boolean, _plain),
        (is_.is_integer, _plain),
        (is_.is_floating, _floats),
        (is_.is_decimal, _plain),
        (lambda each: is_.is_string(each) or is_.is_large_string(each) or is_.is_string_view(each), _strings),
        (
            lambda each: (
                is_.is_binary(each)
                or is_.is_large_binary(each)
                or is_.is_binary_view(each)
                or is_.is_fixed_size_binary(each)
            ),
            _binaries,
        ),
        (is_.is_timestamp, _timestamps),
        (is_.is_date, _dates),
        (is_.is_time, _quoted),
        (is_.is_duration, lambda values: _plain(values.cast(pa.int64()))),
    ):
        if test(kind):
            return make
    return None


def _scalar(text: str) -> pa.Scalar:
    return pa.scalar(text, _TEXT)


def _plain(values: pa.Array) -> pa.Array:
    return values.cast(_TEXT)


def _quoted(values: pa.Array) -> pa.Array:
    return pc.binary_join_element_wise(_scalar('"'), values.cast(_TEXT), _scalar('"'), _scalar(""))


def _floats(values: pa.Array) -> pa.Array:
    found = values.cast(_TEXT)
    finite = pc.is_finite(values)
    if pc.all(finite, min_count=0).as_py():
        return found
    return pa.array([None if each is None else _NO_NUMBERS.get(each, each) for each in found.to_pylist()], _TEXT)


def _strings(values: pa.Array) -> pa.Array:
    values = values.cast(_TEXT)
    special = pc.match_substring_regex(values, _SPECIAL)
    found = _quoted(values)
    if not pc.any(special, min_count=0).as_py():
        return found
    escaped = [json.dumps(each, ensure_ascii=False) for each in values.filter(special).to_pylist()]
    return pc.replace_with_mask(found, pc.fill_null(special, False), pa.array(escaped, _TEXT))


def _binaries(values: pa.Array) -> pa.Array:
    values = values.cast(pa.large_binary())
    try:
        return _strings(values.cast(_TEXT))
    except pa.ArrowInvalid:
        return pa.array([_binary(each) for each in values.to_pylist()], _TEXT)


def _binary(value: bytes | None) -> str | None:
    if value is None:
        return None
    try:
        return json.dumps(value.decode(), ensure_ascii=False)
    except UnicodeDecodeError:
        return json.dumps({"base64": b64encode(value).decode()})


def _timestamps(values: pa.Array) -> pa.Array:
    unit = _UNITS[values.type.unit]
    numbers = values.cast(pa.int64())
    if values.type.tz is not None:
        values = values.cast(pa.timestamp(values.type.unit, "UTC"))
    return _dated(_quoted(pc.replace_substring(values.cast(_TEXT), " ", "T")), numbers, _DAY * unit)


def _dates(values: pa.Array) -> pa.Array:
    if pa.types.is_date32(values.type):
        return _dated(_quoted(values), values.cast(pa.int32()).cast(pa.int64()), 1)
    return _dated(_quoted(values), values.cast(pa.int64()), _DAY * 1000)


def _dated(found: pa.Array, numbers: pa.Array, day: int) -> pa.Array:
    """`found`, but `numbers` (of which `day` make a day) where they are outside of the years that have a text."""
    low, high = max(_FIRST_DAY * day, -(2**63)), min(_LAST_DAY * day - 1, 2**63 - 1)
    known = pc.and_(pc.greater_equal(numbers, low), pc.less_equal(numbers, high))
    return found if pc.all(known, min_count=0).as_py() else pc.if_else(known, found, numbers.cast(_TEXT))


def _object(names: Sequence[str], columns: Sequence[pa.Array], count: int) -> pa.Array:
    """Objects of these columns; their own nulls are the caller's."""
    if not names:
        return pa.array(["{}"] * count, _TEXT)
    parts: list[Any] = []
    for index, (name, column) in enumerate(zip(names, columns, strict=True)):
        parts += [_scalar(f"{',' if index else '{'}{json.dumps(name, ensure_ascii=False)}:"), texts(column)]
    return pc.binary_join_element_wise(*parts, _scalar("}"), _scalar(""))


def _lists(values: pa.Array) -> pa.Array:
    lengths = np.asarray(pc.fill_null(pc.list_value_length(values), 0))
    ends = np.cumsum(lengths)
    items = texts(values.flatten()).to_pylist()
    places = zip((ends - lengths).tolist(), ends.tolist(), strict=True)
    return pa.array([f"[{','.join(items[start:end])}]" for start, end in places], _TEXT)


def _nulled(found: pa.Array, values: pa.Array) -> pa.Array:
    return pc.if_else(values.is_null(), _scalar("null"), found) if values.null_count else found

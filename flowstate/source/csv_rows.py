"""One CSV record -> one row: the complete slow reader (see `values` for what a value means).

Fields are separated by commas; a field may be quoted, with a quote in it doubled (RFC 4180), but not over a line's end. An empty
unquoted field is null; a quoted empty one is the empty text. Numbers are bare or quoted. ``true`` and ``false`` are the booleans.
A `Dialect` says where a file has other signs, numbers or times; a value is then read by it alone, and never in two ways.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from flowstate.errors import did_you_mean
from flowstate.plan.dialect import Dialect
from flowstate.source.values import Number, Unreadable, reading, shown

_JSON_LIKE = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?", re.ASCII)
_WITH_COMMA = re.compile(r"([+-]?)(\d{1,3}(?:\.\d{3})+|\d+)(?:,(\d*))?", re.ASCII)
_EPOCH = datetime.datetime(1970, 1, 1)
_STANDARD = Dialect()


def split_line(text: str, delimiter: str = ",") -> list[str | None]:
    """The fields of one record; None for an empty unquoted one. Raises `Unreadable`."""
    fields: list[str | None] = []
    at = 0
    while True:
        if text.startswith('"', at):
            value, at = _quoted(text, at)
            fields.append(value)
            if at < len(text) and text[at] != delimiter:
                raise Unreadable(f"not CSV: text follows the closing quote of field {len(fields)}")
        else:
            end = text.find(delimiter, at)
            end = len(text) if end < 0 else end
            value = text[at:end]
            if '"' in value:
                raise Unreadable(f"not CSV: a quote within the unquoted field {len(fields) + 1}")
            fields.append(value or None)
            at = end
        if at >= len(text):
            return fields
        at += 1


def _quoted(text: str, at: int) -> tuple[str, int]:
    parts = []
    at += 1
    while True:
        end = text.find('"', at)
        if end < 0:
            raise Unreadable("not CSV: a quote is not closed on its line")
        parts.append(text[at:end])
        if not text.startswith('"', end + 1):
            return "".join(parts), end + 1
        parts.append('"')
        at = end + 2


def decoded(raw: bytes, encoding: str = "utf-8") -> str:
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        name = "UTF-8" if encoding == "utf-8" else encoding
        raise Unreadable(f"not {name}: {error.reason} at byte {error.start}") from None


def header_names(line: bytes, schema: pa.Schema, dialect: Dialect) -> list[str]:
    """The names of the columns, of which those that are not in `schema` are not read. Raises `Unreadable`, with what to do, where the
    line cannot be read or surely means a column of `schema` by another name; a column that it merely lacks is null in all rows."""
    try:
        text = decoded(line, dialect.encoding)
        names = [each or "" for each in split_line(text, dialect.delimiter)]
    except Unreadable as reason:
        said = f"the header cannot be read: {reason}"
        if str(reason).startswith("not CSV"):
            raise Unreadable(
                f"{said}; {_other_sign(text, schema, dialect) or 'correct the file'}, {_NO_HEADER}"
            ) from None
        raise Unreadable(f"{said}; pass encoding= with the one that it has, such as encoding='cp1252'") from None
    missing = [each for each in schema.names if each not in names]
    unknown = [each for each in names if each not in schema.names]
    if len(missing) == len(schema.names):
        what = _other_sign(text, schema, dialect) or "correct the schema"
        shown_names = ", ".join(map(repr, names[:20]))
        raise Unreadable(f"the header has none of the schema's columns, it has {shown_names}; {what}, {_NO_HEADER}")
    for each in missing:
        alike = next((other for other in unknown if _letters(other) == _letters(each)), None)
        hint = did_you_mean(each, unknown) if alike is None else f"; did you mean {alike!r}?"
        if "did you mean" in hint:
            raise Unreadable(f"the header has no column {each!r}{hint} name the schema's columns as the file does")
    return names


_NO_HEADER = "or pass header=False if it has no header"


def _other_sign(text: str, schema: pa.Schema, dialect: Dialect) -> str | None:
    for sign in ",;\t|":
        try:
            if sign != dialect.delimiter and set(split_line(text, sign)) & set(schema.names):
                return f"pass delimiter={sign!r}"
        except Unreadable:
            continue
    return None


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name)).casefold()


class CsvRows:
    """Reads records into rows of `schema`. `header` names the fields of a record; without it they are the schema's, in order."""

    def __init__(self, schema: pa.Schema, header: Sequence[str] | None = None, dialect: Dialect = _STANDARD) -> None:
        self._dialect = dialect
        self._names = list(header) if header is not None else list(schema.names)
        self._twice = sorted({each for each in self._names if self._names.count(each) > 1} & set(schema.names))
        self._fields = {each.name: (reading(each.type), each.type) for each in schema}

    def read(self, raw: bytes) -> dict[str, Any]:
        """Raises `Unreadable`."""
        text = decoded(raw.rstrip(b"\r\n"), self._dialect.encoding)
        if "\n" in text or "\r" in text or "\0" in text:
            raise Unreadable("not CSV: a line's end or a zero byte within the record")
        if self._twice:
            raise Unreadable(f"not CSV of this schema: the header names {self._twice[0]!r} twice")
        values = split_line(text, self._dialect.delimiter)
        if len(values) != len(self._names):
            raise Unreadable(f"not CSV of this schema: {len(values)} fields where {len(self._names)} are expected")
        row: dict[str, Any] = dict.fromkeys(self._fields)
        for name, value in zip(self._names, values, strict=True):
            if name in self._fields and value is not None:
                read, kind = self._fields[name]
                row[name] = read(self._typed(value, kind, name), name)
        return row

    def _typed(self, value: str, kind: pa.DataType, name: str) -> Any:
        if self._dialect.time_formats and (pa.types.is_timestamp(kind) or pa.types.is_date(kind)):
            return _moment(value, kind, name, self._dialect.time_formats)
        if self._dialect.decimal_point == "," and _is_number(kind):
            value = _with_point(value, kind, name)
        return _typed(value, kind)


def _typed(value: str, kind: pa.DataType) -> Any:
    """Text of a field as the JSON value that it stands for: CSV itself has no types."""
    is_ = pa.types
    if is_.is_boolean(kind):
        return {"true": True, "false": False}.get(value, value)
    if is_.is_decimal(kind) or is_.is_string(kind) or is_.is_large_string(kind) or is_.is_string_view(kind):
        return value
    if is_.is_binary(kind) or is_.is_large_binary(kind) or is_.is_binary_view(kind):
        return value
    return Number(value) if _JSON_LIKE.fullmatch(value) else value


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _with_point(value: str, kind: pa.DataType, name: str) -> str:
    """``-1.234,50`` as ``-1234.50``."""
    match = _WITH_COMMA.fullmatch(value)
    if match is None:
        raise Unreadable(f"field {name!r}: {shown(value)} is not of type {kind}, with the decimal point ','")
    sign, whole, fraction = match.groups()
    return f"{'-' * (sign == '-')}{whole.replace('.', '')}{'.' + fraction if fraction else ''}"


def _moment(value: str, kind: pa.DataType, name: str, formats: Sequence[str]) -> Number:
    """A time or date in the unit of `kind`, as the integer literal that stands for it; without a zone it is UTC."""
    for each in formats:
        try:
            found = datetime.datetime.strptime(value, each)
        except ValueError:
            continue
        if found.tzinfo is not None:
            found = found.astimezone(datetime.UTC).replace(tzinfo=None)
        microseconds = (found - _EPOCH) // datetime.timedelta(microseconds=1)
        if pa.types.is_date(kind):
            unit, per_unit = "day", 86_400_000_000
        else:
            unit, per_unit = "unit", {"s": 1_000_000, "ms": 1_000}.get(kind.unit, 1)
        if microseconds % per_unit:
            raise Unreadable(f"field {name!r}: {shown(value)} is finer than the {unit} of {kind}")
        number = microseconds // per_unit
        if pa.types.is_date64(kind):
            number *= 86_400_000
        elif pa.types.is_timestamp(kind) and kind.unit == "ns":
            number *= 1_000
        return Number(number)
    raise Unreadable(
        f"field {name!r}: {shown(value)} is not written like {' or '.join(map(repr, formats))} (time_format)"
    )

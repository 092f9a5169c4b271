"""One CSV record -> one row: the complete slow reader (see `values` for what a value means).

Fields are separated by commas; a field may be quoted, with a quote in it doubled (RFC 4180), but not over a line's end. An empty
unquoted field is null; a quoted empty one is the empty text. Numbers are bare or quoted. ``true`` and ``false`` are the booleans.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from flowstate.source.values import Number, Unreadable, reading

_JSON_LIKE = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?", re.ASCII)


def split_line(text: str) -> list[str | None]:
    """The fields of one record; None for an empty unquoted one. Raises `Unreadable`."""
    fields: list[str | None] = []
    at = 0
    while True:
        if text.startswith('"', at):
            value, at = _quoted(text, at)
            fields.append(value)
            if at < len(text) and text[at] != ",":
                raise Unreadable(f"not CSV: text follows the closing quote of field {len(fields)}")
        else:
            end = text.find(",", at)
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


def decoded(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise Unreadable(f"not UTF-8: {error.reason} at byte {error.start}") from None


class CsvRows:
    """Reads records into rows of `schema`. `header` names the fields of a record; without it they are the schema's, in order."""

    def __init__(self, schema: pa.Schema, header: Sequence[str] | None = None) -> None:
        self._names = list(header) if header is not None else list(schema.names)
        self._twice = sorted({each for each in self._names if self._names.count(each) > 1} & set(schema.names))
        self._fields = {each.name: (reading(each.type), each.type) for each in schema}

    def read(self, raw: bytes) -> dict[str, Any]:
        """Raises `Unreadable`."""
        text = decoded(raw.rstrip(b"\r\n"))
        if "\n" in text or "\r" in text or "\0" in text:
            raise Unreadable("not CSV: a line's end or a zero byte within the record")
        if self._twice:
            raise Unreadable(f"not CSV of this schema: the header names {self._twice[0]!r} twice")
        values = split_line(text)
        if len(values) != len(self._names):
            raise Unreadable(f"not CSV of this schema: {len(values)} fields where {len(self._names)} are expected")
        row: dict[str, Any] = dict.fromkeys(self._fields)
        for name, value in zip(self._names, values, strict=True):
            if name in self._fields and value is not None:
                read, kind = self._fields[name]
                row[name] = read(_typed(value, kind), name)
        return row


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

"""Many JSON records at once with pyarrow.json, where that is certain to agree with `json_rows`; otherwise no answer.

What Arrow's reader lets pass or does otherwise than `json_rows`, and what is done about it (tests hold both to each other):

* record boundaries, ``NaN``, invalid UTF-8, control characters, exponents where there are decimals: `json_scan` keeps such records
  away from it;
* decimals may wrap on the way to their scale, and come out between the number as written and the type's limit, where precision and
  scale are together more than 38: such columns are read in 256 bits first;
* decimals above their precision (``12345678901`` as decimal128(12, 2)) and infinite floats pass: the result is checked;
* timestamps and dates come as text or as numbers, never both in one column: each column remembers which it saw last, and the
  first record of a refused block tells whether that has changed;
* types that it reads differently or not at all, and required fields inside structs: the schema is left to the slow reader.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from flowstate.source.json_rows import PARSER
from flowstate.source.json_scan import certain_records
from flowstate.source.records import Records
from flowstate.source.values import Number, Unreadable

MAX_BLOCK_BYTES = 1 << 28
_ROW = re.compile(r"in row (\d+)")


class Surprise(Exception):
    """The result is not certain."""


class JsonBlock:
    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema.remove_metadata()
        self._eligible = (
            len(schema) > 0 and len(set(schema.names)) == len(schema) and all(_known(e.type) for e in schema)
        )
        self._decimals = any(_has_decimals(each.type) for each in schema)
        #: Columns that come as text or as numbers: True for text.
        self._text = {e.name: True for e in schema if pa.types.is_timestamp(e.type) or pa.types.is_date32(e.type)}

    def certain(self, records: Records) -> np.ndarray[Any, np.dtype[np.bool_]]:
        if not self._eligible:
            return np.zeros(len(records), np.bool_)
        return certain_records(records.buffer, records.starts, records.ends, exponents=not self._decimals)

    def read(
        self, records: Records, rows: np.ndarray[Any, np.dtype[np.int64]]
    ) -> tuple[pa.RecordBatch | None, int | None]:
        """The rows, or None and, if it can be told, the place in `rows` of the record that was refused."""
        data = _joined(records, rows)
        if len(data) > MAX_BLOCK_BYTES:
            return None, None
        batch, culprit = self._parse(data, len(rows))
        if batch is None and self._text and self._learn(records.raw(int(rows[culprit or 0]))):
            batch, culprit = self._parse(data, len(rows))
        return batch, culprit

    def _parse(self, data: bytes, count: int) -> tuple[pa.RecordBatch | None, int | None]:
        wanted = pa.schema([pa.field(each.name, self._read_as(each)) for each in self._schema])
        try:
            table = pj.read_json(
                pa.BufferReader(data),
                read_options=pj.ReadOptions(use_threads=False, block_size=len(data) + 1),
                parse_options=pj.ParseOptions(explicit_schema=wanted, unexpected_field_behavior="ignore"),
            )
            if table.num_rows != count:
                return None, None
            columns = []
            for each in self._schema:
                column = table.column(each.name)
                column = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
                columns.append(_finished(column, each.type))
        except Surprise:
            return None, None
        except pa.ArrowException as error:
            found = _ROW.search(str(error))
            return None, min(int(found.group(1)), count - 1) if found else None
        return pa.RecordBatch.from_arrays(columns, schema=self._schema), None

    def _read_as(self, field: pa.Field) -> pa.DataType:
        """The type that Arrow's reader is asked for."""
        kind = field.type
        if pa.types.is_timestamp(kind):
            return kind if self._text[field.name] else pa.int64()
        if pa.types.is_date32(kind):
            return pa.string() if self._text[field.name] else pa.int32()
        if _may_wrap(kind):
            return pa.decimal256(76, kind.scale)
        return pa.string() if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) else kind

    def _learn(self, raw: bytes) -> bool:
        """Whether the first record of the block has text where numbers were expected, or the other way round."""
        try:
            pairs = PARSER.decode(raw.decode())
        except (ValueError, Unreadable):
            return False
        changed = False
        for name, value in pairs:
            if name in self._text and isinstance(value, str):
                text = not isinstance(value, Number)
                changed = changed or text != self._text[name]
                self._text[name] = text
        return changed


def _joined(records: Records, rows: np.ndarray[Any, np.dtype[np.int64]]) -> bytes:
    """The records one after another: a piece of the buffer if nothing but a line's end is between them."""
    starts, ends = records.starts[rows], records.ends[rows]
    if len(rows) == 1 or int((starts[1:] - ends[:-1]).max()) <= 1:
        return records.buffer[int(starts[0]) : int(ends[-1])]
    buffer = records.buffer
    return b"\n".join([buffer[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)])


def _has_decimals(kind: pa.DataType) -> bool:
    inner = [kind.field(each).type for each in range(kind.num_fields)]
    return pa.types.is_decimal(kind) or any(_has_decimals(each) for each in inner)


def _may_wrap(kind: pa.DataType) -> bool:
    return bool(pa.types.is_decimal128(kind) and kind.precision + kind.scale > 38)


def _known(kind: pa.DataType, nested: bool = False) -> bool:
    """Whether Arrow's reader is known to agree on this type."""
    is_ = pa.types
    plain: tuple[Callable[[pa.DataType], bool], ...] = (
        is_.is_boolean,
        is_.is_integer,
        is_.is_float32,
        is_.is_float64,
        is_.is_string,
        is_.is_large_string,
        is_.is_decimal128,
    )
    if any(each(kind) for each in plain):
        return not (nested and _may_wrap(kind))
    if is_.is_list(kind):
        return bool(kind.value_field.nullable) and _known(kind.value_type, True)
    if is_.is_struct(kind):
        fields = [kind.field(each) for each in range(kind.num_fields)]
        names = {each.name for each in fields}
        return 0 < len(names) == len(fields) and all(each.nullable and _known(each.type, True) for each in fields)
    if nested:
        return False
    if is_.is_timestamp(kind):
        # In nanoseconds the text of years outside 1677 to 2262 would wrap.
        return bool(kind.unit != "ns")
    return bool(is_.is_date32(kind) or is_.is_binary(kind) or is_.is_large_binary(kind))


def _finished(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """`column` as `kind`. Raises `Surprise` where `json_rows` may say otherwise."""
    is_ = pa.types
    if is_.is_timestamp(kind) and column.type == pa.int64():
        if pc.any(pc.equal(column, -(2**63))).as_py():
            raise Surprise
        return column.cast(kind)
    if is_.is_date32(kind):
        if column.type == pa.int32():
            return column.cast(kind)
        if not pc.all(pc.match_substring_regex(column, r"^\d{4}-\d{2}-\d{2}$")).as_py() and column.null_count < len(
            column
        ):
            raise Surprise
        return column.cast(kind)
    if column.type != kind and (is_.is_binary(kind) or is_.is_large_binary(kind) or is_.is_decimal128(kind)):
        return column.cast(kind)
    _check(column)
    return column


def _check(column: pa.Array) -> None:
    kind = column.type
    if pa.types.is_floating(kind):
        if not pc.all(pc.is_finite(column), min_count=0).as_py():
            raise Surprise
    elif pa.types.is_decimal128(kind):
        _check_precision(column)
    elif pa.types.is_list(kind):
        _check(column.flatten())
    elif pa.types.is_struct(kind):
        for each in column.flatten():
            _check(each)


def _check_precision(column: pa.Array) -> None:
    """Every value has at most as many digits as the type."""
    if column.null_count == len(column):
        return
    precision = column.type.precision
    words = np.frombuffer(column.buffers()[1], np.int64)[2 * column.offset : 2 * (column.offset + len(column))]
    low, high = words[0::2], words[1::2]
    if precision <= 18:
        limit = 10**precision
        fits = (high == low >> 63) & (low > -limit) & (low < limit)
        if column.null_count:
            fits |= np.asarray(column.is_null())
        if not fits.all():
            raise Surprise
        return
    limits = pc.min_max(column).as_py()
    largest = 10 ** (precision - column.type.scale)
    if limits["min"] <= -largest or limits["max"] >= largest:
        raise Surprise

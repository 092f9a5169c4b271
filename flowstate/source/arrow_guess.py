"""The fast reader of Arrow IPC records: it guesses that a stream is built like one before it, and copies its columns at once.

Streams of one producer have the same schema, and heads of batches that differ only in numbers: how many rows there are, and where in the
body each buffer is. So one stream is looked at closely, and all that agree with it byte for byte, but for these numbers, are read by a
kernel (`kernels.batches`) into the columns of one batch. The contract:

* What is taken is what `arrow_rows` accepts, and every value is the same. Which records are taken may change from block to block with what
  was learned; what a record means may not.
* What is not certain is left, as a whole record: other schemas and types, compressed and dictionary batches, empty batches, the file
  format, and whatever does not add up. That is no refusal: `arrow_rows` decides.
* Where nothing can be learned, it looks again after ever more records.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from flowstate.plan.kernel import compiling
from flowstate.source.arrow_rows import MAX_ROWS, ArrowRows
from flowstate.source.kernels import batches as kernel
from flowstate.source.records import Records
from flowstate.source.room import Room
from flowstate.source.values import Unreadable

MAX_TEMPLATES = 4
MAX_BLOCK_BYTES = 1 << 28
FIRST_PERIOD, LAST_PERIOD = 4, 1 << 16

_MESSAGE_HEADER, _MESSAGE_BODY = 2, 3
_BATCH_LENGTH, _BATCH_NODES, _BATCH_BUFFERS, _BATCH_COMPRESSION, _BATCH_VARIADIC = range(5)
_SCHEMA_ENDIANNESS = 0
_SCHEMA, _BATCH = 1, 3  # kinds of messages

Numbers = np.ndarray[Any, np.dtype[np.int64]]
Words = np.ndarray[Any, np.dtype[np.uint64]]


class _Template(NamedTuple):
    """A stream as the kernel wants it. `types` are of all its columns, `wanted` which of them the rows have."""

    prefix: Words
    head: Words
    mask: Words
    places: Numbers
    columns: Numbers
    types: list[pa.DataType]
    wanted: list[int]


class ArrowGuess:
    """Reads what it can of blocks of one scan's records. Keeps what it learned from block to block."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema.remove_metadata()
        self._slow = ArrowRows(schema)
        self._templates: list[_Template] = []
        self._wait, self._period = 0, FIRST_PERIOD  # so many records before it may learn, if it cannot now

    def read(self, records: Records) -> list[tuple[pa.RecordBatch, Numbers]]:
        """Pieces: rows, and the number of the record that each is of. A record is in one piece, or in none."""
        pieces: list[tuple[pa.RecordBatch, Numbers]] = []
        rest = np.arange(len(records), dtype=np.int64)
        if int((records.ends - records.starts).sum()) > MAX_BLOCK_BYTES:
            return pieces
        for template in self._templates:
            rest = self._follow(template, records, rest, pieces)
        if len(rest) and self._wait <= 0:
            left = len(rest)
            learned = self._learn(records.raw(int(rest[0])))
            if learned is not None:
                self._templates = [learned, *self._templates[: MAX_TEMPLATES - 1]]
                rest = self._follow(learned, records, rest, pieces)
            self._period = FIRST_PERIOD if len(rest) < left else min(4 * self._period, LAST_PERIOD)
            self._wait = self._period
        self._wait -= len(rest)
        return pieces

    def _follow(
        self, template: _Template, records: Records, rows: Numbers, pieces: list[tuple[pa.RecordBatch, Numbers]]
    ) -> Numbers:
        """Read those of these records that are built like the template; returns the others."""
        if not len(rows):
            return rows
        buffer, columns = pa.py_buffer(records.buffer), template.columns.copy()
        counts = np.empty(len(rows), np.int64)
        starts, ends, built = records.starts[rows], records.ends[rows], (template.prefix, template.head, template.mask)
        total = kernel.count_rows(buffer.address, starts, ends, *built, template.places, MAX_ROWS, columns, counts)
        if (counts < 0).all():
            return rows
        rooms = [
            Room(kind, total, width, size)
            for kind, width, size in zip(
                template.types, columns[:, kernel.WIDTH].tolist(), columns[:, kernel.SIZE].tolist(), strict=True
            )
        ]
        for column, room in zip(columns, rooms, strict=True):
            room.valid[:total] = 1
            column[kernel.VALUES : kernel.VALID + 1] = room.addresses()
        sizes = template.prefix.nbytes, template.head.nbytes
        read = kernel.read_batches(buffer.address, starts, *sizes, template.places, columns, counts)
        arrays = [each.array(read) for each in rooms]
        try:
            for array, foreign in zip(arrays, columns[:, kernel.FOREIGN].tolist(), strict=True):
                if foreign and pa.types.is_string(array.type):
                    array.validate(full=True)
        except pa.ArrowException:
            return rows  # somebody's text is not UTF-8: `arrow_rows` will say whose
        taken = counts >= 0
        wanted = [arrays[each] for each in template.wanted]
        pieces.append((pa.RecordBatch.from_arrays(wanted, schema=self._schema), np.repeat(rows[taken], counts[taken])))
        return rows[~taken]

    def _learn(self, raw: bytes) -> _Template | None:
        """How this stream is built, if others can be read by that."""
        try:
            self._slow.read(raw)
            schema = pa.ipc.open_stream(raw).schema
            prefix = _size(raw, 0)
            built = _built(raw, prefix)
        except (Unreadable, pa.ArrowException, OSError, ValueError, struct.error, IndexError):
            return None
        kinds = [_kind(each.type) for each in schema]
        names = schema.names
        if built is None or not _is_little_endian(raw) or any(each is None for each in kinds):
            return None
        if any(names.count(each.name) != 1 or schema.field(each.name).type != each.type for each in self._schema):
            return None
        size, rows_at, body_at, nodes, buffers = built
        mask = np.full(size, 0xFF, np.uint8)
        known = [each for each in kinds if each is not None]
        counts = [3 if kind == kernel.TEXT else 2 for kind, _ in known]
        bits = sum({kernel.TEXT: 32, kernel.BOOLEAN: 1}.get(kind, 8 * width) for kind, width in known)
        if len(nodes) != len(known) or len(buffers) != sum(counts) or prefix % 8 or size % 8:
            return None
        for at, width in ((rows_at, 8), (body_at, 8), *((each, 16) for each in (*nodes, *buffers))):
            mask[at : at + width] = 0
        columns, first = np.zeros((len(known), kernel.FIELDS), np.int64), 0
        for line, field, (kind, width), node, count in zip(columns, schema, known, nodes, counts, strict=True):
            line[kernel.KIND], line[kernel.WIDTH], line[kernel.NODE] = kind, width, node
            line[kernel.BUFFERS], first = buffers[first], first + count
            line[kernel.FOREIGN] = pa.types.is_binary(field.type)  # need not be looked at
            if kind == kernel.DECIMAL:
                limit = 10**field.type.precision
                line[kernel.LIMIT : kernel.LIMIT_HIGH + 1] = np.array([limit % 2**64, limit >> 64], np.uint64).view(
                    np.int64
                )
        return _Template(
            np.frombuffer(raw[:prefix], np.uint64), np.frombuffer(raw[prefix : prefix + size], np.uint64),
            mask.view(np.uint64), np.array([rows_at, body_at, bits], np.int64), columns, list(schema.types),
            [names.index(each) for each in self._schema.names],
        )  # fmt: skip


def _kind(kind: pa.DataType) -> tuple[int, int] | None:
    """How a column of this type is read, and the bytes of a value; None if it is not. (Of times of day and date64, Arrow checks more.)"""
    types = pa.types
    if types.is_string(kind) or types.is_binary(kind):
        return kernel.TEXT, 0
    if types.is_boolean(kind):
        return kernel.BOOLEAN, 1
    if types.is_decimal128(kind):
        return kernel.DECIMAL, 16
    plain = (types.is_integer, types.is_floating, types.is_timestamp, types.is_duration, types.is_date32)
    return (kernel.FIXED, kind.bit_width // 8) if any(each(kind) for each in plain) else None


def _built(raw: bytes, at: int) -> tuple[int, int, int, list[int], list[int]] | None:
    """Of the batch at `at`: the size of its head, and where in this are the number of rows, the size of the body, the nodes, the buffers.
    None if there is none, or it is compressed."""
    size, message = _size(raw, at), _message(raw, at)
    body, kind = _field(raw, message, _MESSAGE_BODY), _field(raw, message, 1)
    if not body or not kind or raw[kind] != _BATCH:
        return None
    batch = _pointed(raw, _field(raw, message, _MESSAGE_HEADER))
    rows = _field(raw, batch, _BATCH_LENGTH)
    if not rows or _field(raw, batch, _BATCH_COMPRESSION) or _field(raw, batch, _BATCH_VARIADIC):
        return None
    nodes, buffers = (
        [vector + 4 + 16 * each - at for each in range(_int(raw, vector))]
        for vector in (_pointed(raw, _field(raw, batch, number)) for number in (_BATCH_NODES, _BATCH_BUFFERS))
    )
    return size, rows - at, body - at, nodes, buffers


def _is_little_endian(raw: bytes) -> bool:
    message = _message(raw, 0)
    schema = _pointed(raw, _field(raw, message, _MESSAGE_HEADER))
    endianness = _field(raw, schema, _SCHEMA_ENDIANNESS)
    return raw[_field(raw, message, 1)] == _SCHEMA and (not endianness or raw[endianness : endianness + 2] == b"\0\0")


def _size(raw: bytes, at: int) -> int:
    """Of the head of the message at `at`."""
    if raw[at : at + 4] != b"\xff\xff\xff\xff":
        raise ValueError("not a message")
    return 8 + _int(raw, at + 4)


def _message(raw: bytes, at: int) -> int:
    return _pointed(raw, at + 8)


def _pointed(raw: bytes, at: int) -> int:
    """What the offset at `at` points to."""
    return at + _int(raw, at)


def _field(raw: bytes, table: int, number: int) -> int:
    """Where a field of a flatbuffer's table is; 0 if it is not there."""
    described = table - _int(raw, table)
    size, place = struct.unpack_from("<H", raw, described)[0], 4 + 2 * number
    offset = struct.unpack_from("<H", raw, described + place)[0] if place < size else 0
    return table + int(offset) if offset else 0


def _int(raw: bytes, at: int) -> int:
    return int(struct.unpack_from("<i", raw, at)[0])


def warm_up() -> None:
    """Compile the kernels, or load them from disk, so that no block waits for it."""
    with compiling():
        schema = pa.schema([("a", pa.int64())])
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, schema) as writer:
            writer.write_batch(pa.record_batch({"a": [1]}, schema=schema))
        raw, first = sink.getvalue().to_pybytes(), np.array([0], np.int64)
        ArrowGuess(schema).read(Records(raw, first, first + len(raw), first))

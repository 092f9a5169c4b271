"""The rows of a lookup as one Arrow message, written by one kernel: for tables whose results are the words of their state.

A message of Arrow (a record batch as it is sent) has a head, a flatbuffer whose form follows from the schema, and a body. The head is made
once, by Arrow; for each lookup only its numbers change: how many rows there are, and where each buffer is. One call reads the message as a
batch on the same memory. What cannot be written so is made column by column (`lookup.Found`), which gives the same.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from flowstate.plan.keys import KeyColumns
from flowstate.state.aggregate import Aggregate, Count, Extreme, Length, Ordered, Sum
from flowstate.state.kernels import message as kernels

if TYPE_CHECKING:
    from flowstate.state.chunk import Layout

Int64s = npt.NDArray[np.int64]
#: Types of keys that are in the answer as they were in the question, by id, with their bytes; 0 is text.
_KEYS = {
    pa.string().id: 0, pa.binary().id: 0, pa.int64().id: 8, pa.uint64().id: 8, pa.timestamp("us").id: 8, pa.date64().id: 8,
    pa.float64().id: 8, pa.decimal128(1).id: 16,
}  # fmt: skip
_LINE = 64


class Message:
    """How the rows of one table are written."""

    def __init__(self, schema: pa.Schema, program: list[list[int]]) -> None:
        self._schema = schema
        self._head, self._length_at, self._body_at, nodes, buffers = _head(schema)
        for line, node in zip(program, nodes, strict=True):
            line[kernels.NODE], line[kernels.BUFFER] = node, next(buffers)
            for _ in range(2 if line[kernels.MADE_OF] == kernels.TEXT else 1):
                next(buffers)
        self._program = np.array(program, np.int64).reshape(-1, kernels.LINE)
        # A row in every column, in pairs for offsets; and where columns begin at lines of the cache, what is left of these.
        self._row_bytes = sum(max(line[kernels.WIDTH], 8) for line in program) + len(program)
        self._fixed = len(self._head) + 4 * _LINE * len(program)

    @staticmethod
    def of(layout: Layout) -> Message | None:
        """None if some key or result is not made of words as they are."""
        spec, program = layout.spec, []
        for number, key in enumerate(spec.keys):
            width = _KEYS.get(key.type.id)
            if width is None:
                return None
            program.append(_line(kernels.KEY if width else kernels.TEXT, number, width))
        if spec.window is not None:
            if spec.time_type is None or not (
                pa.types.is_timestamp(spec.time_type) or pa.types.is_date64(spec.time_type)
            ):
                return None
            program += [_line(kernels.EDGE, side, 8) for side in (0, 1)]
        for each in layout.visible:
            line = _result(each)
            if line is None:
                return None
            program.append(line)
        return Message(layout.schema, program) if program else None

    def write(
        self, pointers: npt.NDArray[np.uint64], slots: Int64s, shift: int, places: Int64s, of_keys: Int64s, rows: int, text: int,
        keys: KeyColumns, edges: Int64s,
    ) -> pa.Buffer | None:  # fmt: skip
        """The message of the `rows` rows at `places` of `slots`, whose keys are those at `of_keys` and have `text` bytes of text in all,
        and which `edges` are the windows of. None if a result does not fit its type."""
        memory = pa.allocate_buffer(self._fixed + rows * self._row_bytes + text)
        written = kernels.write(
            self._head, self._length_at, self._body_at, self._program, keys.described, edges, pointers, shift, slots, places, of_keys, rows,
            memory.address,
        )  # fmt: skip
        return memory if written else None

    def read(self, message: pa.Buffer) -> pa.RecordBatch:
        """The rows, on the message's memory."""
        return pa.ipc.read_record_batch(message, self._schema)


def _line(made_of: int, source: int, width: int, flags: int = 0, least: int = 0, most: int = 0) -> list[int]:
    return [made_of, source, width, flags, 0, 0, least, most]


def _result(each: Aggregate) -> list[int] | None:
    """How a result is made of the state; None if it takes more than words of it."""
    kind, state = each.spec.result_type, each.columns[-1].type
    types = pa.types
    if type(each) in (Length, Count):
        return _line(kernels.STATE, each.first, 8) if kind == pa.int64() else None
    if type(each) is Sum:
        if types.is_float64(state):
            return _line(kernels.STATE, each.first, 8) if types.is_float64(kind) else None
        if not types.is_decimal128(state):
            return None
        if types.is_decimal128(kind):
            return _line(kernels.STATE, each.first, 16) if kind.precision == 38 else None
        if types.is_int64(kind):
            return _line(kernels.NARROW, each.first, 16, 0, -(1 << 63), (1 << 63) - 1)
        return _line(kernels.NARROW, each.first, 16) if types.is_uint64(kind) else None
    if type(each) in (Extreme, Ordered):
        same = state == kind or (types.is_decimal128(state) and types.is_decimal128(kind))
        if same or (types.is_int64(state) and (types.is_timestamp(kind) or types.is_date64(kind))):
            width = 0 if state == pa.large_binary() else state.bit_width // 8
            value = each.first + len(each.columns) - 1
            return _line(kernels.FLAGGED, value, width, each.first) if width in (8, 16) else None
    return None


def _head(schema: pa.Schema) -> tuple[npt.NDArray[np.uint8], int, int, range, Iterator[int]]:
    """The head that Arrow gives a batch of `schema`, and where in it are: the number of rows, the size of the body, the nodes (a row each),
    the buffers."""
    nulls = [pa.nulls(1, each.type) for each in schema]
    raw = pa.RecordBatch.from_arrays(nulls, schema=schema).serialize().to_pybytes()
    size = 8 + _int(raw, 4)
    whole = -(-size // _LINE) * _LINE  # so that the body begins at a line of the cache
    head = bytearray(raw[:size].ljust(whole, b"\0"))
    struct.pack_into("<I", head, 4, whole - 8)
    message = 8 + _int(raw, 8)
    batch = _field(raw, message, 2)
    batch += _int(raw, batch)
    nodes, buffers = (at + _int(raw, at) for at in (_field(raw, batch, 1), _field(raw, batch, 2)))
    places = [range(at + 4, at + 4 + 16 * _int(raw, at), 16) for at in (nodes, buffers)]
    return (
        np.frombuffer(bytes(head), np.uint8),
        _field(raw, batch, 0),
        _field(raw, message, 3),
        places[0],
        iter(places[1]),
    )


def _int(raw: bytes, at: int) -> int:
    return int(struct.unpack_from("<i", raw, at)[0])


def _field(raw: bytes, table: int, number: int) -> int:
    """Where a field of a flatbuffer's table is."""
    (offset,) = struct.unpack_from("<H", raw, table - _int(raw, table) + 4 + 2 * number)
    return table + int(offset)

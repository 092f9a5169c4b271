"""Chunks: the rows of one window, at most some thousand of them, as they lie in memory and as readers get them.

Keys lie in *segments*, record after record in the order of rows, and are never changed; aggregate state lies in one block per chunk,
column after column. Keys become Arrow columns when a reader first asks, and stay so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from flowstate.errors import InvalidFlow
from flowstate.plan.keys import KeyColumns
from flowstate.plan.spec import REVISIONS, TableSpec
from flowstate.state.aggregate import Aggregate, Read, aggregates_of
from flowstate.state.block import Block
from flowstate.state.cells import CELL, DoesNotFit, StateColumn, from_values, validity_buffer
from flowstate.state.digest import mixed
from flowstate.state.kernels import decode
from flowstate.state.message import Message

Places = npt.NDArray[np.int64]
_FLOAT, _DECIMAL, _BYTES = 1, 2, 3  # kinds of key columns, as `plan.encoding` has them


class Layout:
    """What the rows of a table look like: its aggregates, their state columns, and how its keys are encoded. `visible` are the aggregates
    that queries see, `revisions` is the number of the state column that counts the rows applied to a key (None: not counted)."""

    def __init__(self, spec: TableSpec) -> None:
        self.spec = spec
        self.schema, self.key_schema = spec.schema, spec.key_schema
        self.key_types = self.key_schema.types
        self.aggregates = aggregates_of(spec.aggregates)
        self.visible = [each for each in self.aggregates if each.spec in spec.visible]
        self.revisions = next((each.first for each in self.aggregates if each.spec.name == REVISIONS), None)
        self.columns: list[StateColumn] = [column for each in self.aggregates for column in each.columns]
        empty = KeyColumns.of([pa.array([], each.type) for each in spec.keys], 0)
        self.head_words = empty.head_words
        self.kinds = empty.described[:, 0].tolist()
        self.places = empty.described[:, 6].tolist()
        variable = [index for index, kind in enumerate(self.kinds) if kind >= _BYTES]
        self.variable = {column: place for place, column in enumerate(variable)}
        self.length_places = np.array([self.places[index] for index in variable[:-1]], np.int64)
        parts = [
            pa.field(f"{each.spec.name}.{part.name}", part.type) for each in self.aggregates for part in each.columns
        ]
        self.state_schema = pa.schema([*self.key_schema, *parts])
        self.sizes = [each.width for each in self.columns]
        self.widths = np.array(self.sizes, np.int64)
        self.befores = np.cumsum(self.widths) - self.widths  # bytes of a row that are before each state column
        self.before, self.row_bytes = self.befores.tolist(), sum(self.sizes)
        self._offsets: dict[int, list[int]] = {}

    @cached_property
    def cells(self) -> list[tuple[int, int]]:
        """State columns of text, each with the column of its flags."""
        return [
            (each.first + place, each.first)
            for each in self.aggregates
            for place, column in enumerate(each.columns)
            if column.type == CELL
        ]

    @cached_property
    def message(self) -> Message | None:
        """How the rows of a lookup are written at once, if they can be."""
        return Message.of(self)

    def offsets(self, capacity: int) -> list[int]:
        """Where each state column begins in a block for `capacity` rows; last, the block's size."""
        if capacity not in self._offsets:
            offsets = [0]
            for column in self.columns:
                offsets.append(offsets[-1] + (column.width * capacity + 63) // 64 * 64)
            self._offsets[capacity] = offsets
        return self._offsets[capacity]

    def window_columns(self, start: int, end: int, rows: int) -> list[pa.Array]:
        return (
            []
            if self.spec.window is None
            else [self.time_array(np.full(rows, each, np.int64)) for each in (start, end)]
        )

    def time_array(self, values: npt.NDArray[np.int64]) -> pa.Array:
        return from_values(
            self.spec.time_type, pa.Array.from_buffers(pa.int64(), len(values), [None, pa.py_buffer(values)])
        )

    def result(self, aggregate: Aggregate, read: Read, keys: Sequence[pa.Array], rows: int) -> pa.Array:
        """The results of one aggregate; an error names the key of the row that has none."""
        try:
            return aggregate.result(read, rows)
        except DoesNotFit as error:
            key = {name: column[error.row].as_py() for name, column in zip(self.key_schema.names, keys, strict=True)}
            raise InvalidFlow(
                "a result does not fit its type; cast the input to a wider one, or leave this aggregate or key out of the query",
                view=self.spec.name, aggregate=aggregate.spec.name, type=str(aggregate.spec.result_type), key=key,
            ) from error  # fmt: skip


@dataclass
class Keys:
    """The keys of one chunk: of the window from `start` to `end`, in segments (first row, memory)."""

    layout: Layout
    start: int
    end: int
    segments: list[tuple[int, npt.NDArray[np.uint8]]] = field(default_factory=list)
    _decoded: tuple[int, list[pa.Array]] = (0, [])

    @property
    def decoded_nbytes(self) -> int:
        return sum(each.nbytes for each in self._decoded[1])

    def arrays(self, rows: int) -> list[pa.Array]:
        """The plain key columns of the first `rows` rows. Safe beside the writer, who only adds behind them, and beside other
        readers: the worst that a race costs is decoding twice."""
        known, arrays = self._decoded
        if known < rows:
            arrays = self._decode(rows)
            self._decoded = (rows, arrays)
            known = rows
        return arrays if known == rows else [each.slice(0, rows) for each in arrays]

    def _decode(self, rows: int) -> list[pa.Array]:
        layout = self.layout
        if not layout.kinds:
            return []
        positions = np.empty(rows, np.uint64)
        segments = list(self.segments)
        for place, (first, memory) in enumerate(segments):
            last = min(rows, segments[place + 1][0] if place + 1 < len(segments) else rows)
            if first < last:
                decode.walk(memory.ctypes.data, last - first, layout.head_words, positions[first:last])
        return [self._column(column, positions) for column in range(len(layout.kinds))]

    def _column(self, column: int, positions: npt.NDArray[np.uint64]) -> pa.Array:
        layout, rows = self.layout, len(positions)
        kind, type_ = layout.kinds[column], layout.spec.keys[column].type
        valid = np.empty(rows, np.uint8)
        nulls = decode.decode_validity(positions, column, valid)
        validity = validity_buffer(valid.view(np.bool_)) if nulls else None
        if kind >= _BYTES:
            begins, sizes = np.empty(rows, np.uint64), np.empty(rows, np.int64)
            decode.decode_extents(
                positions, layout.head_words, layout.length_places, layout.variable[column], begins, sizes
            )
            small = pa.types.is_string(type_) or pa.types.is_binary(type_)
            offsets, data = gathered(begins, sizes, np.int32 if small else np.int64)
            return from_values(type_, pa.Array.from_buffers(type_ if small else CELL, rows, [validity, offsets, data]))
        width = 2 if kind == _DECIMAL else 1
        words = np.empty(rows * width, np.uint64)
        decode.decode_words(positions, layout.places[column], width, words)
        stored = {_FLOAT: pa.float64(), 0: pa.int64()}.get(kind)
        if stored is None:
            stored = pa.decimal128(type_.precision, type_.scale)
        elif pa.types.is_uint64(type_):
            stored = type_
        return from_values(type_, pa.Array.from_buffers(stored, rows, [validity, pa.py_buffer(words)]))


def gathered(
    begins: npt.NDArray[np.uint64], sizes: npt.NDArray[np.int64], kind: type[Any]
) -> tuple[pa.Buffer, pa.Buffer]:
    """Offsets and data of an Arrow column, from where its values lie."""
    offsets = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=offsets[1:])
    if kind is np.int32 and offsets[-1] > 2**31 - 1:
        raise InvalidFlow(
            "the keys of one chunk are over 2 GiB; use large_string or shorter keys", bytes=int(offsets[-1])
        )
    data = np.empty(int(offsets[-1]), np.uint8)
    decode.gather_bytes(begins, sizes, data.ctypes.data)
    return pa.py_buffer(offsets.astype(kind, copy=False)), pa.py_buffer(data)


def cell_values(cells: npt.NDArray[np.uint64], flags: npt.NDArray[np.uint8]) -> tuple[pa.Buffer, pa.Buffer]:
    """Offsets and data of the texts that cells (address, size) point to."""
    begins, sizes = np.ascontiguousarray(cells[0::2]), np.ascontiguousarray(cells[1::2]).view(np.int64)
    return gathered(begins, np.where(flags == 1, sizes, 0), np.int64)


class Stored:
    """What a chunk consists of at one moment. Never changed while anybody else refers to it: the writer replaces it."""

    __slots__ = ("block", "capacity", "keys", "values")

    def __init__(self, keys: Keys, block: Block, capacity: int, values: npt.NDArray[np.uint8] | None) -> None:
        self.keys, self.block, self.capacity, self.values = keys, block, capacity, values


class Changed(Protocol):
    """What was saved of rows that were written since a view (`before.Before`)."""

    def put_back(self, chunk: int, column: int, rows: int, address: int) -> None: ...

    def of(self, chunk: int, chunk_id: int) -> Iterable[Changed] | None: ...


class Chunk:
    """Some rows of a view. `id` is stable while the table lives, `version` changes whenever the content does. `before` is there if the
    table may go on writing into this memory; `number` is the chunk's in it."""

    def __init__(
        self,
        layout: Layout,
        stored: Stored,
        chunk_id: int,
        version: int,
        rows: int,
        before: Changed | None = None,
        number: int = 0,
    ) -> None:
        self._layout, self._stored, self._before, self._number = layout, stored, before, number
        self.id, self.version, self.rows = chunk_id, version, rows

    @property
    def window(self) -> tuple[int, int]:
        """Start and end of the window of all its rows, in the unit of the table's time type."""
        return self._stored.keys.start, self._stored.keys.end

    def state(self) -> pa.RecordBatch:
        """Its physical columns: keys, window, and the state of each aggregate; what `KeyedTable.restore` takes."""
        arrays = self._keys()
        for each in self._layout.aggregates:
            for place, column in enumerate(each.columns):
                part = self._read(each, place)
                if column.type == CELL:
                    valid = self._flags(each) == 1
                    arrays.append(pa.Array.from_buffers(CELL, self.rows, [validity_buffer(valid), *part]))
                else:
                    arrays.append(pa.Array.from_buffers(column.type, self.rows, [None, part]))
        return pa.RecordBatch.from_arrays(arrays, schema=self._layout.state_schema)

    def revisions(self) -> npt.NDArray[np.int64]:
        """How many rows were applied to each row's key, if the table counts that; not to be kept, it may be the chunk's own memory."""
        assert self._layout.revisions is not None
        return np.frombuffer(self._buffer(self._layout.revisions), np.int64)

    @property
    def keys(self) -> Keys:
        """The keys of its rows, and of those that come after; whoever holds them holds no state."""
        return self._stored.keys

    def marks(self) -> npt.NDArray[np.int64]:
        """A number per row, another one whenever the row's state has changed: its revision, or a digest of its state where revisions are
        not counted. A change of one word of state always shows, of several words at once but for one in 2**64."""
        if self._layout.revisions is not None:
            return self.revisions().copy()
        digest = np.zeros(self.rows, np.uint64)
        for each in self._layout.aggregates:
            for place, column in enumerate(each.columns):
                digest = mixed(digest, column, self._read(each, place))
        return digest.view(np.int64)

    def results(self, columns: Sequence[str] | None = None, places: Places | None = None) -> pa.RecordBatch:
        """Its rows (or those at `places`) as a query sees them, of all columns or those named."""
        layout, keys = self._layout, self._keys()
        rows = self.rows
        if places is not None:
            rows, taken = len(places), pa.array(places)
            keys = [each.take(taken) for each in keys]
        names = layout.schema.names if columns is None else columns
        found = dict(zip(layout.key_schema.names, keys, strict=True))
        for each in layout.visible:
            if each.spec.name in names:
                read = partial(self._read, each) if places is None else partial(self._read_some, each, places)
                found[each.spec.name] = layout.result(each, read, keys, rows)
        fields = [layout.schema.field(name) for name in names]
        if not fields:
            return pa.RecordBatch.from_struct_array(pa.array([{}] * rows, pa.struct([])))
        return pa.RecordBatch.from_arrays([found[name] for name in names], schema=pa.schema(fields))

    def _keys(self) -> list[pa.Array]:
        return [*self._stored.keys.arrays(self.rows), *self._layout.window_columns(*self.window, self.rows)]

    def _buffer(self, column: int) -> pa.Buffer:
        offset, size = self._layout.offsets(self._stored.capacity)[column], self._layout.sizes[column] * self.rows
        block, before = self._stored.block, self._before
        if before is not None and before.of(self._number, self.id) is not None:
            copied = pa.allocate_buffer(size)  # of Arrow's pool: the system's memory would come and go with each chunk
            np.copyto(np.frombuffer(copied, np.uint8), block.memory(offset, size))
            logs = before.of(self._number, self.id)  # as it is now that the copy was made
            if logs is not None:
                for each in logs:
                    each.put_back(self._number, column, self.rows, copied.address)
                return copied
        return block.buffer(offset, size)

    def _flags(self, each: Aggregate) -> npt.NDArray[np.uint8]:
        return np.frombuffer(self._buffer(each.first), np.uint8)

    def _read(self, each: Aggregate, place: int) -> Any:
        buffer = self._buffer(each.first + place)
        if each.columns[place].type == CELL:
            return cell_values(np.frombuffer(buffer, np.uint64), self._flags(each))
        return buffer

    def _read_some(self, each: Aggregate, places: Places, place: int) -> Any:
        cells = self._gathered(each.first + place, places)
        if each.columns[place].type == CELL:
            return cell_values(cells.view(np.uint64), self._gathered(each.first, places))
        return pa.py_buffer(cells)

    def _gathered(self, column: int, places: Places) -> npt.NDArray[np.uint8]:
        width = self._layout.columns[column].width
        return np.frombuffer(self._buffer(column), np.uint8).reshape(-1, width)[places].reshape(-1)

"""Lookups: a few rows, found by key and copied out.

A lookup has three steps, since its reader and the writer take turns: `asked` and `Found.results` need nothing of the table's rows, and
only what is between them, `KeyedTable.find`, keeps the writer waiting.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from flowstate.errors import InvalidFlow
from flowstate.plan.keys import KeyColumns, key_array
from flowstate.state.cells import CELL
from flowstate.state.chunk import Layout, cell_values
from flowstate.state.kernels import decode
from flowstate.state.kernels import message as kernels
from flowstate.state.windows import Windows

Int64s = npt.NDArray[np.int64]
_NO_EDGES = np.empty((0, 2), np.int64)


class Asked:
    """`rows` keys: the columns of the plain ones, and, if a window was named for each, its start and end."""

    __slots__ = ("columns", "described", "edges", "rows")

    def __init__(self, columns: list[pa.Array], edges: list[pa.Array], rows: int) -> None:
        self.columns, self.edges, self.rows = columns, edges, rows
        self.described = KeyColumns.of(columns, rows)


def asked(layout: Layout, keys: pa.RecordBatch) -> Asked:
    """What to look for. Raises InvalidFlow for keys that are not all plain keys, or the full key, of their types."""
    schema, plain = layout.key_schema, len(layout.spec.keys)
    columns, types = keys.columns, layout.key_types
    if len(columns) not in (plain, len(types)):
        raise InvalidFlow(
            "a lookup needs all plain keys, or the full key with its window", view=layout.spec.name,
            given=keys.schema.names, key=schema.names,
        )  # fmt: skip
    try:
        columns = [each if each.type == kind else each.cast(kind) for each, kind in zip(columns, types, strict=False)]
    except pa.ArrowException as error:
        raise InvalidFlow(
            "these keys are not of the view's key types", view=layout.spec.name, given=str(keys.schema), key=str(schema)
        ) from error
    return Asked(columns[:plain], columns[plain:], keys.num_rows)


def in_windows(keys: Asked, windows: Windows) -> tuple[Asked, Int64s, int]:
    """What to look for, the numbers of windows, and how many of these each key has. If it is one, a key has the window at its own place:
    that which was named. If it is more, all keys have all windows, by start."""
    if keys.edges:
        edges = [key_array(each)[1].to_pylist() for each in _integers(keys.edges)]
        ids = windows.ids
        known = [(row, ids[edge]) for row, edge in enumerate(zip(*edges, strict=True)) if edge in ids]
        pairs = np.array(known, np.int64).reshape(-1, 2)
        rows, numbers = np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1])
    elif len(windows.ids) > 1:
        return keys, np.array([windows.ids[edge] for edge in sorted(windows.ids)], np.int64), len(windows.ids)
    elif windows.ids:
        numbers = np.empty(keys.rows, np.int64)
        numbers.fill(next(iter(windows.ids.values())))
        return keys, numbers, 1
    else:
        rows = numbers = np.empty(0, np.int64)
    return Asked(taken(keys.columns, rows, keys.rows), [], len(rows)), numbers, 1


def _integers(columns: list[pa.Array]) -> list[pa.Array]:
    return [each.view(pa.int32() if each.type.bit_width == 32 else pa.int64()) for each in columns]


def taken(columns: list[pa.Array], places: Int64s, rows: int) -> list[pa.Array]:
    """The rows of `columns`, of which there are `rows`, at `places`, which ascend: all of them are all in order."""
    return columns if len(places) == rows else [each.take(pa.array(places)) for each in columns]


class Found:
    """The state of some rows, gathered from their chunks when it is made; it shares nothing with them. `slots` are the rows of `keys`, -1
    for unknown ones, in each of the `each` windows that a key has (see `in_windows`), `numbers` those of their windows. Each row is given
    once, where it is first: `seen` has a bit for every slot, all zero, before and after."""

    def __init__(
        self, layout: Layout, pointers: npt.NDArray[np.uint64], slots: Int64s, shift: int, seen: npt.NDArray[np.uint64],
        keys: Asked, numbers: Int64s, each: int, windows: Windows,
    ) -> None:  # fmt: skip
        self._layout, self._keys = layout, keys
        places = np.empty(len(slots), np.int64)
        of_keys = places if each == 1 else np.empty(len(slots), np.int64)
        rows, text = kernels.measure(slots, seen, keys.described.described, each, places, of_keys)
        self.rows = rows
        self._edges = _NO_EDGES
        if layout.spec.window is not None:
            if each > 1:
                numbers = numbers[places[:rows] % each]
            elif rows < len(slots):
                numbers = numbers[places[:rows]]
            self._edges = _edges(numbers, windows)
        self._message: pa.Buffer | None = None
        if layout.message is not None and text >= 0:
            self._message = layout.message.write(
                pointers, slots, shift, places, of_keys, rows, text, keys.described, self._edges
            )
        if self._message is None:
            self._gather(pointers, slots[places[:rows]], shift)
            self._places, self._all = of_keys[:rows], each == 1 and rows == keys.rows

    def _gather(self, pointers: npt.NDArray[np.uint64], slots: Int64s, shift: int) -> None:
        """Column by column, for what is no message."""
        layout = self._layout
        self._room = room = (self.rows + 63) // 64 * 64  # rows: every column begins at a line of the cache
        self._memory = pa.allocate_buffer(room * layout.row_bytes)
        decode.gather_rows(pointers, layout.widths, layout.befores, room, slots, shift, self._memory.address)
        # Texts lie elsewhere, and the writer moves them.
        self._texts: list[Any] = [None] * len(layout.sizes)
        for column, flags in layout.cells:
            self._texts[column] = self._text(column, flags)

    def results(self) -> pa.RecordBatch:
        """Result rows. Raises InvalidFlow for a result that does not fit its type."""
        layout, rows = self._layout, self.rows
        if self._message is not None:
            assert layout.message is not None
            return layout.message.read(self._message)
        arrays = self._keys.columns
        if not self._all:
            arrays = [each.take(pa.array(self._places)) for each in arrays]
        if layout.spec.window is not None:
            arrays = [*arrays, *(layout.time_array(np.ascontiguousarray(self._edges[:, side])) for side in (0, 1))]
        parts = [self._column(column) if each is None else each for column, each in enumerate(self._texts)]
        results = [layout.result(each, parts[each.first :].__getitem__, arrays, rows) for each in layout.visible]
        return pa.RecordBatch.from_arrays([*arrays, *results], schema=layout.schema)

    def _column(self, column: int) -> pa.Buffer:
        layout = self._layout
        return self._memory.slice(layout.before[column] * self._room, layout.sizes[column] * self.rows)

    def _text(self, column: int, flags: int) -> Any:
        assert self._layout.columns[column].type == CELL
        cells = np.frombuffer(self._column(column), np.uint64)
        return cell_values(cells, np.frombuffer(self._column(flags), np.uint8))


def _edges(numbers: Int64s, windows: Windows) -> Int64s:
    """Start and end of the windows of these numbers."""
    known = windows.by_id
    if len(numbers) <= len(known):
        return np.array([(known[each].start, known[each].end) for each in numbers.tolist()], np.int64).reshape(-1, 2)
    edges = np.zeros((max(known) + 1, 2), np.int64)
    for number, each in known.items():
        edges[number] = each.start, each.end
    return edges[numbers]

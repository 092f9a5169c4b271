"""Lookups: a few rows, found by key and copied out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from flowstate.plan.keys import key_array
from flowstate.state.aggregate import Aggregate, Read
from flowstate.state.cells import CELL
from flowstate.state.chunk import Layout, cell_values
from flowstate.state.kernels import decode

Int64s = npt.NDArray[np.int64]


def found_rows(
    columns: list[pa.Array], plain: int, rows: int, windows: Mapping[tuple[int, int], int]
) -> tuple[Int64s, Int64s]:
    """Which (row of the keys, window id) to look for: the window that a full key names, if there is one, or else all windows, by
    start."""
    if len(columns) > plain:
        edges = [key_array(each)[1].to_pylist() for each in _integers(columns[plain:])]
        known = [(row, windows[edge]) for row, edge in enumerate(zip(*edges, strict=True)) if edge in windows]
        pairs = np.array(known, np.int64).reshape(-1, 2)
        return np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1])
    ids = np.array([windows[edge] for edge in sorted(windows)], np.int64)
    return np.repeat(np.arange(rows), len(ids)), np.tile(ids, rows)


def _integers(columns: list[pa.Array]) -> list[pa.Array]:
    return [each.view(pa.int32() if each.type.bit_width == 32 else pa.int64()) for each in columns]


def taken(columns: list[pa.Array], places: Int64s, rows: int) -> list[pa.Array]:
    """The rows of `columns` at `places`; as they are, if that is all of them in order, as it is for one key."""
    if len(places) == rows and (rows == 1 or bool((places == np.arange(rows)).all())):
        return columns
    return [each.take(pa.array(places)) for each in columns]


class Found:
    """The state of some rows, gathered from their chunks."""

    def __init__(self, layout: Layout, pointers: npt.NDArray[np.uint64], slots: Int64s, shift: int) -> None:
        self._layout, self._pointers, self._slots, self._shift = layout, pointers, slots, shift

    def results(self, keys: list[pa.Array], windows: list[tuple[int, int]]) -> pa.RecordBatch:
        """Result rows, given the plain keys, and the start and end of the window, of each."""
        layout, rows = self._layout, len(self._slots)
        arrays = list(keys)
        if layout.spec.window is not None:
            edges = np.array(windows, np.int64).reshape(-1, 2)
            arrays += [layout.time_array(np.ascontiguousarray(edges[:, side])) for side in (0, 1)]
        for each in layout.visible:
            arrays.append(layout.result(each, self.reader(each), arrays[: len(layout.key_schema)], rows))
        return pa.RecordBatch.from_arrays(arrays, schema=layout.schema)

    def reader(self, each: Aggregate) -> Read:
        return lambda place: self._read(each, place)

    def _read(self, each: Aggregate, place: int) -> Any:
        width = each.columns[place].width
        values = self._gather(each.first + place, width)
        if each.columns[place].type == CELL:
            return cell_values(values.view(np.uint64), self._gather(each.first, 1))
        return pa.py_buffer(values)

    def _gather(self, column: int, width: int) -> npt.NDArray[np.uint8]:
        values = np.empty(len(self._slots) * width, np.uint8)
        if width == 1:
            decode.gather_flags(self._pointers[column], self._slots, self._shift, values)
        else:
            decode.gather_cells(self._pointers[column], self._slots, self._shift, width // 8, values.view(np.uint64))
        return values

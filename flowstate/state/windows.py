"""The windows of a keyed table that have rows, numbered; the numbers of those that expired are used again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from flowstate.plan.keys import key_array
from flowstate.state.block import Pool
from flowstate.state.index import Index, Scratch
from flowstate.state.kernels import index as kernels

Int64s = npt.NDArray[np.int64]


_LEAST = 512  # slots of the table of windows: where there are few, no two should want one slot, which no branch could foresee


@dataclass
class Window:
    """Its start and end in the unit of the time type, the index of its keys, its chunks, the memory that its next keys go to (the chunks
    hold all of it), and its blocks."""

    start: int
    end: int
    index: Index
    chunks: list[int] = field(default_factory=list)
    key_bytes: int = 0
    memory: npt.NDArray[np.uint8] | None = None
    pool: Pool = field(default_factory=Pool)


class Windows:
    """`by_id` has them by number, `ids` their numbers by (start, end). `tails` tells `kernels.index.locate` where the next row of each
    goes. A table without a window has one, from 0 to 0."""

    def __init__(self, head_words: int, seed: np.uint64) -> None:
        self._head_words, self._seed, self._scratch = head_words, seed, Scratch()
        self.by_id: dict[int, Window] = {}
        self.ids: dict[tuple[int, int], int] = {}
        self.tails = np.zeros((4, kernels.TAILS), np.int64)
        self._free: list[int] = []
        self._table = np.zeros((_LEAST, 2), np.int64)

    @property
    def nbytes(self) -> int:
        return int(self.tails.nbytes + self._table.nbytes + self._scratch.nbytes)

    @property
    def index_bytes(self) -> int:
        return sum(each.index.nbytes for each in self.by_id.values())

    @property
    def key_bytes(self) -> int:
        return sum(each.key_bytes for each in self.by_id.values())

    def assign(self, ids: Int64s, starts: pa.Array | None, ends: pa.Array | None) -> None:
        """Fill in the number of each row's window; windows that are new are added. `starts` are int64, `ends` as they came."""
        if starts is None or ends is None:
            if not self.by_id:
                self._add(0, 0)
            ids[:] = 0
            return
        address = starts.buffers()[1].address + starts.offset * 8
        row = 0
        while True:
            row = int(kernels.assign_windows(address, row, len(ids), self._table, ids))
            if row == len(ids):
                return
            self._add(_int64_at(starts, row), _int64_at(ends, row))

    def _add(self, start: int, end: int) -> None:
        window = self._free.pop() if self._free else len(self.by_id)
        if window >= self.tails.shape[0]:
            self.tails = doubled(self.tails)
        self.tails[window] = 0
        self.by_id[window] = Window(start, end, Index(self._head_words, self._seed, self._scratch))
        self._point(window)
        self.ids[start, end] = window
        if 3 * len(self.by_id) > self._table.shape[0]:
            self._list()
        else:
            kernels.add_window(self._table, start, window)

    def grow(self, window: int, value: int) -> None:
        """Make room in the window's index for a key with the hash `value`."""
        self.by_id[window].index.grow(value)
        self._point(window)

    def _point(self, window: int) -> None:
        index, tail = self.by_id[window].index, self.tails[window]
        tail[kernels.DIRECTORY], tail[kernels.COUNTS] = index.directory.ctypes.data, index.counts.ctypes.data
        tail[kernels.PATTERNS], tail[kernels.SLOTS] = len(index.directory) - 1, index.slots - 1

    def drop(self, gone: Iterable[int]) -> None:
        for window in gone:
            each = self.by_id.pop(window)
            del self.ids[each.start, each.end]
            self._free.append(window)
        self._list()

    def _list(self) -> None:
        size = max(_LEAST, 1 << (8 * len(self.by_id)).bit_length())
        self._table = np.zeros((size, 2), np.int64)
        for window, each in self.by_id.items():
            kernels.add_window(self._table, each.start, window)


def _int64_at(column: pa.Array, row: int) -> int:
    return int(key_array(column.slice(row, 1))[1].view(pa.int64())[0].as_py())


def doubled(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same with twice the rows, the new ones zero."""
    return np.concatenate([array, np.zeros_like(array)])

"""A view of a keyed table: all its rows at one moment, immutable."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from flowstate.errors import InvalidFlow, did_you_mean
from flowstate.state.chunk import Chunk, Layout, Stored


def micros_per(kind: pa.DataType) -> tuple[int, int]:
    """Microseconds of a unit of this time type, as a fraction."""
    if pa.types.is_date32(kind):
        return 86_400_000_000, 1
    if pa.types.is_date64(kind):
        return 1000, 1
    return {"s": (1_000_000, 1), "ms": (1000, 1), "us": (1, 1), "ns": (1, 1000)}[kind.unit]


class TableView:
    """Taken by `KeyedTable.view`. May be read, and released, by any thread, while the table goes on.

    Whoever holds it makes the table copy each chunk once before it writes there again. Arrays that it gave out stay valid.
    """

    def __init__(
        self,
        layout: Layout,
        stored: list[Stored | None],
        ids: npt.NDArray[np.int64],
        versions: npt.NDArray[np.int64],
        filled: npt.NDArray[np.int64],
    ) -> None:
        self.schema = layout.schema
        self.rows = int(filled.sum())
        self._layout = layout
        self._stored: list[Stored | None] | None = stored
        self._ids, self._versions, self._filled = ids, versions, filled

    @property
    def chunks(self) -> Sequence[Chunk]:
        """All chunks that have rows."""
        stored = self._stored
        if stored is None:
            raise InvalidFlow("this view was released; take another", view=self._layout.spec.name)
        numbers = zip(self._ids.tolist(), self._versions.tolist(), self._filled.tolist(), strict=True)
        return [
            Chunk(self._layout, each, chunk_id, version, rows)
            for each, (chunk_id, version, rows) in zip(stored, numbers, strict=True)
            if each is not None and rows
        ]

    def batches(self, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Result rows, a batch per chunk. `InvalidFlow`, naming the key, if a result among `columns` does not fit its type."""
        for name in columns or ():
            if name not in self.schema.names:
                raise InvalidFlow(f"there is no such column{did_you_mean(name, self.schema.names)}", column=name)
        chunks = list(reversed(self.chunks))
        while chunks:
            yield chunks.pop().results(columns)

    def closed(self, after_us: int, upto_us: int) -> pa.RecordBatch:
        """Result rows of the windows whose closing time (microseconds) is after `after_us` and not after `upto_us`."""
        window = self._layout.spec.window
        if window is None:
            return self._one([])
        closes = self.in_micros(window.closes)
        return self._one([each.results() for each in self.chunks if after_us < closes(each.window[1]) <= upto_us])

    def in_micros(self, function: Callable[[int], int]) -> Callable[[int], int]:
        numerator, denominator = micros_per(self._layout.spec.time_type)
        return lambda end: function(end * numerator // denominator)

    def _one(self, batches: list[pa.RecordBatch]) -> pa.RecordBatch:
        return pa.concat_batches(batches) if batches else pa.RecordBatch.from_pylist([], schema=self.schema)

    def release(self) -> None:
        """Give the chunks up. May be called more than once; done by itself when the view is forgotten."""
        self._stored = None

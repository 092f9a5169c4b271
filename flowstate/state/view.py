"""A view of a keyed table: all its rows at one moment, immutable."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from flowstate.errors import InvalidFlow, did_you_mean
from flowstate.plan.spec import REVISION
from flowstate.state.before import Before
from flowstate.state.chunk import Chunk, Layout, Stored
from flowstate.state.pieces import Pieces, pieces_of

_REVISION = pa.field(REVISION, pa.int64(), nullable=False)


def micros_per(kind: pa.DataType) -> tuple[int, int]:
    """Microseconds of a unit of this time type, as a fraction."""
    if pa.types.is_date32(kind):
        return 86_400_000_000, 1
    if pa.types.is_date64(kind):
        return 1000, 1
    return {"s": (1_000_000, 1), "ms": (1000, 1), "us": (1, 1), "ns": (1, 1000)}[kind.unit]


@dataclass(frozen=True)
class Baseline:
    """The revisions of all rows of one `KeyedTable` at the moment of a view, to ask a later view of the same table what changed.

    Opaque, and its own: it holds no view and no chunk, so it costs no copy on write, only 8 bytes per row. It means nothing to any other
    table: not even to one restored from what this one saved (take that one's own, right after `restore`: it is that of the saved state).
    """

    _chunks: Mapping[int, tuple[int, npt.NDArray[np.int64]]] = field(default_factory=dict)  # by id: version, revisions

    @property
    def rows(self) -> int:
        return sum(len(each) for _, each in self._chunks.values())

    @property
    def nbytes(self) -> int:
        return 8 * self.rows


class TableView:
    """Taken by `KeyedTable.view`. May be read, and released, by any thread, while the table goes on.

    Whoever holds it makes the table copy each chunk once before it writes there again, or, of a large table, each row first
    (`before`). Arrays that it gave out stay valid.
    """

    def __init__(
        self,
        layout: Layout,
        stored: list[Stored | None],
        ids: npt.NDArray[np.int64],
        versions: npt.NDArray[np.int64],
        filled: npt.NDArray[np.int64],
        before: Before | None = None,
    ) -> None:
        self.schema = layout.schema
        self.rows = int(filled.sum())
        self._layout = layout
        self._stored: list[Stored | None] | None = stored
        self._ids, self._versions, self._filled = ids, versions, filled
        self._before = before
        self._pieces: Pieces | None = None

    @property
    def chunks(self) -> Sequence[Chunk]:
        """All chunks that have rows."""
        stored, before = self._stored, self._before
        if stored is None:
            raise InvalidFlow("this view was released; take another", view=self._layout.spec.name)
        numbers = zip(self._ids.tolist(), self._versions.tolist(), self._filled.tolist(), strict=True)
        return [
            Chunk(self._layout, each, chunk_id, version, rows, before, number)
            for number, (each, (chunk_id, version, rows)) in enumerate(zip(stored, numbers, strict=True))
            if each is not None and rows
        ]

    def batches(self, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Result rows, a batch per chunk. `InvalidFlow`, naming the key, if a result among `columns` does not fit its type."""
        for name in columns or ():
            if name not in self.schema.names:
                raise InvalidFlow(f"there is no such column{did_you_mean(name, self.schema.names)}", column=name)
        return _results(list(reversed(self.chunks)), columns)

    def pieces(self) -> Pieces:
        """The memory that it refers to."""
        if self._pieces is None:
            window = self._layout.spec.window
            windows_go = window is not None and window.keep is not None
            self._pieces = Pieces.of(pieces_of(self._stored or (), windows_go=windows_go))
        return self._pieces

    def closed(self, after_us: int, upto_us: int) -> pa.RecordBatch:
        """Result rows of the windows whose closing time (microseconds) is after `after_us` and not after `upto_us`."""
        window = self._layout.spec.window
        if window is None:
            return self._one([])
        closes = self.in_micros(window.closes)
        return self._one([each.results() for each in self.chunks if after_us < closes(each.window[1]) <= upto_us])

    def revisions(self, previous: Baseline | None = None) -> Baseline:
        """The revision of every row. What has not changed since `previous` (of an earlier view of the table) is shared with it, so that the
        work is that of the chunks which changed. `InvalidFlow` if the table does not count revisions (`TableSpec.counts_revisions`)."""
        self._counted()
        known = {} if previous is None else previous._chunks
        found = {}
        for each in self.chunks:
            before = known.get(each.id)
            found[each.id] = (
                before if before is not None and before[0] == each.version else (each.version, each.revisions().copy())
            )
        return Baseline(found)

    def changed(self, since: Baseline | None, windows: Collection[int] | None = None) -> pa.RecordBatch:
        """Result rows, then `REVISION` (int64, not null), of the keys whose revision is another than in `since` (None: of all keys); new
        keys are among them, keys whose window was dropped are not. `windows` asks only about windows with these ends (microseconds, as
        `KeyedTable.windows` gives them), such as those that are about to expire.

        Chunks that did not change cost a comparison of two numbers; of others only the changed rows are computed, so that a result that
        does not fit its type is an error (`InvalidFlow`, naming the key) only if its own row changed. Keys are in no particular order.
        """
        self._counted()
        known = {} if since is None else since._chunks
        wanted = self._ending(windows)
        batches = []
        for each in self.chunks:
            if not wanted(each):
                continue
            before = known.get(each.id)
            if before is not None and before[0] == each.version:
                continue
            revisions = each.revisions()
            old = revisions[:0] if before is None else before[1]
            # Rows are never moved within their chunk: those that are new stand behind the old ones.
            places = np.flatnonzero(revisions[: len(old)] != old)
            places = np.concatenate([places, np.arange(len(old), len(revisions))])
            if len(places):
                rows = each.results(places=places)
                batches.append(rows.append_column(_REVISION, pa.array(revisions[places])))
        schema = self.schema.append(_REVISION)
        return pa.concat_batches(batches) if batches else pa.RecordBatch.from_pylist([], schema=schema)

    def _ending(self, windows: Collection[int] | None) -> Callable[[Chunk], bool]:
        if windows is None:
            return lambda chunk: True
        if self._layout.spec.window is None:
            return lambda chunk: False
        micros, ends = self.in_micros(int), frozenset(windows)
        return lambda chunk: micros(chunk.window[1]) in ends

    def _counted(self) -> None:
        if self._layout.revisions is None:
            raise InvalidFlow(
                "this table does not count revisions; end its changes() with a sink", view=self._layout.spec.name
            )

    def in_micros(self, function: Callable[[int], int]) -> Callable[[int], int]:
        numerator, denominator = micros_per(self._layout.spec.time_type)
        return lambda end: function(end * numerator // denominator)

    def _one(self, batches: list[pa.RecordBatch]) -> pa.RecordBatch:
        return pa.concat_batches(batches) if batches else pa.RecordBatch.from_pylist([], schema=self.schema)

    def release(self) -> None:
        """Give the chunks up. May be called more than once; done by itself when the view is forgotten."""
        self._stored = self._before = None


def _results(chunks: list[Chunk], columns: list[str] | None) -> Iterator[pa.RecordBatch]:
    """Chunk by chunk, each let go of when it was given out; so it must not know the view."""
    while chunks:
        yield chunks.pop().results(columns)

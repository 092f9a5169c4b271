"""A keyed table: one row of aggregates per key and window.

A row is found through the index (`index`), lies in a chunk of its window (`chunk`), and is a number: chunk << shift | row in the chunk.
`apply` works in three steps: kernels find or make the row of every key; chunks that a reader holds are copied; kernels fold the
values. The first step writes only behind what readers see, so nothing but the second has to know of them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from flowstate.errors import CorruptData, InternalError, InvalidFlow
from flowstate.plan import encoding
from flowstate.plan.keys import KeyColumns, UInt64s, hash_columns, key_array, seed_word
from flowstate.plan.position import NEVER, OFFSET, TIME
from flowstate.plan.spec import TableSpec
from flowstate.state.aggregate import Inputs, Line
from flowstate.state.before import MOVED, SETTLED, Before
from flowstate.state.block import Block, alone, is_alone, zeroed
from flowstate.state.chunk import Keys, Layout, Stored
from flowstate.state.kernels import decode, fold
from flowstate.state.kernels import index as kernels
from flowstate.state.kernels import lookup as kernels_of_lookups
from flowstate.state.lookup import Asked, Found, asked, in_windows
from flowstate.state.pieces import Pieces, pieces_of
from flowstate.state.view import TableView, micros_per
from flowstate.state.windows import Window, Windows, doubled

_FIRST_ROWS = 64
_MOST_KEYS = 4 << 20  # bytes of one piece of memory for keys
_FAR_BYTES = 1 << 19  # state beyond this does not stay in the second-level cache: ask for it ahead
_AHEAD = 24
_LARGE = 16 << 20  # bytes of state: the views of larger tables are given copies, and keep less from being written
_LONGEST = 8  # views, since one that is still held: at the next, all chunks that it shares are copied
_COPIED = 1 << 20  # bytes of blocks that are copied between two moments at which readers are answered

Int64s = npt.NDArray[np.int64]


def _nothing() -> None:
    return None


Keep = Callable[[UInt64s], npt.NDArray[np.bool_]]


class KeyedTable:
    """See the package for what must hold. `seed` is the job's; `chunk_rows` is rounded up to a power of two."""

    def __init__(self, spec: TableSpec, *, seed: int, chunk_rows: int = 16384) -> None:
        self.spec, self.seed = spec, seed
        self._layout = Layout(spec)
        self._shift = max(0, (chunk_rows - 1).bit_length())
        self._seed_word = seed_word(seed)
        self._serial, self._last_view, self._next_id = 0, -1, 0
        self._windows = Windows(self._layout.head_words, self._seed_word)
        # Per chunk, by its number; numbers are used again after their window has gone.
        self._stored: list[Stored | None] = []
        self._free_chunks: list[int] = []
        self._ids = np.zeros(4, np.int64)
        self._versions = np.zeros(4, np.int64)
        self._born = np.zeros(4, np.int64)  # when its block was made; a view taken later may refer to it
        self._filled = np.zeros(4, np.int64)
        self._arenas = np.zeros((4, 2), np.int64)  # value memory: where the next text goes, and its end
        self._pointers = np.zeros((max(1, len(self._layout.columns)), 4), np.uint64)
        self._starts = np.empty(encoding.BLOCK + 1, np.int64)
        self._cursors = np.empty(encoding.BLOCK + 1, np.int64)
        self._homes = np.empty(encoding.BLOCK, np.uint64)
        self._scratch = np.empty(encoding.SCRATCH_WORDS, np.uint64)
        self._slots = np.empty(0, np.int64)
        self._window_rows = np.empty(0, np.int64)
        self._hashes = np.empty(0, np.uint64)
        self._seen = np.empty(0, np.uint64)
        self._large = False
        self._before: Callable[[], Before | None] = _nothing

    # -- rows in ---------------------------------------------------------------------------------------------------------------

    def apply(self, batch: pa.RecordBatch, hashes: UInt64s | None = None, split_rank: int = 0) -> None:
        """Fold a routed batch in. `hashes` are `route_hashes` of its routing keys, if somebody has them; `split_rank` is the place
        of the rows' split in the order of splits, which decides between rows of one event time (first and last)."""
        rows = batch.num_rows
        if rows == 0:
            return
        spec = self.spec
        # Everything that can fail comes first: a batch that is refused has changed nothing.
        keys = KeyColumns.of([batch.column(each.name) for each in spec.keys], rows)
        starts, ends = self._window_columns(batch)
        columns = {each.input: batch.column(each.input) for each in spec.aggregates if each.input is not None}
        if hashes is not None and spec.keys:
            self._check_hashes(batch, hashes)
        inputs = Inputs(columns, self._order(batch, split_rank) if spec.ordered else None)
        lines = [line for each in self._layout.aggregates for line in each.fold(inputs)]
        self._merge(keys, starts, ends, hashes, lines)
        del inputs

    def restore(self, batches: Iterable[pa.RecordBatch], keep: Keep | None = None) -> None:
        """Merge saved chunks (`Chunk.state`) in, of any table with the same spec and seed, in any order. `keep` gets the route
        hashes of a batch and says which rows are this partition's."""
        spec, layout = self.spec, self._layout
        for batch in batches:
            if not batch.schema.equals(layout.state_schema):
                raise CorruptData(
                    "a saved chunk has other columns than its table", table=spec.name,
                    found=str(batch.schema), expected=str(layout.state_schema),
                )  # fmt: skip
            if keep is not None:
                routing = KeyColumns.of([batch.column(name) for name in spec.routing_keys], batch.num_rows)
                mask = np.asarray(keep(hash_columns(routing, self.seed)), np.bool_)
                if not mask.all():
                    batch = batch.filter(pa.array(mask))
            if batch.num_rows == 0:
                continue
            keys = KeyColumns.of([batch.column(each.name) for each in spec.keys], batch.num_rows)
            starts, ends = self._window_columns(batch)
            inputs, lines = Inputs({}), list[Line]()
            for each in layout.aggregates:
                parts = {column.name: batch.column(f"{each.spec.name}.{column.name}") for column in each.columns}
                lines += each.merge(parts, inputs)
            self._merge(keys, starts, ends, None, lines)
            del inputs

    def _check_hashes(self, batch: pa.RecordBatch, hashes: UInt64s) -> None:
        """The index computes hashes again when it grows: with other ones, keys would be lost and made anew. One row tells."""
        first = KeyColumns.of([batch.column(each.name).slice(0, 1) for each in self.spec.keys], 1)
        if len(hashes) != batch.num_rows or hash_columns(first, self.seed)[0] != hashes[0]:
            raise InternalError(
                "hashes are not those of the rows under the table's seed",
                view=self.spec.name,
                rows=batch.num_rows,
                hashes=len(hashes),
            )

    def _window_columns(self, batch: pa.RecordBatch) -> tuple[pa.Array | None, pa.Array | None]:
        window = self.spec.window
        if window is None:
            return None, None
        columns = [batch.column(name) for name in (window.name, window.end_name)]
        for each in columns:
            if each.type != self.spec.time_type or each.null_count:
                raise InvalidFlow(
                    "a window needs times of its type, without nulls",
                    window=window.name,
                    type=str(each.type),
                    nulls=each.null_count,
                )
        return key_array(columns[0])[1], columns[1]

    def _order(self, batch: pa.RecordBatch, split_rank: int) -> tuple[Int64s, Int64s, Int64s]:
        names, rows = batch.schema.names, batch.num_rows
        times = np.full(rows, NEVER, np.int64)
        if TIME in names:
            times = np.ascontiguousarray(batch.column(TIME).cast(pa.int64()).fill_null(NEVER).to_numpy())
        offsets = np.ascontiguousarray(batch.column(OFFSET).cast(pa.int64()).to_numpy())
        return times, np.full(rows, split_rank, np.int64), offsets

    def _merge(
        self,
        keys: KeyColumns,
        starts: pa.Array | None,
        ends: pa.Array | None,
        hashes: UInt64s | None,
        lines: list[Line],
    ) -> None:
        self._serial += 1
        self._room(keys.rows)
        windows = self._window_rows[: keys.rows]
        self._windows.assign(windows, starts, ends)
        slots = self._locate(keys, windows, hashes if self.spec.keys else None, insert=True)
        if self._last_view >= 0:
            self._keep_views(slots)
        if lines:
            self._fold(np.stack(lines), slots)

    # -- from keys to rows -----------------------------------------------------------------------------------------------------

    def _room(self, rows: int) -> None:
        """Buffers for a value per row."""
        if self._slots.shape[0] < rows:
            self._slots, self._hashes = np.empty(rows, np.int64), np.empty(rows, np.uint64)
            self._window_rows = np.empty(rows, np.int64)

    def _locate(self, keys: KeyColumns, windows: Int64s, hashes: UInt64s | None, *, insert: bool) -> Int64s:
        """The row of each key, in a buffer that the next call uses again."""
        rows = keys.rows
        slots = self._slots[:rows]
        given = hashes is not None
        # One machine code serves all: kernels want memory of one kind, and a hash per row.
        hashes = self._hashes[:rows] if hashes is None else np.require(hashes, np.uint64, ["C", "W"])
        row = 0
        while True:
            row, why, detail = kernels.locate(
                keys.described, keys.head_words, row, rows, windows, hashes, given, self._seed_word, insert,
                self._starts, self._cursors, self._scratch, self._homes, self._windows.tails, self._filled, self._versions,
                self._serial, self._shift, slots,
            )  # fmt: skip
            if why == kernels.DONE:
                return slots
            if why == kernels.SCRATCH:
                self._scratch = np.empty(2 * self._scratch.shape[0], np.uint64)
            elif why == kernels.INDEX:
                self._windows.grow(int(windows[row]), int(hashes[row]))
            elif why == kernels.ROWS:
                self._more_rows(int(windows[row]))
            else:
                self._more_keys(int(windows[row]), detail)

    def _locate_all(self, keys: KeyColumns, windows: Int64s) -> Int64s:
        """The row of each key in each window, in the same buffer."""
        slots, row = self._slots[: keys.rows * len(windows)], 0
        while True:
            row = kernels_of_lookups.locate_all(
                keys.described, keys.head_words, row, keys.rows, windows, self._hashes, self._seed_word, self._starts, self._cursors,
                self._scratch, self._homes, self._windows.tails, slots,
            )  # fmt: skip
            if row == keys.rows:
                return slots
            self._scratch = np.empty(2 * self._scratch.shape[0], np.uint64)

    def _more_rows(self, number: int) -> None:
        """Give the window room for rows: its last chunk grows up to the size of chunks, then it gets another."""
        window, tail, most = self._windows.by_id[number], self._windows.tails[number], 1 << self._shift
        if window.chunks:
            stored = self._stored[window.chunks[-1]]
            assert stored is not None
            if stored.capacity < most:
                capacity = min(most, 4 * stored.capacity)
                self._grow(window, window.chunks[-1], stored, capacity)
                tail[kernels.LIMIT] = (window.chunks[-1] << self._shift) + capacity
                return
        capacity = most if window.chunks else min(most, _FIRST_ROWS)
        chunk = self._free_chunks.pop() if self._free_chunks else len(self._stored)
        if chunk == len(self._stored):
            self._stored.append(None)
            if chunk >= self._ids.shape[0]:
                self._ids, self._versions = doubled(self._ids), doubled(self._versions)
                self._born, self._filled = doubled(self._born), doubled(self._filled)
                self._arenas, self._pointers = doubled(self._arenas), doubled(self._pointers.T).T.copy()
        window.chunks.append(chunk)
        self._ids[chunk], self._next_id = self._next_id, self._next_id + 1
        self._filled[chunk], self._arenas[chunk] = 0, 0
        keys = Keys(self._layout, window.start, window.end)
        self._place(chunk, Stored(keys, self._fresh(window, capacity), capacity, None))
        tail[kernels.NEXT], tail[kernels.LIMIT] = chunk << self._shift, (chunk << self._shift) + capacity
        self._segment(number)

    def _more_keys(self, window: int, needed: int) -> None:
        """Give the window memory for keys: as much as it has already, within limits, and the `needed` bytes of the next."""
        each = self._windows.by_id[window]
        size = max(needed, min(_MOST_KEYS, max(each.key_bytes, needed * min(_FIRST_ROWS, 1 << self._shift))))
        memory = zeroed(size)
        each.key_bytes += size
        self._windows.tails[window, kernels.CURSOR] = memory.ctypes.data
        self._windows.tails[window, kernels.END] = memory.ctypes.data + size
        each.memory = memory
        self._segment(window)

    def _segment(self, window: int) -> None:
        """The window's next row begins a segment, in what is left of its memory for keys."""
        each = self._windows.by_id[window]
        stored = self._stored[each.chunks[-1]]
        assert stored is not None
        if each.memory is not None:
            used = int(self._windows.tails[window, kernels.CURSOR]) - each.memory.ctypes.data
            row = int(self._windows.tails[window, kernels.NEXT]) & ((1 << self._shift) - 1)
            stored.keys.segments.append((row, each.memory[used:]))

    # -- chunks ----------------------------------------------------------------------------------------------------------------

    def _fresh(self, window: Window, capacity: int) -> Block:
        block = window.pool.fresh(self._layout.offsets(capacity)[-1])
        window.pool.limit += block.size
        return block

    def _place(self, chunk: int, stored: Stored) -> None:
        """Make this the chunk, in a block that nobody else knows."""
        self._stored[chunk] = stored
        offsets = self._layout.offsets(stored.capacity)
        for column in range(len(self._layout.columns)):
            self._pointers[column, chunk] = stored.block.address + offsets[column]
        self._born[chunk] = self._serial

    def _grow(self, window: Window, chunk: int, stored: Stored, capacity: int) -> None:
        block = self._fresh(window, capacity)
        window.pool.limit -= stored.block.size
        old, new = self._layout.offsets(stored.capacity), self._layout.offsets(capacity)
        for place, column in enumerate(self._layout.columns):
            size = column.width * stored.capacity
            block.memory(new[place], size)[:] = stored.block.memory(old[place], size)
        before = self._before()
        if before is not None and chunk < len(before.replaced):
            before.replaced[chunk] = MOVED
        self._place(chunk, Stored(stored.keys, block, capacity, stored.values))

    def _keep_views(self, slots: Int64s) -> None:
        """Before the rows `slots` are written: see that views keep what they are in. A large table copies only some of the chunks now."""
        before = self._before()
        if self._large and before is None:
            self._last_view = -1  # all views are gone
            return
        used = len(self._stored)
        touched = (self._versions[:used] == self._serial) & (self._born[:used] <= self._last_view)
        budget = _COPIED if self._large else None
        for chunk in np.flatnonzero(touched).tolist():
            if budget is None:
                self._own(chunk, None)
            elif budget <= 0:
                break
            else:
                budget -= self._own(chunk, before)
        if before is not None:
            before.save(slots, self._shift, self._born, self._last_view, self._pointers)

    def _own(self, chunk: int, before: Before | None) -> int:
        """Copy the chunk's block if a view or an array refers to it. Returns how many bytes were copied."""
        copied = 0
        if not alone(self._stored, chunk) or not is_alone(self._stored[chunk]):
            stored = self._stored[chunk]
            assert stored is not None
            self._place(chunk, Stored(stored.keys, stored.block.copy(), stored.capacity, stored.values))
            copied = stored.block.size
            if before is not None:
                offsets = self._layout.offsets(stored.capacity)
                for column in range(len(self._layout.columns)):
                    address = stored.block.address + offsets[column]
                    before.put_back(chunk, column, int(before.filled[chunk]), address)
                before.replaced[chunk] = SETTLED
        self._born[chunk] = self._serial
        return copied

    def _fold(self, program: npt.NDArray[np.int64], slots: Int64s) -> None:
        ahead = _AHEAD if self.rows * self._layout.row_bytes > _FAR_BYTES else 0
        operation, row, stopped, extra = 0, 0, (-1, -1), 0
        while True:
            operation, row = fold.run(program, operation, row, self._pointers, slots, self._shift, ahead, self._arenas)
            if operation == program.shape[0]:
                return
            extra = 2 * extra if stopped == (operation, row) else 256
            stopped = (operation, row)
            self._more_values(int(slots[row]) >> self._shift, extra)

    def _more_values(self, chunk: int, extra: int) -> None:
        """Move the chunk's texts to memory twice the size of those still wanted, and `extra`."""
        stored = self._stored[chunk]
        assert stored is not None
        rows, offsets = int(self._filled[chunk]), self._layout.offsets(stored.capacity)
        columns = []
        for column, flags in self._layout.cells:
            cells = stored.block.memory(offsets[column], 16 * rows).view(np.uint64)
            wanted = stored.block.memory(offsets[flags], rows) == 1
            begins = np.ascontiguousarray(cells[0::2])
            sizes = np.where(wanted, cells[1::2].astype(np.int64), 0)
            columns.append((cells, begins, sizes))
        live = sum(int(sizes.sum()) for _, _, sizes in columns)
        values = np.empty(2 * live + extra, np.uint8)
        at = int(values.ctypes.data)
        for cells, begins, sizes in columns:
            decode.gather_bytes(begins, sizes, at)
            cells[0::2] = (at + np.cumsum(sizes) - sizes).astype(np.uint64)
            cells[1::2] = sizes.astype(np.uint64)
            at += int(sizes.sum())
        self._arenas[chunk] = at, values.ctypes.data + values.nbytes
        self._stored[chunk] = Stored(stored.keys, stored.block, stored.capacity, values)

    # -- rows out --------------------------------------------------------------------------------------------------------------

    @property
    def rows(self) -> int:
        return int(self._filled[: len(self._stored)].sum())

    def memory(self) -> dict[str, int]:
        """Bytes: of the index; of keys, with their two words of bookkeeping; of aggregate state; other."""
        stored = [each for each in self._stored if each is not None]
        before = self._before()
        own = (self._ids, self._versions, self._born, self._filled, self._arenas, self._pointers)
        return {
            "index": self._windows.index_bytes,
            "keys": self._windows.key_bytes,
            "columns": sum(each.block.size + (0 if each.values is None else each.values.nbytes) for each in stored),
            "other": sum(each.nbytes for each in own)
            + self._windows.nbytes
            + sum(each.pool.waiting for each in self._windows.by_id.values())
            + sum(each.keys.decoded_nbytes for each in stored)
            + (0 if before is None else before.nbytes),
        }

    def view(self) -> TableView:
        """All rows as they are now. Costs microseconds, plus one copy of each chunk that is written while somebody holds it."""
        used = len(self._stored)
        ids, filled, before = self._ids[:used].copy(), self._filled[:used].copy(), None
        if not self._layout.cells and (self._large or self.rows * self._layout.row_bytes > _LARGE):
            previous = self._before()
            if not self._large or (previous is not None and previous.length >= _LONGEST):
                self.save_first()  # from now on; or one view is held so long that it would hold ever more logs
                previous = None
            before = Before(self._layout, ids, filled, self._shift)
            if previous is not None:
                before.follow(previous)
            self._before = weakref.ref(before)
        self._last_view = self._serial
        return TableView(self._layout, list(self._stored), ids, self._versions[:used].copy(), filled, before)

    def save_first(self) -> None:
        """Be a large table, whose views are given copies: what those until now have becomes theirs alone."""
        used, before = len(self._stored), self._before()
        for chunk in np.flatnonzero((self._born[:used] <= self._last_view) & (self._filled[:used] > 0)).tolist():
            self._own(chunk, before)
        self._large = True

    def pieces(self) -> Pieces:
        """The memory of its chunks, to be compared with that of views. For whoever may write: a chunk that is looked at is not alone."""
        window = self.spec.window
        return Pieces.of(pieces_of(self._stored, windows_go=window is not None and window.keep is not None))

    def lookup(self, keys: pa.RecordBatch) -> pa.RecordBatch:
        """Result rows of the given keys: all plain keys, for all their windows, or the full key. By key in the order given, then
        window; unknown keys give no row, and a key that is given twice gives its rows once. Holds no chunk."""
        return self.find(self.asked(keys)).results()

    def asked(self, keys: pa.RecordBatch) -> Asked:
        """The first step of a `lookup`: needs nothing of the rows."""
        return asked(self._layout, keys)

    def find(self, keys: Asked) -> Found:
        """The second: the state of the rows of `keys`, copied. What is found can be made into rows while others write."""
        keys, windows, each = in_windows(keys, self._windows)
        self._room(keys.rows * each)
        if each > 1:
            slots = self._locate_all(keys.described, windows)
        else:
            slots = self._locate(keys.described, windows, None, insert=False)
        if self._seen.shape[0] << 6 < len(self._stored) << self._shift:  # memory that is never written costs nothing
            self._seen = np.zeros((self._ids.shape[0] << self._shift) // 64 + 1, np.uint64)
        return Found(self._layout, self._pointers, slots, self._shift, self._seen, keys, windows, each, self._windows)

    # -- windows ---------------------------------------------------------------------------------------------------------------

    def windows(self) -> list[tuple[int, int]]:
        """(end in microseconds, rows) of each window that has rows, by end."""
        if self.spec.window is None:
            return []
        numerator, denominator = micros_per(self.spec.time_type)
        counts: dict[int, int] = {}
        for each in self._windows.by_id.values():
            end = each.end * numerator // denominator
            counts[end] = counts.get(end, 0) + int(self._filled[each.chunks].sum())
        return sorted(counts.items())

    def expire(self, upto_us: int) -> int:
        """Drop the windows that are to be forgotten at or before `upto_us` (microseconds); how many rows went. Their memory goes
        back to the system, except what a view still holds."""
        window = self.spec.window
        if window is None or window.keep is None:
            return 0
        numerator, denominator = micros_per(self.spec.time_type)
        gone = [
            number
            for number, each in self._windows.by_id.items()
            if window.expires(each.end * numerator // denominator) <= upto_us
        ]
        if not gone:
            return 0
        self._serial += 1
        rows = 0
        for number in gone:
            each = self._windows.by_id[number]
            each.pool.close()
            for chunk in each.chunks:
                rows += int(self._filled[chunk])
                self._stored[chunk], self._filled[chunk] = None, 0
                self._free_chunks.append(chunk)
        self._windows.drop(gone)
        return rows

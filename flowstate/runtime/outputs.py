"""The three kinds of output (contract: `output.Output`): final rows, rows of append tables, changes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from flowstate.errors import InternalError
from flowstate.plan.position import NEVER
from flowstate.plan.spec import EPOCH, REVISION, AppendSpec, SinkSpec, TableSpec
from flowstate.plan.window import WindowSpec, microseconds
from flowstate.runtime.output import Batches, Due, FrozenState, Output, Size, View, size_of
from flowstate.state.view import Baseline, TableView


def make_output(number: int, sink: SinkSpec, table: TableSpec | AppendSpec, epoch: int) -> Output:
    """`epoch` is what rows of changes carry: ``generation << 32 | epoch of the incarnation``."""
    match sink.mode, table:
        case "final", TableSpec():
            return FinalOutput(number, sink, table)
        case "changes", TableSpec():
            return ChangesOutput(number, sink, epoch)
        case "append", AppendSpec():
            return AppendOutput(number, sink, table)
    raise InternalError("a sink and its table do not fit", sink=number, mode=sink.mode, table=sink.table)


class FinalDue(Due):
    """Windows that close in ``(after, upto]`` but those of `apart`, and the rows of `windows` (by end), which have left the table."""

    def __init__(
        self, output: FinalOutput, after: int, upto: int, apart: frozenset[int], windows: dict[int, Batches]
    ) -> None:
        self.output, self.after, self.upto, self.apart, self.windows = output, after, upto, apart, windows
        self.left = [batch for end in sorted(windows) for batch in windows[end]]
        self.handed = output.mark(upto, apart)
        self.handed_left = output.mark(after, apart | windows.keys())

    def rows(self, frozen: FrozenState) -> Batches:
        made = self.output.made(frozen.views[self.output.sink.table], self.after, self.upto, self.apart)
        return [*self.left, *(batch for end in sorted(made) for batch in made[end])]


class FinalOutput(Output):
    """Rows of closed windows, each once. The mark is a watermark: windows that close up to it are handed over, whole; and, while a sink
    stands still, the ends of windows after it that were handed over because they left the state.

    Which windows are due is said by `FrozenState.closed`, how far *this* state has come: after a fall to an older state, watermarks that
    were acted upon before it are ahead of its rows, and a window may be incomplete.
    """

    def __init__(self, number: int, sink: SinkSpec, table: TableSpec) -> None:
        super().__init__(number, sink)
        if table.window is None:
            raise InternalError("final rows need windows", table=table.name)
        self.window: WindowSpec = table.window
        self.upto, self.apart = NEVER, frozenset[int]()
        self._left: dict[int, Batches] = {}
        self._meanwhile: dict[int, Batches] = {}  # left while a save was under way that may have taken them

    def made(self, view: View, after: int, upto: int, apart: Iterable[int]) -> dict[int, Batches]:
        """Rows by the ends of their windows, as they go out."""
        assert isinstance(view, TableView)
        rows = view.closed(after, upto)
        if not rows.num_rows:
            return {}
        ends = microseconds(rows.column(self.window.end_name))
        outgoing = self.sink.outgoing(rows)
        each = [end for end in np.unique(ends).tolist() if end not in set(apart)]
        if len(each) == 1 and len(np.unique(ends)) == 1:
            return {each[0]: [outgoing]}
        return {end: [outgoing.filter(pa.array(ends == end))] for end in each}

    def mark(self, upto: int, apart: Iterable[int]) -> Any:
        """As a manifest has it."""
        behind = sorted(self._after(upto, apart))
        return {"watermark": upto, "windows": behind} if behind else upto

    def _after(self, upto: int, ends: Iterable[int]) -> frozenset[int]:
        return frozenset(end for end in ends if self.window.closes(end) > upto)

    def _left_size(self) -> Size:
        kept = [*list(self._left.values()), *list(self._meanwhile.values())]
        return size_of(batch for batches in kept for batch in batches)

    def restore(self, handed: Any, view: View) -> None:
        if handed is None:
            return
        upto, apart = (handed, ()) if isinstance(handed, int) else (handed["watermark"], handed["windows"])
        self.upto = max(self.upto, upto)
        self.apart = self._after(self.upto, {*self.apart, *apart})

    def leaving(self, view: TableView, ends: Sequence[int]) -> dict[int, Batches]:
        last = max(self.window.closes(end) for end in ends)
        made = self.made(view, self.upto, max(last, self.upto), self.apart)
        return {end: made[end] for end in ends if end in made}

    def keep(self, leaving: dict[int, Batches]) -> None:
        (self._left if self.under_way is None else self._meanwhile).update(leaving)

    def _take(self, frozen: FrozenState) -> FinalDue:
        due = FinalDue(self, self.upto, max(self.upto, frozen.closed), self.apart, self._left)
        self._left = {}
        return due

    def _saved(self, due: FinalDue, frozen: FrozenState) -> None:
        self.upto, self.apart = due.upto, self._after(due.upto, self.apart)
        self._left = {end: self._meanwhile[end] for end in self._after(due.upto, self._meanwhile)}
        self._meanwhile = {}

    def _stalled(self, due: FinalDue) -> None:
        self.apart = self._after(self.upto, self.apart | due.windows.keys())
        self._left, self._meanwhile = self._meanwhile, {}

    def _failed(self, due: FinalDue) -> None:
        self._left, self._meanwhile = due.windows | self._meanwhile, {}


class AppendDue(Due):
    """Rows that came since the last save. They are in no table that keeps them all, so none of them can wait."""

    def __init__(self, left: Batches, handed: dict[str, int]) -> None:
        self.left, self.handed, self.handed_left = left, handed, handed

    def rows(self, frozen: FrozenState) -> Batches:
        return self.left


class AppendOutput(Output):
    """Every row once. The mark is, per split, the last offset of which a row was handed over. Positions cover whole offsets, and so do
    batches: rows that share an offset come and go together."""

    def __init__(self, number: int, sink: SinkSpec, table: AppendSpec) -> None:
        super().__init__(number, sink)
        self._schema = table.schema
        self.upto: dict[str, int] = {}  # in a manifest; after a fall to an older state, ahead of the rows that come
        self._came: dict[str, int] = {}
        self._left: Batches = []
        self._size = Size()  # of `_left`

    def _left_size(self) -> Size:
        return self._size

    def restore(self, handed: Any, view: View) -> None:
        for split, offset in (handed or {}).items():
            self.upto[split] = max(offset, self.upto.get(split, offset))

    def append(self, split: str, rows: pa.RecordBatch) -> None:
        offsets = rows.column("offset").to_numpy(zero_copy_only=False)
        if split in self.upto and offsets[0] <= self.upto[split]:
            rows = rows.filter(pa.array(offsets > self.upto[split]))
            if not rows.num_rows:
                return
        self._came[split] = int(offsets[-1])
        if rows.schema != self._schema:
            columns = [rows.column(each.name).cast(each.type) for each in self._schema]
            rows = pa.RecordBatch.from_arrays(columns, schema=self._schema)
        rows = self.sink.outgoing(rows)
        self._left.append(rows)
        self._size += Size(rows.nbytes, rows.num_rows)

    def _take(self, frozen: FrozenState) -> AppendDue:
        due = AppendDue(self._left, self.upto | self._came)
        self._left, self._size = [], Size()
        return due

    def _saved(self, due: AppendDue, frozen: FrozenState) -> None:
        self.upto = due.handed

    def _stalled(self, due: AppendDue) -> None:
        self.upto = due.handed

    def _failed(self, due: AppendDue) -> None:
        self._left = [*due.left, *self._left]
        self._size += due.left_size


class ChangesDue(Due):
    """Rows whose revision is another than in `since` (None: all)."""

    def __init__(self, output: ChangesOutput, frozen: FrozenState, since: Baseline | None, left: Batches) -> None:
        self.output, self.since, self.left = output, since, left
        self._view = frozen.views[output.sink.table]
        self._baseline: Baseline | None = None
        self.handed, self.handed_left = output.epoch, None

    def rows(self, frozen: FrozenState) -> Batches:
        made = self.output.made(frozen.views[self.output.sink.table], self.since)
        self.baseline()  # computed here, beside the pump
        return [*self.left, *made]

    def baseline(self) -> Baseline:
        """Revisions of the frozen state, as long as it is held. Two threads that ask at once both compute them."""
        if self._baseline is None:
            assert isinstance(self._view, TableView)
            self._baseline = self._view.revisions(self.since)
        return self._baseline


class ChangesOutput(Output):
    """Rows whose revision changed since the last save that handed any over, under (epoch, revision), of which the greatest holds.

    The mark is the saved state itself: its revisions are the baseline of the next incarnation. The manifest only says that everything up
    to there was handed over (by giving the epoch that did so); if it does not, because the sink stood still, the next incarnation hands
    over all rows. One that falls to an older state hands over again what changes on the way from there, under its own, greater epoch;
    since the newest state came of that one, nothing that was handed over is ahead of where it will come again.
    """

    def __init__(self, number: int, sink: SinkSpec, epoch: int) -> None:
        super().__init__(number, sink)
        self.epoch = epoch
        self.baseline: Baseline | None = None
        self._whole = True
        self._left: Batches = []
        self._if_saved: Batches = []  # left while a save was under way, according to how it ends
        self._if_failed: Batches = []

    def made(self, view: View, since: Baseline | None, windows: Sequence[int] | None = None) -> Batches:
        """Rows as they go out."""
        assert isinstance(view, TableView)
        rows = view.changed(since, windows)
        if not rows.num_rows:
            return []
        revisions = rows.column(REVISION)
        outgoing = self.sink.outgoing(rows.drop_columns([REVISION]))
        for name, values in ((EPOCH, pa.array(np.full(rows.num_rows, self.epoch, np.int64))), (REVISION, revisions)):
            outgoing = outgoing.append_column(pa.field(name, pa.int64(), nullable=False), values)
        return [outgoing]

    def _left_size(self) -> Size:
        return size_of([*self._left, *self._if_failed])

    def restore(self, handed: Any, view: View) -> None:
        assert isinstance(view, TableView)
        self._whole = self._whole and handed is not None
        self.baseline = view.revisions(self.baseline) if self._whole else None

    def leaving(self, view: TableView, ends: Sequence[int]) -> tuple[Batches, Batches]:
        behind = self.made(view, self.baseline, ends)
        if self.under_way is None:
            return behind, behind
        assert isinstance(self.under_way, ChangesDue)
        return self.made(view, self.under_way.baseline(), ends), behind

    def keep(self, leaving: tuple[Batches, Batches]) -> None:
        if self.under_way is None:
            self._left += leaving[0]
        else:
            self._if_saved += leaving[0]
            self._if_failed += leaving[1]

    def _take(self, frozen: FrozenState) -> ChangesDue:
        due = ChangesDue(self, frozen, self.baseline, self._left)
        self._left = []
        return due

    def _saved(self, due: ChangesDue, frozen: FrozenState) -> None:
        self.baseline = due.baseline()
        self._left, self._if_saved, self._if_failed = self._if_saved, [], []

    def _stalled(self, due: ChangesDue) -> None:
        self._left, self._if_saved, self._if_failed = self._if_failed, [], []

    def _failed(self, due: ChangesDue) -> None:
        self._left, self._if_saved, self._if_failed = [*due.left, *self._if_failed], [], []

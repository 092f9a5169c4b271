"""A table of rows as they came: late rows, dead letters.

It keeps, of each split, the `keep_rows` rows with the greatest offsets (none if that is 0), and counts all rows exactly. What it holds
is a function of the rows alone, however they were cut into batches and whichever split came first. Rows that share an offset (one record
that failed in several places, or that exploded into several rows) are kept or dropped in the order in which they came within their split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flowstate.errors import CorruptData, InvalidFlow
from flowstate.plan.spec import AppendSpec
from flowstate.state.pieces import Pieces


class AppendChunk:
    """Some rows of a table, of one split: `id`, `version` (changes with the content), `rows`; `state()` has the table's columns."""

    def __init__(self, chunk_id: int, version: int, batch: pa.RecordBatch) -> None:
        self.id, self.version, self.rows = chunk_id, version, batch.num_rows
        self._batch = batch

    def state(self) -> pa.RecordBatch:
        return self._batch


class AppendView:
    """The table as it was when the view was taken; immutable, costs nothing to hold but the rows themselves."""

    def __init__(self, schema: pa.Schema, chunks: Sequence[AppendChunk]) -> None:
        self.schema = schema
        self.chunks = chunks
        self.rows = sum(each.rows for each in chunks)

    def batches(self, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """The rows, by split, then offset."""
        chunks = self.chunks
        for each in chunks:
            yield each.state() if columns is None else each.state().select(columns)

    def pieces(self) -> Pieces:
        """The memory that it refers to."""
        return Pieces.of((id(each.state()), each.state().get_total_buffer_size()) for each in self.chunks)

    def release(self) -> None:
        """Give the rows up. Batches that were handed out stay valid."""
        self.chunks, self.rows = (), 0

    def closed(self, after_us: int, upto_us: int) -> pa.RecordBatch:
        """No row of an append table belongs to a window."""
        return _empty(self.schema)


def _empty(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([], schema=schema)


class _Split:
    """The rows of one split: a sealed part in order of offset, and batches that came since."""

    def __init__(self, chunk_id: int, schema: pa.Schema) -> None:
        self.id, self.version, self.count = chunk_id, 0, 0
        self.sealed = _empty(schema)
        self.recent: list[pa.RecordBatch] = []
        self.recent_rows = 0

    def add(self, batch: pa.RecordBatch, keep: int) -> None:
        if keep == 0:
            return
        self.version += 1
        self.recent.append(batch)
        self.recent_rows += batch.num_rows
        if self.recent_rows >= max(keep, 256) or len(self.recent) >= 64:
            self.settle(keep)

    def settle(self, keep: int) -> None:
        """Bring everything in order of offset and drop what is beyond the newest `keep`."""
        if not self.recent:
            return
        table = pa.Table.from_batches([self.sealed, *self.recent])
        offsets = table.column("offset").to_numpy()
        order = np.argsort(offsets, kind="stable")
        rows = table.take(pa.array(order[max(0, len(order) - keep) :]))
        self.sealed = pa.RecordBatch.from_arrays([_whole(each) for each in rows.columns], schema=table.schema)
        self.recent, self.recent_rows = [], 0


def _whole(column: pa.ChunkedArray) -> pa.Array:
    whole = column.combine_chunks()
    return whole if isinstance(whole, pa.Array) else pa.concat_arrays(whole.chunks)


class AppendTable:
    """Rows of `spec.schema`, which has the columns `split` (text) and `offset` (int64). One caller at a time."""

    def __init__(self, spec: AppendSpec) -> None:
        for name in ("split", "offset"):
            if name not in spec.schema.names:
                raise InvalidFlow("an append table needs the columns split and offset", table=spec.name, missing=name)
        self.spec = spec
        self._splits: dict[str, _Split] = {}

    @property
    def count(self) -> int:
        """How many rows were ever appended, exactly, also those no longer kept."""
        return sum(each.count for each in self._splits.values())

    @property
    def rows(self) -> int:
        keep = self.spec.keep_rows
        return sum(min(keep, each.sealed.num_rows + each.recent_rows) for each in self._splits.values())

    def append(self, batch: pa.RecordBatch) -> None:
        for split, rows in self._by_split(batch):
            split.count += rows.num_rows
            split.add(rows, self.spec.keep_rows)

    def view(self) -> AppendView:
        chunks = []
        for name in sorted(self._splits):
            split = self._splits[name]
            split.settle(self.spec.keep_rows)
            if split.sealed.num_rows:
                chunks.append(AppendChunk(split.id, split.version, split.sealed))
        return AppendView(self.spec.schema, tuple(chunks))

    def pieces(self) -> Pieces:
        """The memory that it shares with views."""
        sealed = [each.sealed for each in self._splits.values()]
        return Pieces.of((id(each), each.get_total_buffer_size()) for each in sealed)

    def memory(self) -> dict[str, int]:
        kept = sum(
            batch.get_total_buffer_size() for each in self._splits.values() for batch in (each.sealed, *each.recent)
        )
        return {"index": 0, "keys": 0, "columns": kept, "other": 0}

    def extras(self) -> dict[str, Any]:
        """What a snapshot needs beside the chunks, as plain JSON: the exact count per split."""
        return {"counts": {name: self._splits[name].count for name in sorted(self._splits)}}

    def restore(
        self,
        batches: Iterable[pa.RecordBatch],
        extras: Mapping[str, Any],
        keep: Callable[[str], bool] | None = None,
    ) -> None:
        """Load chunks, and the counts that `extras()` gave with them, of the splits that `keep` accepts.

        May be called once per former partition. Each row and each count must be given once: a split has one owner at a time.
        """
        try:
            counts = {str(split): int(count) for split, count in extras.get("counts", {}).items()}
        except (TypeError, ValueError, AttributeError) as error:
            raise CorruptData("the counts of an append table cannot be read", table=self.spec.name) from error
        for split, count in counts.items():
            if keep is None or keep(split):
                self._split(split).count += count
        for batch in batches:
            if not batch.schema.equals(self.spec.schema):
                raise CorruptData(
                    "a saved chunk has another schema than its table", table=self.spec.name, found=str(batch.schema)
                )
            for owned, rows in self._by_split(batch, keep):
                owned.add(rows, self.spec.keep_rows)

    def _split(self, name: str) -> _Split:
        if name not in self._splits:
            self._splits[name] = _Split(len(self._splits), self.spec.schema)
        return self._splits[name]

    def _by_split(
        self, batch: pa.RecordBatch, keep: Callable[[str], bool] | None = None
    ) -> Iterator[tuple[_Split, pa.RecordBatch]]:
        if batch.schema != self.spec.schema:
            batch = pa.RecordBatch.from_arrays(
                [batch.column(each.name).cast(each.type) for each in self.spec.schema], schema=self.spec.schema
            )
        splits = batch.column("split").unique().to_pylist() if batch.num_rows else []
        for name in splits:
            if keep is not None and not keep(name):
                continue
            rows = batch if len(splits) == 1 else batch.filter(pc.equal(batch.column("split"), name))
            yield self._split(name), rows

"""A keyed table: one row of aggregates per key (first version: plain Python, exact and slow)."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from flowstate.plan.keys import route_hashes
from flowstate.plan.spec import TableSpec
from flowstate.testing.reference import ReferenceTable, _Row, canonical, micros, plain, typed

Kept = dict[tuple[Any, ...], tuple[tuple[Any, ...], list[_Row]]]


class Chunk:
    """Some rows of a table: `id`, `version`, `rows`, and `state()`, their physical columns."""

    def __init__(self, spec: TableSpec, kept: Kept, version: int) -> None:
        self._spec, self._kept = spec, kept
        self.id, self.version, self.rows = 0, version, len(kept)

    def state(self) -> pa.RecordBatch:
        schema = self._spec.key_schema
        columns: list[list[Any]] = [[] for _ in schema]
        for values, _ in self._kept.values():
            for column, value in zip(columns, values, strict=True):
                column.append(value)
        rows = pa.array([pickle.dumps(rows) for _, rows in self._kept.values()], pa.binary())
        arrays = [typed(values, kind) for values, kind in zip(columns, schema.types, strict=True)]
        return pa.RecordBatch.from_arrays([*arrays, rows], schema=schema.append(pa.field("__rows", pa.binary())))


class TableView:
    """The table as it was when the view was taken."""

    def __init__(self, spec: TableSpec, kept: Kept, version: int) -> None:
        self._spec = spec
        self._table = ReferenceTable(spec, kept)
        self.schema, self.rows = spec.schema, len(kept)
        self.chunks: Sequence[Chunk] = (Chunk(spec, kept, version),) if kept else ()

    def batches(self, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        if self.rows:
            aggregates = self._spec.aggregates
            if columns is not None:
                aggregates = tuple(each for each in aggregates if each.name in columns)
            spec = TableSpec(self._spec.name, self._spec.keys, self._spec.window, aggregates, self._spec.time_type)
            found = ReferenceTable(spec, self._table.kept).results()
            yield found if columns is None else found.select(columns)

    def closed(self, after_us: int, upto_us: int) -> pa.RecordBatch:
        window = self._spec.window
        if window is None:
            return self._table.results(lambda key: tuple(map(canonical, key[: keys.num_columns])) in wanted)
        place = self._spec.key_schema.get_field_index(window.end_name)
        found = {
            key: kept
            for key, kept in self._table.kept.items()
            if after_us < window.closes(micros(kept[0][place], window.time_type)) <= upto_us
        }
        return ReferenceTable(self._spec, found).results()

    def release(self) -> None:
        pass


class KeyedTable:
    def __init__(self, spec: TableSpec, *, seed: int, chunk_rows: int = 16384) -> None:
        self.spec, self.seed, self.chunk_rows = spec, seed, chunk_rows
        self._table = ReferenceTable(spec)
        self._version = 0

    @property
    def rows(self) -> int:
        return self._table.rows

    def apply(
        self, batch: pa.RecordBatch, hashes: npt.NDArray[np.uint64] | None = None, split_rank: int = 0
    ) -> None:
        self._version += 1
        self._table.apply(batch, split_rank)

    def memory(self) -> dict[str, int]:
        return {"index": 0, "keys": 0, "columns": 0, "other": 0}

    def view(self) -> TableView:
        kept = {key: (values, list(rows)) for key, (values, rows) in self._table.kept.items()}
        return TableView(self.spec, kept, self._version)

    def lookup(self, keys: pa.RecordBatch) -> pa.RecordBatch:
        wanted = {
            tuple(map(canonical, key))
            for key in zip(*(plain(column.cast(kind)) for column, kind in zip(keys.columns, self.spec.key_schema.types, strict=False)), strict=True)
        }
        return self._table.results(lambda key: tuple(map(canonical, key[: keys.num_columns])) in wanted)

    def windows(self) -> list[tuple[int, int]]:
        window, counts = self.spec.window, dict[int, int]()
        if window is not None:
            place = self.spec.key_schema.get_field_index(window.end_name)
            for values, _ in self._table.kept.values():
                end = micros(values[place], window.time_type)
                counts[end] = counts.get(end, 0) + 1
        return sorted(counts.items())

    def expire(self, upto_us: int) -> int:
        self._version += 1
        return self._table.expire(upto_us)

    def restore(
        self,
        batches: Iterable[pa.RecordBatch],
        keep: Callable[[npt.NDArray[np.uint64]], npt.NDArray[np.bool_]] | None = None,
    ) -> None:
        names = self.spec.key_schema.names
        for batch in batches:
            self._version += 1
            mask = [True] * batch.num_rows
            if keep is not None:
                routing = [batch.column(name) for name in self.spec.routing_keys]
                mask = list(keep(route_hashes(routing, self.seed, rows=batch.num_rows)))
            keys = zip(*(plain(batch.column(name)) for name in names), strict=True) if names else [()] * batch.num_rows
            for kept, key, rows in zip(mask, keys, batch.column("__rows").to_pylist(), strict=True):
                if kept:
                    _, known = self._table.kept.setdefault(tuple(map(canonical, key)), (key, []))
                    known += pickle.loads(rows)

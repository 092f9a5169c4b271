"""Record batches in memory as a finite log, for notebooks and tests.

Options: `batches` (a list of RecordBatches, or a Table), `splits` (default 1). Batches are dealt in turn to the splits; when there
are fewer batches than splits, every batch is cut into as many pieces. An offset is a row number in its split, and a split is named
by the digest of its content, so that the same data continues after a restart and other data does not.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping, Sequence

import pyarrow as pa

from flowstate.errors import InternalError, InvalidFlow
from flowstate.plan.spec import ScanSpec
from flowstate.source.base import Rows, Source, SourceReader, SplitInfo
from flowstate.source.columns import take_columns
from flowstate.source.records import check_scan, dead_letters, no_rows


class ArrowSource(Source):
    def __init__(self, spec: ScanSpec) -> None:
        check_scan(spec)
        self._spec = spec
        batches = spec.options.get("batches", [])
        if isinstance(batches, pa.Table):
            batches = batches.to_batches()
        elif isinstance(batches, pa.RecordBatch):
            batches = [batches]
        splits = int(spec.options.get("splits", 1))
        if splits < 1:
            raise InvalidFlow("splits must be at least 1", source=spec.name, splits=splits)
        for each in batches:
            _check_columns(spec, each.schema)
        dealt = _deal([each for each in batches if each.num_rows], splits)
        self._logs: dict[str, pa.Table] = {}
        self._infos: list[SplitInfo] = []
        for number, log in enumerate(dealt):
            if not log:
                continue
            digest = hashlib.blake2b(digest_size=16)
            for each in log:
                digest.update(each.serialize())
            name = f"{spec.name}/{number}-{digest.hexdigest()}"
            self._logs[name] = pa.Table.from_batches(log)
            rows = self._logs[name].num_rows
            self._infos.append(SplitInfo(name, f"{spec.name}[{number}]", 0, rows))

    def splits(self) -> Sequence[SplitInfo]:
        return list(self._infos)

    @property
    def follows(self) -> bool:
        return False

    def open(self) -> SourceReader:
        return _ArrowReader(self._spec, self._logs)


def _check_columns(spec: ScanSpec, schema: pa.Schema) -> None:
    for each in spec.schema:
        if not each.nullable and each.name not in schema.names:
            raise InvalidFlow("the batches lack a column that the schema requires", source=spec.name, column=each.name)


def _deal(batches: Sequence[pa.RecordBatch], splits: int) -> list[list[pa.RecordBatch]]:
    dealt: list[list[pa.RecordBatch]] = [[] for _ in range(splits)]
    if len(batches) < splits:
        for batch in batches:
            for number in range(splits):
                start, end = (batch.num_rows * each // splits for each in (number, number + 1))
                if end > start:
                    dealt[number].append(batch.slice(start, end - start))
        return dealt
    for index, batch in enumerate(batches):
        dealt[index % splits].append(batch)
    return dealt


class _ArrowReader(SourceReader):
    def __init__(self, spec: ScanSpec, logs: Mapping[str, pa.Table]) -> None:
        self._spec = spec
        self._logs = logs
        self._offsets: dict[str, int] = {}
        self._turn = 0

    def assign(self, split: SplitInfo, offset: int) -> None:
        if split.name not in self._logs:
            raise InvalidFlow(
                "the batches are not those of the run that is resumed; pass the same batches, or start with new snapshots",
                source=self._spec.name,
                split=split.name,
            )
        self._offsets[split.name] = offset

    def unassign(self, split: str) -> None:
        self._offsets.pop(split, None)

    def poll(self, wanted: Mapping[str, int | None], *, max_rows: int, timeout: float) -> Sequence[Rows]:
        names = [each for each in wanted if each in self._offsets]
        share = max(1, max_rows // max(1, len(names)))
        given = []
        for name in names:
            log = self._logs[name]
            since = self._offsets[name]
            stop = wanted[name]
            end = log.num_rows if stop is None else min(stop, log.num_rows)
            to = min(since + share, end)
            if to > since:
                given.append(self._stretch(name, since, to))
            elif stop is not None and stop > since:
                given.append(Rows(name, since, stop, no_rows(self._spec), dead_letters(self._spec.name, name, ())))
            else:
                continue
            self._offsets[name] = given[-1].to
        if not given and wanted:
            threading.Event().wait(timeout)
        return given

    def _stretch(self, name: str, since: int, to: int) -> Rows:
        table = self._logs[name].slice(since, to - since).combine_chunks()
        batch = table.to_batches()[0]
        rows, dead = take_columns(self._spec, name, batch, since)
        return Rows(name, since, to, rows, dead)

    def end_offset(self, split: str) -> int:
        if split not in self._offsets:
            raise InternalError("asked for the end of a split that is not assigned", split=split)
        return int(self._logs[split].num_rows)

    def known_end(self, split: str) -> int | None:
        return int(self._logs[split].num_rows) if split in self._offsets else None

    def close(self) -> None:
        self._offsets.clear()

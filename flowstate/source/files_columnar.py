"""Parquet and Arrow IPC files: written once, read by row number."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from flowstate.errors import CorruptData
from flowstate.plan.spec import ScanSpec
from flowstate.source.base import Rows, SplitInfo
from flowstate.source.columns import take_columns
from flowstate.source.files_identity import Catalogue
from flowstate.source.files_storage import Storage
from flowstate.source.records import dead_letters, no_rows

BATCH_ROWS = 16_384


def columnar_rows(storage: Storage, form: str, path: str) -> int:
    """How many rows the file has."""
    with _damage(path), _Opened(storage, path) as file:
        if form == "parquet":
            return int(pq.ParquetFile(file).metadata.num_rows)
        return sum(each.num_rows for each in _arrow_batches(file))


class _Opened:
    """The decompressed file, as something Arrow can seek in."""

    def __init__(self, storage: Storage, path: str) -> None:
        self._handle: Any = storage.open(path)
        compression = storage.compression(path)
        self._file: Any = self._handle
        if compression is not None:
            content = storage.open_content(path)
            data = []
            while more := content.read(1 << 22):
                data.append(more)
            content.close()
            self._file = pa.BufferReader(b"".join(data))

    def __enter__(self) -> Any:
        return self._file

    def __exit__(self, *_: object) -> None:
        self._handle.close()


class _damage:
    """Arrow's errors about a file, as an error that names it."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None: ...

    def __exit__(self, _: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, pa.ArrowException | EOFError) or (isinstance(error, OSError) and error.errno is None):
            raise CorruptData(
                f"the file cannot be read ({error}); restore it from its origin, or move it out of the url",
                path=self._path,
            ) from error


def _arrow_batches(file: Any) -> Iterator[pa.RecordBatch]:
    magic = file.read(6)
    file.seek(0)
    if magic == b"ARROW1":
        opened = pa.ipc.open_file(file)
        for index in range(opened.num_record_batches):
            yield opened.get_batch(index)
    else:
        yield from pa.ipc.open_stream(file)


class ColumnarLog:
    """The rows of one split. `position` is the next row number."""

    def __init__(
        self, spec: ScanSpec, storage: Storage, catalogue: Catalogue, form: str, info: SplitInfo, offset: int
    ) -> None:
        self._spec = spec
        self._storage = storage
        self._catalogue = catalogue
        self._form = form
        self._info = info
        self.position = offset
        self._opened: _Opened | None = None
        self._batches: Iterator[pa.RecordBatch] | None = None
        self._batch: pa.RecordBatch | None = None
        self._first = 0

    def next(self, max_rows: int, stop: int | None) -> Rows | None:
        since = self.position
        end = self.end() if stop is None else min(stop, self.end())
        if since >= end:
            if stop is None or since >= stop:
                return None
            self.position = stop
            return Rows(
                self._info.name, since, stop, no_rows(self._spec), dead_letters(self._spec.name, self._info.name, ())
            )
        with _damage(self._info.label):
            batch = self._at(since)
        taken = batch.slice(since - self._first, min(max_rows, end - since))
        rows, dead = take_columns(self._spec, self._info.name, taken, since)
        self.position = since + taken.num_rows
        return Rows(self._info.name, since, self.position, rows, dead)

    def _at(self, row: int) -> pa.RecordBatch:
        """The batch that holds `row`, whose first row is `self._first`."""
        if self._batches is None:
            self._batches = self._open(row)
        while self._batch is None or row >= self._first + self._batch.num_rows:
            if self._batch is not None:
                self._first += self._batch.num_rows
            batch = next(self._batches, None)
            if batch is None:
                raise CorruptData(
                    "the file has fewer rows than it says; restore it from its origin", path=self._info.label, row=row
                )
            self._batch = batch
        return self._batch

    def _open(self, row: int) -> Iterator[pa.RecordBatch]:
        path = self._path()
        self._opened = _Opened(self._storage, path)
        file = self._opened.__enter__()
        self._first = 0
        if self._form == "arrow":
            return _arrow_batches(file)
        parquet = pq.ParquetFile(file)
        # Skip the row groups before `row` without reading them.
        groups = list(range(parquet.num_row_groups))
        while groups and self._first + parquet.metadata.row_group(groups[0]).num_rows <= row:
            self._first += parquet.metadata.row_group(groups.pop(0)).num_rows
        return iter(parquet.iter_batches(BATCH_ROWS, row_groups=groups, use_threads=False))

    def _path(self) -> str:
        """Where the split's file is now."""
        path = (self._info.hint or {}).get("path", "")
        stat = self._storage.stat(path) if path else None
        if stat is not None and self._info.name.endswith(f"/{self._catalogue.digest(path, stat)}"):
            return path
        found = self._catalogue.find().get(self._info.name)
        if found is None:
            raise CorruptData(
                "the file was removed or replaced before it was read to its end; put it back",
                path=path,
                split=self._info.name,
                read_up_to=self.position,
            )
        return found.path

    def end(self) -> int:
        assert self._info.end is not None
        return self._info.end

    def known_end(self) -> int | None:
        return self._info.end

    def close(self) -> None:
        if self._opened is not None:
            self._opened.__exit__()
            self._opened = None

"""Parquet files, each of which appears whole, once, under a name that says who made it.

``<url>/month=2017-01-01/p0003-g0001-e000005-000012-monthly_subtotals.parquet``: partition, generation, epoch, number of the save, table.
The bytes are made once, by `prepare`; publishing copies them, so all publishers write the same. A file that was published and then moved
away by a consumer may appear once more after a crash, under the same name: names are what tells outputs apart.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

from flowstate.errors import CorruptData, InternalError, InvalidFlow, did_you_mean
from flowstate.plan.output import StagedOutput
from flowstate.plan.spec import SinkSpec
from flowstate.sink import hive
from flowstate.sink.base import Sink
from flowstate.store import Store

_COMPRESSIONS = ("none", "snappy", "gzip", "brotli", "zstd", "lz4")
_OPTIONS = ("partition_by", "compression", "storage_options")


class ParquetSink(Sink):
    """`spec.options`: `partition_by` (a column or several: one folder per value), `compression` (default zstd), `storage_options` of
    the target. `sink` is the number by which the job knows it."""

    def __init__(self, spec: SinkSpec, *, sink: int = 0) -> None:
        options: Mapping[str, Any] = spec.options
        if spec.mode != "final":
            message = "rows in Parquet files cannot change later; write .final() rows"
            raise InvalidFlow(message, table=spec.table, mode=spec.mode)
        for name in options:
            if name not in _OPTIONS:
                raise InvalidFlow(
                    f"sink_parquet has no option {name!r}{did_you_mean(name, _OPTIONS)}", table=spec.table
                )
        if options.get("compression", "zstd") not in _COMPRESSIONS:
            compression = str(options["compression"])
            hint = did_you_mean(compression, _COMPRESSIONS)
            raise InvalidFlow(f"Parquet has no compression {compression!r}{hint}", table=spec.table)
        by = options.get("partition_by") or ()
        self.spec = spec
        self.sink = sink
        self.partition_by: tuple[str, ...] = (by,) if isinstance(by, str) else tuple(by)
        self.compression = options.get("compression", "zstd")
        self.target = Store.open(spec.url, **(options.get("storage_options") or {}))

    def check(self, schema: pa.Schema) -> None:
        self._check(schema)
        self.target.probe()

    def prepare(
        self, store: Store, prefix: str, partition: int, epoch: int, number: int, rows: pa.Table
    ) -> Sequence[StagedOutput]:
        self._check(rows.schema)
        if rows.num_rows == 0:
            return []
        return [
            self._stage(store, prefix, partition, epoch, number, index, folder, part)
            for index, (folder, part) in enumerate(hive.split(rows, self.partition_by))
        ]

    def _stage(
        self,
        store: Store,
        prefix: str,
        partition: int,
        epoch: int,
        number: int,
        index: int,
        folder: str,
        rows: pa.Table,
    ) -> StagedOutput:
        data = self._encode(rows)
        generation = prefix.split("/")[0]
        table = quote(self.spec.table, safe="")
        for attempt in range(100):
            again = f"-{attempt}" if attempt else ""
            path = f"{prefix}/stage/e{epoch:06d}-{number:06d}-{self.sink}-{index}{again}.parquet"
            name = f"p{partition:04d}-{generation}-e{epoch:06d}-{number:06d}{again}-{table}.parquet"
            if store.create(path, data) or store.read(path) == data:
                return StagedOutput(
                    self.sink, path, f"{folder}/{name}" if folder else name, rows.num_rows, _checksum(data)
                )
        raise InternalError("output was staged too often under one number", prefix=prefix, epoch=epoch, number=number)

    def publish(self, store: Store, staged: StagedOutput) -> None:
        if self._published(staged):
            return
        try:
            data = store.read(staged.path)
        except FileNotFoundError as error:
            # A zombie may come so late that the output was published, taken away by its consumer, and its stage deleted.
            if self._published(staged):
                return
            message = "staged output is gone, and was not published here; restore the snapshot folder from a backup"
            raise CorruptData(message, object=staged.path, target=staged.target) from error
        if _checksum(data) != staged.checksum:
            message = "staged output is not what was written; restore it from a backup"
            raise CorruptData(message, object=staged.path, target=staged.target)
        if not self.target.create(staged.target, data):
            self._published(staged)

    def _published(self, staged: StagedOutput) -> bool:
        """Whether the target is there. It must be ours: the same name with other content means two jobs write into one folder."""
        if not self.target.exists(staged.target):
            return False
        try:
            found = _checksum(self.target.read(staged.target))
        except FileNotFoundError:  # taken away by a consumer just now
            return True
        if found != staged.checksum:
            message = (
                "a file of this name with other content is there already; give this job an output folder of its own"
            )
            raise InvalidFlow(message, url=self.target.url, file=staged.target)
        return True

    def _check(self, schema: pa.Schema) -> None:
        for name in self.partition_by:
            if name not in schema.names:
                raise InvalidFlow(
                    f"partition_by names no column: {name!r}{did_you_mean(name, schema.names)}", table=self.spec.table
                )
            if not hive.supports(schema.field(name).type):
                message = "partition_by needs a column of text, whole numbers, decimals, dates, times or booleans"
                raise InvalidFlow(message, column=name, type=str(schema.field(name).type))
        if len(set(self.partition_by)) != len(self.partition_by):
            raise InvalidFlow(
                "partition_by names a column twice", table=self.spec.table, partition_by=self.partition_by
            )
        if len(self.partition_by) == len(schema):
            raise InvalidFlow(
                "partition_by leaves no column for the files", table=self.spec.table, columns=schema.names
            )
        for field in schema:
            try:
                self._encode(pa.schema([field]).empty_table())
            except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as error:
                message = "Parquet cannot hold this column; cast it, or leave it out with select"
                raise InvalidFlow(message, column=field.name, type=str(field.type)) from error

    def _encode(self, rows: pa.Table) -> bytes:
        buffer = io.BytesIO()
        try:
            pq.write_table(rows, buffer, compression=self.compression)
        except (OSError, TypeError) as error:
            raise InvalidFlow(
                "this compression is not known to Parquet; try zstd", compression=self.compression
            ) from error
        return buffer.getvalue()


def _checksum(data: bytes) -> str:
    return blake2b(data, digest_size=16).hexdigest()

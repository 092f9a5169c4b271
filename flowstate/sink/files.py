"""Files, each of which appears whole, once, under a name that says who made it.

``<url>/month=2017-01-01/p0003-g0001-e000005-000012-monthly_subtotals.parquet``: partition, generation, epoch, number of the save, table;
behind the number the how manyth file of that save in its folder, unless it is the first. The bytes are made once, by `prepare`;
publishing copies them, so all publishers write the same. A file that was published and then moved away by a consumer may appear once more
after a crash, under the same name: names are what tells outputs apart.

Without `roll_bytes` and `roll_after` every save finishes its files. With them rows wait in the stage, open, until there are enough of them
in their folder (`open_files`), or the input has ended.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import pyarrow as pa

from flowstate.errors import CorruptData, FlowstateError, InternalError, InvalidFlow, did_you_mean
from flowstate.plan.output import StagedOutput
from flowstate.plan.spec import SinkSpec
from flowstate.sink import hive, open_files
from flowstate.sink.base import Sink, Stage
from flowstate.sink.file_formats import FORMATS
from flowstate.sink.staging import checksum, read_staged, stage_object
from flowstate.store import Store

_OPTIONS = ("partition_by", "compression", "roll_bytes", "roll_after", "storage_options")
# After how many publications one folder of the target is swept, and how many folders are remembered for it.
_SWEEP_EVERY = 64
_SWEPT_FOLDERS = 1000


class FileSink(Sink):
    """`spec.options`: `partition_by` (a column or several: one folder per value), `compression` (of the format, `file_formats`),
    `roll_bytes` (int: a file is finished once its rows are so many bytes as Arrow, before the format compresses them; more than that is
    cut into several files), `roll_after` (microseconds: ... once its oldest row was saved that long ago), `storage_options` of the
    target. `sink` is the number by which the job knows it."""

    def __init__(self, spec: SinkSpec, *, sink: int = 0) -> None:
        options: Mapping[str, Any] = spec.options
        for name in options:
            if name not in _OPTIONS:
                hint = did_you_mean(name, _OPTIONS)
                raise InvalidFlow(f"sink_{spec.kind} has no option {name!r}{hint}", table=spec.table)
        if spec.kind not in FORMATS:
            raise InvalidFlow("files have no such format", kind=spec.kind)
        by = options.get("partition_by") or ()
        self.spec = spec
        self.sink = sink
        self.partition_by: tuple[str, ...] = (by,) if isinstance(by, str) else tuple(by)
        self.format = FORMATS[spec.kind](options.get("compression"))
        self.rolling = open_files.Rolling.of(options.get("roll_bytes"), options.get("roll_after"))
        self.target = Store.open(spec.url, **(options.get("storage_options") or {}))
        self._checked: pa.Schema | None = None
        self._visited: dict[str, None] = {}
        self._publications = 0

    def check(self, schema: pa.Schema) -> None:
        self._check(schema)
        self.target.probe()
        self.target.sweep("")

    def prepare(self, stage: Stage, rows: pa.Table | None, open: Sequence[StagedOutput] = ()) -> Sequence[StagedOutput]:
        new: dict[str, tuple[str, pa.Table]] = {}
        if rows is not None and rows.num_rows:
            self._check(rows.schema)
            for folder, part in hive.split(rows, self.partition_by):
                new[open_files.suffix(folder, part.schema)] = folder, part
        waiting = open_files.by_folder(open)
        work = _Prepared(self, stage)
        for key in waiting | new:
            work.folder(key, waiting.get(key, []), new.get(key))
        return work.named

    def due(self, open: Sequence[StagedOutput], now: float) -> bool:
        return self.rolling.due(open, now)

    def publish(self, store: Store, staged: StagedOutput) -> int:
        if staged.open:
            raise InternalError("a file that is still open cannot be published", object=staged.path)
        if not self._published(staged):
            try:
                data = read_staged(store, staged)
            except FileNotFoundError as error:
                # A zombie may come so late that the output was published, taken away by its consumer, and its stage deleted.
                if self._published(staged):
                    return 0
                message = "staged output is gone, and was not published here; restore the snapshot folder from a backup"
                raise CorruptData(message, object=staged.path, target=staged.target) from error
            if not self.target.create(staged.target, data):
                self._published(staged)
        self._sweep(staged.target.rpartition("/")[0])
        return 0

    def _published(self, staged: StagedOutput) -> bool:
        """Whether the target is there. It must be ours: the same name with other content means two jobs write into one folder."""
        if not self.target.exists(staged.target):
            return False
        try:
            found = checksum(self.target.read(staged.target))
        except FileNotFoundError:  # taken away by a consumer just now
            return True
        if found != staged.checksum:
            message = (
                "a file of this name with other content is there already; give this job an output folder of its own"
            )
            raise InvalidFlow(message, url=self.target.url, file=staged.target)
        return True

    def _sweep(self, folder: str) -> None:
        """Now and then remove what publishers that died left in one of the folders that were written to."""
        self._visited.pop(folder, None)
        self._visited[folder] = None
        self._publications += 1
        if self._publications % _SWEEP_EVERY and len(self._visited) <= _SWEPT_FOLDERS:
            return
        # Several threads may be here. Each takes out another folder, or finds none.
        with contextlib.suppress(FlowstateError, StopIteration, RuntimeError, KeyError):
            oldest = next(iter(self._visited))
            del self._visited[oldest]
            self.target.sweep(oldest)
            if len(self._visited) < _SWEPT_FOLDERS:
                self._visited[oldest] = None

    def _check(self, schema: pa.Schema) -> None:
        if self._checked is not None and schema.equals(self._checked):
            return
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
        self.format.check(pa.schema([each for each in schema if each.name not in self.partition_by]))
        self._checked = schema


class _Prepared:
    """One `prepare` in the making: `named` is what the manifest is to name."""

    def __init__(self, sink: FileSink, stage: Stage) -> None:
        self.sink = sink
        self.stage = stage
        self.named: list[StagedOutput] = []
        self._index = 0

    def folder(self, key: str, parts: list[StagedOutput], new: tuple[str, pa.Table] | None) -> None:
        """What becomes of the parts and the new rows of one folder."""
        rolling, stage = self.sink.rolling, self.stage
        finish = stage.last or rolling.now or rolling.due(parts, stage.now)
        since = min((each.since for each in parts), default=stage.now)
        if new is not None:
            folder, rows = new
            if finish and rolling.now and not parts:
                self._finish(folder, [rows])
                return
            data = open_files.encode(folder, rows)
        else:
            data = b""
        size = len(data) + sum(each.bytes for each in parts)
        if not finish and size < rolling.bytes:
            self._keep(key, parts, new, data)
            return
        waited = 0
        if parts:
            folder, before = open_files.read(stage.store, parts)
            waited = before.num_rows
            rows = before if new is None else pa.concat_tables([before, rows.replace_schema_metadata(None)])
        cut = open_files.cut(rows.num_rows, size, rolling.bytes, finish)
        files, begin = [], 0
        for count in cut.files:
            files.append(rows.slice(begin, count))
            begin += count
        data = open_files.encode(folder, rows.slice(begin)) if cut.rest else b""
        if cut.rest and len(data) >= rolling.bytes:  # rows of unequal width: the last ones alone fill a file
            files.append(rows.slice(begin))
            data = b""
        self._finish(folder, files)
        if data:
            self._stage_open(key, data, cut.rest, since if begin < waited else stage.now)

    def _keep(self, key: str, parts: list[StagedOutput], new: tuple[str, pa.Table] | None, data: bytes) -> None:
        """The file is not full yet: only the new rows are staged, unless the folder has too many parts."""
        if new is None:
            self.named += parts
            return
        folder, rows = new
        since = self.stage.now
        crowd = open_files.crowded(parts)
        if crowd:
            parts, joined = parts[:-crowd], parts[-crowd:]
            _, before = open_files.read(self.stage.store, joined)
            rows = pa.concat_tables([before, rows.replace_schema_metadata(None)])
            data, since = open_files.encode(folder, rows), min(each.since for each in joined)
        self.named += parts
        self._stage_open(key, data, rows.num_rows, since)

    def _stage_open(self, key: str, data: bytes, rows: int, since: float) -> None:
        path, _ = stage_object(self.stage, self.sink.sink, self._index, key, data)
        self._index += 1
        self.named.append(StagedOutput(self.sink.sink, path, "", rows, checksum(data), len(data), since))

    def _finish(self, folder: str, files: Sequence[pa.Table]) -> None:
        stage, sink = self.stage, self.sink
        table = quote(sink.spec.table, safe="")
        generation = stage.prefix.split("/")[0]
        for piece, rows in enumerate(files):
            data = sink.format.encode(rows)
            path, attempt = stage_object(stage, sink.sink, self._index, sink.spec.kind, data)
            self._index += 1
            which = f"-{piece}-{attempt}" if attempt else f"-{piece}" if piece else ""
            name = f"p{stage.partition:04d}-{generation}-e{stage.epoch:06d}-{stage.number:06d}{which}-{table}"
            target = f"{folder}/{name}.{sink.format.suffix}" if folder else f"{name}.{sink.format.suffix}"
            output = StagedOutput(sink.sink, path, target, rows.num_rows, checksum(data), len(data), stage.now)
            self.named.append(output)

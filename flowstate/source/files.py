"""Files as logs: JSON Lines, CSV, Parquet and Arrow IPC, by any fsspec URL, plain or compressed, finite or growing.

Options: `url` (path, glob or directory), `format` (``json``, ``csv``, ``parquet``, ``arrow``; otherwise told by the name), `follow`
(files grow and new ones appear), `compression` (None, ``"infer"``, or a name), `max_line_bytes`, `header` (CSV: whether files have
one, default True), `identity` (``"content"``, see `files_identity`, or ``"path"``), `storage_options`.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Protocol

from flowstate.clock import Clock, SystemClock
from flowstate.errors import InternalError, InvalidFlow, Unavailable, did_you_mean
from flowstate.plan.spec import ScanSpec
from flowstate.source.base import Rows, Source, SourceReader, SplitInfo
from flowstate.source.decode import Decoder
from flowstate.source.files_columnar import ColumnarLog, columnar_rows
from flowstate.source.files_content import SplitContent
from flowstate.source.files_identity import Catalogue, Found
from flowstate.source.files_storage import Storage
from flowstate.source.files_text import TextLog
from flowstate.source.records import check_scan

FORMATS = ("json", "csv", "parquet", "arrow")
MAX_LINE_BYTES = 1 << 20
#: How often a reader that waits looks at its files.
LOOK_SECONDS = 0.02

_SUFFIXES = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".log": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".arrows": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}


class Log(Protocol):
    """One open split. `next` gives what is ready, or None."""

    position: int

    def next(self, max_rows: int, stop: int | None) -> Rows | None: ...

    def end(self) -> int: ...

    def known_end(self) -> int | None: ...

    def close(self) -> None: ...


class FilesSource(Source):
    def __init__(self, spec: ScanSpec) -> None:
        check_scan(spec)
        options = spec.options
        self._spec = spec
        url = str(options.get("url", ""))
        if not url:
            raise InvalidFlow("the scan has no url; give a path, a glob or a directory", source=spec.name)
        self.format = options.get("format") or _format_of(spec.name, url)
        if self.format not in FORMATS:
            raise InvalidFlow(
                f"unknown format{did_you_mean(str(self.format), FORMATS)}", source=spec.name, format=self.format
            )
        self.text = self.format in ("json", "csv")
        self.header = self.format == "csv" and bool(options.get("header", True))
        self.max_line = int(options.get("max_line_bytes") or MAX_LINE_BYTES)
        self._follow = bool(options.get("follow", False))
        identity = options.get("identity", "content")
        if identity not in ("content", "path"):
            raise InvalidFlow("identity is 'content' or 'path'", source=spec.name, identity=identity)
        if self.max_line < 1:
            raise InvalidFlow("max_line_bytes must be at least 1", source=spec.name, max_line_bytes=self.max_line)
        if self.text:
            Decoder(spec, self.format)  # Refuses types that the format has no values of.
        compression = options.get("compression", "infer")
        self.storage = Storage(spec.name, url, dict(options.get("storage_options") or {}), compression)
        self._by_path = identity == "path"
        self._seen = False
        self._sizes: dict[tuple[str, str], int] = {}
        self._catalogue: Catalogue | None = None

    def catalogue(self) -> Catalogue:
        return Catalogue(
            self.storage,
            text=self.text,
            records=2 if self.header else 1,
            finite=not self._follow,
            by_path=self._by_path,
        )

    @property
    def follows(self) -> bool:
        return self._follow

    def splits(self) -> Sequence[SplitInfo]:
        return self.storage.reach(self._splits)

    def _splits(self) -> list[SplitInfo]:
        if self._catalogue is None:
            self._catalogue = self.catalogue()
        found = self._catalogue.find()
        if not found and not self._seen and not self.storage.paths():
            missing = self.storage.missing(self._follow)
            if missing is not None:
                raise missing
        self._seen = True
        return [self._info(each) for each in found.values()]

    def _info(self, found: Found) -> SplitInfo:
        hint = {"path": found.path, "size": str(found.size)}
        end = None if self._follow and self.text else self._end(found)
        return SplitInfo(found.name, found.path, 0, end, hint)

    def _end(self, found: Found) -> int:
        if not self.text:
            key = (found.name, found.path)
            if key not in self._sizes:
                self._sizes[key] = columnar_rows(self.storage, self.format, found.path)
            return self._sizes[key]
        if self.storage.compression(found.path) is None:
            return found.size
        key = (found.name, f"{found.size}:{found.path}")
        if key not in self._sizes:
            hint = {"path": found.path, "size": str(found.size)}
            content = SplitContent(self.storage, self.catalogue(), SystemClock(), found.name, hint, follows=False)
            self._sizes[key] = content.end()
        return self._sizes[key]

    def open(self) -> SourceReader:
        return FilesReader(self._spec, self)


def _format_of(source: str, url: str) -> str:
    suffixes = [each.lower() for each in PurePosixPath(url).suffixes]
    for suffix in reversed(suffixes):
        if suffix in _SUFFIXES:
            return _SUFFIXES[suffix]
    raise InvalidFlow(
        "the url does not tell the format; pass format='json', 'csv', 'parquet' or 'arrow'", source=source, url=url
    )


class FilesReader(SourceReader):
    """Reads splits that are files, a fair share of each in turn."""

    def __init__(self, spec: ScanSpec, source: FilesSource, clock: Clock | None = None) -> None:
        self._spec = spec
        self._source = source
        self._clock = clock or SystemClock()
        self._catalogue = source.catalogue()
        self._logs: dict[str, Log] = {}
        self._turn = 0

    def assign(self, split: SplitInfo, offset: int) -> None:
        self.unassign(split.name)
        source = self._source
        if not source.text:
            self._logs[split.name] = ColumnarLog(
                self._spec, source.storage, self._catalogue, source.format, split, offset
            )
            return
        content = SplitContent(
            source.storage, self._catalogue, self._clock, split.name, split.hint, follows=source.follows
        )
        self._logs[split.name] = TextLog(
            self._spec, source.format, source.header, source.max_line, split, offset, content
        )

    def unassign(self, split: str) -> None:
        log = self._logs.pop(split, None)
        if log is not None:
            log.close()

    def poll(self, wanted: Mapping[str, int | None], *, max_rows: int, timeout: float) -> Sequence[Rows]:
        names = [each for each in wanted if each in self._logs]
        if not names:
            return []
        deadline = self._clock.monotonic() + timeout
        while True:
            given = self._ready(names, wanted, max_rows)
            left = deadline - self._clock.monotonic()
            if given or left <= 0:
                return given
            threading.Event().wait(min(LOOK_SECONDS, left))

    def _ready(self, names: list[str], wanted: Mapping[str, int | None], max_rows: int) -> list[Rows]:
        self._turn = (self._turn + 1) % len(names)
        given: list[Rows] = []
        share = max(1, max_rows // len(names))
        for name in names[self._turn :] + names[: self._turn]:
            try:
                rows = self._logs[name].next(share, wanted[name])
            except OSError as error:
                if given:
                    break  # It is told at the next poll; what was read is not lost.
                raise Unavailable(
                    f"storage gives no answer ({error}); reading goes on when it does",
                    source=self._spec.name,
                    split=name,
                ) from error
            if rows is not None:
                given.append(rows)
        return given

    def end_offset(self, split: str) -> int:
        log = self._logs.get(split)
        if log is None:
            raise InternalError("asked for the end of a split that is not assigned", split=split)
        return log.end()

    def known_end(self, split: str) -> int | None:
        log = self._logs.get(split)
        return None if log is None else log.known_end()

    def close(self) -> None:
        for name in list(self._logs):
            self.unassign(name)

"""Text files: a record is a line. Offsets are the (decompressed) bytes at which lines begin.

Reading may begin at any offset, also within a line: the line belongs to the offset where it begins, so reading goes on with the
next one. A line counts once its newline is there; in a finite file also the last line without one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from flowstate.errors import CorruptData
from flowstate.plan.dialect import Dialect
from flowstate.plan.spec import ScanSpec
from flowstate.source.base import Rows, SplitInfo
from flowstate.source.csv_rows import header_names
from flowstate.source.decode import Decoder
from flowstate.source.files_content import SplitContent
from flowstate.source.records import RAW_BYTES, Records, Refused, dead_letters, no_rows
from flowstate.source.values import Unreadable

READ_BYTES = 1 << 20
_BOM = b"\xef\xbb\xbf"


class TextLog:
    """The lines of one split, decoded. `position` is the next offset that is given."""

    def __init__(
        self,
        spec: ScanSpec,
        form: str,
        header: bool,
        max_line: int,
        info: SplitInfo,
        offset: int,
        content: SplitContent,
    ) -> None:
        self._spec = spec
        self._form = form
        self._max_line = max_line
        self._info = info
        self._content = content
        self._decoder = None if header else Decoder(spec, form)
        self.position = offset
        # One byte early: if it is a newline, the line that is dropped is the rest of nothing.
        self._drop = offset > 0
        self._base = offset - 1 if self._drop else 0
        self._data = b""
        self._newlines = np.zeros(0, np.int64)
        self._line = 0
        self._start = 0
        self._skipped: int | None = None
        self._head = self._last = b""
        self._idle = False

    def next(self, max_rows: int, stop: int | None) -> Rows | None:
        """What is ready, at most `max_rows` lines; None if nothing is."""
        since = self.position
        if stop is not None and since >= stop:
            return None
        if self._decoder is None and not self._read_header():
            return None
        for _ in range(4):
            if self._line < len(self._newlines) or (stop is not None and self._base + self._start >= stop):
                rows = self._lines(since, max_rows, stop)
                if rows.to > since:
                    return rows
                continue
            letter = self._fill(stop)
            if letter is not None:
                return letter
            if self._idle and self._line >= len(self._newlines):
                break
        return None

    def end(self) -> int:
        return self._info.end if self._info.end is not None else self._content.end()

    def known_end(self) -> int | None:
        return self._info.end if self._info.end is not None else self._content.known_end()

    def close(self) -> None:
        self._content.close()

    def _lines(self, since: int, max_rows: int, stop: int | None) -> Rows:
        ends = self._newlines[self._line : self._line + max_rows]
        starts = np.concatenate([np.array([self._start], np.int64), ends[:-1] + 1]) if len(ends) else ends
        if stop is not None:
            inside = int(np.searchsorted(starts, stop - self._base))
            starts, ends = starts[:inside], ends[:inside]
        if len(ends):
            self._line += len(ends)
            self._start = int(ends[-1]) + 1
        after = self._base + self._start
        if self._info.end is not None:
            after = min(after, self._info.end)  # A last line without newline was given one.
        self.position = after if stop is None or after < stop else stop
        if self._drop and len(starts):
            self._drop = False
            starts, ends = starts[1:], ends[1:]
        return self._decoded(since, starts, ends)

    def _decoded(self, since: int, starts: np.ndarray[Any, Any], ends: np.ndarray[Any, Any]) -> Rows:
        assert self._decoder is not None
        offsets = starts + self._base
        if len(starts) and offsets[0] == 0 and self._data.startswith(_BOM):
            starts = starts.copy()
            starts[0] += len(_BOM)
        bytes_ = np.frombuffer(self._data, np.uint8)
        if len(ends):
            ends = ends - ((ends > starts) & (bytes_[np.maximum(ends - 1, 0)] == 13))
        lengths = ends - starts
        long = lengths > self._max_line
        kept = (lengths > 0) & ~long
        refused = [
            self._too_long(int(offsets[each]), int(lengths[each]), self._data[starts[each] : ends[each]][:RAW_BYTES])
            for each in np.flatnonzero(long)
        ]
        records = Records(self._data, starts[kept], ends[kept], offsets[kept])
        batch, dead = self._decoder.decode(self._info.name, records, refused)
        return Rows(self._info.name, since, self.position, batch, dead)

    def _too_long(self, offset: int, length: int, raw: bytes) -> Refused:
        reason = f"the line is {length} bytes long, max_line_bytes is {self._max_line}"
        return Refused(offset, reason, raw, None)

    def _fill(self, stop: int | None) -> Rows | None:
        """Read more. A line longer than memory should hold is not kept, and becomes its dead letter once its end is found."""
        self._data = tail = self._data[self._start :]
        self._base += self._start
        self._start = self._line = 0
        self._newlines = np.zeros(0, np.int64)
        at = self._base + len(tail) + (self._skipped or 0)
        end = self._info.end
        limit = READ_BYTES if end is None else min(READ_BYTES, end - at)
        more = self._content.read(at, limit) if limit > 0 else b""
        self._idle = not more
        ended = end is not None and at >= end
        if not more and not ended:
            if end is not None:
                raise CorruptData(
                    "the file is shorter than it was when the job began; put it back, or pass follow=True if it is being written",
                    source=self._spec.name,
                    file=self._info.label,
                    ends_at=at,
                    expected=end,
                )
            return None
        if ended and (tail or self._skipped is not None) and self._content.end() > at:
            raise CorruptData(
                "the file grows while it is read as a finite one, and its last line was not complete; pass follow=True",
                source=self._spec.name,
                file=self._info.label,
                read_up_to=at,
            )
        if self._skipped is not None:
            return self._skip(more, ended, stop)
        if ended and tail:
            more = b"\n"
        self._take(tail + more)
        if not len(self._newlines) and len(self._data) > max(self._max_line, RAW_BYTES):
            self._head, self._skipped, self._last = self._data[:RAW_BYTES], len(self._data), self._data[-1:]
            self._data = b""
        return None

    def _take(self, data: bytes) -> None:
        self._data = data
        self._newlines = np.flatnonzero(np.frombuffer(data, np.uint8) == 10).astype(np.int64)

    def _skip(self, more: bytes, ended: bool, stop: int | None) -> Rows | None:
        """Go on through a line that is too long to keep."""
        assert self._skipped is not None
        newline = more.find(b"\n")
        if newline < 0 and not ended:
            self._skipped += len(more)
            self._last = more[-1:]
            return None
        length = self._skipped + max(newline, 0)
        last = more[newline - 1 : newline] if newline > 0 else self._last
        line, since = self._base, self.position
        self._skipped = None
        self._base += length + (newline >= 0)
        self._take(more[newline + 1 :] if newline >= 0 else b"")
        self.position = self._base if stop is None or self._base < stop else stop
        letters = [] if self._drop else [self._too_long(line, length - (last == b"\r"), self._head)]
        self._drop = False
        dead = dead_letters(self._spec.name, self._info.name, letters)
        return Rows(self._info.name, since, self.position, no_rows(self._spec), dead)

    def _read_header(self) -> bool:
        """The first line that is not empty names the columns. False while it is not there yet."""
        data = self._content.read(0, READ_BYTES)
        at = 0
        while True:
            end = data.find(b"\n", at)
            if end < 0:
                if len(data) >= READ_BYTES:
                    raise CorruptData(
                        "the file has no header line within its first bytes; pass header=False if it has none",
                        source=self._spec.name,
                        file=self._info.label,
                        bytes=READ_BYTES,
                    )
                return False
            line = data[at:end].removeprefix(_BOM if at == 0 else b"").rstrip(b"\r")
            at = end + 1
            if line:
                break
        try:
            names = header_names(line, self._spec.schema, Dialect.of(self._spec.options))
        except Unreadable as reason:
            raise CorruptData(str(reason), source=self._spec.name, file=self._info.label) from None
        self._decoder = Decoder(self._spec, self._form, header=names)
        if self.position < at:
            self._base, self._drop = at, False
        return True

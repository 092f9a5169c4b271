"""The bytes of one split, wherever its file is now: rotated, renamed, compressed, replaced.

Every stretch of bytes is given only while the file still begins as the split's name says, checked after reading as well as before:
1. a stretch is read at offset 900; 2. meanwhile the writer copies the log away, truncates the file and writes a new log past 900;
3. without the second look, bytes of the new log would be counted as the old one's.
"""

from __future__ import annotations

from collections.abc import Mapping

from flowstate.clock import Clock
from flowstate.errors import CorruptData
from flowstate.source.files_identity import Catalogue
from flowstate.source.files_storage import Content, Stat, Storage, Torn

#: How often a lost file is looked for.
SEARCH_SECONDS = 1.0


class SplitContent:
    """`read(at, size)` for one split of text. Offsets are decompressed bytes."""

    def __init__(
        self,
        storage: Storage,
        catalogue: Catalogue,
        clock: Clock,
        name: str,
        hint: Mapping[str, str] | None,
        *,
        follows: bool,
    ) -> None:
        self._storage = storage
        self._catalogue = catalogue
        self._clock = clock
        self._name = name
        self._follows = follows
        self._path = (hint or {}).get("path", "")
        self._size = int((hint or {}).get("size", "0"))
        self._content: Content | None = None
        self._stat: Stat | None = None
        self._searched = float("-inf")

    def read(self, at: int, size: int) -> bytes:
        """Bytes from `at` on, at most `size`; b"" if there are none now. CorruptData if the log is not what it was."""
        if self._content is not None and (stat := self._storage.stat(self._path)) == self._stat:
            if stat is not None and stat.size == at and not self._content.compressed:
                return b""
            data = self._take(self._content, at, size)
            if data is not None and self._storage.stat(self._path) == self._stat:
                return data
        data = self._read_anew(self._path, at, size)
        if data is None:
            data = self._read_elsewhere(at, size)
        return data

    def end(self) -> int:
        """The present end of the content, of whole lines when it may grow."""
        at = end = 0
        if not self._storage.compression(self._path):
            stat = self._storage.stat(self._path)
            return self._end_of_lines(stat.size if stat else 0)
        content = self._storage.open_content(self._path)
        try:
            while data := content.read(1 << 20):
                newline = data.rfind(b"\n")
                end = at + newline + 1 if newline >= 0 else end
                at += len(data)
        except Torn as error:
            if not self._follows:
                raise self._ends_in_the_middle(at) from error
        finally:
            content.close()
        return end if self._follows else at

    def known_end(self) -> int | None:
        """The size of a plain file on this machine, with a line that is still being written."""
        if not self._storage.local or self._storage.compression(self._path):
            return None
        try:
            stat = self._storage.stat(self._path)
        except OSError:
            return None
        return None if stat is None else stat.size

    def _ends_in_the_middle(self, at: int) -> CorruptData:
        return CorruptData(
            "the compressed file ends in the middle; restore it from its origin, or pass follow=True if it is being written",
            path=self._path,
            offset=at,
        )

    def _end_of_lines(self, size: int) -> int:
        if not self._follows:
            return size
        end = size
        while end:
            start = max(0, end - (1 << 16))
            newline = self.read(start, end - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
        return 0

    def _take(self, content: Content, at: int, size: int) -> bytes | None:
        """None if a compressed file has to be read again from its start."""
        try:
            if content.at != at and not content.seek(at):
                return None
            data = content.read(size) if content.at == at else b""
        except Torn:
            if self._follows:
                return b""
            raise self._ends_in_the_middle(content.at) from None
        if not data and content.end() < at:
            raise CorruptData(
                "the file is shorter than what was already read of it; put the longer file back, or start again with new"
                " snapshots",
                path=self._path,
                split=self._name,
                read_up_to=at,
                ends_at=content.end(),
            )
        return data

    def _read_anew(self, path: str, at: int, size: int) -> bytes | None:
        """Open `path` and read, if it is the split's file before and after. Keeps the file open then."""
        stat = self._storage.stat(path) if path else None
        if stat is None:
            return None
        try:
            content = self._storage.open_content(path)
        except FileNotFoundError:
            return None
        try:
            if not self._is_ours(content, path):
                content.close()
                return None
            if content.compressed:
                content.close()
                content = self._storage.open_content(path)
            data = self._take(content, at, size)
            if self._storage.stat(path) != stat and not self._is_ours_still(content, path):
                content.close()
                return None
        except BaseException:
            content.close()
            raise
        self.close()
        self._content, self._path, self._stat = content, path, stat
        return data or b""

    def _is_ours(self, content: Content, path: str) -> bool:
        digest = self._catalogue.digest_of(content, path)
        return digest is not None and self._name.endswith("/" + digest)

    def _is_ours_still(self, content: Content, path: str) -> bool:
        if not content.compressed:
            return self._is_ours(content, path)
        try:
            again = self._storage.open_content(path)
        except FileNotFoundError:
            return True  # Renamed: what is open is complete in itself.
        try:
            return self._is_ours(again, path)
        finally:
            again.close()

    def _read_elsewhere(self, at: int, size: int) -> bytes:
        now = self._clock.monotonic()
        if now - self._searched >= SEARCH_SECONDS or self._content is None:
            self._searched = now
            found = self._catalogue.find().get(self._name)
            data = self._read_anew(found.path, at, size) if found is not None else None
            if data is not None:
                return data
        if self._content is not None and self._follows and not self._content.compressed and self._storage.local:
            # Renamed to where the url does not reach, or removed: the open file can still be read to its end.
            if self._is_ours(self._content, self._path):
                return self._take(self._content, at, size) or b""
        elif self._content is None and self._follows and at and at >= self._size:
            return b""
        there = self._storage.stat(self._path) if self._path else None
        raise CorruptData(
            f"the file was {'removed' if there is None else 'replaced or shortened'} before it was read to its end; put it back, or"
            " give a url that also matches the names of rotated files",
            path=self._path,
            split=self._name,
            read_up_to=at,
        )

    def close(self) -> None:
        if self._content is not None:
            self._content.close()
            self._content = None

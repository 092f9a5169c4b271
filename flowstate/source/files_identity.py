"""Which log a file holds, by its content, so that a renamed or compressed file stays the same split.

*Text*: the digest of its first bytes up to the end of its first record (in CSV with a header: the header and the first record),
at most `HEAD_BYTES`, decompressed. These bytes never change while a log grows, so neither does its name; a file is no split before they
are complete. Two files that share them are compared: if one is the beginning of the other they are one log, and the longer is read
(`app.log.1` beside its own half-made copy); otherwise that is an error, never a guess.

*Columnar* files are written once: the digest of size, first and last `HEAD_BYTES` as stored. Equal files are one log.

``identity="path"`` names a split by its path instead, for files that are never renamed but may begin alike.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass

from flowstate.errors import InvalidFlow
from flowstate.source.files_storage import Content, Stat, Storage, Torn

HEAD_BYTES = 4096
_BLOCK = 1 << 20

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """A split's file as it is now; `size` in bytes as stored."""

    name: str
    path: str
    size: int


class Catalogue:
    """Finds the files of a scan and names them. Remembers digests of files that have not changed."""

    def __init__(self, storage: Storage, *, text: bool, records: int, finite: bool, by_path: bool) -> None:
        self._storage = storage
        self._text = text
        self._records = records
        self._finite = finite
        self._by_path = by_path
        self._known: dict[str, tuple[Stat, str | None]] = {}
        self._compared: dict[tuple[str, Stat, str, Stat], bool] = {}
        self._told: set[str] = set()

    def find(self) -> dict[str, Found]:
        """Split name -> its file, in the order of the paths. A file that goes away meanwhile is left out."""
        found: dict[str, Found] = {}
        stats: dict[str, Stat] = {}
        paths = self._storage.paths()
        self._known = {path: known for path in paths if (known := self._known.get(path)) is not None}
        for path in paths:
            stat = self._storage.stat(path)
            if stat is None:
                continue
            try:
                digest = self.digest(path, stat)
            except FileNotFoundError:
                continue
            if digest is None:
                continue
            stats[path] = stat
            other = found.get(digest)
            if other is None or self._longer(path, stat, other.path, stats[other.path]):
                found[digest] = Found(f"{self._storage.source}/{digest}", path, stat.size)
            if other is not None:
                self._tell(digest, path, other.path)
        return {each.name: each for each in found.values()}

    def _tell(self, digest: str, path: str, other: str) -> None:
        """That two files are taken for one log, once: it is what a copy of a log should be, and a loss if both were meant."""
        if digest not in self._told:
            self._told.add(digest)
            message = "source %r: %s and %s hold the same log, which is read once; if the events of both count, pass identity='path'"
            log.warning(message, self._storage.source, other, path)

    def digest(self, path: str, stat: Stat) -> str | None:
        """None while the file has no complete first record."""
        known = self._known.get(path)
        if known is not None and known[0] == stat:
            return known[1]
        content = self._storage.open_content(path) if self._text else None
        try:
            digest = self.digest_of(content, path) if content is not None else self._columnar_digest(path, stat)
        finally:
            if content is not None:
                content.close()
        self._known[path] = (stat, digest)
        return digest

    def digest_of(self, content: Content, path: str) -> str | None:
        """The same from an open text file."""
        head = self._head(content)
        if head is None:
            return None
        return _digest(path.encode()) if self._by_path else _digest(head)

    def _head(self, content: Content) -> bytes | None:
        if not content.seek(0):
            return None
        data = b""
        ended = False
        while len(data) < HEAD_BYTES and not ended:
            try:
                more = content.read(HEAD_BYTES - len(data))
            except Torn:
                more = b""
            ended = not more
            data += more
        at, records = 0, 0
        while records < self._records:
            end = data.find(b"\n", at)
            if end < 0:
                complete = len(data) == HEAD_BYTES or (
                    self._finite and records == self._records - 1 and data[at:].strip()
                )
                return data if complete else None
            if data[at:end].strip():
                records += 1
            at = end + 1
        return data[: at - 1]

    def _columnar_digest(self, path: str, stat: Stat) -> str | None:
        if stat.size == 0:
            return None
        if self._by_path:
            return _digest(path.encode())
        handle = self._storage.open(path)
        try:
            head = handle.read(HEAD_BYTES)
            handle.seek(max(0, stat.size - HEAD_BYTES))
            return _digest(str(stat.size).encode() + b"\n" + head + handle.read(HEAD_BYTES))
        finally:
            handle.close()

    def _longer(self, path: str, stat: Stat, other: str, other_stat: Stat) -> bool:
        """Whether the log in `path` is longer than the same log in `other`. Refuses two different logs."""
        if not self._text:
            return False
        pair = (path, stat, other, other_stat)
        if pair not in self._compared:
            self._compared = {known: each for known, each in self._compared.items() if known[0] != path}
            self._compared[pair] = self._compare(path, other)
        return self._compared[pair]

    def _compare(self, path: str, other: str) -> bool:
        first, second = self._storage.open_content(path), self._storage.open_content(other)
        try:
            while True:
                one, two = _full(first), _full(second)
                shared = min(len(one), len(two))
                if one[:shared] != two[:shared]:
                    raise InvalidFlow(
                        "two different files begin with the same record, so their logs cannot be told apart; if files are never"
                        " renamed pass identity='path', otherwise begin each with a record of its own",
                        source=self._storage.source,
                        path=path,
                        other=other,
                    )
                if len(one) != len(two):
                    return len(one) > len(two)
                if not one:
                    return False
        finally:
            first.close()
            second.close()


def _full(content: Content) -> bytes:
    data = b""
    while len(data) < _BLOCK:
        try:
            more = content.read(_BLOCK - len(data))
        except Torn:
            break
        if not more:
            break
        data += more
    return data


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=12).hexdigest()

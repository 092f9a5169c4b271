"""Where files are: listing, opening and decompressing them through fsspec, and telling what went wrong."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as TookTooLong
from pathlib import PurePosixPath
from typing import IO, Any, NamedTuple, TypeVar

import fsspec
import pyarrow as pa

from flowstate.errors import CorruptData, FlowstateError, InvalidFlow, Unavailable, did_you_mean

REACH_SECONDS = 8.0
_SUFFIXES = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd", ".zstd": "zstd", ".lz4": "lz4"}
COMPRESSIONS = ("gzip", "bz2", "xz", "zstd", "lz4")

Answer = TypeVar("Answer")


class Stat(NamedTuple):
    """What changes when a file does: bytes as stored, and a stamp (time, tag, inode) in the backend's own terms."""

    size: int
    stamp: str


class Torn(Exception):
    """A compressed file ends in the middle of what its writer began."""


class Storage:
    """One URL: a file, a glob, or a directory (read with everything below it but names that begin with ``.`` or ``_``)."""

    def __init__(self, source: str, url: str, options: dict[str, Any], compression: str | None) -> None:
        if compression not in (None, "infer", *COMPRESSIONS):
            raise InvalidFlow(
                f"unknown compression{did_you_mean(str(compression), ('infer', *COMPRESSIONS))}",
                source=source,
                compression=compression,
            )
        self.source = source
        self.url = url
        self._options = options
        self._compression = compression
        self._store: Any = None
        self._root = ""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_store": None}

    @property
    def store(self) -> Any:
        if self._store is None:
            self._store, self._root = fsspec.core.url_to_fs(self.url, **self._options)
        return self._store

    @property
    def local(self) -> bool:
        protocol = self.store.protocol
        return "file" in ((protocol,) if isinstance(protocol, str) else protocol)

    def reach(self, work: Callable[[], Answer]) -> Answer:
        """`work`'s answer, or an error that says what to do, within 10 s."""
        try:
            if self.local:
                return work()
            # Client libraries of object stores retry for minutes; whoever asks here wants to know now.
            pool = ThreadPoolExecutor(1, thread_name_prefix="flowstate-storage")
            try:
                return pool.submit(work).result(REACH_SECONDS)
            finally:
                pool.shutdown(wait=False)
        except FlowstateError:
            raise
        except FileNotFoundError as error:
            raise InvalidFlow(
                "no such file or bucket; correct the url, or give a glob like 'logs/*.jsonl' and follow=True to wait for files",
                source=self.source,
                url=self.url,
            ) from error
        except PermissionError as error:
            raise InvalidFlow(
                "no permission to read; correct the credentials in storage_options, or the rights of the file",
                source=self.source,
                url=self.url,
            ) from error
        except ImportError as error:
            raise InvalidFlow(
                f"the url needs a package that is not installed: {error}; install it", source=self.source, url=self.url
            ) from error
        except (TookTooLong, OSError) as error:
            raise Unavailable(
                f"storage gives no answer ({error or type(error).__name__}); check the url, the network and storage_options",
                source=self.source,
                url=self.url,
            ) from error
        except ValueError as error:
            raise InvalidFlow(f"not a url that fsspec can read: {error}", source=self.source, url=self.url) from error
        except Exception as error:
            # botocore and its like have errors of their own; those about credentials carry it in their name.
            raise InvalidFlow(
                f"storage refuses ({type(error).__name__}: {error}); check storage_options and the url",
                source=self.source,
                url=self.url,
            ) from error

    def paths(self) -> list[str]:
        """Paths that there are now, sorted; a plain path counts only if it is there."""
        store = self.store
        store.invalidate_cache()
        if any(each in self._root for each in "*?["):
            found = [each for each in store.glob(self._root) if store.isfile(each)]
        elif store.isdir(self._root):
            found = [
                each
                for each in store.find(self._root)
                if not any(part.startswith((".", "_")) for part in PurePosixPath(each[len(self._root) :]).parts)
            ]
        else:
            found = [self._root] if store.isfile(self._root) else []
        return sorted(map(str, found))

    def missing(self, follow: bool) -> InvalidFlow | None:
        """Why nothing was found, if that is a mistake: those who follow may wait for files, but not in a folder that is not there."""
        root = self._root
        first = min((root.find(each) for each in "*?[" if each in root), default=-1)
        parent = self.store._parent(root if first < 0 else root[:first] + "x")
        there = self.store.isdir(root) or not self.local or self.store.isdir(parent)
        if follow and there and (first >= 0 or self.store.isdir(root)):
            return None
        names = (
            [PurePosixPath(each).name for each in self.store.ls(parent, detail=False)]
            if self.store.isdir(parent)
            else []
        )
        hint = did_you_mean(PurePosixPath(root).name, names[:1000]) if names and first < 0 else ""
        return InvalidFlow(
            f"there is no file at the url; correct it{hint}"
            + ("" if follow else "; or pass follow=True with a glob or a directory to wait for files"),
            source=self.source,
            url=self.url,
        )

    def stat(self, path: str) -> Stat | None:
        """None when there is no such file."""
        try:
            if not self.local:
                self.store.invalidate_cache(self.store._parent(path))
            info = self.store.info(path)
        except FileNotFoundError:
            return None
        if info.get("type") == "directory":
            return None
        stamp = [
            info.get(each) for each in ("ino", "mtime", "created", "ETag", "etag", "LastModified", "last_modified")
        ]
        return Stat(int(info["size"]), "/".join(str(each) for each in stamp if each is not None))

    def compression(self, path: str) -> str | None:
        if self._compression == "infer":
            return _SUFFIXES.get(PurePosixPath(path).suffix.lower())
        return self._compression

    def open(self, path: str) -> IO[bytes]:
        """The file as it is stored."""
        handle: IO[bytes] = self.store.open(path, "rb")
        return handle

    def open_content(self, path: str) -> Content:
        return Content(self.open(path), self.compression(path), path)


class Content:
    """The decompressed bytes of a file, in order. `read` gives b"" at the end, and raises `Torn` after the last byte that a torn
    compressed file yields."""

    def __init__(self, handle: IO[bytes], compression: str | None, path: str) -> None:
        self.at = 0
        self._handle = handle
        self._path = path
        self.compressed = compression is not None
        self._stream: Any = handle
        if compression == "gzip":
            self._stream = gzip.GzipFile(fileobj=handle)
        elif compression == "bz2":
            self._stream = bz2.BZ2File(handle)
        elif compression == "xz":
            self._stream = lzma.LZMAFile(handle)  # noqa: SIM115
        elif compression is not None:
            self._stream = pa.CompressedInputStream(pa.PythonFile(handle, "r"), compression)
        # read1 gives what it has: read would lose the bytes before a torn end together with the error.
        self._read: Callable[[int], bytes] = getattr(self._stream, "read1", self._stream.read)
        if compression is None:
            self._read = self._stream.read

    def seek(self, at: int) -> bool:
        """Go to `at`. False if a compressed file would have to be read again from its start; an end that comes first is no error."""
        if not self.compressed:
            self._stream.seek(at)
            self.at = at
            return True
        if at < self.at:
            return False
        while self.at < at and self.read(min(1 << 20, at - self.at)):
            pass
        return True

    def read(self, size: int) -> bytes:
        try:
            data = bytes(self._read(size))
        except EOFError as error:
            raise Torn from error
        except (OSError, lzma.LZMAError, zlib.error, ValueError) as error:
            if self.compressed and _torn(error):
                raise Torn from error
            if not self.compressed:
                raise
            raise CorruptData(
                f"the compressed file is damaged ({error}); restore it from its origin", path=self._path, offset=self.at
            ) from error
        self.at += len(data)
        return data

    def end(self) -> int:
        """How long the content is: of a compressed file, as far as it was read."""
        if self.compressed:
            return self.at
        here = self._handle.tell()
        end = self._handle.seek(0, 2)
        self._handle.seek(here)
        return end

    def close(self) -> None:
        self._handle.close()


def _torn(error: Exception) -> bool:
    return "Truncated" in str(error) or "truncated" in str(error)

"""Where snapshots live: objects that are created once, whole, and never changed.

A `Store` is a folder of an fsspec URL whose backend can create an object only if it is absent, atomically: the only compare-and-swap
that flowstate uses. Three backends can, and others are refused with the reason:

* a local folder: write beside, fsync, `link`. (fsspec's own ``mode="create"`` is exists-then-write, and races.)
* ``s3://``: a conditional put, which `probe` tries out, since an old S3 server accepts the header and ignores it.
* ``memory://``: under a lock, within one process; a store that was pickled into another process says so at its first use.

An operation that fails may have happened (the answer was lost): `create` that raised `Unavailable` may have created. Whoever must
know writes a token into the object and reads it back (`snapshot.chain`).
"""

from __future__ import annotations

import contextlib
import os
import secrets
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import unquote, urlsplit

from flowstate.errors import FlowstateError, InternalError, InvalidFlow

Bytes = bytes | bytearray | memoryview


class Store(ABC):
    """Objects under one URL. Paths are relative, ``/``-separated. Safe for threads, picklable.

    Errors: `Unavailable` may pass by itself (no space, server away), `InvalidFlow` needs a change (credentials, bucket, permission);
    no message holds credentials. An object is never seen half written, also after a crash.
    """

    url: str

    @staticmethod
    def open(url: str | os.PathLike[str], **storage_options: Any) -> Store:
        """The store at `url`, a path or an fsspec URL. Touches nothing; `probe` does."""
        from flowstate.store.local import LocalStore
        from flowstate.store.memory import MemoryStore
        from flowstate.store.s3 import S3Store

        text = os.fspath(url)
        if not text:
            raise InvalidFlow("a store needs a folder or a URL; give for example 'snapshots/' or 's3://bucket/path'")
        scheme = text.split("://", 1)[0].lower() if "://" in text else "file"
        if "::" in scheme:
            raise InvalidFlow("chained URLs cannot hold snapshots; give the URL behind the chain", scheme=scheme)
        if scheme in ("file", "local"):
            return LocalStore(_local_path(text), **storage_options)
        if scheme == "memory":
            return MemoryStore(text.split("://", 1)[1], **storage_options)
        if scheme in ("s3", "s3a"):
            return S3Store(text.split("://", 1)[1], **storage_options)
        raise InvalidFlow(
            "this kind of store cannot create an object only if it is absent, so two runs could both win; "
            "use a local folder, s3://, or memory:// within one process",
            scheme=scheme,
        )

    @abstractmethod
    def create(self, path: str, data: Bytes | Sequence[Bytes]) -> bool:
        """Create `path` with `data` (a buffer, or several that follow one another). True if this call created it, False, and nothing
        changed, if it was there."""

    @abstractmethod
    def read(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        """Bytes ``[start, end)``, fewer where the object is shorter. FileNotFoundError when it is absent."""

    @abstractmethod
    def list(self, prefix: str = "") -> list[str]:
        """Names directly below the folder `prefix`, objects and folders, sorted; empty when there is no such folder."""

    @abstractmethod
    def delete(self, path: str) -> None:
        """Delete an object. Deleting what is not there is no error."""

    @abstractmethod
    def exists(self, path: str) -> bool:
        """Whether the object (not a folder) is there."""

    def sweep(self, prefix: str, older_than: float = 3600.0) -> None:
        """Remove what writers that died left below the folder `prefix` (not in the folders below it)."""
        return None

    def leave(self, folder: str) -> None:
        """Remove a folder if it is empty, where there is such a thing."""
        return None

    def probe(self) -> None:
        """Try everything that snapshots need, at the start, where it can still be told to somebody."""
        path = f"probe/{secrets.token_hex(8)}"
        try:
            created = self.create(path, b"first")
            again = self.create(path, b"second")
            content = self.read(path)
            listed = path.split("/")[1] in self.list("probe")
            with ThreadPoolExecutor(4) as pool:
                winners = sum(pool.map(lambda number: self.create(f"{path}-race", b"%d" % number), range(4)))
        finally:
            with contextlib.suppress(FlowstateError):
                self.delete(path)
                self.delete(f"{path}-race")
                self.leave("probe")
        if not created or again or content != b"first" or winners != 1:
            raise InvalidFlow(
                "this place lets two writers create the same object, so two runs could both win; use a local folder, "
                "or an S3 service with conditional writes (If-None-Match)",
                url=self.url,
            )
        if not listed:
            raise InvalidFlow("this place does not list an object that was just created; use another", url=self.url)

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Store) and type(self) is type(other) and self.url == other.url

    def __hash__(self) -> int:
        raise TypeError("a Store is not hashable; use its url")


def _local_path(text: str) -> str:
    if "://" not in text:
        return text
    parts = urlsplit(text)
    if parts.netloc not in ("", "localhost"):
        raise InvalidFlow("a file:// URL has three slashes before an absolute path", url=text)
    return unquote(parts.path)


def checked(path: str) -> str:
    """`path`, if it may name an object."""
    if any(part in ("", ".", "..") or part.startswith(".") for part in path.split("/")):
        raise InternalError("not a path of an object in a store", path=path)
    return path


def pieces_of(data: Bytes | Sequence[Bytes]) -> Sequence[Bytes]:
    """The buffers that follow one another."""
    return [data] if isinstance(data, bytes | bytearray | memoryview) else data

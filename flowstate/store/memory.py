"""fsspec's memory file system as a store."""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from flowstate.errors import InvalidFlow
from flowstate.store import Bytes, Store, checked, pieces_of

_PROCESS = (os.getpid(), secrets.token_hex(8))
_LOCK = threading.RLock()


class MemoryStore(Store):
    """fsspec's ``memory://``, which lives in one process."""

    def __init__(self, folder: str, process: tuple[int, str] = _PROCESS, **storage_options: Any) -> None:
        if storage_options:
            raise InvalidFlow("memory:// takes no storage options", given=sorted(storage_options))
        self.root = "/" + folder.strip("/")
        self.url = f"memory:/{self.root}"
        self._process = process

    def __reduce__(self) -> tuple[Any, ...]:
        return MemoryStore, (self.root, self._process)

    @contextlib.contextmanager
    def _filesystem(self) -> Iterator[Any]:
        if self._process != _PROCESS or os.getpid() != _PROCESS[0]:
            raise InvalidFlow(
                "memory:// lives in one process and this is another; use a folder or s3://, or a cluster with processes=False",
                url=self.url,
            )
        from fsspec.implementations.memory import MemoryFileSystem

        with _LOCK:
            yield MemoryFileSystem()

    def create(self, path: str, data: Bytes | Sequence[Bytes]) -> bool:
        name = f"{self.root.rstrip('/')}/{checked(path)}"
        with self._filesystem() as filesystem:
            if filesystem.exists(name):
                return False
            filesystem.pipe_file(name, b"".join(pieces_of(data)))
            return True

    def read(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        with self._filesystem() as filesystem:
            return bytes(filesystem.cat_file(f"{self.root.rstrip('/')}/{checked(path)}", start, end))

    def list(self, prefix: str = "") -> list[str]:
        with self._filesystem() as filesystem:
            name = f"{self.root.rstrip('/')}/{prefix.strip('/')}".rstrip("/")
            if not filesystem.isdir(name):
                return []
            return sorted({each.rstrip("/").rsplit("/", 1)[1] for each in filesystem.ls(name, detail=False)})

    def delete(self, path: str) -> None:
        with self._filesystem() as filesystem, contextlib.suppress(FileNotFoundError):
            filesystem.rm_file(f"{self.root.rstrip('/')}/{checked(path)}")

    def exists(self, path: str) -> bool:
        with self._filesystem() as filesystem:
            return bool(filesystem.isfile(f"{self.root.rstrip('/')}/{checked(path)}"))

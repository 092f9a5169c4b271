"""A folder as a store."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator, Sequence
from typing import Any

from flowstate.errors import InternalError, InvalidFlow, Unavailable
from flowstate.store import Bytes, Store, checked, pieces_of


class LocalStore(Store):
    """A folder. Durable: the object, its name, and new folders are on disk when `create` returns."""

    def __init__(self, folder: str, **storage_options: Any) -> None:
        if storage_options:
            raise InvalidFlow("a local folder takes no storage options", given=sorted(storage_options))
        self.root = os.path.abspath(os.path.expanduser(folder))
        self.url = self.root

    def __reduce__(self) -> tuple[Any, ...]:
        return LocalStore, (self.root,)

    def create(self, path: str, data: Bytes | Sequence[Bytes]) -> bool:
        final = os.path.join(self.root, *checked(path).split("/"))
        folder = os.path.dirname(final)
        with self._translated(final, writing=True):
            for attempt in range(3):
                self._make_folder(folder)
                try:
                    return self._create(folder, final, pieces_of(data))
                except FileNotFoundError:  # somebody removed the folder meanwhile
                    if attempt == 2:
                        raise
        raise InternalError("unreachable")

    def _create(self, folder: str, final: str, pieces: Sequence[Bytes]) -> bool:
        if os.path.lexists(final):
            return False
        temporary = os.path.join(folder, f".{secrets.token_hex(8)}.tmp")
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            try:
                for piece in pieces:
                    view = memoryview(piece).cast("B")
                    while len(view):
                        view = view[os.write(handle, view) :]
                os.fsync(handle)
            finally:
                os.close(handle)
            try:
                os.link(temporary, final)
            except FileExistsError:
                # On NFS the answer to the link may be lost and the link be repeated: two names then mean that it was ours.
                if os.stat(temporary).st_nlink != 2:
                    return False
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
        _sync_folder(folder)
        return True

    def _make_folder(self, folder: str) -> None:
        missing = []
        while not os.path.isdir(folder):
            missing.append(folder)
            folder = os.path.dirname(folder)
            if os.path.lexists(folder) and not os.path.isdir(folder):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), folder)
        for each in reversed(missing):
            with contextlib.suppress(FileExistsError):
                os.mkdir(each)
            _sync_folder(os.path.dirname(each))

    def read(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        name = os.path.join(self.root, *checked(path).split("/"))
        with self._translated(name), open(name, "rb") as file:
            file.seek(start or 0)
            return file.read() if end is None else file.read(max(0, end - (start or 0)))

    def list(self, prefix: str = "") -> list[str]:
        name = os.path.join(self.root, *prefix.strip("/").split("/"))
        try:
            with self._translated(name):
                return sorted(each for each in os.listdir(name) if not each.startswith("."))
        except FileNotFoundError:
            return []

    def delete(self, path: str) -> None:
        name = os.path.join(self.root, *checked(path).split("/"))
        with contextlib.suppress(FileNotFoundError), self._translated(name):
            os.unlink(name)

    def exists(self, path: str) -> bool:
        name = os.path.join(self.root, *checked(path).split("/"))
        with self._translated(name):
            return os.path.isfile(name)

    def leave(self, folder: str) -> None:
        with contextlib.suppress(OSError):
            os.rmdir(os.path.join(self.root, folder))

    def sweep(self, prefix: str, older_than: float = 3600.0) -> None:
        name = os.path.join(self.root, *prefix.strip("/").split("/"))
        with contextlib.suppress(FileNotFoundError), self._translated(name):
            left = [each for each in os.scandir(name) if each.name.startswith(".") and each.name.endswith(".tmp")]
            if not left:
                return
            # The file system's own clock tells the age, which may be another machine's.
            mark = os.path.join(name, f".{secrets.token_hex(8)}.tmp")
            os.close(os.open(mark, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
            now = os.stat(mark).st_mtime
            os.unlink(mark)
            for each in left:
                with contextlib.suppress(FileNotFoundError):
                    if now - each.stat().st_mtime > older_than:
                        os.unlink(each.path)

    @contextlib.contextmanager
    def _translated(self, name: str, *, writing: bool = False) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            code = error.errno or 0
            if not writing and code in (errno.ENOENT, errno.EISDIR, errno.ENOTDIR):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name) from None
            facts = {"path": name, "reason": os.strerror(code)}
            if code in (errno.ENOSPC, errno.EDQUOT):
                raise Unavailable("no space left; free some", retry_after=10.0, **facts) from error
            if code in (errno.EPERM, errno.ENOTSUP) and error.filename2 is not None:
                message = "this file system has no hard links, so nothing can be created atomically; use another folder"
                raise InvalidFlow(message, **facts) from error
            if code in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise InvalidFlow(
                    "no permission; allow this user to write there, or give another folder", **facts
                ) from error
            if code in (errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL):
                raise InvalidFlow("this folder cannot be used; give another", **facts) from error
            raise Unavailable("the disk failed; look at the system's log", retry_after=5.0, **facts) from error


def _sync_folder(folder: str) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

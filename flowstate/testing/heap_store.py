"""A store in a dictionary: the contract of `Store` without a file system, for simulations."""

from __future__ import annotations

from collections.abc import Sequence

from flowstate.store import Bytes, Store, checked, pieces_of


class HeapStore(Store):
    """Lives as long as the object does; used by one thread at a time (reads may come from several)."""

    def __init__(self) -> None:
        self.url = "heap://"
        self.objects: dict[str, bytes] = {}
        self.folders: dict[str, set[str]] = {}

    def create(self, path: str, data: Bytes | Sequence[Bytes]) -> bool:
        if checked(path) in self.objects:
            return False
        self.objects[path] = b"".join(pieces_of(data))
        while path:
            path, _, name = path.rpartition("/")
            self.folders.setdefault(path, set()).add(name)
        return True

    def read(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        try:
            return self.objects[path][start:end]
        except KeyError:
            raise FileNotFoundError(path) from None

    def list(self, prefix: str = "") -> list[str]:
        return sorted(self.folders.get(prefix.strip("/"), ()))

    def delete(self, path: str) -> None:
        if self.objects.pop(path, None) is not None:
            folder, _, name = path.rpartition("/")
            self.folders[folder].discard(name)

    def exists(self, path: str) -> bool:
        return path in self.objects

"""A store that fails at a chosen step, before or after the step took effect: a crash, or an answer that was lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from flowstate.errors import Unavailable
from flowstate.store import Bytes, Store

T = TypeVar("T")


class InterruptedStore(Store):
    """The step number `at` (from 0) raises Unavailable: after it took effect if `after`, else instead. With `dead`, so does every later
    one, as if the process had died there. `steps` counts."""

    def __init__(self, store: Store, at: int | None = None, *, after: bool = False, dead: bool = True) -> None:
        self.store = store
        self.url = store.url
        self.at = at
        self.after = after
        self.dead = dead
        self.steps = 0

    def _step(self, action: Callable[[], T]) -> T:
        number, self.steps = self.steps, self.steps + 1
        if self.at is None or number < self.at or (number > self.at and not self.dead):
            return action()
        if number == self.at and self.after:
            action()
        raise Unavailable("interrupted by a test", step=number)

    def create(self, path: str, data: Bytes | Sequence[Bytes]) -> bool:
        return self._step(lambda: self.store.create(path, data))

    def read(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        return self._step(lambda: self.store.read(path, start, end))

    def list(self, prefix: str = "") -> list[str]:
        return self._step(lambda: self.store.list(prefix))

    def delete(self, path: str) -> None:
        return self._step(lambda: self.store.delete(path))

    def exists(self, path: str) -> bool:
        return self._step(lambda: self.store.exists(path))

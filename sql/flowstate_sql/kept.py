"""What was found out about texts, for when they come again."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")

#: Texts, and characters of all of them: the tree of a query takes up to some hundred times as much as its text.
MOST, LONGEST = 256, 32 << 10


class Kept(Generic[Value]):
    """Forgets everything when it is full. Safe from several threads only where a lost entry, or one more, does no harm."""

    def __init__(self) -> None:
        self._held: dict[Hashable, Value] = {}
        self._length = 0

    def get(self, key: Hashable) -> Value | None:
        return self._held.get(key)

    def put(self, key: Hashable, value: Value, length: int) -> None:
        """`length` is that of the text. A long one is not kept: it would drive out all others."""
        if length > LONGEST // 4:
            return
        if len(self._held) >= MOST or self._length + length > LONGEST:
            self._held.clear()
            self._length = 0
        self._held[key] = value
        self._length += length

    def drop(self, key: Hashable) -> None:
        self._held.pop(key, None)

    def __len__(self) -> int:
        return len(self._held)

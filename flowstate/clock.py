"""Time as an argument: nothing else in flowstate reads a clock (ruff's TID251 holds this)."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Seconds. `monotonic` measures waits, `wall` dates things that people read (Unix time)."""

    def monotonic(self) -> float: ...

    def wall(self) -> float: ...


class SystemClock:
    """The machine's clocks."""

    def monotonic(self) -> float:
        return time.monotonic()  # noqa: TID251

    def wall(self) -> float:
        return time.time()  # noqa: TID251


class ManualClock:
    """A clock that moves when told to, for tests."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds

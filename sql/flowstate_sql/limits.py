"""What one who asks may take: time, memory, rows, and statements at once; and the one thread that keeps watch over it.

The memory is DuckDB's. What functions allocate for the values of a single vector is outside of it, so a service for strangers should run
in a process, with a limit, of its own (``flowstate gateway --memory``).
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from flowstate.clock import Clock
from flowstate.errors import InvalidFlow, Unavailable

#: Seconds between two looks at whether whoever asked has gone, or the time is over.
LOOK = 0.05


@dataclass(frozen=True)
class Limits:
    """`seconds` for one statement, also with a longer `timeout`; `memory` in bytes for all statements of one principal; `rows` of one
    result; `at_once` statements, `each` of them by one principal; for the end of another one a statement waits `wait` seconds."""

    seconds: float = 60.0
    memory: int = 1 << 30
    rows: int = 10_000_000
    at_once: int = 16
    each: int = 12
    wait: float = 1.0

    def __post_init__(self) -> None:
        for name in ("seconds", "memory", "rows", "at_once", "each"):
            if not getattr(self, name) > 0:
                raise InvalidFlow(f"the limit {name} is a positive number", got=getattr(self, name))

    def out_of_time(self, seconds: float) -> Unavailable:
        message = "the query took longer than it may; ask for less, or aggregate in it"
        if seconds < self.seconds:
            message = "the query took longer than its timeout; ask for less, or give it a longer one"
        return Unavailable(message, limit_seconds=seconds, retry_after=1.0)

    def out_of_memory(self) -> Unavailable:
        message = (
            "the query needs more memory than it may take; select fewer columns and rows, or aggregate before joining"
        )
        return Unavailable(message, limit_bytes=self.memory, retry_after=1.0)

    def too_many_rows(self) -> Unavailable:
        message = "the result has more rows than it may have; aggregate in the query, or add a LIMIT"
        return Unavailable(message, limit_rows=self.rows, retry_after=1.0)


class Slots:
    """Statements that may run at once. Thread safe."""

    def __init__(self, limits: Limits, clock: Clock) -> None:
        self._limits, self._clock = limits, clock
        self._taken: Counter[str] = Counter()
        self._free = threading.Condition()

    def take(self, who: str, cancelled: Callable[[], bool]) -> None:
        """Raises Unavailable if none becomes free in time."""
        limits = self._limits
        until = self._clock.monotonic() + limits.wait
        with self._free:
            while self._taken.total() >= limits.at_once or self._taken[who] >= limits.each:
                left = until - self._clock.monotonic()
                if left <= 0 or cancelled():
                    limit = (
                        {"limit_each": limits.each} if self._taken[who] >= limits.each else {"limit": limits.at_once}
                    )
                    message = "too many statements run at once; try again when one of them has ended"
                    raise Unavailable(message, **limit, retry_after=1.0)
                self._free.wait(min(left, LOOK))
            self._taken[who] += 1

    def give_back(self, who: str) -> None:
        with self._free:
            self._taken[who] -= 1
            if not self._taken[who]:
                del self._taken[who]
            self._free.notify_all()

    def taken(self) -> int:
        with self._free:
            return self._taken.total()


class Watched(Protocol):
    def look(self, now: float) -> None:
        """Whether it must end now; `now` is monotonic. Does not block, and does not raise."""


class Watch:
    """Looks at everything that runs, `LOOK` seconds apart, on one thread, which is there as long as something runs."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._watched: set[Watched] = set()
        self._runs = False

    def add(self, watched: Watched) -> None:
        with self._lock:
            self._watched.add(watched)
            if not self._runs:
                self._runs = True
                threading.Thread(target=self._run, name="sql-watch", daemon=True).start()

    def remove(self, watched: Watched) -> None:
        with self._lock:
            self._watched.discard(watched)

    def all(self) -> list[Watched]:
        with self._lock:
            return list(self._watched)

    def _run(self) -> None:
        pause = threading.Event()  # never set
        while True:
            pause.wait(LOOK)
            with self._lock:
                watched = list(self._watched)
                if not watched:
                    self._runs = False
                    return
            for each in watched:
                each.look(self._clock.monotonic())

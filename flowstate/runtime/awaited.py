"""Readers that wait until rows are applied.

They do not look for themselves: a hundred threads that wake after every block would take the pump's time. The pump asks for each of them
between two blocks, so that only those wake whose rows have come.

A wake-up cannot be lost: a reader is in the table before it looks for itself. Either it sees the rows then, or they are applied after
that, and the pump finds it in the table.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from flowstate.errors import Unavailable

MOST = 256  # readers of one partition that may wait at once


class Awaited:
    """Thread safe; `tell` is for the pump alone."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[threading.Event, Callable[[], bool]] = {}
        self._over = False

    def __len__(self) -> int:
        return len(self._waiting)

    def wait(self, done: Callable[[], bool], timeout: float) -> None:
        """Return when `done`, or after `timeout` seconds, or when nothing more is applied. Raises Unavailable if too many wait already.
        `done` is asked by one thread at a time, costs the pump its time, and does not raise."""
        come = threading.Event()
        with self._lock:
            if self._over or timeout <= 0:
                return
            if len(self._waiting) >= MOST:
                message = "too many reads wait here for what they ask to be applied; ask for it with a pause"
                raise Unavailable(message, waiting=MOST, retry_after=0.5)
            self._waiting[come] = done
            if done():
                del self._waiting[come]
                return
        try:
            come.wait(timeout)
        finally:
            with self._lock:
                self._waiting.pop(come, None)

    def tell(self) -> None:
        """Rows may have been applied."""
        if not self._waiting:
            return
        with self._lock:
            for come, done in list(self._waiting.items()):
                if done():
                    del self._waiting[come]
                    come.set()

    def end(self) -> None:
        """Nothing more is applied: whoever waits goes on."""
        with self._lock:
            self._over = True
            for come in self._waiting:
                come.set()

"""A fair lock between the pump and readers: whoever asks first is next, so that a busy pump starves nobody.

Two locks: a waiter holds `_next` while it waits for `_busy`, so the pump, which comes back at once, queues up behind it.
"""

from __future__ import annotations

import threading


class Gate:
    """A context manager. The pump holds it for one block (about a millisecond), readers for a lookup or for taking a view."""

    def __init__(self) -> None:
        self._next, self._busy = threading.Lock(), threading.Lock()

    def __enter__(self) -> None:
        with self._next:
            self._busy.acquire()

    def __exit__(self, *exception: object) -> None:
        self._busy.release()

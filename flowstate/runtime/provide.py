"""Memory for keyed state, made ready in a thread of its own while rows are applied."""

from __future__ import annotations

import threading

from flowstate.state.block import reserve

_one = threading.Lock()


def provide_memory() -> None:
    """From now on, whenever a table of this process has taken a slab, another is made ready behind its back. The thread lives as long as
    that takes: a table that does not grow has none."""
    reserve.on_taken = _fill_soon


def _fill_soon() -> None:
    if not _one.locked():
        threading.Thread(target=_fill, name="flowstate-memory", daemon=True).start()


def _fill() -> None:
    if _one.acquire(blocking=False):
        try:
            while reserve.fill():
                pass
        finally:
            _one.release()

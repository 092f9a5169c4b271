"""A process that ends itself before it takes more memory than it may.

DuckDB counts its tables and hashes, but not what functions make of the values of one vector, and it cannot be interrupted meanwhile: with
``repeat``, two thousand rows are gigabytes within seconds. Nothing in the process can stop that. What can be had is that it costs this
process alone, which keeps nothing of its own and is started again, and no worker on the same machine.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

from flowstate.errors import InvalidFlow

#: Seconds between two looks; in that time a query takes some hundred megabytes.
LOOK = 0.05
#: Bytes that a process needs to serve anything at all.
LEAST = 512 << 20
_PAGES = Path("/proc/self/statm")
_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


def bound_memory(limit: int, end: Callable[[int], object]) -> None:
    """From now on, call `end` with the bytes of memory that this process has as soon as they are more than `limit`. Raises InvalidFlow."""
    if limit < LEAST:
        raise InvalidFlow("a service needs more memory than that; give it more, or no limit", limit=limit, least=LEAST)
    if not _PAGES.exists():
        raise InvalidFlow("this system does not tell how much memory a process has; leave the limit out")
    prefer_to_be_killed()

    def look() -> None:
        pause = threading.Event()  # never set
        while (held := resident()) <= limit:
            pause.wait(LOOK)
        end(held)

    threading.Thread(target=look, name="memory", daemon=True).start()


def resident() -> int:
    """Bytes of memory that this process has."""
    return int(_PAGES.read_bytes().split()[1]) * _PAGE


def prefer_to_be_killed() -> None:
    """Where the machine runs out of memory first, it is to be this process that the kernel ends, and not one that has state."""
    try:
        Path("/proc/self/oom_score_adj").write_text("1000")
    except OSError:
        pass  # it may not be had; then the kernel chooses

"""The pool for what is done beside the pumps: loading, saving, publishing, asking the store."""

from __future__ import annotations

import contextlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor

BEHIND = 10  # nice value: where a core is short, a pump goes first, and a snapshot takes longer instead


def aside_pool(threads: int = 4) -> ThreadPoolExecutor:
    """Threads that stand back for others of the process. (On Linux a nice value belongs to a thread.)"""
    return ThreadPoolExecutor(threads, thread_name_prefix="flowstate-aside", initializer=_stand_back)


def _stand_back() -> None:
    with contextlib.suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), BEHIND)

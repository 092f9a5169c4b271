"""Waiting for what other processes and threads do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")


def until(
    condition: Callable[[], Found],
    seconds: float = 20.0,
    *,
    pause: float = 0.02,
    says: Callable[[], object] = lambda: "",
) -> Found:
    """Ask again and again, with a `pause`; what `condition` gives when it is true. A failure shows what `says` says then."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"it did not come about within {seconds} s {says()}"
        time.sleep(pause)
    return found

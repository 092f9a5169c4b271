"""Real servers for tests and benchmarks, each a process that can be killed and brought back on the same data: Kafka, and S3's protocol.

They are fetched or built once by their usual tools (Maven, Go) and kept in a cache folder: ``FLOWSTATE_CACHE``, or ``.cache`` of a
checkout, or ``~/.cache/flowstate``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


def cache_folder() -> Path:
    if named := os.environ.get("FLOWSTATE_CACHE"):
        return Path(named)
    checkout = Path(__file__).resolve().parents[3]
    return checkout / ".cache" if (checkout / "pyproject.toml").exists() else Path.home() / ".cache" / "flowstate"


@contextlib.contextmanager
def fetching(folder: Path) -> Iterator[None]:
    """One process, and one thread of it, fills `folder` at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield

"""The file of an access, and what becomes of it while services run.

Nobody watches it: whoever asks for rights has it looked at, at most once in `EVERY` seconds, by its time, size and inode. A change counts
when it is `SETTLED` seconds old, so that nobody reads half of a file that is being written. A file that cannot be read, or is no TOML,
changes nothing: the rights from before hold, and a warning says so, once for each such file.

An access that was pickled looks for its file by the same path where it is now. Where there is none, it goes on with what it brought.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import tomllib
from pathlib import Path
from typing import Any

from flowstate.clock import Clock
from flowstate.errors import InvalidFlow

#: Seconds between two looks at the file, and seconds that a change must be old.
EVERY, SETTLED = 1.0, 1.0

log = logging.getLogger("flowstate.access")

Seen = tuple[int, int, int]


class AccessFile:
    """One file. Thread safe; nobody waits for another who looks at it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Nothing is read yet. Raises InvalidFlow."""
        try:
            self.path = Path(path).absolute()
        except TypeError:
            raise InvalidFlow("the file of an access is a path", got=type(path).__name__) from None
        self._lock = threading.Lock()
        self._looked = -EVERY
        self._seen: Seen | None = None
        self._refused: object = ()

    def read(self) -> dict[str, Any]:
        """What it holds now. Raises InvalidFlow, which tells a path and a place, and never what stands there."""
        seen, config = self._read()
        self._seen = seen
        return config

    def news(self, clock: Clock) -> dict[str, Any] | None:
        """What it holds, if that may be something else than before; None otherwise. Raises nothing."""
        if clock.monotonic() - self._looked < EVERY or not self._lock.acquire(blocking=False):
            return None
        try:
            self._looked = clock.monotonic()
            return self._news(clock.wall())
        finally:
            self._lock.release()

    def refused(self, reason: str) -> None:
        """Warn that what it holds cannot be taken."""
        log.warning("the rights from before hold, since the file of the access is broken; mend it: %s", reason)

    def _news(self, wall: float) -> dict[str, Any] | None:
        seen: Seen | None = None
        try:
            found = os.stat(self.path)
            seen = found.st_mtime_ns, found.st_size, found.st_ino
            if seen == self._seen or abs(wall - found.st_mtime) < SETTLED:
                return None
            read, config = self._read()
            if read != seen:  # it is being written
                return None
        except (OSError, InvalidFlow) as error:
            reason = error if isinstance(error, InvalidFlow) else f"{type(error).__name__} path={str(self.path)!r}"
            if self._refused != seen:
                self._refused = seen
                self.refused(str(reason))
            return None
        self._seen, self._refused = seen, ()
        return config

    def _read(self) -> tuple[Seen, dict[str, Any]]:
        try:
            with open(self.path, "rb") as file:
                found = os.fstat(file.fileno())
                text = file.read().decode()
            return (found.st_mtime_ns, found.st_size, found.st_ino), tomllib.loads(text)
        except OSError as error:
            raise InvalidFlow(
                "the file of the access cannot be read", path=str(self.path), reason=type(error).__name__
            ) from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
            line = re.search(r"at line \d+, column \d+", str(error))  # the rest of the text may quote what stands there
            raise InvalidFlow(
                "the file of the access is no TOML", path=str(self.path), where=line and line[0]
            ) from None

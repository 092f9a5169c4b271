"""Where a job may be asked just now, for readers that know only its snapshots: the newest directory that a supervisor has written.

A hint, not a truth: whoever follows it asks the workers themselves, and a run that died leaves its last word here.
"""

from __future__ import annotations

import json

from flowstate.errors import CorruptData
from flowstate.snapshot.chain import Chain
from flowstate.store import Store

LIVE = "live"
_KEPT = 3
_ATTEMPTS = 10


class Beacon:
    """The chain ``live`` in a store."""

    def __init__(self, store: Store) -> None:
        self.chain = Chain(store, LIVE)

    def announce(self, directory: str) -> None:
        """Write down `directory` (JSON, see `flowstate.view.directory`), unless a newer one is there: the word of a run that was replaced
        may be under way for long. What is damaged is written over."""
        for _ in range(_ATTEMPTS):
            newest = self.chain.newest()
            if newest and _version(self._read(newest)) > _version(directory):
                return
            if self.chain.append(newest + 1, {"directory": directory}):
                break
        for old in self.chain.versions()[:-_KEPT]:
            self.chain.forget(old)

    def _read(self, version: int) -> str:
        try:
            return str(self.chain.read(version)["directory"])
        except (CorruptData, FileNotFoundError):
            return ""

    def find(self) -> str | None:
        """What was announced last; None if nothing ever was."""
        latest = self.chain.latest()
        return None if latest is None else str(latest[1]["directory"])


def _version(directory: str) -> int:
    """Of a directory, which grows over runs too; -1 where there is none."""
    try:
        return int(json.loads(directory)["version"])
    except (ValueError, KeyError, TypeError):
        return -1

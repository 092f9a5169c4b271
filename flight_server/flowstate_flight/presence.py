"""Which partitions did not answer lately, so that a read does not find out again what another one knows already.

Times are monotonic seconds, given by the caller. A partition is away from its first failure until something answers for it.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from flowstate.errors import FlowstateError

#: Seconds after which knowledge that nobody has checked again is no reason not to ask.
STALE = 4.0
#: Seconds after which a failure that nobody has checked again is forgotten: the next one begins a new absence.
FORGOTTEN = 10.0
#: Seconds between two rounds that look for what is away: few at first, when it has perhaps only moved.
FIRST_PAUSE, LONGEST_PAUSE = 0.02, 0.5


@dataclass(frozen=True)
class Away:
    """`since` is when it first failed, `checked` when it last did, with `error`."""

    since: float
    checked: float
    error: FlowstateError


class Presence:
    """Thread safe. Asking while nothing is away costs one look into an empty dict."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._away: dict[int, Away] = {}
        self._pause = FIRST_PAUSE
        self._due = 0.0
        self._looking = False

    def away(self, partition: int, now: float) -> Away | None:
        """What is known of a partition that should not be asked now."""
        known = self._away.get(partition)
        return known if known is not None and now - known.checked <= STALE else None

    def everyone(self) -> list[int]:
        """Partitions that are away."""
        return list(self._away)

    def failed(self, partition: int, begun: float, now: float, error: FlowstateError) -> Away:
        """An attempt that began at `begun` failed: since then at least nobody is there."""
        with self._lock:
            if not self._away:
                self._pause, self._due = FIRST_PAUSE, now
            known = self._away.get(partition)
            since = known.since if known is not None and now - known.checked <= FORGOTTEN else begun
            found = self._away[partition] = Away(min(since, begun), now, error)
            return found

    def answered(self, partition: int, begun: float) -> None:
        """An attempt that began at `begun` succeeded. One that began before the first failure proves nothing."""
        if partition in self._away:
            with self._lock:
                known = self._away.get(partition)
                if known is not None and known.since <= begun:
                    del self._away[partition]

    def forget(self) -> None:
        """The job was divided anew: these numbers mean other partitions."""
        with self._lock:
            self._away.clear()

    def begin_round(self, now: float) -> bool:
        """Whether it is the caller's turn to look for what is away. It calls `end_round` then."""
        with self._lock:
            if self._looking or not self._away or now < self._due:
                return False
            self._looking = True
            return True

    def end_round(self, now: float) -> None:
        with self._lock:
            self._looking = False
            self._due = now + self._pause
            self._pause = min(2 * self._pause, LONGEST_PAUSE)

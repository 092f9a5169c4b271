"""Whether rows wait in the log for long: measured when somebody asks, in seconds, since offsets mean another thing in every kind of log."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from flowstate.clock import Clock
from flowstate.runtime.pump import Pump

EVERY = 0.05  # seconds between two looks, at least
FORGOTTEN = 2.0  # seconds after which a look tells nothing about now
BEHIND = 0.2  # seconds

#: How far each split is read, and where it ends.
Places = Mapping[str, tuple[int, int]]


class Backlog:
    """Thread safe. `places` tells of the splits whose end can be told at a look."""

    def __init__(self, clock: Clock, places: Callable[[], Places]) -> None:
        self._clock, self._places, self._lock = clock, places, threading.Lock()
        self._looked, self._before, self._pressed = -FORGOTTEN, dict[str, int](), False

    @staticmethod
    def of(pump: Pump, clock: Clock) -> Backlog:
        def places() -> Places:
            if pump.machine is None or pump.state != "live":
                return {}
            splits, found = pump.machine.table.splits, {}
            for split, reading in list(pump.machine.readings.items()):
                end = pump.intake.known_end(splits[split].source, split) if split in splits else None
                if end is not None:
                    found[split] = reading.at.offset, end
            return found

        return Backlog(clock, places)

    def pressed(self) -> bool:
        """Whether to read what is there takes `BEHIND` seconds or more, at the pace between the last two looks; False as long as nobody
        has looked twice, and of a log that is not read."""
        if self._clock.monotonic() - self._looked >= EVERY and self._lock.acquire(blocking=False):
            try:
                self._look()
            finally:
                self._lock.release()
        return self._pressed

    def _look(self) -> None:
        now, places = self._clock.monotonic(), self._places()
        passed = now - self._looked
        both = {
            split: (at - self._before[split], end - at) for split, (at, end) in places.items() if split in self._before
        }
        if (
            passed < FORGOTTEN
            and any(left > 0 for _, left in both.values())
            and not any(read for read, _ in both.values())
        ):
            return  # rows come in large pieces: the next look compares with what this one did
        self._looked, self._before = now, {split: at for split, (at, _) in places.items()}
        self._pressed = passed < FORGOTTEN and any(
            read > 0 and left * passed >= BEHIND * read for read, left in both.values()
        )

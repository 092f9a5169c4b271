"""What lookups may take of the processor while rows wait to be taken in.

Whoever has 256 questions under way, and asks again at every answer, would have nearly all of a core: each exchange has a thread, and
taking in has one. So while rows wait, an exchange pauses after its answer, for as long as keeps all exchanges together within their share.
Who asks now and then does not wait, and where no rows wait nobody does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from flowstate.clock import Clock

SHARE = 0.15  # of one processor
AT_ONCE = 0.01  # seconds of processor time that are had without a pause, after nothing was asked for a while
LONGEST = 1.0  # seconds


class Share:
    """A token bucket of processor time. Thread safe."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._left, self._at = AT_ONCE, clock.monotonic()
        self._over = threading.Event()

    def spend(self, seconds: float, pressed: Callable[[], bool]) -> float:
        """Seconds to pause after `seconds` of processor time were used. `pressed` says whether rows wait; it is asked only if more than the
        share was used."""
        with self._lock:
            now = self._clock.monotonic()
            self._left = min(AT_ONCE, self._left + SHARE * (now - self._at)) - seconds
            self._at = now
            if self._left >= 0:
                return 0.0
            if not pressed():
                self._left = 0.0
                return 0.0
            return min(LONGEST, -self._left / SHARE)

    def pause(self, seconds: float) -> None:
        """Returns at once when the service closes."""
        self._over.wait(seconds)

    def close(self) -> None:
        self._over.set()

"""How long a worker may believe that it is still in the job: a pure machine.

The supervisor gives the partitions of a silent worker to others no sooner than `SECONDS` after it last heard of it. The worker counts the
same seconds from when it *sent* what the supervisor has acknowledged, which was earlier. So while a lease is held, nobody else has been
asked to take over; no clocks are compared, both only measure a length of time.

It is looked at when an answer is ready, not when the question came: a process that was stopped for a minute in between finds its lease
over (the monotonic clock goes on), and refuses. What is left is the way from there to the asker: an answer may be held up by a stop of
the process or by the network after it was found good, and tells by its `as_of` how old it is. The lease says that at `as_of` it was the
newest there was.

A worker that lost its connection is replaced at once, lease or not. It then knows by itself that it closes; if it is stopped at that very
moment, it may answer with what it had for the rest of its lease, under its old epoch.
"""

from __future__ import annotations

import math

SECONDS = 2.0


class Lease:
    """Times are of a monotonic clock. One value that is replaced in one step, so threads may ask."""

    def __init__(self) -> None:
        self._until = -math.inf
        self._ended = False

    def acknowledged(self, sent: float) -> None:
        """The supervisor has answered what was sent at `sent`."""
        self._until = max(self._until, sent + SECONDS)

    def end(self) -> None:
        """For good: the supervisor has said that this worker is replaced."""
        self._ended = True

    def left(self, now: float) -> float:
        """Seconds that it still holds; 0 when it is over."""
        return 0.0 if self._ended else max(0.0, self._until - now)

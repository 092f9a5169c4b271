"""Which workers are dead although their connections stand: a pure machine over ticks, reports and pings.

A worker that is stopped, or whose interpreter is held by C code, sends nothing and answers nothing, and nobody tells us. Silence alone is
no proof: the supervisor may have been stopped itself, a worker's event loop may be busy. So a worker is condemned when three things
hold together:

1. `TICKS` ticks came without a report of it, each on time. A tick that is late shows that the supervisor itself stood still (or its machine
   was starved); then all counts begin anew, whatever was under way.
2. Nothing was heard of it for as long as a lease lasts, so the worker has stopped calling itself live before others take over.
3. The last `PINGS` pings, asked one after the other in that same silence by another way (its Flight port), were not answered.

On a machine with far too much to do, a worker may come to nothing for seconds and be well; to end it would cost more time, and give the
next one no better place. So a silence must also be twice as long as any that lately turned out to be none.
"""

from __future__ import annotations

from dataclasses import dataclass

from flowstate.runtime.lease import SECONDS

TICK = 0.2  # seconds between ticks
ON_TIME = 1.5 * TICK  # between two ticks; after more, a tick does not count
LATE = 2.5 * TICK  # between two ticks: more means that the supervisor stood still
TICKS = 10
SILENT = 4  # ticks without a report before a worker is pinged
PINGS = 2
REMEMBERED = 60.0  # seconds for which a silence that ended is remembered
LONGEST = 10.0  # seconds of silence that are enough in any case


@dataclass(frozen=True)
class Ping:
    """Ask the worker by its Flight port, with a time limit; answer with `pinged` and the same `number`."""

    worker: str
    number: int


@dataclass(frozen=True)
class Condemn:
    """The worker counts as dead from now on: take its partitions away, end its process. `silent`: seconds in which nothing was heard."""

    worker: str
    silent: float


@dataclass
class _Watched:
    heard: float
    ticks: int = 0
    failed: int = 0
    asked: int | None = None  # number of the ping that is under way


class Watchdog:
    """Workers are watched from their first report until they are condemned or leave."""

    def __init__(self) -> None:
        self._workers: dict[str, _Watched] = {}
        self._last_tick: float | None = None
        self._pings = 0
        self._ended: list[tuple[float, float]] = []  # silences that a worker ended by itself: (when, how long)

    def reported(self, worker: str, now: float) -> None:
        self._learn(worker, now)
        self._workers[worker] = _Watched(now)

    def _learn(self, worker: str, now: float) -> None:
        known, tick = self._workers.get(worker), self._last_tick
        stood_still = tick is not None and now - tick > LATE  # then the silence was ours
        if known is not None and not stood_still and now - known.heard > SECONDS / 2:
            self._ended.append((now, now - known.heard))

    @property
    def patience(self) -> float:
        """Seconds of silence that a worker may have now."""
        return min(LONGEST, max([SECONDS, *(2 * length for _, length in self._ended)]))

    def left(self, worker: str) -> None:
        self._workers.pop(worker, None)

    def pinged(self, worker: str, number: int, ok: bool, now: float) -> None:
        """The outcome of a ping. One that was asked before the counts began anew says nothing: it may have failed on our side."""
        watched = self._workers.get(worker)
        if watched is None or watched.asked != number:
            return
        watched.asked = None
        if ok:
            self._learn(worker, now)
            # It will hear that it was heard, which renews its lease, so the time counts from here.
            watched.failed, watched.heard = 0, now
        else:
            watched.failed += 1

    def tick(self, now: float) -> list[Ping | Condemn]:
        gap = TICK if self._last_tick is None else now - self._last_tick
        late, counts, self._last_tick = gap > LATE, gap <= ON_TIME, now
        self._ended = [each for each in self._ended if now - each[0] < REMEMBERED]
        out: list[Ping | Condemn] = []
        for worker, watched in list(self._workers.items()):
            if late:
                watched.heard, watched.ticks, watched.failed, watched.asked = now, 0, 0, None
                continue
            watched.ticks += counts
            silent = now - watched.heard
            if watched.ticks >= TICKS and silent >= self.patience and watched.failed >= PINGS:
                del self._workers[worker]
                out.append(Condemn(worker, silent))
            elif watched.ticks >= SILENT and watched.asked is None:
                self._pings += 1
                watched.asked = self._pings
                out.append(Ping(worker, self._pings))
        return out

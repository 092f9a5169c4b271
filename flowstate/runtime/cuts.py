"""Consistent cuts of one running job, as the supervisor makes them (protocol: C1-C4). Runs on the scheduler's event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from flowstate.clock import Clock
from flowstate.errors import Unavailable
from flowstate.runtime.coordinator import Coordinator, CutDone, CutFailed

Outcome = CutDone | CutFailed | None
AGAIN = 0.05  # seconds between a cut that failed and the next one


class Cuts:
    """Makes the cuts that are asked for. The coordinator has one open at a time; who comes while it is waits for its end, and is woken
    by it.

    A cut for readers is shared: who asks while one is open gets the next, together with everybody else who asks until then. None that was
    open before somebody asked would do for him: it may be from before what he has seen. Cuts that are to be saved are made one after the
    other, beside those for readers: a second one would take the first one's place while partitions still save it.

    What becomes of a cut is told by the coordinator's instructions: the owner of this gives every `CutDone` and `CutFailed` to `happened`.
    `tell` sends the table to the workers; it is called once per cut, when it was opened.
    """

    def __init__(self, job: str, coordinator: Coordinator, clock: Clock, tell: Callable[[], None]) -> None:
        self._job, self._coordinator, self._clock, self._tell = job, coordinator, clock, tell
        self._followers: list[asyncio.Queue[CutDone | CutFailed]] = []
        self._waiting: list[asyncio.Future[None]] = []  # for the end of the cut that is open
        self._coming: asyncio.Task[Outcome] | None = None  # the next cut for readers, not yet open
        self._under_way: set[asyncio.Task[Outcome]] = set()
        self._saving = asyncio.Lock()  # held while a cut is made and saved

    async def make(self, timeout: float, *, saves: bool = False) -> CutDone:
        """One consistent cut over all partitions, taken after this was called; with `saves` also saved by all. Failed ones are repeated;
        `Unavailable` when none comes about within `timeout` seconds."""
        deadline = self._clock.monotonic() + timeout
        reason = "another cut is open"
        while (left := deadline - self._clock.monotonic()) > 0:
            result = await (self._next_saved(left) if saves else self._next_shared(left))
            if isinstance(result, CutDone):
                return result
            reason = result.reason if result else "it was not aligned in time"
            await asyncio.sleep(AGAIN)
        raise Unavailable("no consistent cut could be made; try again", job=self._job, reason=reason, retry_after=1.0)

    def happened(self, result: CutDone | CutFailed) -> None:
        """The coordinator says what became of a cut. It is not open any more."""
        for follower in self._followers:
            follower.put_nowait(result)
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            if not each.done():
                each.set_result(None)

    def close(self) -> None:
        """End what is under way."""
        for each in self._under_way:
            each.cancel()

    async def _next_saved(self, timeout: float) -> Outcome:
        deadline = self._clock.monotonic() + timeout
        try:
            async with asyncio.timeout(timeout):
                await self._saving.acquire()
        except TimeoutError:
            return None
        try:
            return await self._next(deadline - self._clock.monotonic(), shared=False)
        finally:
            self._saving.release()

    async def _next_shared(self, timeout: float) -> Outcome:
        if self._coming is None:
            self._coming = asyncio.ensure_future(self._next(self._coordinator.limits.cut, shared=True))
            self._under_way.add(self._coming)
            self._coming.add_done_callback(self._under_way.discard)
        coming = self._coming
        await asyncio.wait({coming}, timeout=timeout)
        return coming.result() if coming.done() and not coming.cancelled() else None

    async def _next(self, timeout: float, *, shared: bool) -> Outcome:
        """A cut of its own, and what became of it."""
        deadline = self._clock.monotonic() + timeout
        try:
            while (number := self._coordinator.open_cut(self._clock.monotonic(), saves=not shared)) is None:
                if not await self._closed(deadline - self._clock.monotonic()):
                    return None
        finally:
            if shared:
                self._coming = None
        return await self._follow(number, not shared, deadline - self._clock.monotonic())

    async def _closed(self, timeout: float) -> bool:
        """Wait until the cut that is open has ended; whether it has."""
        ended = asyncio.get_running_loop().create_future()
        self._waiting.append(ended)
        await asyncio.wait({ended}, timeout=max(0.0, timeout))
        return ended.done()

    async def _follow(self, number: int, saves: bool, timeout: float) -> Outcome:
        """Everything that happens to cuts is heard, however fast it follows on each other."""
        heard: asyncio.Queue[CutDone | CutFailed] = asyncio.Queue()
        self._followers.append(heard)
        self._tell()
        try:
            async with asyncio.timeout(timeout):
                while True:
                    result = await heard.get()
                    if result.cut == number and (isinstance(result, CutFailed) or result.saved or not saves):
                        return result
        except TimeoutError:
            return None
        finally:
            self._followers.remove(heard)

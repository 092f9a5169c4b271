"""Who gets which cut, with a real coordinator whose partitions are played by the test."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from flowstate.clock import SystemClock
from flowstate.errors import Unavailable
from flowstate.runtime.coordinator import Coordinator, CutDone, CutFailed
from flowstate.runtime.cuts import Cuts


class Job:
    """One partition, which takes a cut when it is told to."""

    def __init__(self) -> None:
        self.machine = Coordinator(1, {})
        self.told = 0
        self.cuts = Cuts("job", self.machine, SystemClock(), self._tell)
        self.machine.worker_joined("w", "w", 0.0)
        self.machine.claimed(0, 1, 0.0)
        self.report()

    def _tell(self) -> None:
        self.told += 1

    def report(self, **more: Any) -> None:
        report = {"state": "live", "position": {}, "reached": 0} | more
        for each in self.machine.reported(0, 1, report, 0.0):
            if isinstance(each, CutDone | CutFailed):
                self.cuts.happened(each)

    def take(self, offset: int = 7, **more: Any) -> None:
        self.report(cut={"cut": self.machine.table.cut, "position": {"a": [offset, 0]}}, **more)

    async def opened(self, number: int) -> None:
        async with asyncio.timeout(10):
            while self.machine.table.cut < number:
                await asyncio.sleep(0)


def run(play: Callable[[Job], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        await play(Job())

    asyncio.run(main())


def test_who_asks_while_a_cut_is_open_shares_the_next() -> None:
    async def play(job: Job) -> None:
        first = asyncio.ensure_future(job.cuts.make(10))
        await job.opened(1)
        others = [asyncio.ensure_future(job.cuts.make(10)) for _ in range(3)]
        for _ in range(5):
            await asyncio.sleep(0)
        assert job.machine.table.cut == 1
        job.take()
        await job.opened(2)
        job.take(9)
        assert (await first).cut == 1
        assert [(done.cut, done.position["a"].offset) for done in await asyncio.gather(*others)] == [(2, 9)] * 3
        assert job.told == 2

    run(play)


def test_who_waits_is_woken_by_the_end_of_the_open_cut() -> None:
    """In the very next steps of the event loop, not after a pause."""

    async def play(job: Job) -> None:
        for _ in range(2):
            asyncio.ensure_future(job.cuts.make(10))  # noqa: RUF006
        await job.opened(1)
        asyncio.ensure_future(job.cuts.make(10))  # noqa: RUF006
        for _ in range(5):
            await asyncio.sleep(0)
        job.take()
        steps = 0
        while job.machine.table.cut < 2:
            await asyncio.sleep(0)
            steps += 1
        assert steps < 10
        job.take()
        job.cuts.close()

    run(play)


def test_one_that_is_saved_comes_beside_one_for_readers() -> None:
    async def play(job: Job) -> None:
        saved = asyncio.ensure_future(job.cuts.make(10, saves=True))
        await job.opened(1)
        also = asyncio.ensure_future(job.cuts.make(10, saves=True))
        read = asyncio.ensure_future(job.cuts.make(10))
        job.take()
        await job.opened(2)
        assert not job.machine.table.saves  # the second one that is saved waits until the first one is
        job.take()
        assert (await read).cut == 2 and not saved.done()
        job.report(cut_saved={"cut": 1, "version": 5})
        done = await saved
        assert done.saved and done.versions == {0: 5}
        await job.opened(3)
        job.take(cut_saved={"cut": 3, "version": 6})
        job.report(cut_saved={"cut": 3, "version": 6})
        assert (await also).versions == {0: 6}

    run(play)


def test_one_that_fails_is_made_again_and_time_ends_it() -> None:
    async def play(job: Job) -> None:
        asked = asyncio.ensure_future(job.cuts.make(10))
        await job.opened(1)
        for each in job.machine.drain():
            if isinstance(each, CutFailed):
                job.cuts.happened(each)
        await job.opened(2)
        job.take()
        assert (await asked).cut == 2
        with pytest.raises(Unavailable, match="no consistent cut"):
            await job.cuts.make(0.02)

    run(play)

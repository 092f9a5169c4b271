"""The directory as a reader holds it: fetched from any worker, kept until a partition turns out to have moved."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait

from flowstate.clock import Clock
from flowstate.errors import FlowstateError, InvalidFlow, Unavailable, did_you_mean
from flowstate.view.directory import Directory, ViewInfo
from flowstate.view.saved import SavedStates
from flowstate_flight.actions import GATEWAY
from flowstate_flight.keys import hash_probe
from flowstate_flight.pool import Pool

#: An address, several of them, or a function that gives the directory itself.
DirectorySource = str | Sequence[str] | Callable[[], Directory]

#: Seconds for one answer when a directory is known already and something newer is looked for.
REFRESH = 1.0
#: Seconds that the other workers have left when one has answered: one of them may know more.
OTHERS = 0.2


class Routing:
    """The newest directory known: from `source`, from the workers that it names, or, when none of these knows a newer one, from what
    the job announced in its snapshots. Thread safe."""

    def __init__(
        self,
        source: DirectorySource,
        job: str | None,
        pool: Pool,
        timeout: float,
        clock: Clock,
        saved: SavedStates | None = None,
    ) -> None:
        """`timeout`: seconds for one answer."""
        self._ask: Callable[[], Directory] | None = source if callable(source) else None
        given = [] if callable(source) else [source] if isinstance(source, str) else list(source)
        self._addresses: list[str] = [_address(each) for each in given]
        if self._ask is None and not self._addresses and saved is None:
            raise InvalidFlow("a reader needs the address of at least one worker")
        self._job = job
        self._pool = pool
        self._timeout = timeout
        self._clock, self._saved = clock, saved
        self._threads = ThreadPoolExecutor(8, thread_name_prefix="flight-directory")
        self._lock = threading.Lock()
        self._directory: Directory | None = None
        self.gateway: str | None = None  # an address that answers for all partitions, live or saved

    def current(self) -> Directory:
        """What is known; asks if nothing is."""
        return self._directory or self.refresh(None)

    def refresh(self, stale: Directory | None) -> Directory:
        """A directory newer than `stale` if any worker has one, else the newest. Raises Unavailable if nobody answers."""
        with self._lock:
            known = self._directory
            if known is not None and known is not stale:
                return known  # another thread was faster
            self._directory = self._newest(known)
            return self._directory

    def view(self, directory: Directory, name: str) -> ViewInfo:
        """Raises InvalidFlow for an unknown name."""
        if name not in directory.views:
            raise InvalidFlow(f"job {directory.job!r} has no view {name!r}{did_you_mean(name, directory.views)}")
        return directory.views[name]

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _newest(self, known: Directory | None) -> Directory:
        best, failure = known, None
        for found in self._answers(known):
            if isinstance(found, FlowstateError):
                failure = found if failure is None or isinstance(found, InvalidFlow) else failure
            elif best is None or found.version > best.version:
                best = found
                break
        if self._saved is None:
            if best is None or (known is None and isinstance(failure, InvalidFlow)):
                raise failure or Unavailable("no worker answers")
            return best
        if best is known:  # the job may live elsewhere by now: a newer run, on other ports
            announced = self._saved.announced()
            if announced is not None and (best is None or announced.version > best.version):
                best = announced
        return best or self._saved.directory()

    def _answers(self, known: Directory | None) -> Iterator[Directory | FlowstateError]:
        """What the source says, or else every worker that is known, all asked at once: one that hangs keeps nobody waiting."""
        if self._ask is not None:
            try:
                yield self._ask()
                return
            except FlowstateError as error:
                yield error
        hosts = {each.location: None for each in known.partitions if each.location} if known else {}
        timeout = self._timeout if known is None else min(self._timeout, REFRESH)
        if hosts or self._addresses:
            hash_probe()  # loads kernels, once: before the time for an answer runs, and not in it
        places = dict.fromkeys([*self._addresses, *hosts])
        try:
            asked = {self._threads.submit(self._fetch, each, timeout): each for each in places}
        except RuntimeError as error:  # by another thread, just now
            raise InvalidFlow("this reader is closed; connect again") from error
        try:
            until, answered = self._clock.monotonic() + timeout + 0.1, False
            while asked:
                done, _ = wait(asked, max(0.0, until - self._clock.monotonic()), FIRST_COMPLETED)
                if not done:
                    if not answered:
                        yield Unavailable("no worker answers in time", retry_after=1.0, addresses=[*asked.values()][:5])
                    return
                for each in done:
                    del asked[each]
                    failure = each.exception()
                    if failure is None:
                        if not answered:
                            answered, until = True, min(until, self._clock.monotonic() + OTHERS)
                        yield each.result()
                    elif isinstance(failure, FlowstateError):
                        yield failure
                    else:
                        raise failure
        finally:
            for each in asked:
                each.cancel()

    def _fetch(self, address: str, timeout: float) -> Directory:
        job = self._job or (self._directory.job if self._directory else None)
        body = json.dumps({"hash": hash_probe(), **({"job": job} if job else {})}).encode()
        told = self._pool.act(address, "directory", body, timeout)
        if json.loads(told).get(GATEWAY):
            self.gateway = address
        return Directory.from_json(told)


def _address(text: str) -> str:
    """``host:port`` is short for ``grpc://host:port``."""
    return text if "://" in text else f"grpc://{text}"

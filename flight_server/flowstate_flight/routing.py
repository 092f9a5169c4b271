"""The directory as a reader holds it: fetched from any worker, kept until a partition turns out to have moved."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence

import pyarrow as pa
from pyarrow import flight

from flowstate.errors import FlowstateError, InvalidFlow, Unavailable, did_you_mean
from flowstate.view.directory import Directory, ViewInfo
from flowstate_flight.fault import from_flight
from flowstate_flight.keys import hash_probe
from flowstate_flight.pool import Pool

#: An address, several of them, or a function that gives the directory itself.
DirectorySource = str | Sequence[str] | Callable[[], Directory]


class Routing:
    """The newest directory known. Thread safe."""

    def __init__(self, source: DirectorySource, job: str | None, pool: Pool, timeout: float) -> None:
        self._ask: Callable[[], Directory] | None = source if callable(source) else None
        given = [] if callable(source) else [source] if isinstance(source, str) else list(source)
        self._addresses: list[str] = [_address(each) for each in given]
        if self._ask is None and not self._addresses:
            raise InvalidFlow("a reader needs the address of at least one worker")
        self._job = job
        self._pool = pool
        self._timeout = timeout
        self._lock = threading.Lock()
        self._directory: Directory | None = None

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

    def _newest(self, known: Directory | None) -> Directory:
        if self._ask is not None:
            return self._ask()
        best = known
        failure: FlowstateError | None = None
        hosts = {each.location: None for each in known.partitions if each.location} if known else {}
        for address in dict.fromkeys([*self._addresses, *hosts]):
            try:
                found = self._fetch(address)
            except FlowstateError as error:
                failure = error if failure is None or isinstance(error, InvalidFlow) else failure
                continue
            if best is None or found.version > best.version:
                newer = known is not None and found.version > known.version
                best = found
                if newer or known is None:
                    break
        if best is None or (failure is not None and isinstance(failure, InvalidFlow) and known is None):
            raise failure or Unavailable("no worker answers")
        return best

    def _fetch(self, address: str) -> Directory:
        job = self._job or (self._directory.job if self._directory else None)
        body = json.dumps({"hash": hash_probe(), **({"job": job} if job else {})}).encode()
        options = flight.FlightCallOptions(timeout=self._timeout)
        try:
            results = list(self._pool.client(address).do_action(flight.Action("directory", body), options))
        except (pa.ArrowException, flight.FlightError, OSError) as error:
            raise from_flight(error, address=address) from error
        return Directory.from_json(results[0].body.to_pybytes())


def _address(text: str) -> str:
    """``host:port`` is short for ``grpc://host:port``."""
    return text if "://" in text else f"grpc://{text}"

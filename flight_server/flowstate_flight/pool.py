"""Connections of one reader: a Flight client per location, and idle exchanges to use again.

gRPC does not survive a fork: a child that makes any Flight call hangs. So a pool refuses to work in another process than the one it
was made in, and no pool is made in a child whose parent had used Flight.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
from pyarrow import flight

from flowstate.clock import Clock
from flowstate.errors import InvalidFlow, Unavailable
from flowstate.view.freshness import LATEST, Freshness
from flowstate_flight.credentials import Credentials
from flowstate_flight.exchange_call import ExchangeCall, Found, StreamBroken, Watchdog, broken
from flowstate_flight.fault import Refused, from_flight

#: Streams cost the server one thread each, so few are kept; more lookups at once than this open streams that are closed after use.
IDLE_EXCHANGES = 4
#: Seconds after which any stream ends, so that what was left behind by somebody does not stay for ever.
LONGEST_STREAM = 3600.0
#: gRPC's own waits between attempts to connect grow to two minutes, and one attempt takes up to 20 s: too long for a worker that is back.
CONNECTING = [("grpc.max_reconnect_backoff_ms", 500), ("grpc.min_reconnect_backoff_ms", 5000)]
#: gRPC lets a stream run ahead of who reads it by as much as the network takes, 20 MB on one machine. What is read to its end gains by
#: that; what stays open holds it for as long as nobody reads.
STEADY = [("grpc.http2.bdp_probe", 0)]

_forked_after_use = False
_used = False


def _after_fork() -> None:
    global _forked_after_use
    _forked_after_use = _used


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Pool:
    """Thread safe."""

    def __init__(self, clock: Clock, **options: Any) -> None:
        """`options` are those of `Credentials`. A login that is refused is tried once more, since a service that was started anew takes
        the token of none before."""
        global _used
        self._connecting = options["generic_options"] = [*CONNECTING, *options.get("generic_options", ())]
        self._credentials = Credentials(**options, clock=clock)
        self._clock = clock
        self._watchdog = Watchdog(clock)
        self._lock = threading.Lock()
        self._clients: dict[tuple[str, bool], flight.FlightClient] = {}
        self._idle: dict[tuple[str, str, str, tuple[str, ...]], list[ExchangeCall]] = {}
        self._process = os.getpid()
        self._closed = False
        self._check()
        _used = True
        # A reader that nobody closes is closed before its servers are (what was registered later runs first), so that nothing complains.
        closing = weakref.WeakMethod(self.close)
        self._at_exit = lambda: (close := closing()) and close()
        atexit.register(self._at_exit)

    def client(self, location: str, *, steady: bool = False) -> flight.FlightClient:
        """`steady`: for streams that do not run ahead of who reads them."""
        self._check()
        with self._lock:
            if (location, steady) not in self._clients:
                options = [*self._connecting, *STEADY] if steady else self._connecting
                self._clients[location, steady] = self._credentials.connect(location, generic_options=options)
            return self._clients[location, steady]

    def lookup(
        self,
        location: str,
        job: str,
        view: str,
        partition: int,
        epoch: int,
        keys: pa.RecordBatch,
        patience: float,
        fresh: Freshness = LATEST,
    ) -> Found:
        """One lookup over an idle exchange, or a new one; `patience` seconds in all."""
        begun = self._clock.monotonic()
        place = (location, job, view, tuple(keys.schema.names))
        self._check()
        with self._lock:
            waiting = self._idle.get(place)
            call = waiting.pop() if waiting else None
        if call is not None:
            try:
                return self._use(place, call, partition, epoch, keys, patience, fresh)
            except StreamBroken:
                if self._clock.monotonic() - begun >= patience:
                    raise
                # else an idle stream does not notice that its server was replaced: only a new one can tell
            except Refused:
                self._credentials.renew()  # it may have lasted longer than what was shown when it began
        for last in (not self._credentials.renewable, True):
            try:
                call = self._begin(location, job, view, keys.schema, patience - (self._clock.monotonic() - begun))
                return self._use(
                    place, call, partition, epoch, keys, patience - (self._clock.monotonic() - begun), fresh
                )
            except Refused:
                if last:
                    raise
                self._credentials.renew()
        raise AssertionError

    def _begin(self, location: str, job: str, view: str, keys: pa.Schema, patience: float) -> ExchangeCall:
        """A new exchange. Beginning one blocks for as long as connecting takes, so it waits in a thread of its own, too (see `open`)."""
        client = self.client(location)
        outcome: queue.SimpleQueue[Any] = queue.SimpleQueue()
        given_up = threading.Event()

        def begin() -> None:
            try:
                options = self._credentials.options(client)
                outcome.put(ExchangeCall(client, job, view, keys, self._watchdog, options))
            except BaseException as error:
                outcome.put(error)
            if given_up.is_set():
                drop()

        def drop() -> None:  # both threads may come here; one of them finds it
            with contextlib.suppress(queue.Empty):
                left = outcome.get_nowait()
                if isinstance(left, ExchangeCall):
                    left.cancel()
                    left.close()

        threading.Thread(target=begin, name="flight-begin", daemon=True).start()
        try:
            found = outcome.get(timeout=max(0.0, patience))
        except queue.Empty:
            given_up.set()
            drop()
            raise StreamBroken("a worker cannot be connected to", retry_after=1.0, location=location) from None
        if isinstance(found, pa.ArrowException | flight.FlightError | OSError):
            raise broken(found) from found
        if isinstance(found, BaseException):
            raise found
        assert isinstance(found, ExchangeCall)
        return found

    def _use(
        self,
        place: tuple[str, str, str, tuple[str, ...]],
        call: ExchangeCall,
        partition: int,
        epoch: int,
        keys: pa.RecordBatch,
        patience: float,
        fresh: Freshness,
    ) -> Found:
        try:
            return call.lookup(partition, epoch, keys, patience, fresh)
        finally:
            if not call.broken:
                with self._lock:
                    idle = self._idle.setdefault(place, [])
                    keep = len(idle) < IDLE_EXCHANGES and not self._closed
                    if keep:
                        idle.append(call)
                if not keep:
                    call.close()

    def open(self, location: str, ticket: bytes, patience: float, *, steady: bool = False) -> Stream:
        """A stream by do_get; `steady` as in `client`. Each wait for the server ends after `patience` seconds, or what the stream's
        `patience` is set to.

        do_get itself returns only when the server has sent its first message, and a deadline given to it would hold for the
        whole stream, however slowly that is read. So it waits in a thread of its own, which is left behind if need be.
        """
        client = self.client(location, steady=steady)
        outcome: queue.SimpleQueue[Any] = queue.SimpleQueue()
        given_up = threading.Event()

        def ask() -> None:
            try:
                reader = self._credentials.call(
                    client, LONGEST_STREAM, lambda options: client.do_get(flight.Ticket(ticket), options)
                )
                outcome.put((reader, reader.schema))
                if given_up.is_set():
                    reader.cancel()
            except BaseException as error:
                outcome.put(error)

        threading.Thread(target=ask, name="flight-open", daemon=True).start()
        try:
            found = outcome.get(timeout=max(0.0, patience))
        except queue.Empty:
            given_up.set()
            message = "a worker sent nothing in time"
            raise Unavailable(message, retry_after=1.0, location=location, waited=patience) from None
        if isinstance(found, BaseException):
            raise from_flight(found, location=location) from found
        reader, schema = found
        return Stream(reader, schema, self._watchdog, patience)

    def act(self, location: str, kind: str, body: bytes, patience: float) -> bytes:
        """The one result of an action. Raises what the server raised, or Unavailable after `patience` seconds."""
        client, action = self.client(location), flight.Action(kind, body)
        try:
            (result,) = self._credentials.call(
                client, max(0.001, patience), lambda options: list(client.do_action(action, options))
            )
        except (pa.ArrowException, flight.FlightError, OSError, ValueError) as error:
            raise from_flight(error, address=location) from error
        return bytes(result.body.to_pybytes())

    def forget(self, location: str, *, connection: bool = False) -> None:
        """Drop the idle exchanges to a location that failed. The client itself reconnects, unless its connection neither works nor ends,
        as after a network was cut: `connection` drops that too, and whoever still uses it goes on with it."""
        with self._lock:
            gone = [call for place in list(self._idle) if place[0] == location for call in self._idle.pop(place)]
            if connection:
                for steady in (False, True):
                    self._clients.pop((location, steady), None)
        for call in gone:
            call.cancel()
            call.close()

    def close(self) -> None:
        if self._process != os.getpid():
            return
        atexit.unregister(self._at_exit)
        with self._lock:
            self._closed = True
            calls = [call for calls in self._idle.values() for call in calls]
            clients = list(self._clients.values())
            self._idle, self._clients = {}, {}
        for each in calls:
            each.close()
        for client in clients:
            with contextlib.suppress(pa.ArrowException):
                client.close()
        self._watchdog.close()

    def _check(self) -> None:
        if self._process != os.getpid() or _forked_after_use:
            message = "Arrow Flight does not survive a fork; start processes by spawn and connect in each of them"
            raise InvalidFlow(message)
        if self._closed:
            raise InvalidFlow("this reader is closed; connect again")


class Stream:
    """The batches of a do_get, once. `patience` is the number of seconds to wait for each."""

    def __init__(self, reader: Any, schema: pa.Schema, watchdog: Watchdog, patience: float) -> None:
        self._reader, self.schema, self._watchdog, self.patience = reader, schema, watchdog, patience

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        return (batch for batch, _ in self.messages())

    def messages(self) -> Iterator[tuple[pa.RecordBatch, bytes]]:
        """Batches with the application metadata beside them."""
        while True:
            try:
                with self._watchdog.watch(self._reader, self.patience):
                    chunk = self._reader.read_chunk()
            except StopIteration:
                return
            except (pa.ArrowException, flight.FlightError, OSError) as error:
                raise from_flight(error) from error
            if chunk.data is not None:
                beside = chunk.app_metadata
                yield chunk.data, beside.to_pybytes() if beside is not None else b""

    def cancel(self) -> None:
        self._reader.cancel()

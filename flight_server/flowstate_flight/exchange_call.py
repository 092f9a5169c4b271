"""The client's end of one long-lived exchange: a batch of keys out, rows back, 0.2 ms each.

A reply can be awaited only in the read itself, which has no deadline. So `Watchdog` cancels the stream of a call that is overdue, and
the call fails instead of waiting for a peer that vanished without a word.
"""

from __future__ import annotations

import contextlib
import json
import threading
from typing import Any, Protocol

import pyarrow as pa
from pyarrow import flight

from flowstate.clock import Clock
from flowstate.errors import FlowstateError, InternalError, Unavailable
from flowstate.view.freshness import LATEST, LONGEST_WAIT, Freshness
from flowstate_flight.fault import from_flight, rebuild

#: Rows, and what the answer says of itself, as JSON.
Found = tuple[pa.RecordBatch, bytes]
#: The part of an attempt's time for which a partition may wait for what is asked of it, so that its answer still arrives.
WAITING = 0.8


def waiting(fresh: Freshness, timeout: float) -> float | None:
    """Seconds that a partition may wait for what `fresh` asks, so that its answer still comes within `timeout`."""
    if not fresh.at_least:
        return None
    longest = min(WAITING * timeout, LONGEST_WAIT)
    return longest if fresh.wait is None else min(longest, fresh.wait)


class StreamBroken(Unavailable):
    """The exchange itself failed, not the question: another way may still work."""


class ExchangeCall:
    """One stream of lookups in one view with one schema of keys. Used by one thread at a time (the pool sees to that)."""

    def __init__(
        self,
        client: flight.FlightClient,
        job: str,
        view: str,
        keys: pa.Schema,
        watchdog: Watchdog,
        options: flight.FlightCallOptions | None = None,
    ) -> None:
        command = json.dumps({"v": 1, "kind": "lookup", "job": job, "view": view}).encode()
        self._watchdog = watchdog
        self._number = 0
        self._writer, self._reader = client.do_exchange(flight.FlightDescriptor.for_command(command), options)
        self.broken = False
        try:
            self._writer.begin(keys)
        except BaseException:
            self.broken = True
            self.close()
            raise

    def lookup(
        self, partition: int, epoch: int, keys: pa.RecordBatch, patience: float, fresh: Freshness = LATEST
    ) -> Found:
        """The rows of `keys` in a partition, and what the answer says. Raises what the partition raised (the stream is still good), or
        StreamBroken after `patience` seconds or when the stream broke (`broken` is set then)."""
        self._number = number = self._number + 1
        asked = f'{{"partition": {partition}, "id": {number}, "epoch": {epoch}}}'
        if fresh is not LATEST:
            besides = json.dumps({"fresh": fresh.to_data(), "wait": waiting(fresh, patience)})
            asked = f"{asked[:-1]}, {besides[1:]}"
        with self._watchdog.watch(self, patience):
            try:
                self._writer.write_with_metadata(keys, asked.encode())
                chunk = self._reader.read_chunk()
            except StopIteration:
                raise self._break(StreamBroken("the worker ended the stream", retry_after=0.2)) from None
            except (pa.ArrowException, flight.FlightError, OSError) as error:
                raise self._break(broken(error)) from error
        said: bytes = chunk.app_metadata.to_pybytes()
        before = b'{"id": %d, "answer": ' % number
        if said.startswith(before):  # as services here write it: there is no need to read it now
            return chunk.data, said[len(before) : -1]
        reply: dict[str, Any] = json.loads(said)
        if reply.get("id") != number:
            raise self._break(InternalError("a reply came for another question", got=reply.get("id"), id=number))
        if "error" in reply:
            raise rebuild(reply["error"])
        return chunk.data, json.dumps(reply["answer"]).encode()

    def cancel(self) -> None:
        """End it from any thread; a read that waits fails."""
        self.broken = True
        self._reader.cancel()

    def close(self) -> None:
        """End it in order if it works. Arrow complains on stderr of a writer that is dropped unclosed, so it is closed even then."""
        end = self._reader.cancel if self.broken else self._writer.done_writing
        self.broken = True
        for step in (end, self._writer.close):
            with contextlib.suppress(pa.ArrowException, flight.FlightError, OSError), self._watchdog.watch(self, 1.0):
                step()

    def _break(self, error: FlowstateError) -> FlowstateError:
        self.broken = True
        self.close()
        return error


def broken(error: BaseException) -> FlowstateError:
    """What a failed stream raises: our own error if the server sent one, else StreamBroken."""
    ours = from_flight(error)
    if type(ours) is Unavailable:
        facts = {name: value for name, value in ours.facts.items() if name != "retry_after"}
        return StreamBroken(ours.message, retry_after=ours.retry_after, **facts)
    return ours


class Cancellable(Protocol):
    def cancel(self) -> None: ...


class Watchdog:
    """Cancels calls that are overdue. One daemon thread for all streams of a reader, started by the first call."""

    def __init__(self, clock: Clock, tick: float = 0.1) -> None:
        self._clock = clock
        self._tick = tick
        self._lock = threading.Lock()
        self._due: dict[Cancellable, float] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def watch(self, call: Cancellable, patience: float) -> _Watched:
        if self._thread is None:
            with self._lock:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="flight-watchdog", daemon=True)
                    self._thread.start()
        return _Watched(self._due, call, self._clock.monotonic() + patience)

    def close(self) -> None:
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(self._tick):
            now = self._clock.monotonic()
            for call, due in list(self._due.items()):
                if due < now:
                    call.cancel()


class _Watched:
    """A call is in the table while it waits; single dict operations, so that no lock is taken per call."""

    def __init__(self, due: dict[Cancellable, float], call: Cancellable, at: float) -> None:
        self._due, self._call, self._at = due, call, at

    def __enter__(self) -> None:
        self._due[self._call] = self._at

    def __exit__(self, *exception: object) -> None:
        self._due.pop(self._call, None)

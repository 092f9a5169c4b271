"""The changes of a view over all its partitions, as one iterator that follows them wherever they go.

One thread per partition reads its stream, and hands over one message at a time: while nobody takes it, it reads no further, the worker's
side stands still, and what changes meanwhile comes in one round, each key once.

The rounds of different partitions are told one after the other. So whenever a position comes, everything that was told so far is the state
of every partition at its place in it. A partition that is lost in the middle of its round is told anew, by who serves it next, before
anything else.
"""

from __future__ import annotations

import json
import threading
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from flowstate.errors import Fenced, FlowstateError, InvalidFlow, Moved, Unavailable
from flowstate.view.answer import Answer
from flowstate.view.changes import Change
from flowstate.view.directory import Directory
from flowstate_flight.gathering import Reading
from flowstate_flight.pool import Stream
from flowstate_flight.subscribing import read_change
from flowstate_flight.ticket import MAX_TICKET_BYTES, Ticket
from flowstate_flight.visible import UNREADABLE

FIRST_PAUSE, LONGEST_PAUSE = 0.02, 0.5
_DIVIDED = object()


class Changes(Iterator[Change]):
    """See `FlightReader.changes`. To be used by one thread, but for `close`."""

    def __init__(
        self,
        reading: Reading,
        view: str,
        schema: pa.Schema,
        filter: bytes | None,
        resume: str | None,
        chosen: Callable[[Directory], Sequence[int]],
        *,
        hidden: bool = False,
    ) -> None:
        """`chosen` are the partitions that have anything to tell. `hidden`: no error names a row, since it may be another's."""
        self.schema, self._hidden = schema, hidden
        self._reading, self._view, self._filter, self._chosen = reading, view, filter, chosen
        self._nothing = pa.RecordBatch.from_pylist([], schema=schema)
        self._changed = threading.Condition()
        self._closed = False
        directory = reading.routing.current()
        known = _parts(resume, directory)
        self._forgets = known is None  # what she was told before is of parts of which some may be told no more
        self._begin(directory, known or {})

    def _begin(self, directory: Directory, known: Mapping[int, Any]) -> None:
        self._division = (len(directory.partitions), directory.seed)
        self._numbers = list(self._chosen(directory))
        self._answers: dict[int, Answer] = {}
        self._resume: dict[int, Any] = {number: known[number] for number in self._numbers if number in known}
        self._within: int | None = None  # the partition whose round is being told
        self._last = -1
        self._followers = {number: _Follower(self, number, self._resume.get(number)) for number in self._numbers}
        for each in self._followers.values():
            each.start()

    def take(self, timeout: float) -> Change | None:
        """The next one; None if none comes within `timeout` seconds. Raises Unavailable when a partition was away for as long as the
        reader has patience, InvalidFlow for what will never do. After an error there is no more; subscribe again with `resume`."""
        deadline = self._reading.clock.monotonic() + timeout
        while True:
            if self._forgets:
                self._forgets = False
                return Change("reset", None, self._nothing)
            found = self._next(deadline)
            if found is None:
                return None
            number, item = found
            if item is _DIVIDED:
                self._stop()
                self._begin(self._reading.routing.current(), {})
                self._forgets = True
                continue
            if isinstance(item, FlowstateError):
                self.close()
                if self._hidden and isinstance(item, InvalidFlow) and "key" in item.facts:
                    raise InvalidFlow(UNREADABLE)
                raise item
            assert isinstance(item, Change)
            if item.kind == "rows" and item.rows.num_rows == 0 and not item.missed:
                continue  # only a sign of life
            if item.kind != "position":
                self._within = number
                self._resume.pop(number, None)  # what is told now, nobody else can go on from, unless it says how
                if item.resume is None:
                    return item
                self._resume[number] = item.resume
                return replace(item, resume=self.resume)
            self._within = None
            assert item.answer is not None
            self._answers[number], self._resume[number] = item.answer, item.resume
            if len(self._answers) == len(self._numbers):
                answer = Answer.merge([self._answers[each] for each in self._numbers])
                return replace(item, answer=answer, resume=self.resume, rows=self._nothing)

    @property
    def resume(self) -> str:
        """What to come back with: what is told then continues from here. What lies in the middle of a round is told anew."""
        parts = {str(number): each for number, each in self._resume.items()}
        data = {"partitions": self._division[0], "seed": self._division[1], "parts": parts}
        return urlsafe_b64encode(json.dumps(data, separators=(",", ":")).encode()).decode().rstrip("=")

    def __next__(self) -> Change:
        while True:
            found = self.take(1.0)
            if found is not None:
                return found
            if self._closed:
                raise StopIteration

    def close(self) -> None:
        """End it; also from another thread, whose iteration then ends. Safe to repeat."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._stop()

    def __enter__(self) -> Changes:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_followers"):
            self._stop()

    def _stop(self) -> None:
        for each in self._followers.values():
            each.stop()

    def _next(self, deadline: float) -> tuple[int, Any] | None:
        """What a follower has, by turns; of the partition whose round is being told, if one is."""
        with self._changed:
            while not self._closed and not self._reading.closing.is_set():
                number = self._ready()
                if number is not None:
                    follower = self._followers[number]
                    item, follower.item = follower.item, None
                    self._last = number
                    self._changed.notify_all()
                    return number, item
                left = deadline - self._reading.clock.monotonic()
                if left <= 0:
                    return None
                self._changed.wait(min(left, 0.5))
        if not self._closed:
            raise Unavailable("this reader is closed; connect again", retry_after=1.0, view=self._view)
        return None

    def _ready(self) -> int | None:
        if self._within is not None:
            return self._within if self._followers[self._within].item is not None else None
        turn = [each for each in self._numbers if each > self._last] + [
            each for each in self._numbers if each <= self._last
        ]
        return next((each for each in turn if self._followers[each].item is not None), None)


class _Follower:
    """Reads one partition's stream, wherever it is. It does not know the `Changes` that it belongs to, only what it shares with it, so that
    one that is forgotten is ended."""

    def __init__(self, changes: Changes, number: int, resume: Any) -> None:
        self._reading, self._view, self._filter = changes._reading, changes._view, changes._filter
        self._columns, self._changed, self._division = tuple(changes.schema.names), changes._changed, changes._division
        self._number, self._resume = number, resume
        self._ended = threading.Event()
        self._stream: Stream | None = None
        self.item: Any = None

    def start(self) -> None:
        threading.Thread(target=self._run, name=f"flight-changes-{self._number}", daemon=True).start()

    def stop(self) -> None:
        self._ended.set()
        with self._changed:
            self._changed.notify_all()
        stream = self._stream
        if stream is not None:
            stream.cancel()

    def _run(self) -> None:
        reading, away, pause = self._reading, None, FIRST_PAUSE
        while not self._ended.is_set() and not reading.closing.is_set():
            told = False
            try:
                for change in self._open():
                    told = True
                    self._put(change)
                    self._await_room()  # before the next one is fetched: who does not read holds one, and no more
                raise Unavailable("a worker ended its stream of changes", retry_after=0.2, partition=self._number)
            except (Moved, Unavailable, Fenced) as error:
                now = reading.clock.monotonic()
                away, pause = (now, FIRST_PAUSE) if told or away is None else (away, pause)
                if now - away > reading.patience:
                    return self._put(error)
                if self._ended.wait(pause):
                    return None
                pause = min(2 * pause, LONGEST_PAUSE)
                self._look()
            except FlowstateError as error:
                return self._put(error)

    def _open(self) -> Iterator[Change]:
        reading = self._reading
        directory = reading.routing.current()
        if (len(directory.partitions), directory.seed) != self._division:
            self._put(_DIVIDED)
            self._ended.set()
            return
        place = next((each for each in directory.partitions if each.partition == self._number), None)
        if place is None or place.location is None:
            raise Unavailable("this partition is being recovered", retry_after=0.5, partition=self._number)
        ticket = Ticket(
            directory.job, self._view, self._number, self._columns, self._filter, None, None, epoch=place.epoch,
            changes=True, resume=self._resume,
        )  # fmt: skip
        stream = self._stream = reading.pool.open(place.location, ticket.to_bytes(), reading.timeout, steady=True)
        try:
            stream.patience = reading.timeout
            for rows, metadata in stream.messages():
                if self._ended.is_set():
                    return
                change = read_change(rows, metadata)
                self._resume = change.resume  # without one, what breaks here is told anew
                yield change
        finally:
            stream.cancel()

    def _put(self, item: Any) -> None:
        """Hand over, when there is room."""
        self._await_room()
        with self._changed:
            if not self._ended.is_set():
                self.item = item
                self._changed.notify_all()

    def _await_room(self) -> None:
        with self._changed:
            while self.item is not None and not self._ended.is_set():
                self._changed.wait(0.5)

    def _look(self) -> None:
        try:
            self._reading.routing.refresh(self._reading.routing.current())
        except FlowstateError:
            pass  # nobody can tell now; it may be where it was
        except RuntimeError:  # its threads have ended, since the reader was closed just now
            self._ended.set()


def _parts(resume: str | None, directory: Directory) -> dict[int, Any] | None:
    """What a token says of each partition; None if the job was divided anew since. Raises InvalidFlow for what is no token."""
    if resume is None:
        return {}
    try:
        if not isinstance(resume, str) or len(resume) > MAX_TICKET_BYTES:
            raise ValueError
        data = json.loads(urlsafe_b64decode(resume + "=" * (-len(resume) % 4)))
        if not isinstance(data, dict) or not isinstance(data["parts"], dict):
            raise ValueError
        if (data["partitions"], data["seed"]) != (len(directory.partitions), directory.seed):
            return None
        return {int(number): each for number, each in data["parts"].items() if isinstance(each, dict)}
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InvalidFlow(
            "'resume' is the token of a position that was told before; leave it out to begin anew"
        ) from None

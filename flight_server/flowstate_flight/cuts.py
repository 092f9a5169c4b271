"""Consistent cuts as a reader makes them, has them kept, and reads in them."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from flowstate.errors import FlowstateError, InvalidFlow, Moved, Unavailable
from flowstate.plan.position import Place
from flowstate.view.directory import PartitionInfo
from flowstate.view.freshness import LONGEST_WAIT, Freshness, behind, missing
from flowstate_flight.gathering import Reading
from flowstate_flight.ticket import Ticket

Found = TypeVar("Found")
#: Cuts of which a reader knows who keeps them.
NOTED = 1000
#: Seconds between two rounds of asking for a cut that nobody could make, or that has not come as far as was asked for.
AGAIN, FURTHER = 0.1, 0.05


@dataclass
class _Question:
    """What one read asked for, and the cut in which it is answered, which may still be another until something was `read` in it."""

    wanted: Freshness
    number: int
    read: bool = False
    lock: threading.RLock = field(default_factory=threading.RLock)


@dataclass(frozen=True)
class Moment(Freshness):
    """A cut that was made for one question: to be read by `Cuts.read` of the reader that made it. Elsewhere it is a cut like any other."""

    question: _Question | None = field(default=None, compare=False, repr=False)


class Cuts:
    """Of one reader; thread safe.

    A cut is everything at one position. The incarnations of partitions that took it keep it, on a lease; when one of them is gone, so is
    the cut, and nobody waits for it.

    * Who names a cut reads in that one and in no other, because he compares what he reads now with what he has read before. When it is
      lost he is refused, and takes another himself.
    * A cut that `moment` made belongs to one question (a lookup, a scan, an SQL query over several views), whose asker does not know it.
      As long as nothing was read in it, any later one is as good: `read` replaces one that was lost, within the reader's patience. From
      the first read on it is like a named one, so all views of a query, and all its executions, are of one cut.
    """

    def __init__(self, reading: Reading) -> None:
        self._reading, self._clock = reading, reading.clock

    def make(self, timeout: float) -> dict[str, Any]:
        """One cut over all partitions, made now: ``{"cut": number, "position": {split: place}}``. Any worker passes it on to the job; one
        that does not answer has half of the time. Raises Unavailable if there is none within `timeout` seconds."""
        reading = self._reading
        until, refused = self._clock.monotonic() + timeout, None
        directory = reading.routing.current()
        while True:
            for location in dict.fromkeys(each.location for each in directory.partitions if each.location):
                left = until - self._clock.monotonic()
                if left <= 0:
                    break
                wait = min(LONGEST_WAIT, max(left / 2, min(left, 1.0)))
                body = json.dumps({"job": directory.job, "timeout": wait}).encode()
                try:
                    made: dict[str, Any] = json.loads(reading.pool.act(location, "cut", body, wait + 1.0))
                except (Moved, Unavailable, InvalidFlow) as error:  # the job may be elsewhere by now
                    refused = error
                else:
                    self.note(made)
                    return made
            left = until - self._clock.monotonic()
            if isinstance(refused, InvalidFlow) or left <= 0 or reading.closing.wait(min(AGAIN, left)):
                raise refused or Unavailable("no worker is there to make a cut", job=directory.job, retry_after=1.0)
            try:
                directory = reading.routing.refresh(reading.routing.current())
            except FlowstateError:
                pass  # nobody can tell where it is now; it may be where it was

    def moment(self, fresh: Freshness) -> Freshness:
        """`fresh` with its cut made, if it asks for a consistent answer; for one question. Raises Unavailable if there can be none, and
        `Behind` if within the reader's patience none comes as far as was asked for."""
        if not fresh.consistent:
            return fresh
        number = self._reaching(fresh, self._clock.monotonic() + self._reading.patience)
        return Moment(cut=number, once=True, question=_Question(fresh, number))

    def read(self, fresh: Freshness, attempt: Callable[[Freshness, float], Found]) -> Found:
        """What `attempt` reads at `fresh` (with its cut made) until a monotonic time. It is called again, in another cut, if the one that
        `moment` made is lost before anything was read in it. Of several reads for one question the first one settles the cut, and the
        others wait for that."""
        until = self._clock.monotonic() + self._reading.patience
        question = fresh.question if isinstance(fresh, Moment) else None
        if question is None:
            return attempt(fresh, until)
        if not question.read:
            with question.lock:
                if not question.read:
                    found = self._first(question, attempt, until)
                    question.read = True
                    return found
        return attempt(Freshness(cut=question.number, once=True), until)

    def keep(self, made: Mapping[str, Any]) -> None:
        """Have a cut kept that a session is going to read, wherever it does: all partitions are asked for no row of it."""
        self.note(made)
        reading, fresh = self._reading, Freshness(cut=made["cut"])
        directory = reading.routing.current()
        view = next(iter(directory.views), "")

        def ask(place: PartitionInfo) -> None:
            ticket = Ticket(directory.job, view, place.partition, limit=0, fresh=fresh, epoch=place.epoch)
            try:
                if place.location is not None:
                    for _ in reading.pool.open(place.location, ticket.to_bytes(), reading.grace):
                        pass
            except FlowstateError:
                pass  # whoever reads it hears that

        list(reading.threads.map(ask, directory.partitions))

    def note(self, made: Mapping[str, Any]) -> None:
        """Note which incarnations keep it, by which its loss is known (`Gathering`)."""
        routing, cuts = self._reading.routing, self._reading.cuts
        known = {each.partition: each.epoch for each in routing.current().partitions}
        epochs = dict(made.get("epochs") or ())
        if any(known.get(partition, -1) < epoch for partition, epoch in epochs.items()) or not epochs:
            try:
                directory = routing.refresh(routing.current())
            except FlowstateError:
                pass  # nobody can tell where they are now; they may be where they were
            else:
                epochs = epochs or {each.partition: each.epoch for each in directory.partitions}
        cuts[made["cut"]] = epochs
        for old in sorted(cuts)[:-NOTED]:
            cuts.pop(old, None)

    def _first(self, question: _Question, attempt: Callable[[Freshness, float], Found], until: float) -> Found:
        while True:
            try:
                return attempt(Freshness(cut=question.number, once=True), until)
            except (InvalidFlow, Unavailable) as error:
                if error.facts.get("cut") != question.number or self._clock.monotonic() >= until:
                    raise
            question.number = self._reaching(question.wanted, until)

    def _reaching(self, fresh: Freshness, until: float) -> int:
        """A new cut that has come as far as was asked for."""
        begun = self._clock.monotonic()
        late = until if fresh.wait is None else min(until, begun + fresh.wait)
        while True:
            made = self.make(max(0.1, until - self._clock.monotonic()))
            lacking = missing(fresh.at_least, {split: Place(*place) for split, place in made["position"].items()})
            if not lacking:
                return int(made["cut"])
            left = late - self._clock.monotonic()
            if left <= 0 or self._reading.closing.wait(min(FURTHER, left)):
                raise behind(None, lacking, self._clock.monotonic() - begun)

"""One read over the partitions that it needs: live where they answer, saved where they are away for too long (see `view.saved`).

Interleavings that this survives:

1. A worker is stopped, not killed: its connections stand and nothing comes. Each attempt is cut off after about `grace`; from then on
   its partitions are known to be away, and a round (one thread, one request per partition) looks for them, not every read.
2. Eight threads fail at once on one partition: one round is begun, by whoever comes first, and all hear what it finds.
3. An attempt that began before a partition was away succeeds after that: it proves nothing.
4. A partition is slow, not away: its attempt was cut off, the round finds it there, and the next attempt gets the whole timeout.
5. Nobody read for a while: what is known is too old to act on, so the partition is asked again, but its absence goes on.
6. The job is divided anew while a read is under way: shares of two divisions do not add up, so it begins again.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from flowstate.clock import Clock
from flowstate.errors import Behind, Fenced, FlowstateError, InvalidFlow, Moved, Unavailable
from flowstate.view.directory import Directory, LivePartition, PartitionInfo
from flowstate.view.freshness import LATEST, Freshness
from flowstate.view.saved import Saved, SavedStates
from flowstate_flight.pool import Pool
from flowstate_flight.presence import Presence
from flowstate_flight.routing import Routing
from flowstate_flight.ticket import Ticket

Part = TypeVar("Part")
Share = TypeVar("Share")
#: Seconds that a read waits for a round that it began: enough to hear that a partition moved, or is still not there.
ROUND_WAIT = 0.1
FIRST_PAUSE, LONGEST_PAUSE = 0.005, 0.1
#: An attempt cut off after less, when patience is about to end, does not take back that the partition had said it is there, and behind.
HASTE = 0.5


class Reading:
    """What all reads of one reader share, and the rounds that look for partitions that are away."""

    def __init__(
        self,
        pool: Pool,
        routing: Routing,
        saved: SavedStates | None,
        clock: Clock,
        *,
        grace: float,
        patience: float,
        timeout: float,
    ) -> None:
        self.pool, self.routing, self.saved, self.clock = pool, routing, saved, clock
        self.patience, self.timeout = patience, timeout
        self.grace = min(grace, patience / 2)  # what was saved is read before patience ends
        self.presence = Presence()
        self.threads = ThreadPoolExecutor(16, thread_name_prefix="flight-reader")
        self.closing = threading.Event()
        self.cuts: dict[int, dict[int, int]] = {}  # the epochs of the partitions that keep a cut

    def look(self, wait: float) -> None:
        """Begin a round if it is time for one, and wait a little for what it finds."""
        if self.presence.begin_round(self.clock.monotonic()):
            finished = threading.Event()
            threading.Thread(target=self._round, args=(finished,), name="flight-round", daemon=True).start()
            finished.wait(wait)

    def _round(self, finished: threading.Event) -> None:
        try:
            directory = self.routing.current()
            try:
                directory = self.routing.refresh(directory)
            except FlowstateError:
                pass  # nobody can tell where they are now; they may be where they were
            places = directory.places
            at: dict[str, list[PartitionInfo]] = {}
            for number in self.presence.everyone():
                place = places.get(number)
                if place is None or place.location is None:
                    now = self.clock.monotonic()
                    self.presence.failed(number, now, now, _recovering(number))
                else:
                    at.setdefault(place.location, []).append(place)
            others = [threading.Thread(target=self._probe, args=(directory, each), daemon=True) for each in at.values()]
            for each in others:
                each.start()
            for each in others:
                each.join(2 * self.grace + 1.0)
        except FlowstateError:
            pass  # the reader was closed
        finally:
            self.presence.end_round(self.clock.monotonic())
            finished.set()

    def _probe(self, directory: Directory, places: list[PartitionInfo]) -> None:
        """Ask each partition of one worker for no rows. One that hangs speaks for all of them."""
        hung: FlowstateError | None = None
        for place in places:
            begun = self.clock.monotonic()
            try:
                if hung is not None:
                    raise hung
                assert place.location is not None
                view = next(iter(directory.views))
                ticket = Ticket(directory.job, view, place.partition, limit=0, epoch=place.epoch).to_bytes()
                for _ in self.pool.open(place.location, ticket, min(self.grace, self.timeout)):
                    pass
            except FlowstateError as error:
                now = self.clock.monotonic()
                self.presence.failed(place.partition, begun, now, error)
                if hung is None and now - begun >= 0.9 * self.grace and place.location is not None:
                    hung = error
                    self.pool.forget(place.location, connection=True)
            else:
                self.presence.answered(place.partition, begun)


class Gathering(Generic[Part, Share]):
    """One read. `shares` says which partitions are asked for what; `live` asks one that answers, within some seconds; `saved` one whose
    last saved state is at hand; `drop` ends a part that is not needed after all."""

    def __init__(
        self,
        reading: Reading,
        view: str,
        shares: Callable[[Directory], Mapping[int, Share]],
        live: Callable[[Directory, PartitionInfo, Share, float], Part],
        saved: Callable[[Directory, LivePartition, Share], Part],
        *,
        fresh: Freshness = LATEST,
        first: float = 0.0,
        drop: Callable[[Part], None] | None = None,
        whole: Callable[[str, str, float], Part] | None = None,
    ) -> None:
        """`first`: seconds for the first attempt beyond `grace`, for a question that takes long to answer. `whole` asks a gateway
        (job, address, seconds) for all that is read, as one part."""
        self._reading, self._view = reading, view
        self._shares, self._live, self._saved, self._drop = shares, live, saved, drop
        self._fresh, self._max_age, self._cut = fresh, fresh.max_age, fresh.cut
        self._first = min(reading.grace + first, reading.timeout)
        self._whole = whole
        self._attempts: dict[int, int] = {}
        self._failed: dict[
            int, tuple[float, FlowstateError]
        ] = {}  # when this read first found a partition away, and why
        self._overdue = False  # whether an attempt was just cut off, so that the partition may be slow and not away
        self._found: dict[int, Saved] = {}
        self._behind: dict[int, Behind] = {}  # partitions that are there, and have not come as far as was asked for
        self._as_saved = (
            False  # nothing is there, and the saved state has another division: everything is read by that one
        )

    def parts(self, until: float | None = None) -> list[Part]:
        """Every partition's part. Raises Unavailable when patience ends, or at `until`, and at once what a partition raises for good."""
        reading = self._reading
        directory = reading.routing.current()
        begun = reading.clock.monotonic()
        deadline = begun + reading.patience if until is None else until
        late = deadline if self._fresh.wait is None else begun + self._fresh.wait
        if self._fresh.snapshot is not None:
            if reading.saved is None and (part := self._of_gateway(directory, deadline)) is not None:
                return [part]
            return self._of_snapshot(self._fresh.snapshot)
        done: dict[int, Part] = {}
        pause = FIRST_PAUSE
        try:
            while True:
                wanted = self._shares(directory)
                self._ask_live(directory, wanted, done, deadline)
                if len(done) < len(wanted):
                    left = max(0.0, deadline - reading.clock.monotonic())
                    reading.look(min(left, reading.grace / 2 if self._overdue else ROUND_WAIT))
                    self._read_saved(directory, wanted, done)
                if len(done) == len(wanted):
                    return list(done.values())
                now = reading.clock.monotonic()
                away = any(number not in done and self._is_away(number, now) for number in wanted)
                if away and (part := self._of_gateway(directory, deadline)) is not None:
                    self._drop_all(done)
                    return [part]
                left = deadline - reading.clock.monotonic()
                behind = [number for number in wanted if number in self._behind and number not in done]
                if behind:
                    left = min(left, late - reading.clock.monotonic())
                elif self._fresh.wait is not None:  # to hear that it is away, or to read what it saved, takes longer
                    left = min(left, late + 2 * reading.grace - reading.clock.monotonic())
                if left <= 0 or reading.closing.wait(min(pause, left)):
                    raise self._refusal(next(number for number in behind or wanted if number not in done))
                pause = min(1.5 * pause, LONGEST_PAUSE)
                directory = self._next(directory, done)
        except BaseException:
            self._drop_all(done)
            raise

    def _of_gateway(self, directory: Directory, deadline: float) -> Part | None:
        """Everything at once from the gateway that told where the partitions are, if one did: it reads what was saved. Not part by part:
        what was saved may be divided otherwise."""
        location = self._reading.routing.gateway
        if location is None or self._whole is None or self._reading.saved is not None or self._cut is not None:
            return None
        return self._whole(directory.job, location, max(0.1, deadline - self._reading.clock.monotonic()))

    def _of_snapshot(self, number: int) -> list[Part]:
        saved = self._reading.saved
        if saved is None:
            raise InvalidFlow("saved snapshots are read by a reader that was given snapshots=", snapshot=number)
        directory, stored = saved.snapshot(number)
        return [self._saved(directory, stored[each], share) for each, share in self._shares(directory).items()]

    def _ask_live(
        self, directory: Directory, wanted: Mapping[int, Share], done: dict[int, Part], deadline: float
    ) -> None:
        """Ask every partition that is not known to be away, all at once."""
        reading = self._reading
        now = reading.clock.monotonic()
        todo = {}
        self._overdue = False
        for number, share in wanted.items():
            if number in done or self._as_saved:
                continue
            away = reading.presence.away(number, now)
            if away is None:
                todo[number] = share
            else:
                self._failed.setdefault(number, (now, away.error))

        def one(number: int) -> Part | None:
            return self._attempt(directory, number, todo[number], deadline)

        # The usual lookup asks in no other thread: 50 us less.
        parts = reading.threads.map(one, todo) if len(todo) > 1 else map(one, todo)
        for number, part in zip(todo, parts, strict=True):
            if part is not None:
                done[number] = part

    def _attempt(self, directory: Directory, number: int, share: Share, deadline: float) -> Part | None:
        """Its part; None if it is worth another try."""
        reading, place = self._reading, directory.places.get(number)
        if place is not None and self._cut is not None:
            self._check_cut(place)
        begun = reading.clock.monotonic()
        attempt = self._attempts[number] = self._attempts.get(number, 0) + 1
        timeout = self._first if attempt == 1 else max(0.05, min(reading.timeout, deadline - begun))
        try:
            if place is None:
                raise Unavailable("the directory lacks a partition", retry_after=0.5, partition=number)
            if place.location is None:
                raise _recovering(number)
            part = self._live(directory, place, share, timeout)
        except Behind as error:
            reading.presence.answered(number, begun)
            self._behind[number] = error
            return None
        except (Moved, Unavailable, Fenced) as error:
            now = reading.clock.monotonic()
            if now - begun < 0.9 * timeout or timeout > HASTE:
                self._behind.pop(number, None)
            reading.presence.failed(number, begun, now, error)
            self._failed[number] = (self._failed.get(number, (begun, error))[0], error)
            self._overdue = self._overdue or now - begun >= 0.9 * timeout
            return None
        reading.presence.answered(number, begun)
        return part

    def _check_cut(self, place: PartitionInfo) -> None:
        epochs = self._reading.cuts.get(self._cut or 0)
        if epochs is not None and epochs.get(place.partition, place.epoch) < place.epoch:
            message = (
                "a partition of this snapshot was lost since it was made, and what it kept of it; "
                "take another with job.snapshot(), or read the last saved one with fs.open_snapshot"
            )
            raise Unavailable(message, retry_after=0.0, partition=place.partition, cut=self._cut)

    def _read_saved(self, directory: Directory, wanted: Mapping[int, Share], done: dict[int, Part]) -> None:
        """Take the saved state of partitions that are away for `grace` seconds, where it is at hand and young enough."""
        reading = self._reading
        if reading.saved is None or self._cut is not None:
            return
        now = reading.clock.monotonic()
        for number, share in wanted.items():
            if number in done or not (self._as_saved or self._is_away(number, now)):
                continue
            oldest = -math.inf if self._max_age is None else reading.clock.wall() - self._max_age
            found = self._found[number] = reading.saved.find(
                number, self._view, math.inf if self._max_age == 0 else oldest
            )
            fits = found.as_of is not None and found.as_of >= oldest and found.partitions == len(directory.partitions)
            if found.part is not None and fits and self._max_age != 0 and self._has_come(number, found.part):
                done[number] = self._saved(directory, found.part, share)

    def _has_come(self, number: int, part: LivePartition) -> bool:
        """Whether a saved state has come as far as was asked for."""
        try:
            if self._fresh.at_least:
                part.reached(self._fresh.at_least, 0.0)
        except Behind as error:
            self._behind[number] = error
            return False
        return True

    def _is_away(self, number: int, now: float) -> bool:
        """For long enough; or it says that it is there, and fails this read again and again."""
        away = self._reading.presence.away(number, now)
        failed = self._failed.get(number, (now,))[0]
        if away is None:
            return self._attempts.get(number, 0) > 2 and now - failed >= self._reading.grace
        return now - min(away.since, failed) >= self._reading.grace

    def _next(self, directory: Directory, done: dict[int, Part]) -> Directory:
        """The directory to go on with."""
        reading = self._reading
        if self._as_saved:
            return directory
        newer = reading.routing.current()
        if len(newer.partitions) != len(directory.partitions) or newer.seed != directory.seed:
            self._drop_all(done)
            self._found.clear()
            reading.presence.forget()
        divided = {each.partitions for each in self._found.values()} - {None, len(newer.partitions)}
        if reading.saved is not None and divided and not done and self._max_age != 0:
            try:
                newer = reading.saved.directory()
                self._as_saved = True
            except FlowstateError:
                pass
        return newer

    def _drop_all(self, done: dict[int, Part]) -> None:
        for part in done.values():
            if self._drop is not None:
                self._drop(part)
        done.clear()

    def _refusal(self, number: int) -> Unavailable:
        """Why a partition's part can be had neither live nor saved."""
        reading = self._reading
        if (late := self._behind.get(number)) is not None:
            known = {name: value for name, value in late.facts.items() if name not in ("retry_after", "waited")}
            waited = min(reading.patience, math.inf if self._fresh.wait is None else self._fresh.wait)
            return Behind(late.message, retry_after=late.retry_after, **known, waited=waited)
        away = reading.presence.away(number, reading.clock.monotonic())
        error = away.error if away is not None else self._failed[number][1] if number in self._failed else None
        message = "a partition did not answer in time; it may be recovering"
        facts: dict[str, object] = {"partition": number, "waited": reading.patience}
        if reading.saved is None and self._cut is None:
            message += " (a reader that was given snapshots= answers from what was saved last)"
        elif self._cut is None:
            found = self._found.get(number, Saved())
            if found.as_of is not None and self._max_age is not None:
                age = max(0.0, reading.clock.wall() - found.as_of)
                if age > self._max_age or self._max_age == 0:
                    message += ", and what it saved last is older than max_age"
                    facts |= {
                        "age": round(age, 3),
                        "max_age": self._max_age,
                        "missed_by": round(age - self._max_age, 3),
                    }
            elif found.trouble is not None:
                message += ", and what it saved last cannot be read either"
            elif found.partitions not in (None, len(reading.routing.current().partitions)):
                message += ", and it has saved nothing yet since the job was divided anew"
            else:
                message += ", and what it saved last is not loaded yet"
            if found.trouble is not None:
                facts["saved"] = str(found.trouble)
        if error is not None:
            facts["live"] = error.message
        refusal = Unavailable(message, retry_after=max(1.0, getattr(error, "retry_after", 0.0)), **facts)
        refusal.__cause__ = error
        return refusal


def _recovering(partition: int) -> Unavailable:
    return Unavailable("this partition is being recovered", retry_after=0.5, partition=partition)

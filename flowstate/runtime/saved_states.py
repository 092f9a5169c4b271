"""The newest saved states of a job at hand in a reader's process, so that it can answer for partitions that are away.

The store is looked at only for partitions that are asked for, at most once a second, and a table is loaded when its view is first asked
for: of every partition and view the newest state that was loaded is kept, and let go when nobody has read it for a minute. Everything
that touches the store runs on threads of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass

from flowstate.clock import Clock
from flowstate.errors import FlowstateError, InternalError, InvalidFlow, Unavailable
from flowstate.runtime.stored import StoredPartition, stored_directory
from flowstate.snapshot.beacon import Beacon
from flowstate.snapshot.job_record import JobChain, JobRecord
from flowstate.snapshot.manifest import SavedState
from flowstate.snapshot.saved import SavedSnapshot, newest_state
from flowstate.store import Store
from flowstate.view.directory import Directory
from flowstate.view.saved import Saved

EVERY = 1.0  # seconds between two looks for a newer state; more where loading takes long
BEACON = 0.5  # seconds between two looks at the beacon
SHARE = 10  # a state that took this long to load is kept this many times as long, though the partition may go on saving
HANGING = 1.0  # seconds after which a look that has not ended yet keeps no reader from what is there already
UNUSED = 60.0  # seconds after which a loaded table that nobody reads is let go
LOADS = 4  # at once
CUTS = 4  # saved cuts that are kept open


@dataclass
class _View:
    """What is at hand of one view of one partition; `looked` and `used` are monotonic seconds."""

    part: StoredPartition | None = None
    as_of: float | None = None
    partitions: int | None = None
    trouble: FlowstateError | None = None
    looked: float = float("-inf")
    begun: float | None = None  # of the look that is under way
    pause: float = EVERY
    used: float = 0.0
    oldest: float = float("inf")  # what the last look was to load
    state: SavedState | None = None  # of which `part` was made; `part` itself may be older, where that is damaged


class SavedStates:
    """`view.saved.SavedStates` over a snapshot store."""

    #: Whether there need not be a job yet. Whoever asks then is told to ask again, and not where it was looked for: that is ours to mend.
    early = False

    def __init__(self, store: Store, clock: Clock, job: str | None = None, hint: str = "") -> None:
        """`job`: the name that the job must have. `hint`: what to do about a store that cannot be used."""
        self.store, self.clock, self.name, self._hint = store, clock, job, hint
        self.damaged: dict[tuple[int, str], str] = {}  # what could not be read, and was stood in for by something older
        self._lock = threading.Lock()
        self._views: dict[tuple[int, str], _View] = {}
        self._cuts: dict[int, tuple[Directory, Mapping[int, StoredPartition]]] = {}
        self._slots = threading.Semaphore(LOADS)
        self._announced: Directory | None = None
        self._asked = float("-inf")
        self._complete: set[int] = set()  # generations in which every partition has saved
        self._expiring: threading.Timer | None = None

    def announced(self) -> Directory | None:
        with self._lock:
            now = self.clock.monotonic()
            if now - self._asked < BEACON:
                return self._announced
            self._asked = now
        try:
            text = Beacon(self.store).find()
            directory = None if text is None else Directory.from_json(text)
        except (FlowstateError, ValueError, KeyError, TypeError):
            return self._announced  # a hint that cannot be read is none
        if directory is not None and self.name in (None, directory.job):
            self._announced = directory
        return self._announced

    def directory(self) -> Directory:
        job = self._job()
        if self._began_anew(job):
            snapshot = SavedSnapshot.open(self.store, job.origin)
        else:
            snapshot = SavedSnapshot.open(self.store, newest=True)
        return stored_directory(snapshot, None, job.run << 32)

    def find(self, partition: int, view: str, oldest: float) -> Saved:
        now = self.clock.monotonic()
        with self._lock:
            known = self._views.setdefault((partition, view), _View())
            known.used, age = now, now - known.looked
            wants = known.part is None and known.as_of is not None and known.as_of >= oldest
            if known.begun is None and (age > known.pause or (wants and known.oldest > oldest)):
                known.begun, known.oldest = now, oldest
                threading.Thread(
                    target=self._look, args=(partition, view, known, oldest), name="saved-state", daemon=True
                ).start()
            looking = known.begun is not None
            hangs = known.begun is not None and now - known.begun > HANGING
            if looking and not hangs and age > 3 * known.pause:
                return Saved()  # what is here may be from another time that the partition was away
            return Saved(known.part, known.as_of, known.trouble, known.partitions)

    def snapshot(self, number: int) -> tuple[Directory, Mapping[int, StoredPartition]]:
        with self._lock:
            found = self._cuts.get(number)
        if found is None:
            job = self._job()
            saved = SavedSnapshot.open(self.store, number)
            found = (
                stored_directory(saved, None, job.run << 32),
                {each: StoredPartition(saved, each) for each in saved.partitions},
            )
        with self._lock:
            found = self._cuts.pop(number, found)  # another thread may have been faster, and have loaded tables
            self._cuts[number] = found  # the last one read stands last
            while len(self._cuts) > CUTS:
                del self._cuts[next(iter(self._cuts))]
        return found

    def close(self) -> None:
        with self._lock:
            self._views.clear()
            self._cuts.clear()
            if self._expiring is not None:
                self._expiring.cancel()

    def _look(self, partition: int, view: str, known: _View, oldest: float) -> None:
        """Find the newest state of a partition, and load the view if that is young enough and not what is here already."""
        begun = self.clock.monotonic()
        try:
            with self._slots:
                found = self._newest(partition)
                result = self._loaded(found, partition, view, known, oldest)
            trouble: FlowstateError | None = None
        except InvalidFlow as error:
            trouble = InvalidFlow(error.message + self._hint, **error.facts)
        except FlowstateError as error:
            trouble = error
        except Exception as error:
            trouble = InternalError("a saved state could not be read", error=type(error).__name__, reason=str(error))
        now = self.clock.monotonic()
        with self._lock:
            if trouble is None:
                known.part, known.as_of, known.partitions = result
            known.trouble, known.looked, known.begun = trouble, now, None
            known.pause = max(EVERY, SHARE * (now - begun))
            if self._expiring is None and known.part is not None:
                self._expire_later()

    def _loaded(
        self, found: SavedSnapshot, partition: int, view: str, known: _View, oldest: float
    ) -> tuple[StoredPartition | None, float | None, int]:
        state = found.manifests[partition].state
        assert state is not None
        division = len(found.manifests) if found.cut is not None else found.job.partitions
        if known.part is not None and known.state == state:
            return known.part, known.part.as_of, division
        if state.as_of < oldest:
            return None, state.as_of, division
        part = StoredPartition(found, partition)
        part.load(view)
        known.state = state
        if found.damaged:
            self.damaged[partition, view] = "; ".join(found.damaged)
        return part, part.as_of, division

    def _job(self) -> JobRecord:
        job = JobChain(self.store).load()
        if job is None and self.early:
            raise Unavailable("there is no job here yet", retry_after=1.0)
        if job is None:
            raise InvalidFlow("no job has ever saved anything here; check the URL", url=self.store.url)
        if self.name not in (None, job.name):
            raise InvalidFlow("these snapshots belong to another job", job=self.name, saved=job.name)
        return job

    def _began_anew(self, job: JobRecord) -> bool:
        """Whether partitions of a job that was divided anew are yet to save for the first time: until then its origin is what is saved."""
        if job.origin is None or job.generation in self._complete:
            return False
        numbers = range(job.partitions)
        if all(newest_state(self.store, job.generation, each)[0] is not None for each in numbers):
            self._complete.add(job.generation)
            return False
        return True

    def _newest(self, partition: int) -> SavedSnapshot:
        """What holds the newest saved state of `partition`."""
        job = self._job()
        if self._began_anew(job):
            found = SavedSnapshot.open(self.store, job.origin)
            damaged: list[str] = []
        else:
            manifest, damaged = newest_state(self.store, job.generation, partition)
            manifests = {} if manifest is None else {partition: manifest}
            found = SavedSnapshot(self.store, job, job.generation, manifests, None)
        found.damaged += damaged
        if partition not in found.manifests:
            message = "this partition has not saved anything that can be read; wait for its first snapshot"
            raise Unavailable(message, partition=partition, url=self.store.url, damaged=damaged)
        return found

    def _expire_later(self) -> None:
        """Called under the lock."""
        self._expiring = threading.Timer(UNUSED, self._expire)
        self._expiring.daemon = True
        self._expiring.start()

    def _expire(self) -> None:
        with self._lock:
            now = self.clock.monotonic()
            for place, known in list(self._views.items()):
                if known.begun is None and now - known.used > UNUSED:
                    del self._views[place]
            self._expiring = None
            if self._views:
                self._expire_later()

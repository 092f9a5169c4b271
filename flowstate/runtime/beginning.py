"""Beginning a run: claim the job in its store, find its splits, settle where everything starts. Blocking; runs on a thread."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace

from flowstate.clock import Clock
from flowstate.errors import InvalidFlow
from flowstate.plan.portable import dump_tables
from flowstate.runtime.job_spec import JobSpec
from flowstate.runtime.table import SplitEntry
from flowstate.sink.files import ParquetSink
from flowstate.snapshot.cut import latest_cut
from flowstate.snapshot.job_record import JobChain, JobRecord
from flowstate.snapshot.partition_chain import PartitionChain
from flowstate.snapshot.record import SplitRecord, SplitRecords
from flowstate.source import make_source
from flowstate.state.watermark import TIMELESS
from flowstate.store import Store


class Discovery:
    """Finds the splits of a job's sources, again and again. A split that is not there at the job's very first start is read from its
    beginning, whatever `start` says: nobody could have chosen to skip it."""

    def __init__(self, spec: JobSpec, *, again: bool) -> None:
        scans = spec.plan.sources
        if again:
            scans = tuple(
                replace(scan, options={**scan.options, "start": "earliest"}) if scan.kind == "kafka" else scan
                for scan in scans
            )
        self.sources = [make_source(scan) for scan in scans]
        self._lateness = [scan.lateness if scan.event_time is not None else TIMELESS for scan in scans]

    def splits(self) -> dict[str, SplitEntry]:
        """All that there are now. Raises what a source says when it cannot be reached."""
        found = {}
        for number, (source, lateness) in enumerate(zip(self.sources, self._lateness, strict=True)):
            for split in source.splits():
                found[split.name] = SplitEntry(number, split.label, split.start, split.end, split.hint, lateness)
        return found

    @property
    def follows(self) -> bool:
        """Whether new splits may appear."""
        return any(source.follows for source in self.sources)


@dataclass(frozen=True)
class Beginning:
    """The settled spec, the splits that the job knows, those that are new to a job that ran before, and what finds more."""

    spec: JobSpec
    splits: dict[str, SplitEntry]
    new: dict[str, SplitEntry]
    discovery: Discovery

    @property
    def drained(self) -> list[str]:
        """Labels of splits that an earlier run ended while their source goes on: what comes after is not read."""
        follow = [source.follows for source in self.discovery.sources]
        return [entry.label for entry in self.splits.values() if entry.end is not None and follow[entry.source]]


def begin(spec: JobSpec, clock: Clock) -> Beginning:
    """Claim the run."""
    store = Store.open(spec.snapshots, **spec.storage_options)
    jobs = JobChain(store)
    before = jobs.load()
    origin = None
    if before is not None:
        changes = spec.plan.differences(before.plan["flow"]) if before.fingerprint != spec.plan.fingerprint else []
        if changes:
            raise InvalidFlow(
                "the flow is not the one that wrote these snapshots; undo the change, or give the new flow a folder of its own:\n  "
                + "\n  ".join(changes),
                snapshots=spec.snapshots,
            )
        if before.partitions != spec.partitions:
            origin = _cut_to_rescale(store, spec, before)
    record = jobs.claim_run(
        name=spec.name,
        plan={"flow": spec.plan.describe(), "tables": dump_tables(spec.plan.tables)},
        fingerprint=spec.plan.fingerprint,
        partitions=spec.partitions,
        key_groups=spec.key_groups,
        seed=secrets.randbits(63),
        created=clock.wall(),
        origin=origin,
    )
    spec = replace(
        spec,
        seed=record.seed,
        key_groups=record.key_groups,
        generation=record.generation,
        run=record.run,
        origin=record.origin,
    )
    known = _known_splits(store, spec)
    discovery = Discovery(spec, again=bool(known))
    found = discovery.splits()
    records = SplitRecords(store)
    if not known:
        for split, entry in found.items():
            records.raise_epoch(split, start=entry.start, end=entry.end, label=entry.label, hint=entry.hint)
        return Beginning(spec, found, {}, discovery)
    new = {split: announce(records, split, entry) for split, entry in found.items() if split not in known}
    current = {
        split: replace(entry, hint=found[split].hint) if split in found else entry for split, entry in known.items()
    }
    return Beginning(spec, current, new, discovery)


def announce(records: SplitRecords, split: str, entry: SplitEntry) -> SplitEntry:
    """Settle where a split that joins a running job starts, before any owner takes it in: a later run might find another start."""
    record = records.announce(split, start=entry.start, end=entry.end, label=entry.label, hint=entry.hint)
    return replace(entry, start=record.start, end=record.end)


def _known_splits(store: Store, spec: JobSpec) -> dict[str, SplitEntry]:
    """The splits of the split records, by the name of their source."""
    sources = {scan.name: number for number, scan in enumerate(spec.plan.sources)}
    records, known = SplitRecords(store), {}
    for split in records.names():
        record = records.load(split)
        number = sources.get(split.split("/", 1)[0])
        if record is None or number is None or record.reader_epoch == 0:
            continue  # announced to a run that did not get to read it: it joins this one
        scan = spec.plan.sources[number]
        known[split] = _of_record(number, scan.lateness if scan.event_time is not None else TIMELESS, record)
    return known


def _of_record(source: int, lateness: int, record: SplitRecord) -> SplitEntry:
    return SplitEntry(source, record.label, record.start, record.end, record.hint, lateness)


def _cut_to_rescale(store: Store, spec: JobSpec, before: JobRecord) -> int:
    """The cut that another number of partitions begins with. What the old partitions staged is published first, since their keys are
    about to move."""
    cut = latest_cut(store)
    if cut is None or cut.generation != before.generation:
        raise InvalidFlow(
            "another number of partitions needs a saved cut, and there is none; start with the old number and stop the job cleanly first",
            partitions=spec.partitions,
            saved=before.partitions,
        )
    sinks: Mapping[int, ParquetSink] = {
        number: ParquetSink(each, sink=number) for number, each in enumerate(spec.plan.sinks)
    }
    for partition in range(before.partitions):
        manifest = PartitionChain(store, before.generation, partition).claim()  # what still runs there can save no more
        saved = PartitionChain(store, before.generation, partition).read(cut.versions[partition])
        if sinks and dict(manifest.handed) != dict(saved.handed):
            raise InvalidFlow(
                "output was written after the last saved cut, so another number of partitions would write it twice; "
                "start with the old number and stop the job cleanly first",
                partitions=spec.partitions,
                saved=before.partitions,
            )
        for staged in (*saved.staged, *manifest.staged):
            sinks[staged.sink].publish(store, staged)
    return cut.number

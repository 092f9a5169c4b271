"""Beginning a run: claim the job in its store, find its splits, settle where everything starts. Blocking; runs on a thread."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import replace

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
from flowstate.source.base import SplitInfo
from flowstate.state.watermark import TIMELESS
from flowstate.store import Store


def begin(spec: JobSpec, clock: Clock) -> tuple[JobSpec, dict[str, SplitEntry], dict[str, SplitEntry]]:
    """Claim the run. Gives the settled spec, the splits that the job knows, and those that are new to a job that ran before."""
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
    known, found = _known_splits(store, spec), discover(spec)
    if before is None or not known:
        records = SplitRecords(store)
        for split, entry in found.items():
            if split not in known:
                records.raise_epoch(split, start=entry.start, end=entry.end, label=entry.label, hint=entry.hint)
        return spec, found | known, {}
    current = {
        split: replace(entry, hint=found[split].hint) if split in found else entry for split, entry in known.items()
    }
    return spec, current, {split: entry for split, entry in found.items() if split not in known}


def discover(spec: JobSpec) -> dict[str, SplitEntry]:
    """All splits that the sources have now. Raises what the source says when it cannot be reached."""
    found = {}
    for number, scan in enumerate(spec.plan.sources):
        lateness = scan.lateness if scan.event_time is not None else TIMELESS
        for split in make_source(scan).splits():
            found[split.name] = _entry(number, lateness, split)
    return found


def follows(spec: JobSpec) -> bool:
    """Whether new splits may appear."""
    return any(make_source(scan).follows for scan in spec.plan.sources)


def _entry(source: int, lateness: int, split: SplitInfo) -> SplitEntry:
    return SplitEntry(source, split.label, split.start, split.end, split.hint, lateness)


def _known_splits(store: Store, spec: JobSpec) -> dict[str, SplitEntry]:
    """The splits of the split records, by the name of their source."""
    sources = {scan.name: number for number, scan in enumerate(spec.plan.sources)}
    records, known = SplitRecords(store), {}
    for split in records.names():
        record = records.load(split)
        number = sources.get(split.split("/", 1)[0])
        if record is None or number is None:
            continue
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

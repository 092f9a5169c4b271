"""Beginning a run: claim the job in its store, find its splits, settle where everything starts. Blocking; runs on a thread."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from flowstate.clock import Clock
from flowstate.errors import Fenced, InternalError, InvalidFlow
from flowstate.plan.nodes import shown_url
from flowstate.plan.output import StagedOutput
from flowstate.plan.portable import dump_tables
from flowstate.runtime.job_spec import JobSpec
from flowstate.runtime.table import SplitEntry
from flowstate.runtime.takeover import refuse_if_alive
from flowstate.sink import Sink, Stage, make_sink
from flowstate.snapshot.cut import SavedCut, latest_cut
from flowstate.snapshot.job_record import JobChain, JobRecord
from flowstate.snapshot.layout import partition as partition_folder
from flowstate.snapshot.manifest import Manifest
from flowstate.snapshot.partition_chain import PartitionChain
from flowstate.snapshot.record import SplitRecord, SplitRecords
from flowstate.source import make_source
from flowstate.source.base import TOPIC_ID
from flowstate.state.watermark import TIMELESS
from flowstate.store import Store
from flowstate_flight.credentials import Credentials


class Discovery:
    """Finds the splits of a job's sources, again and again. A split that is not there at the job's very first start is read from its
    beginning, whatever `start` says: nobody could have chosen to skip it.

    A topic that was deleted and made anew is another log under the same name. Its splits keep the id of the topic that the job began with,
    so that whoever reads them refuses (`source.kafka_identity`), and what the new one has more is not taken in.
    """

    def __init__(self, spec: JobSpec, *, known: Mapping[str, SplitEntry]) -> None:
        scans = spec.plan.sources
        if known:
            scans = tuple(
                replace(scan, options={**scan.options, "start": "earliest"}) if scan.kind == "kafka" else scan
                for scan in scans
            )
        self.sources = [make_source(scan) for scan in scans]
        self._lateness = [scan.lateness if scan.event_time is not None else TIMELESS for scan in scans]
        self._topics: dict[int, str] = {}  # source -> the id of its topic
        self._known: set[str] = set()
        for split, entry in known.items():
            self._remember(split, entry)

    def splits(self) -> dict[str, SplitEntry]:
        """All that there are now. Raises what a source says when it cannot be reached."""
        found = {}
        for number, (source, lateness) in enumerate(zip(self.sources, self._lateness, strict=True)):
            for split in source.splits():
                entry = SplitEntry(number, split.label, split.start, split.end, split.hint, lateness)
                topic = self._topics.get(number)
                if topic is not None:
                    if split.name not in self._known and (split.hint or {}).get(TOPIC_ID, topic) != topic:
                        continue
                    entry = replace(entry, hint={**(split.hint or {}), TOPIC_ID: topic})
                found[split.name] = entry
        for name, entry in found.items():
            self._remember(name, entry)
        return found

    def _remember(self, split: str, entry: SplitEntry) -> None:
        self._known.add(split)
        if topic := (entry.hint or {}).get(TOPIC_ID):
            self._topics.setdefault(entry.source, topic)

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


def begin(spec: JobSpec, clock: Clock, credentials: Credentials | None = None) -> Beginning:
    """Claim the run, which fences every run before it. `credentials` are shown where one may be alive. Raises InvalidFlow when
    one is, unless `spec.takeover`."""
    store = Store.open(spec.snapshots, **spec.storage_options)
    jobs = JobChain(store)
    before = jobs.load()
    claim = partial(
        jobs.claim_run,
        name=spec.name,
        plan={"flow": spec.plan.describe(), "tables": dump_tables(spec.plan.tables)},
        fingerprint=spec.plan.fingerprint,
        key_groups=spec.key_groups,
    )
    origin = after = None
    if before is not None:
        changes = spec.plan.differences(before.plan["flow"]) if before.fingerprint != spec.plan.fingerprint else []
        if changes:
            raise InvalidFlow(
                "the flow is not the one that wrote these snapshots; undo the change, or give the new flow a folder of its own:\n  "
                + "\n  ".join(changes),
                snapshots=spec.snapshots,
            )
        if not spec.takeover:
            refuse_if_alive(store, before, clock, credentials or Credentials())
        if before.partitions != spec.partitions:
            _cut_of(store, spec, before)
            # First of all no other run may go on: one that is replaced would claim the old partitions again, and hand over what the new
            # ones begin with. Nor may one begin before the new division is decided.
            after = claim(partitions=before.partitions, seed=before.seed, created=before.created, after=before.run).run
            origin = _cut_to_rescale(store, spec, before, clock.wall())
    record = claim(
        partitions=spec.partitions, seed=secrets.randbits(63), created=clock.wall(), origin=origin, after=after
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
    discovery = Discovery(spec, known=known)
    found = discovery.splits()
    records = SplitRecords(store)
    if not known:
        for split, entry in found.items():
            records.raise_epoch(
                split, start=entry.start, end=entry.end, label=entry.label, hint=entry.hint, run=spec.run
            )
        return Beginning(spec, found, {}, discovery)
    new = {split: announce(records, split, entry) for split, entry in found.items() if split not in known}
    current = {
        split: replace(entry, hint=found[split].hint or entry.hint) if split in found else entry
        for split, entry in known.items()
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


def _cut_of(store: Store, spec: JobSpec, before: JobRecord) -> SavedCut:
    cut = latest_cut(store)
    if cut is None or cut.generation != before.generation:
        raise InvalidFlow(
            "another number of partitions needs a saved cut, and there is none; start with the old number and stop the job cleanly first",
            partitions=spec.partitions,
            saved=before.partitions,
        )
    return cut


def _cut_to_rescale(store: Store, spec: JobSpec, before: JobRecord, now: float) -> int:
    """The cut that another number of partitions begins with. What the old partitions staged is finished and published first, since their
    keys are about to move. May die anywhere, and be called again."""
    cut = _cut_of(store, spec, before)
    chains = [PartitionChain(store, before.generation, partition) for partition in range(before.partitions)]
    manifests = [chain.claim() for chain in chains]  # what still runs there can save no more
    saved = [chain.read(cut.versions[partition]) for partition, chain in enumerate(chains)]
    _check_handed(spec, before, manifests, saved)
    sinks = [make_sink(each, number) for number, each in enumerate(spec.plan.sinks)]
    try:
        for chain, manifest in zip(chains, manifests, strict=True):
            staged = _finish(store, sinks, chain, manifest, now)
            for each in staged:
                sinks[each.sink].publish(store, each)
    finally:
        for sink in sinks:
            sink.close()
    return cut.number


def _check_handed(spec: JobSpec, before: JobRecord, newest: list[Manifest], saved: list[Manifest]) -> None:
    """Refuse where rows would be written twice or never. Changes are neither: what the new partitions write holds, by its epoch."""
    for number, sink in enumerate(spec.plan.sinks):
        if sink.mode == "changes":
            continue
        marks = [each.handed.get(str(number)) for each in saved]
        if marks != [each.handed.get(str(number)) for each in newest]:
            raise InvalidFlow(
                "output was written after the last saved cut, so another number of partitions would write it twice; "
                "start with the old number and stop the job cleanly first",
                partitions=spec.partitions,
                saved=before.partitions,
                sink=shown_url(sink.url),
            )
        # Keys are about to move, and a watermark of a sink holds for all of a partition's keys.
        if sink.mode == "final" and any(mark != marks[0] for mark in marks):
            raise InvalidFlow(
                "the partitions have not handed over the same windows to a sink, so their keys cannot move; start with the old number, "
                "let the job run on (or mend what its status says of the sink), and stop it cleanly",
                partitions=spec.partitions,
                saved=before.partitions,
                sink=shown_url(sink.url),
            )


def _finish(
    store: Store, sinks: Sequence[Sink], chain: PartitionChain, manifest: Manifest, now: float
) -> tuple[StagedOutput, ...]:
    """Everything that the partition has staged, after its open files are finished. A manifest names them before anybody publishes them: a
    start that dies and comes again must not finish the same rows under other names."""
    opened = [each for each in manifest.staged if each.open]
    if not opened:
        return manifest.staged
    staged = [each for each in manifest.staged if not each.open]
    stage = Stage(
        store, partition_folder(chain.generation, chain.partition), chain.partition, manifest.epoch, 0, now, last=True
    )
    for number, sink in enumerate(sinks):
        mine = [each for each in opened if each.sink == number]
        if mine:
            staged += sink.prepare(stage, None, mine)
    if any(each.open for each in staged):
        raise InternalError("a sink left a file open at the end", partition=chain.partition)
    committed = chain.commit(manifest.version, replace(manifest, staged=tuple(staged)))
    if committed is None:
        raise Fenced("another run of this job has begun meanwhile", partition=chain.partition, epoch=manifest.epoch)
    return committed.staged

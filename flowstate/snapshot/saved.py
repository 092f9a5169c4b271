"""Reading snapshots with no job running."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from flowstate.errors import CorruptData, InvalidFlow, Unavailable
from flowstate.snapshot.cut import SavedCut, cut_numbers, latest_cut, read_cut
from flowstate.snapshot.job_record import JobChain, JobRecord
from flowstate.snapshot.manifest import Manifest
from flowstate.snapshot.partition_chain import PartitionChain
from flowstate.snapshot.segment import load_tables
from flowstate.store import Store


class SavedSnapshot:
    """What was saved, as it was when this was opened: `job`, one manifest per partition, and the `cut` that they are, if they are one.

    `load` gives physical batches, which `flowstate.state` turns into rows. A segment that is damaged makes `load` use the partition's
    previous state, as long as nothing of the partition has been given out; `damaged` tells. A cut never falls back.
    """

    def __init__(
        self, store: Store, job: JobRecord, generation: int, manifests: Mapping[int, Manifest], cut: SavedCut | None
    ):
        self.store = store
        self.job = job
        self.generation = generation
        self.cut = cut
        self.manifests = dict(manifests)
        self.damaged: list[str] = []
        self._given: set[int] = set()

    @staticmethod
    def open(
        url: str | os.PathLike[str] | Store, at: int | None = None, *, newest: bool = False, **storage_options: Any
    ) -> SavedSnapshot:
        """Cut `at`; or else the newest saved cut; or else, and with `newest`, what each partition saved last, which need not be at one
        position. InvalidFlow when there is no such thing, with what there is."""
        store = url if isinstance(url, Store) else Store.open(url, **storage_options)
        job = JobChain(store).load()
        if job is None:
            raise InvalidFlow("no job has ever saved anything here; check the URL", url=store.url)
        if at is not None:
            return _of_cut(store, job, read_cut(store, at))
        cut = latest_cut(store, skip_damaged=True)
        if cut is not None and not newest:
            return _of_cut(store, job, cut)
        manifests, damaged = {}, []
        for partition in range(job.partitions):
            manifest, damage = newest_state(store, job.generation, partition)
            damaged += damage
            if manifest is not None:
                manifests[partition] = manifest
        if len(manifests) < job.partitions and job.origin is not None:
            return _of_cut(store, job, read_cut(store, job.origin))
        if not manifests:
            raise Unavailable("the job has not saved anything yet; wait for its first snapshot", url=store.url)
        found = SavedSnapshot(store, job, job.generation, manifests, None)
        found.damaged += damaged
        return found

    @property
    def cuts(self) -> list[int]:
        """Numbers of the cuts that can be opened, ascending."""
        return cut_numbers(self.store)

    @property
    def consistent(self) -> bool:
        """Whether all partitions are at one position."""
        return self.cut is not None

    @property
    def partitions(self) -> list[int]:
        """Partitions that have saved something."""
        return sorted(self.manifests)

    def load(self, partition: int, names: Iterable[str] | None = None) -> dict[str, list[pa.RecordBatch]]:
        """Physical batches of tables (default: all) of one partition; the state they are of is ``manifests[partition].state``."""
        wanted = None if names is None else list(names)
        while True:
            manifest = self.manifests[partition]
            assert manifest.state is not None
            try:
                tables = load_tables(self.store, manifest.state, wanted)
            except CorruptData as damage:
                self._fall_back(partition, manifest, damage)
                continue
            self._given.add(partition)
            return tables

    def _fall_back(self, partition: int, manifest: Manifest, damage: CorruptData) -> None:
        chain = PartitionChain(self.store, self.generation, partition)
        if self.cut is not None and self.cut.number not in self.cuts:
            message = "the cut was deleted by retention while it was read; open another"
            raise Unavailable(message, cut=self.cut.number) from damage
        if self.cut is None and manifest.version not in chain.chain.versions():
            raise Unavailable("the snapshot was replaced while it was read; open it again") from damage
        if self.cut is not None or partition in self._given:
            raise damage
        for older in chain.saved():
            whole = not isinstance(older, CorruptData) and older.version < manifest.version and older.state is not None
            if whole and older.state != manifest.state:  # type: ignore[union-attr]
                self.damaged.append(str(damage))
                self.manifests[partition] = older  # type: ignore[assignment]
                return
        raise damage


def newest_state(store: Store, generation: int, partition: int) -> tuple[Manifest | None, list[str]]:
    """The newest manifest of a partition that can be read and has a state, and what was damaged on the way to it."""
    damaged = []
    for manifest in PartitionChain(store, generation, partition).saved():
        if isinstance(manifest, CorruptData):
            damaged.append(str(manifest))
        elif manifest.state is not None:
            return manifest, damaged
    return None, damaged


def _of_cut(store: Store, job: JobRecord, cut: SavedCut) -> SavedSnapshot:
    manifests = {}
    for partition, version in cut.versions.items():
        try:
            manifest = PartitionChain(store, cut.generation, partition).read(version)
        except FileNotFoundError as error:
            message = "a manifest of a saved cut is missing; open another cut"
            raise CorruptData(message, cut=cut.number, partition=partition, version=version) from error
        if manifest.state is None:
            raise CorruptData(
                "a saved cut names a manifest without state; open another cut", cut=cut.number, partition=partition
            )
        manifests[partition] = manifest
    return SavedSnapshot(store, job, cut.generation, manifests, cut)

"""The manifests of one partition: its epochs and its saves, contending on one chain (protocol S1, K2, K3)."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import replace

from flowstate.errors import CorruptData, Fenced, InternalError, Unavailable
from flowstate.snapshot.chain import Chain
from flowstate.snapshot.layout import manifests
from flowstate.snapshot.manifest import Manifest
from flowstate.store import Store

_ATTEMPTS = 1000


class PartitionChain:
    """One incarnation's (or the supervisor's) handle of a partition's chain."""

    def __init__(self, store: Store, generation: int, partition: int) -> None:
        self.store = store
        self.generation = generation
        self.partition = partition
        self.chain = Chain(store, manifests(generation, partition))
        # A commit whose answer was lost may be repeated by the same incarnation; a claim is a new one each time.
        self._token = secrets.token_hex(12)

    def load(self) -> Manifest | None:
        """The newest manifest; None when the partition never was. CorruptData when the newest and its copy are damaged: what was handed
        over to sinks is not known then, so nothing may be published before somebody has restored it."""
        try:
            latest = self.chain.latest()
        except CorruptData as damage:
            raise self._beyond_repair(damage) from damage
        return None if latest is None else Manifest.parse(*latest)

    def _beyond_repair(self, damage: CorruptData) -> CorruptData:
        return CorruptData(
            "the newest manifest of a partition and its copy are damaged, so nobody knows what its sinks were given; restore one of the "
            "two objects from a backup, or give the job another snapshots folder and its sinks another place, and start anew from the log "
            f"({damage.message})",
            partition=self.partition,
            **damage.facts,
        )

    def damage(self) -> list[str]:
        """What is wrong with the newest entry and with the one that it was built on, though something could be read."""
        found = []
        for version in self.chain.versions()[-2:]:
            found += self.chain.damage(version)
        return found

    def read(self, version: int) -> Manifest:
        """One manifest. FileNotFoundError when it is absent, CorruptData when it is damaged."""
        return Manifest.parse(version, self.chain.read(version))

    def claim(self, epoch: int | None = None, *, outputs: bool = True) -> Manifest:
        """Begin a new incarnation: append an entry with the next epoch (or `epoch`; Fenced when that is not above the newest) that
        repeats everything else of the one before. From now on no older incarnation can commit.

        Without `outputs`, where nothing is ever handed over to a sink, a newest manifest that is beyond repair costs only time: the one
        before it is repeated, and the rows since are read again.
        """
        for _ in range(_ATTEMPTS):
            version = self.chain.newest()
            before = self.load() if outputs else self._newest_whole()
            if before is not None:
                version = before.version if outputs else max(version, before.version)
            # Each entry raises the epoch by one at most, so this is above that of every entry that could not be read.
            newest = 0 if before is None else before.epoch + version - before.version
            wanted = newest + 1 if epoch is None else epoch
            if wanted <= newest:
                raise Fenced("a newer run owns this partition", partition=self.partition, epoch=wanted, newest=newest)
            claimed = replace(before or Manifest(0, 0), version=version + 1, epoch=wanted)
            if self.chain.append(version + 1, claimed.dump()):
                return claimed
        raise Unavailable("too many runs claim one partition; stop all but one", partition=self.partition)

    def _newest_whole(self) -> Manifest | None:
        latest = self.chain.latest(skip_damaged=True)
        return None if latest is None else Manifest.parse(*latest)

    def commit(self, previous_version: int, manifest: Manifest) -> Manifest | None:
        """Append `manifest` right after `previous_version`, the entry that this incarnation claimed or committed last. None: a newer run
        owns the partition; stop. May be repeated with the same arguments after Unavailable."""
        if manifest.epoch < 1:
            raise InternalError("a manifest without an epoch", partition=self.partition)
        committed = replace(manifest, version=previous_version + 1)
        token, entry = f"{manifest.epoch}-{self._token}", committed.dump()
        try:
            ours = self.chain.append(committed.version, entry, token=token)
        except Unavailable:
            # It may have landed. Asking once more tells, if the store is back; another manifest at this version would be refused.
            ours = self.chain.append(committed.version, entry, token=token)
        return committed if ours else None

    def saved(self) -> Iterator[Manifest | CorruptData]:
        """Newest first, every manifest that can be read; a CorruptData in the place of one that cannot."""
        for version in reversed(self.chain.versions()):
            try:
                yield self.read(version)
            except CorruptData as damage:
                yield damage
            except FileNotFoundError:
                continue

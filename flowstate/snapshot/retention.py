"""What may be deleted, and when.

Kept: of each partition the last `keep` saved states, the newest `KEPT_ENTRIES` entries of its chain (see `chain`), and what the saved
cuts name. Anybody may run it, several at once, and die anywhere in it: entries go before the objects they name, oldest first.

An object that no kept manifest names is deleted only if its save is older than the newest manifest's. A save in flight has either a later
number in the same epoch, or an older epoch: then its manifest is refused. Objects are listed before the chain is read, so a manifest
that was committed in between is seen. If a manifest that matters is damaged, nothing that it may name is deleted.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from flowstate.errors import CorruptData
from flowstate.snapshot.chain import KEPT_ENTRIES, Chain
from flowstate.snapshot.cut import SavedCut, cut_numbers, delete_cut, list_cuts
from flowstate.snapshot.job_record import JobChain
from flowstate.snapshot.layout import SPLITS, manifests, save_of
from flowstate.snapshot.layout import partition as partition_folder
from flowstate.snapshot.manifest import Manifest
from flowstate.snapshot.partition_chain import PartitionChain
from flowstate.store import Store


@dataclass(frozen=True)
class Kept:
    """What retention found: versions that stay, and damaged objects because of which nothing was deleted."""

    versions: tuple[int, ...]
    damaged: tuple[str, ...] = ()


def retain(
    store: Store, generation: int, partitions: Iterable[int], keep: int, pinned: Collection[int] = ()
) -> dict[int, Kept]:
    """All of retention: cuts (the last `keep` stay, those of `pinned`, and the job's origin), then partitions and chains."""
    retain_cuts(store, keep, pinned)
    cuts = list_cuts(store, skip_damaged=True)
    kept = {partition: retain_partition(store, generation, partition, keep, cuts) for partition in partitions}
    retain_chains(store)
    return kept


def retain_cuts(store: Store, keep: int, pinned: Collection[int] = ()) -> None:
    """Delete all saved cuts but the last `keep`, those that somebody reads, and the one that the job is restored from."""
    job = JobChain(store).load()
    origin = None if job is None else job.origin
    numbers = cut_numbers(store)
    for number in numbers[: max(0, len(numbers) - keep)]:
        if number not in pinned and number != origin:
            delete_cut(store, number)


def retain_partition(
    store: Store, generation: int, partition: int, keep: int, cuts: Collection[SavedCut] | None = None
) -> Kept:
    """Delete what the partition no longer needs. The owner of the partition may call it after each save. `cuts`, all that there are, are
    read when they are not given."""
    folder = partition_folder(generation, partition)
    objects = [f"{folder}/{name}" for name in store.list(folder)]
    objects += [f"{folder}/stage/{name}" for name in store.list(f"{folder}/stage")]
    chain = PartitionChain(store, generation, partition)
    versions = chain.chain.versions()
    cuts = list_cuts(store, skip_damaged=True) if cuts is None else cuts
    pinned = {cut.versions[partition] for cut in cuts if cut.generation == generation and partition in cut.versions}
    newest: Manifest | None = None
    named: list[Manifest] = []
    states = 0
    stay, damaged = set(versions[-KEPT_ENTRIES:]), []
    for version in reversed(versions):
        wanted = states < max(1, keep)
        if not wanted and version not in pinned:
            continue
        stay.add(version)
        try:
            manifest = chain.read(version)
        except FileNotFoundError:  # another retention was here first
            continue
        except CorruptData:
            damaged.append(chain.chain.name(version))
            continue
        newest = newest or manifest
        # A new epoch repeats the state before it, which counts once.
        if manifest.state is not None and (not named or named[-1].state != manifest.state):
            states += 1
        named.append(manifest)
    kept = Kept(tuple(sorted(stay)), tuple(damaged))
    if newest is None or damaged:
        return kept
    for version in versions:
        if version not in stay:
            chain.chain.forget(version)
    names = {path for manifest in named for path in _names(manifest)}
    saves = [save for path in _names(newest) if (save := save_of(path)) is not None and save[0] == newest.epoch]
    before = max(saves, default=(newest.epoch, 0))
    for path in objects:
        save = save_of(path)
        if save is not None and save < before and path not in names:
            store.delete(path)
    for each in (folder, f"{folder}/stage", manifests(generation, partition)):
        store.sweep(each)
    return kept


def _names(manifest: Manifest) -> set[str]:
    """Every object that the manifest names."""
    segments = set(manifest.state.segments) if manifest.state is not None else set()
    return segments | {each.path for each in manifest.staged}


def retain_chains(store: Store) -> None:
    """Shorten the chains of the job and of the splits, whose newest entry holds everything."""
    for path in ["job", *(f"{SPLITS}/{name}" for name in store.list(SPLITS))]:
        chain = Chain(store, path)
        for version in chain.versions()[:-KEPT_ENTRIES]:
            chain.forget(version)
        store.sweep(path)


def retire_generations(store: Store, generation: int, partitions: int) -> list[int]:
    """Delete generations before `generation`, once each of its `partitions` has a state of its own and no cut names the old one.
    Returns those that are gone."""
    for partition in range(partitions):
        newest = PartitionChain(store, generation, partition).load()
        if newest is None or newest.state is None:
            return []
    named = {cut.generation for cut in list_cuts(store)}
    gone = []
    for name in store.list():
        found = re.fullmatch(r"g(\d{4,})", name)
        if found and int(found[1]) < generation and int(found[1]) not in named:
            for folder in store.list(name):
                for part in ("chain", "stage", ""):
                    path = f"{name}/{folder}/{part}".rstrip("/")
                    for each in store.list(path):
                        if store.exists(f"{path}/{each}"):
                            store.delete(f"{path}/{each}")
            gone.append(int(found[1]))
    return gone

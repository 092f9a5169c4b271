"""A saved cut: one manifest per partition, all at one position. Serves repeatable reads, rescaling and ledgers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flowstate.errors import CorruptData, InternalError, InvalidFlow, Unavailable
from flowstate.plan.position import Place
from flowstate.snapshot.chain import Chain
from flowstate.snapshot.codec import decode, encode
from flowstate.snapshot.layout import CUTS, entry
from flowstate.snapshot.partition_chain import PartitionChain
from flowstate.store import Store


@dataclass(frozen=True)
class SavedCut:
    """`versions` maps a partition of `generation` to the version of its manifest. `as_of` is Unix time."""

    number: int
    generation: int
    versions: Mapping[int, int]
    position: Mapping[str, Place]
    as_of: float = 0.0


def _name(number: int) -> str:
    return f"{CUTS}/{entry(number)}"


def save_cut(store: Store, cut: SavedCut) -> bool:
    """Write a cut whose manifests are all committed. False when another run has written this number: take the next one.

    Unavailable when retention has meanwhile deleted one of its manifests: the cut came too late, make another.
    """
    if not cut.versions:
        raise InternalError("a cut without partitions", cut=cut.number)
    data = encode(
        {
            "number": cut.number,
            "generation": cut.generation,
            "versions": {str(partition): version for partition, version in cut.versions.items()},
            "position": {split: list(place) for split, place in cut.position.items()},
            "as_of": cut.as_of,
        }
    )
    if not store.create(_name(cut.number), data) and store.read(_name(cut.number)) != data:
        return False
    for partition, version in cut.versions.items():
        chain = PartitionChain(store, cut.generation, partition)
        try:
            state = chain.read(version).state
            gone = state is None or not all(map(store.exists, state.segments))
        except FileNotFoundError:
            gone = True
        if gone:
            store.delete(_name(cut.number))
            raise Unavailable(
                "a cut was saved too late, its parts are gone; make another", cut=cut.number, partition=partition
            )
    return True


def cut_numbers(store: Store) -> list[int]:
    """Numbers of all saved cuts, ascending."""
    return Chain(store, CUTS).versions()


def read_cut(store: Store, number: int) -> SavedCut:
    """One cut. InvalidFlow when there is none of that number, CorruptData when it is damaged."""
    try:
        data, _ = decode(store.read(_name(number)), _name(number))
    except FileNotFoundError:
        there = cut_numbers(store)
        raise InvalidFlow("there is no such cut; take one of those that are kept", at=number, cuts=there) from None
    return SavedCut(
        data["number"],
        data["generation"],
        {int(partition): version for partition, version in data["versions"].items()},
        {split: Place(*place) for split, place in data["position"].items()},
        data["as_of"],
    )


def list_cuts(store: Store, *, skip_damaged: bool = False) -> list[SavedCut]:
    """All saved cuts, oldest first."""
    found = []
    for number in cut_numbers(store):
        try:
            found.append(read_cut(store, number))
        except InvalidFlow:  # deleted by retention since we listed
            continue
        except CorruptData:
            if not skip_damaged:
                raise
    return found


def latest_cut(store: Store, *, skip_damaged: bool = False) -> SavedCut | None:
    """The newest saved cut; with `skip_damaged`, the newest that can be read."""
    for number in reversed(cut_numbers(store)):
        try:
            return read_cut(store, number)
        except InvalidFlow:
            continue
        except CorruptData:
            if not skip_damaged:
                raise
    return None


def delete_cut(store: Store, number: int) -> None:
    """Forget a cut; what only it kept goes with the next retention."""
    store.delete(_name(number))

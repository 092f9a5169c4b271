from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import random
import uuid
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowstate.errors import CorruptData, Fenced, InternalError, Unavailable
from flowstate.plan.position import FOREVER, NEVER, Floor
from flowstate.snapshot import chain as chain_module
from flowstate.snapshot import retention
from flowstate.snapshot.chain import Chain
from flowstate.snapshot.codec import decode, encode
from flowstate.snapshot.layout import quoted
from flowstate.snapshot.record import SplitRecord, SplitRecords
from flowstate.snapshot.retention import retain_chains
from flowstate.store import Store
from flowstate.testing.interrupted_store import InterruptedStore
from flowstate.testing.stepped_store import interleave


def memory() -> Store:
    return Store.open(f"memory://{uuid.uuid4().hex}")


def note(store: Store, names: list[str]) -> None:
    """Append every name to a shared list, by compare-and-swap."""
    chain = Chain(store, "job")
    for name in names:
        while True:
            latest = chain.latest()
            version, noted = (0, []) if latest is None else (latest[0], latest[1]["noted"])
            if name in noted or chain.append(version + 1, {"noted": [*noted, name]}):
                break


def check_noted(store: Store, names: list[str]) -> None:
    latest = Chain(store, "job").latest()
    assert latest is not None
    assert sorted(latest[1]["noted"]) == sorted(names)
    assert latest[0] == len(names)


def test_threads_lose_nothing(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    names = [[f"{writer}-{number}" for number in range(20)] for writer in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(note, [store] * 8, names))
    check_noted(store, list(itertools.chain.from_iterable(names)))


def test_processes_lose_nothing(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    names = [[f"{writer}-{number}" for number in range(40)] for writer in range(3)]
    with ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(note, [store] * 3, names))
    check_noted(store, list(itertools.chain.from_iterable(names)))


@given(seed=st.integers(0, 2**32), writers=st.integers(2, 4), faults=st.sampled_from([0.0, 0.1]))
@settings(max_examples=150, deadline=None)
def test_one_winner_per_version_under_retention(seed: int, writers: int, faults: float) -> None:
    """Zombies that wake after their place was deleted, lost answers, retention at any moment: what was told True is in the list for ever,
    at its own version, and nothing is there twice."""
    store = memory()
    won: dict[int, str] = {}

    def writer(number: int) -> Any:
        chance = random.Random(seed + number)

        def run(own: Store) -> None:
            chain = Chain(own, "job")
            for attempt in range(6):
                name = f"{number}-{attempt}"
                try:
                    latest = chain.latest()
                except Unavailable:
                    continue
                version, noted = (0, []) if latest is None else (latest[0], latest[1]["noted"])
                while True:
                    try:
                        if chain.append(version + 1, {"noted": [*noted, name]}, token=name):
                            assert version + 1 not in won
                            won[version + 1] = name
                        break
                    except Unavailable:
                        if chance.random() < 0.05:
                            return

        return run

    def cleaner(own: Store) -> None:
        for _ in range(5):
            try:
                retain_chains(own)
            except Unavailable:
                continue

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chain_module, "KEPT_ENTRIES", 2)
        patch.setattr(retention, "KEPT_ENTRIES", 2)
        trace = interleave(store, [*map(writer, range(writers)), cleaner], random.Random(seed), faults=faults)
    latest = Chain(store, "job").latest()
    newest, noted = (0, []) if latest is None else (latest[0], latest[1]["noted"])
    assert newest == len(noted) == len(set(noted))
    for version, name in won.items():
        assert noted[version - 1] == name, trace


def test_append_beyond_the_end() -> None:
    chain = Chain(memory(), "c")
    with pytest.raises(CorruptData, match="builds on is gone"):
        chain.append(2, {})
    assert chain.append(1, {"a": 1})
    with pytest.raises(CorruptData, match=r"000000000002\.json.* newest=1"):
        chain.append(3, {})
    with pytest.raises(InternalError):
        chain.append(0, {})
    assert not chain.append(1, {"a": 2})
    assert chain.latest() == (1, {"a": 1})


@pytest.mark.parametrize("after", [False, True])
def test_lost_answers(after: bool) -> None:
    """The append is repeated with its token after a failure at any of its steps, and wins exactly once."""
    for step in range(5):
        store = memory()
        assert Chain(store, "c").append(1, {"n": 1})
        broken = InterruptedStore(store, step, after=after, dead=False)
        chain = Chain(broken, "c")
        try:
            result = chain.append(2, {"n": 2}, token="mine")
        except Unavailable:
            result = chain.append(2, {"n": 2}, token="mine")
        assert result is True
        assert not Chain(store, "c").append(2, {"n": 2}, token="other")
        assert not Chain(store, "c").append(2, {"n": 2})
        assert Chain(store, "c").versions() == [1, 2]


def test_zombie_below_the_newest() -> None:
    """Interleaving 3 of `chain`, step by step."""
    store = memory()
    chain = Chain(store, "c")
    for version in range(1, 31):
        assert chain.append(version, {"n": version})
    for version in range(1, 31 - 8):
        chain.forget(version)
    assert not chain.append(10, {"n": "zombie"})
    assert not store.exists(chain.name(10))

    class Asleep(Chain):
        """It looked before the others went on."""

        looks = iter([9])

        def newest(self) -> int:
            return next(self.looks, super().newest())

    assert not Asleep(store, "c").append(10, {"n": "zombie"})
    assert store.exists(chain.name(10)) and not store.exists(chain.copy_name(10))
    assert chain.latest() == (30, {"n": 30})


def spoil(store: Store, path: str, how: str) -> None:
    """Damage an object, behind the back of everybody."""
    whole = store.read(path)
    store.delete(path)
    match how:
        case "flip":
            store.create(
                path, bytes([*whole[: len(whole) // 2], whole[len(whole) // 2] ^ 1, *whole[len(whole) // 2 + 1 :]])
            )
        case "cut":
            store.create(path, whole[: len(whole) // 2])
        case "empty":
            store.create(path, b"")


HOW = ["flip", "cut", "empty", "delete"]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("copied", [False, True])
def test_one_damaged_object_of_the_newest_entry(how: str, copied: bool) -> None:
    """Whichever it is, the entry stays the newest and is what it was; who appends next to it, or instead of it, is told the truth."""
    store = memory()
    chain = Chain(store, "c")
    assert chain.append(1, {"n": 1}) and chain.append(2, {"n": 2}, token="mine")
    name = chain.copy_name(2) if copied else chain.name(2)
    spoil(store, name, how)
    assert chain.latest() == (2, {"n": 2})
    assert chain.settle(2, {"n": 2}) and not chain.settle(2, {"n": 1})
    said = chain.damage(2)
    assert len(said) == (0 if copied and how == "delete" else 1) and all(name in each for each in said)
    assert not chain.append(2, {"n": "another"})
    assert chain.append(2, {"n": 2}, token="mine")
    assert chain.append(3, {"n": 3})
    assert chain.latest() == (3, {"n": 3})


def test_both_objects_of_the_newest_entry_are_damaged() -> None:
    store = memory()
    chain = Chain(store, "c")
    assert chain.append(1, {"n": 1}) and chain.append(2, {"n": 2})
    spoil(store, chain.name(2), "flip")
    spoil(store, chain.copy_name(2), "cut")
    with pytest.raises(CorruptData, match=r"c/000000000002\.json"):
        chain.latest()
    assert chain.latest(skip_damaged=True) == (1, {"n": 1})
    assert not chain.append(2, {"n": "another"})


@given(seed=st.integers(0, 2**32), writers=st.integers(2, 4), faults=st.sampled_from([0.0, 0.1]))
@settings(max_examples=60, deadline=None)
def test_one_winner_per_version_while_an_object_is_lost(seed: int, writers: int, faults: float) -> None:
    """As above, and somebody deletes or spoils one object at any moment: what was told True, or was found to be there, stays in the
    list for ever, at its own version; nothing is there twice."""
    store = memory()
    won: dict[int, str] = {}
    seen: list[str] = []

    def writer(number: int) -> Any:
        chance = random.Random(seed + number)

        def run(own: Store) -> None:
            chain = Chain(own, "job")
            for attempt in range(6):
                name = f"{number}-{attempt}"
                while chance.random() > 0.05:
                    try:
                        latest = chain.latest()
                        version, noted = (0, []) if latest is None else (latest[0], latest[1]["noted"])
                        if name in noted:  # an attempt whose answer was lost
                            if latest is not None and chain.settle(*latest):
                                seen.append(name)
                                break
                        elif chain.append(version + 1, {"noted": [*noted, name]}, token=name):
                            assert version + 1 not in won
                            won[version + 1] = name
                            break
                    except (Unavailable, CorruptData):
                        continue

        return run

    def fate(own: Store) -> None:
        chance = random.Random(seed - 1)
        with contextlib.suppress(Unavailable):
            for _ in range(chance.randrange(40)):
                own.exists("job/nothing")  # lets the others pass
            if names := own.list("job"):
                own.delete(f"job/{chance.choice(names[-2:])}")

    trace = interleave(store, [*map(writer, range(writers)), fate], random.Random(seed), faults=faults)
    latest = Chain(store, "job").latest()
    newest, noted = (0, []) if latest is None else (latest[0], latest[1]["noted"])
    assert newest == len(noted) == len(set(noted)), trace
    for version, name in won.items():
        assert noted[version - 1] == name, trace
    assert set(seen) <= set(noted), trace


@given(
    entry=st.dictionaries(
        st.text(), st.one_of(st.integers(), st.text(), st.none(), st.lists(st.integers())), max_size=5
    ),
    data=st.data(),
)
@settings(max_examples=200, deadline=None)
def test_damage_is_found(entry: dict[str, Any], data: st.DataObject) -> None:
    whole = encode(entry, "writer")
    assert decode(whole, "x") == (entry, "writer")
    position = data.draw(st.integers(0, len(whole) - 1))
    change = data.draw(st.sampled_from(["flip", "cut", "drop", "double"]))
    byte = bytes([whole[position] ^ (1 << data.draw(st.integers(0, 7)))])
    damaged = {
        "flip": whole[:position] + byte + whole[position + 1 :],
        "cut": whole[:position],
        "drop": whole[:position] + whole[position + 1 :],
        "double": whole[:position] + whole[position : position + 1] + whole[position:],
    }[change]
    try:
        read = decode(damaged, "some/object")
    except CorruptData as error:
        read, said = None, str(error)
    if read is None:
        assert "some/object" in said
    else:
        assert read == (entry, "writer")  # white space is not content


def test_damaged_newest_entry() -> None:
    store = memory()
    chain = Chain(store, "c")
    for version in (1, 2, 3):
        assert chain.append(version, {"n": version})
    for name in (chain.name(3), chain.copy_name(3)):
        whole = store.read(name)
        store.delete(name)
        store.create(name, whole.replace(b'"n": 3', b'"n": 4'))
    with pytest.raises(CorruptData, match=r"c/000000000003\.json"):
        chain.latest()
    assert chain.latest(skip_damaged=True) == (2, {"n": 2})
    assert chain.newest() == 3
    assert not chain.append(3, {"n": 5})
    assert chain.append(4, {"n": 4})
    for version in (1, 2, 4):
        chain.forget(version)
    with pytest.raises(CorruptData, match="every entry"):
        chain.latest(skip_damaged=True)


def test_split_records() -> None:
    records = SplitRecords(memory())
    split = "clicks/some topic/é/3"
    assert records.load(split) is None
    first = records.raise_epoch(split, start=7, label="topic[3]", hint={"path": "a"})
    assert first == SplitRecord(1, (), None, 7, "topic[3]", {"path": "a"})
    assert records.append_floor(split, 1, Floor(10, NEVER)).floors == (Floor(10, NEVER),)
    assert records.append_floor(split, 1, Floor(10, NEVER)).floors == (Floor(10, NEVER),)
    assert records.append_floor(split, 1, Floor(10, 5)).floors == (Floor(10, NEVER), Floor(10, 5))
    with pytest.raises(InternalError):
        records.append_floor(split, 1, Floor(9, 6))
    second = records.raise_epoch(split, start=99, hint={"path": "b"})
    assert second == SplitRecord(2, (Floor(10, NEVER), Floor(10, 5)), None, 7, "topic[3]", {"path": "b"})
    with pytest.raises(Fenced, match="epoch=1 newest=2"):
        records.append_floor(split, 1, Floor(11, 6))
    with pytest.raises(Fenced, match="epoch=2 newest=2"):
        records.raise_epoch(split, epoch=2)
    assert records.raise_epoch(split, epoch=9).reader_epoch == 9
    assert records.append_floor(split, 9, Floor(12, FOREVER)).floors[-1] == Floor(12, FOREVER)
    assert records.set_end(split, 100).end == 100
    assert records.set_end(split, 200).end == 100
    assert records.raise_epoch(split, end=300).end == 100
    records.raise_epoch("x" * 400)
    records.raise_epoch("x" * 401)
    assert records.names() == sorted([split, "x" * 400, "x" * 401])
    loaded = records.load(split)
    assert loaded is not None and loaded.reader_epoch == 10


def test_long_names_stay_apart() -> None:
    names = ["a/b", "a%2Fb", ".", "..", "", "x" * 300, "x" * 301, "é" * 100, "a b", "A"]
    assert len({quoted(name) for name in names}) == len(names)
    assert all(len(quoted(name)) <= 180 and "/" not in quoted(name) for name in names)


@given(seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_floors_of_replaced_readers_are_refused(seed: int) -> None:
    """Readers append floors while others take the split over: acknowledged floors are in the record for good, and no floor
    follows one of a newer epoch. (A floor that was refused may be there, below the newer epoch: its reader sends it.)"""
    store = memory()
    SplitRecords(store).raise_epoch("s")
    acknowledged: list[Floor] = []
    unknown: list[Floor] = []

    def reader(own: Store) -> None:
        records = SplitRecords(own)
        try:
            record = records.raise_epoch("s")
        except Unavailable:
            return
        for _ in range(4):
            floor = Floor(record.floors[-1].offset + 1 if record.floors else 0, record.reader_epoch)
            try:
                record = records.append_floor("s", record.reader_epoch, floor)
                acknowledged.append(floor)
            except (Fenced, Unavailable):
                unknown.append(floor)
                return

    trace = interleave(store, [reader] * 3, random.Random(seed), faults=0.02)
    record = SplitRecords(store).load("s")
    assert record is not None
    assert [floor.watermark for floor in record.floors] == sorted(floor.watermark for floor in record.floors), trace
    assert [floor.offset for floor in record.floors] == list(range(len(record.floors))), trace
    assert set(acknowledged) <= set(record.floors) <= set(acknowledged) | set(unknown), trace

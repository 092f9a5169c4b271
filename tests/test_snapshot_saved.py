from __future__ import annotations

import uuid
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from s3_server import s3_server

from flowstate.errors import CorruptData, Fenced, InvalidFlow, Unavailable
from flowstate.plan.position import Place
from flowstate.snapshot.chain import Chain
from flowstate.snapshot.cut import SavedCut, cut_numbers, delete_cut, latest_cut, list_cuts, read_cut, save_cut
from flowstate.snapshot.job_record import JobChain, JobRecord, difference
from flowstate.snapshot.manifest import Manifest, SavedState
from flowstate.snapshot.partition_chain import PartitionChain
from flowstate.snapshot.record import SplitRecords
from flowstate.snapshot.retention import retain, retain_cuts, retire_generations
from flowstate.snapshot.saved import SavedSnapshot
from flowstate.snapshot.segment import save_state
from flowstate.store import Store
from flowstate.testing.interrupted_store import InterruptedStore

PLAN: dict[str, Any] = {"views": {"totals": {"keys": ["customer"], "total": "decimal128(12, 2)"}}, "lateness": 5}


def memory() -> Store:
    return Store.open(f"memory://{uuid.uuid4().hex}")


def start(store: Store, **changes: Any) -> JobRecord:
    given: dict[str, Any] = {
        "name": "billing",
        "plan": PLAN,
        "fingerprint": "f1",
        "partitions": 2,
        "key_groups": 128,
        "seed": 42,
        "created": 1.5,
    }
    return JobChain(store).claim_run(**{**given, **changes})


class Numbers:
    """A chunk that holds one number."""

    def __init__(self, version: int) -> None:
        self.id, self.version, self.rows = 0, version, 1

    def state(self) -> pa.RecordBatch:
        return pa.RecordBatch.from_pydict({"number": pa.array([self.version])})


class Partitions:
    """Some partitions that save numbers."""

    def __init__(self, store: Store, generation: int, count: int) -> None:
        self.store = store
        self.generation = generation
        self.chains = [PartitionChain(store, generation, partition) for partition in range(count)]
        self.manifests = [chain.claim() for chain in self.chains]
        self.previous: list[SavedState | None] = [None] * count

    def save(self, number: int) -> None:
        for index, chain in enumerate(self.chains):
            prefix = f"g{self.generation:04d}/p{index:04d}"
            tables = {"totals": [Numbers(number * 10 + index)], "late": [Numbers(number * 10 + index)]}
            marks = {"split": [number, 0, 0, 0, 0]}
            state = save_state(self.store, prefix, 1, number, tables, self.previous[index], marks, {}, float(number))
            committed = chain.commit(self.manifests[index].version, replace(self.manifests[index], state=state))
            assert committed is not None
            self.manifests[index], self.previous[index] = committed, state

    def cut(self, number: int) -> bool:
        versions = {index: manifest.version for index, manifest in enumerate(self.manifests)}
        return save_cut(self.store, SavedCut(number, self.generation, versions, {"split": Place(number, 1)}, 2.5))


def numbers(snapshot: SavedSnapshot, names: list[str] | None = None) -> list[int]:
    return [
        value
        for partition in snapshot.partitions
        for batches in snapshot.load(partition, names).values()
        for batch in batches
        for value in batch["number"].to_pylist()
    ]


def test_runs() -> None:
    store = memory()
    assert JobChain(store).load() is None
    first = start(store)
    assert first == JobRecord("billing", PLAN, "f1", 2, 128, 42, 1, 1, 1.5)
    second = start(store, key_groups=64, seed=7, created=9.9)
    assert second == replace(first, run=2)
    JobChain(store).check(2)
    with pytest.raises(Fenced, match="run=1 newest=2"):
        JobChain(store).check(1)
    assert JobChain(store).load() == second
    with pytest.raises(InvalidFlow, match="belong to another job"):
        start(store, name="other")
    with pytest.raises(InvalidFlow, match=r"another number of partitions.*partitions=3 saved=2"):
        start(store, partitions=3)
    rescaled = start(store, partitions=3, origin=4)
    assert rescaled == replace(first, run=3, generation=2, partitions=3, origin=4)
    assert start(store, partitions=3) == replace(rescaled, run=4)


def test_changed_flow_is_refused_with_the_difference() -> None:
    store = memory()
    start(store)
    changed = {"views": {"totals": {"keys": ["customer", "month"], "total": "decimal128(12, 2)"}, "more": 1}}
    with pytest.raises(InvalidFlow) as caught:
        start(store, plan=changed, fingerprint="f2")
    text = str(caught.value)
    assert "flow.views.totals.keys: ['customer'] -> ['customer', 'month']" in text
    assert "flow.views.more: added (1)" in text
    assert "flow.lateness: removed (was 5)" in text
    with pytest.raises(InvalidFlow, match="in a part that its description does not show"):
        start(store, fingerprint="f2")
    assert JobChain(store).load() == start(memory())


def test_difference() -> None:
    assert difference(PLAN, PLAN) == []
    assert difference({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}) == ["flow.a[1].b: 2 -> 3"]
    assert difference((1, 2), [1, 2]) == []
    assert difference({"a": None}, {"a": {}}) == ["flow.a: None -> {}"]


def test_records_of_a_newer_flowstate_are_refused() -> None:
    store = memory()
    Chain(store, "job").append(1, {**asdict(start(memory())), "schema": 2})
    with pytest.raises(InvalidFlow, match="another version"):
        JobChain(store).load()


def test_cuts() -> None:
    store = memory()
    job = Partitions(store, 1, 2)
    assert latest_cut(store) is None
    job.save(1)
    assert job.cut(3)
    assert job.cut(3)  # the same again
    job.save(2)
    assert not job.cut(3)  # another of that number
    assert job.cut(7)
    assert cut_numbers(store) == [3, 7]
    assert [cut.versions for cut in list_cuts(store)] == [{0: 2, 1: 2}, {0: 3, 1: 3}]
    assert latest_cut(store) == read_cut(store, 7) == SavedCut(7, 1, {0: 3, 1: 3}, {"split": Place(7, 1)}, 2.5)
    with pytest.raises(InvalidFlow, match=r"no such cut.*at=5 cuts=\[3, 7\]"):
        read_cut(store, 5)
    store.delete("cuts/000000000007.json")
    store.create("cuts/000000000007.json", b"{}")
    with pytest.raises(CorruptData, match="000000000007"):
        latest_cut(store)
    newest = latest_cut(store, skip_damaged=True)
    assert newest is not None and newest.number == 3
    assert len(list_cuts(store, skip_damaged=True)) == 1
    delete_cut(store, 7)
    delete_cut(store, 7)
    assert cut_numbers(store) == [3]


def test_a_cut_that_comes_too_late_is_refused() -> None:
    store = memory()
    job = Partitions(store, 1, 2)
    job.save(1)
    store.delete("g0001/p0001/e000001-000001.arrows")
    with pytest.raises(Unavailable, match="saved too late"):
        job.cut(1)
    assert cut_numbers(store) == []


def test_retention_keeps_cuts_and_what_they_name() -> None:
    store = memory()
    start(store)
    job = Partitions(store, 1, 2)
    for number in range(1, 31):
        job.save(number)
        if number % 5 == 0:
            assert job.cut(number)
        SplitRecords(store).raise_epoch("split")
        retain(store, 1, [0, 1], keep=2, pinned={10})
    assert cut_numbers(store) == [10, 25, 30]
    assert job.chains[0].chain.versions() == [11, *range(24, 32)]
    for number in (10, 25, 30):
        assert numbers(SavedSnapshot.open(store, at=number), ["totals"]) == [number * 10, number * 10 + 1]
    for partition in (0, 1):
        names = [f"e000001-{number:06d}.arrows" for number in (10, 25, 29, 30)]
        assert store.list(f"g0001/p{partition:04d}") == ["chain", *names]
    assert len(SplitRecords(store).chain("split").versions()) == 8
    assert len(store.list("splits/split")) == 2 * 8  # each with its copy
    record = SplitRecords(store).load("split")
    assert record is not None and record.reader_epoch == 30
    with pytest.raises(InvalidFlow, match="no such cut"):
        SavedSnapshot.open(store, at=5)


def test_reading_without_a_job(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    with pytest.raises(InvalidFlow, match="no job has ever saved anything here"):
        SavedSnapshot.open(tmp_path)
    started = start(store)
    with pytest.raises(Unavailable, match="has not saved anything yet"):
        SavedSnapshot.open(tmp_path)
    job = Partitions(store, 1, 2)
    with pytest.raises(Unavailable, match="has not saved anything yet"):
        SavedSnapshot.open(tmp_path)
    job.save(1)
    snapshot = SavedSnapshot.open(tmp_path)
    assert (snapshot.job, snapshot.cut, snapshot.consistent, snapshot.cuts) == (started, None, False, [])
    assert snapshot.job.plan == PLAN
    assert numbers(snapshot) == [10, 10, 11, 11]
    assert job.cut(1)
    job.save(2)
    old = SavedSnapshot.open(tmp_path)
    assert old.consistent and old.cut is not None and old.cut.position == {"split": Place(1, 1)}
    assert numbers(old, ["late"]) == [10, 11]
    newest = SavedSnapshot.open(tmp_path, newest=True)
    assert numbers(newest, ["late"]) == [20, 21]
    state = newest.manifests[1].state
    assert state is not None and state.marks["split"][0] == 2


def test_partition_that_has_not_saved_yet_is_left_out() -> None:
    store = memory()
    start(store)
    job = Partitions(store, 1, 1)
    job.save(1)
    assert SavedSnapshot.open(store).partitions == [0]


def test_damage_while_reading() -> None:
    store = memory()
    start(store)
    job = Partitions(store, 1, 2)
    job.save(1)
    job.save(2)
    assert job.cut(2)
    path = "g0001/p0001/e000001-000002.arrows"
    whole = store.read(path)
    store.delete(path)
    store.create(path, whole[:-1] + b"x")
    snapshot = SavedSnapshot.open(store, newest=True)
    assert numbers(snapshot, ["late"]) == [20, 11]
    assert len(snapshot.damaged) == 1 and path in snapshot.damaged[0]
    state = snapshot.manifests[1].state
    assert state is not None and state.marks["split"][0] == 1
    with pytest.raises(CorruptData, match=path):
        numbers(SavedSnapshot.open(store))  # a cut never falls back
    half = SavedSnapshot.open(store, newest=True)
    assert half.load(1, ["totals"])["totals"][0]["number"].to_pylist() == [21]
    with pytest.raises(CorruptData, match=path):
        half.load(1, ["late"])  # would be another state than was given out


def test_retention_while_reading() -> None:
    store = memory()
    start(store)
    job = Partitions(store, 1, 1)
    job.save(1)
    assert job.cut(1)
    cut, newest = SavedSnapshot.open(store), SavedSnapshot.open(store, newest=True)
    for number in range(2, 20):
        job.save(number)
    retain_cuts(store, 0)
    retain(store, 1, [0], 2)
    with pytest.raises(Unavailable, match="deleted by retention"):
        cut.load(0)
    with pytest.raises(Unavailable, match="open it again"):
        newest.load(0)


def test_rescaled_job() -> None:
    """Until each partition of the new generation has saved, what is read (and restored) is the cut that it comes from."""
    store = memory()
    start(store)
    old = Partitions(store, 1, 2)
    old.save(1)
    assert old.cut(1)
    old.save(2)
    start(store, partitions=3, origin=1)
    delete = "g0001/p0000/e000001-000001.arrows"
    retain(store, 1, [0, 1], 1)
    assert store.exists(delete)
    snapshot = SavedSnapshot.open(store)
    assert (snapshot.generation, snapshot.job.partitions, numbers(snapshot, ["late"])) == (1, 3, [10, 11])
    assert retire_generations(store, 2, 3) == []
    new = Partitions(store, 2, 3)
    assert numbers(SavedSnapshot.open(store, newest=True), ["late"]) == [10, 11]
    new.save(5)
    assert numbers(SavedSnapshot.open(store, newest=True), ["late"]) == [50, 51, 52]
    assert retire_generations(store, 2, 3) == []  # a cut still names the old one
    delete_cut(store, 1)
    assert retire_generations(store, 2, 3) == [1]
    assert store.list("g0001/p0000/chain") == []
    assert retire_generations(store, 2, 3) == []
    assert numbers(SavedSnapshot.open(store), ["late"]) == [50, 51, 52]


@pytest.mark.parametrize("after", [False, True])
def test_a_start_may_die_anywhere(after: bool) -> None:
    for step in range(20):
        store = memory()
        start(store)
        try:
            start(InterruptedStore(store, step, after=after))
            finished = True
        except Unavailable:
            finished = False
        record = start(store)
        assert record.run in (2, 3)
        assert replace(record, run=1) == start(memory())
        if finished:
            assert step > 3
            return


def test_manifests_without_state_are_no_cut() -> None:
    store = memory()
    PartitionChain(store, 1, 0).claim()
    with pytest.raises(Unavailable, match="saved too late"):
        save_cut(store, SavedCut(1, 1, {0: 1}, {}))
    assert PartitionChain(store, 1, 0).load() == Manifest(1, 1)


@pytest.mark.s3
def test_on_s3() -> None:
    with s3_server() as server:
        url = server.bucket("snapshots")
        store = Store.open(f"{url}/job", **server.storage_options)
        start(store)
        job = Partitions(store, 1, 2)
        for number in range(1, 12):
            job.save(number)
        assert job.cut(1)
        job.save(12)
        retain(store, 1, [0, 1], 1)
        snapshot = SavedSnapshot.open(f"{url}/job", **server.storage_options)
        assert numbers(snapshot, ["totals"]) == [110, 111]
        assert numbers(SavedSnapshot.open(store, newest=True), ["totals"]) == [120, 121]
        assert store.list("g0001/p0000") == ["chain", "e000001-000011.arrows", "e000001-000012.arrows"]

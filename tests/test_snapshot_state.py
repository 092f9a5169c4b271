from __future__ import annotations

import itertools
import os
import random
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowstate.errors import CorruptData, Fenced, InternalError, InvalidFlow, Unavailable
from flowstate.plan.output import StagedOutput
from flowstate.plan.position import FOREVER, NEVER
from flowstate.snapshot import chain as chain_module
from flowstate.snapshot import retention, segment
from flowstate.snapshot.layout import partition as partition_folder
from flowstate.snapshot.manifest import Manifest, SavedState
from flowstate.snapshot.partition_chain import PartitionChain
from flowstate.snapshot.restore import load_newest
from flowstate.snapshot.retention import retain_partition
from flowstate.snapshot.segment import load_tables, save_state
from flowstate.store import Store
from flowstate.testing.interrupted_store import InterruptedStore
from flowstate.testing.stepped_store import interleave

PREFIX = partition_folder(1, 0)


@dataclass(frozen=True)
class Chunk:
    """`rows` rows that hold id and version."""

    id: int
    version: int
    rows: int = 10
    wide: bool = False

    def state(self) -> pa.RecordBatch:
        columns = {"id": pa.array([self.id] * self.rows), "text": pa.array([f"v{self.version}"] * self.rows)}
        if self.wide:
            columns["more"] = pa.array([None] * self.rows, pa.decimal128(38, 2))
        return pa.RecordBatch.from_pydict(columns)


def memory() -> Store:
    return Store.open(f"memory://{uuid.uuid4().hex}")


def expected(tables: Mapping[str, Sequence[Chunk]]) -> dict[str, list[pa.RecordBatch]]:
    return {name: [chunk.state() for chunk in chunks] for name, chunks in tables.items()}


def save(
    store: Store, number: int, tables: Mapping[str, Sequence[Chunk]], previous: SavedState | None, epoch: int = 1
) -> SavedState:
    return save_state(
        store, PREFIX, epoch, number, tables, previous, {"s": [number, 0, NEVER, FOREVER, 5]}, {"n": number}, 1.5
    )


@given(data=st.data(), stream_bytes=st.sampled_from([1, 16 << 20]))
@settings(max_examples=60, deadline=None)
def test_every_save_loads_as_it_was(data: st.DataObject, stream_bytes: int) -> None:
    """Chunks change, come and go; every save, also after all the later ones, loads as the state was, and nothing that has not changed is
    written, unless its segment is mostly dead."""
    store = memory()
    tables: dict[str, list[Chunk]] = {"totals": [], "late rows": []}
    previous: SavedState | None = None
    saves: list[tuple[SavedState, dict[str, list[pa.RecordBatch]]]] = []
    identity = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segment, "STREAM_BYTES", stream_bytes)
        for number in range(1, data.draw(st.integers(2, 8)) + 1):
            for name, chunks in tables.items():
                chunks[:] = [chunk for chunk in chunks if data.draw(st.integers(0, 9)) != 0]
                for index in range(len(chunks)):
                    if data.draw(st.booleans()):
                        chunks[index] = replace(chunks[index], version=chunks[index].version + 1)
                for _ in range(data.draw(st.integers(0, 3))):
                    identity += 1
                    chunks.append(
                        Chunk(identity, 0, data.draw(st.integers(0, 5)), wide=name == "totals" and identity % 2 == 0)
                    )
            before = previous
            previous = save(store, number, tables, previous)
            saves.append((previous, expected(tables)))
            if before is not None:
                same = {(name, chunk.id, chunk.version) for name, chunks in tables.items() for chunk in chunks}
                same &= {(name, ref.id, ref.version) for name, refs in before.tables.items() for ref in refs}
                live = dict.fromkeys(before.segments, 0)
                for name, refs in before.tables.items():
                    for ref in refs:
                        live[ref.segment] += ref.rows if (name, ref.id, ref.version) in same else 0
                for name, refs in previous.tables.items():
                    for ref in refs:
                        if (name, ref.id, ref.version) in same:
                            (old,) = [each for each in before.tables[name] if each.id == ref.id]
                            assert (ref == old) == (2 * live[old.segment] >= before.segments[old.segment])
    for saved, content in saves:
        assert load_tables(store, saved) == content
        assert SavedState.parse(saved.dump()) == saved
        for name in content:
            assert load_tables(store, saved, [name]) == {name: content[name]}


def test_nothing_changed_writes_nothing() -> None:
    store = memory()
    tables = {"t": [Chunk(0, 0), Chunk(1, 0)]}
    first = save(store, 1, tables, None)
    assert replace(save(store, 2, tables, first), marks=first.marks, extras=first.extras) == first
    assert store.list(PREFIX) == ["e000001-000001.arrows"]
    assert save(store, 3, {"t": []}, first).segments == {}


@pytest.mark.parametrize("changed", [1, 100])
def test_segments_stay_few_and_what_is_written_stays_in_proportion(changed: int) -> None:
    """State that grows for long, a little with every save, while some older chunks change (none, some, any of them)."""
    store, chance = memory(), random.Random(changed)
    chunks: list[Chunk] = []
    previous: SavedState | None = None
    needed = written = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segment, "LARGE", 2000)
        for number in range(1, 151):
            again = {len(chunks) - chance.randint(1, min(changed, len(chunks))) for _ in range(3) if chunks}
            for index in again:
                chunks[index] = replace(chunks[index], version=number)
            chunks += [Chunk(len(chunks) + place, number) for place in range(3)]
            needed += 10 * (len(again) + 3)
            before, previous = previous, save(store, number, {"t": chunks}, previous)
            new = previous.segments.keys() - (before.segments.keys() if before else set())
            assert len(new) == 1, "one object for each save"
            written += sum(previous.segments[path] for path in new)
            # Of each eightfold size up to 2000 rows, and of large ones, of which at least half is wanted.
            assert len(previous.segments) <= 4 * (segment.MANY + 1) + 2 * 10 * len(chunks) // 2000
            assert sum(previous.segments.values()) <= 2 * 10 * len(chunks)
    assert load_tables(store, previous) == expected({"t": chunks}) if previous else False
    assert written <= 4 * needed


def test_chunk_ids_of_another_incarnation_are_not_trusted() -> None:
    """After a restart a table begins to count its chunks anew: the same id and version may be another content."""
    store = memory()
    before = save(store, 1, {"t": [Chunk(0, 3), Chunk(1, 0)]}, None, epoch=1)
    after = save(store, 1, {"t": [Chunk(0, 3), Chunk(1, 0)]}, before, epoch=2)
    assert set(after.segments) == {f"{PREFIX}/e000002-000001.arrows"}


def test_a_repeated_number_takes_another_name() -> None:
    store = memory()
    first = save(store, 1, {"t": [Chunk(0, 0)]}, None)
    again = save(store, 1, {"t": [Chunk(0, 1)]}, None)
    assert set(first.segments) != set(again.segments)
    assert load_tables(store, first) == expected({"t": [Chunk(0, 0)]})
    assert load_tables(store, again) == expected({"t": [Chunk(0, 1)]})


def test_lying_chunks_are_bugs() -> None:
    with pytest.raises(InternalError, match="two chunks"):
        save(memory(), 1, {"t": [Chunk(0, 0), Chunk(0, 1)]}, None)

    class Liar(Chunk):
        def state(self) -> pa.RecordBatch:
            return super().state().slice(1)

    with pytest.raises(InternalError, match="other rows"):
        save(memory(), 1, {"t": [Liar(0, 0)]}, None)


def test_plain_arrow_reads_a_segment(tmp_path: Path) -> None:
    """A manifest's numbers and nothing of ours."""
    store = Store.open(tmp_path)
    saved = save(store, 1, {"t": [Chunk(0, 0), Chunk(1, 4)], "u": [Chunk(7, 7)]}, None)
    for name, refs in saved.tables.items():
        for ref in refs:
            with pa.memory_map(str(tmp_path / ref.segment)) as file:
                batches = list(pa.ipc.open_stream(file.read_buffer(ref.start + ref.length)[ref.start :]))
            assert batches[ref.index]["id"][0].as_py() == ref.id, name


def test_manifest_json() -> None:
    saved = save(memory(), 1, {"t": [Chunk(0, 0)], "empty": []}, None)
    staged = (StagedOutput(0, "a/b", "c/d", 5, "x"),)
    for manifest in (Manifest(1, 1), Manifest(3, 2, saved, staged, {"0": FOREVER, "1": NEVER}, ended=True)):
        assert Manifest.parse(manifest.version, manifest.dump()) == manifest
    with pytest.raises(InvalidFlow, match="another version of flowstate"):
        Manifest.parse(1, {**Manifest(1, 1).dump(), "schema": 2})


def test_epochs() -> None:
    store = memory()
    first, second = PartitionChain(store, 1, 0), PartitionChain(store, 1, 0)
    assert first.load() is None
    old = first.claim()
    assert (old.version, old.epoch, old.state) == (1, 1, None)
    staged = (StagedOutput(0, "a", "b", 1, "c"),)
    state = save(store, 1, {"t": [Chunk(0, 0)]}, None)
    saved = first.commit(1, Manifest(0, 1, state, staged, {"0": 7}, ended=True))
    assert saved is not None and saved.version == 2
    new = second.claim()
    assert new == replace(saved, version=3, epoch=2)
    assert first.commit(2, saved) is None
    assert first.load() == new
    with pytest.raises(Fenced, match="epoch=2 newest=2"):
        second.claim(2)
    assert second.claim(10).epoch == 10


@pytest.mark.parametrize("after", [False, True])
def test_commit_may_be_repeated(after: bool) -> None:
    for step in range(4):
        store = memory()
        PartitionChain(store, 1, 0).claim()
        own = PartitionChain(InterruptedStore(store, step, after=after, dead=False), 1, 0)
        manifest = Manifest(0, 1, handed={"0": 1})
        try:
            committed = own.commit(1, manifest)
        except Unavailable:
            committed = own.commit(1, manifest)
        assert committed == replace(manifest, version=2)
        assert PartitionChain(store, 1, 0).load() == committed


@given(seed=st.integers(0, 2**32), keep=st.integers(1, 3), faults=st.sampled_from([0.0, 0.03]))
@settings(max_examples=60, deadline=None)
def test_incarnations_zombies_and_retention(seed: int, keep: int, faults: float) -> None:
    """Incarnations claim, save and commit while older ones go on and retention runs at any moment: every commit builds on the one before,
    and the last `keep` states load as they were."""
    store = memory()
    content: dict[tuple[int, int], dict[str, list[pa.RecordBatch]]] = {}

    def incarnation(own: Store) -> None:
        chain = PartitionChain(own, 1, 0)
        chance = random.Random(seed)
        try:
            manifest = chain.claim()
            chunks = [Chunk(each, 0) for each in range(4)]
            previous: SavedState | None = None
            for number in range(1, 6):
                index = chance.randrange(4)
                chunks[index] = replace(chunks[index], version=chunks[index].version + 1)
                previous = save(own, number, {"t": list(chunks)}, previous, manifest.epoch)
                content[manifest.epoch, number] = expected({"t": list(chunks)})
                handed = {"0": manifest.handed.get("0", 0) + 1}
                committed = chain.commit(manifest.version, replace(manifest, state=previous, handed=handed))
                if committed is None:
                    return
                manifest = committed
                retain_partition(own, 1, 0, keep)
        except Unavailable:
            return

    def cleaner(own: Store) -> None:
        for _ in range(4):
            try:
                retain_partition(own, 1, 0, keep)
            except Unavailable:
                continue

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chain_module, "KEPT_ENTRIES", 2)
        patch.setattr(retention, "KEPT_ENTRIES", 2)
        trace = interleave(store, [incarnation] * 3 + [cleaner], random.Random(seed), faults=faults)
        chain = PartitionChain(store, 1, 0)
        newest = chain.load()
        if newest is None:
            return
        retain_partition(store, 1, 0, keep)
    loaded: list[SavedState] = []
    for manifest in chain.saved():
        assert isinstance(manifest, Manifest)
        if manifest.state is None or manifest.state in loaded or len(loaded) == keep:
            continue
        epoch = max(int(path.split("/e")[1][:6]) for path in manifest.state.segments)
        assert load_tables(store, manifest.state) == content[epoch, manifest.state.extras["n"]], trace
        loaded.append(manifest.state)
    # Each commit counts one on, each claim none.
    manifests = [each for each in reversed(list(chain.saved())) if isinstance(each, Manifest)]
    assert [each.epoch for each in manifests] == sorted(each.epoch for each in manifests)
    for one, two in itertools.pairwise(manifests):
        if two.version == one.version + 1:
            assert two.handed.get("0", 0) - one.handed.get("0", 0) == (one.epoch == two.epoch), trace
    # What is left is needed, or belongs to a save that may still be in flight.
    named = {path for state in loaded for path in state.segments}
    for name in store.list(PREFIX):
        path = f"{PREFIX}/{name}"
        if name != "chain" and path not in named and newest.state is not None:
            assert (
                name >= max(os.path.basename(each) for each in newest.state.segments) or name >= f"e{newest.epoch:06d}"
            )


@pytest.mark.parametrize("after", [False, True])
def test_retention_dies_anywhere(after: bool) -> None:
    step = 0
    while True:
        store = memory()
        chain = PartitionChain(store, 1, 0)
        manifest, previous = chain.claim(), None
        for number in range(1, 15):
            previous = save(store, number, {"t": [Chunk(0, number), Chunk(1, 0)]}, previous)
            committed = chain.commit(manifest.version, replace(manifest, state=previous))
            assert committed is not None
            manifest = committed
        broken = InterruptedStore(store, step, after=after)
        try:
            retain_partition(broken, 1, 0, 3)
            finished = True
        except Unavailable:
            finished = False
        for number in (14, 13, 12):
            state = chain.read(number + 1).state
            assert state is not None
            assert load_tables(store, state) == expected({"t": [Chunk(0, number), Chunk(1, 0)]})
        # Every entry that still looks whole to a reader is either restorable or older than the kept ones.
        retain_partition(store, 1, 0, 3)
        assert chain.chain.versions() == list(range(8, 16))
        states = [chain.read(each).state for each in (13, 14, 15)]
        named = {path for state in states if state is not None for path in state.segments}
        assert store.list(PREFIX) == sorted(["chain", *(path.rsplit("/", 1)[1] for path in named)])
        if finished:
            assert step > 10
            return
        step += 1


def test_damaged_manifest_stops_retention() -> None:
    store = memory()
    chain = PartitionChain(store, 1, 0)
    manifest, previous = chain.claim(), None
    for number in range(1, 15):
        previous = save(store, number, {"t": [Chunk(0, number)]}, previous)
        committed = chain.commit(manifest.version, replace(manifest, state=previous))
        assert committed is not None
        manifest = committed
    name = chain.chain.name(14)
    for each in (name, chain.chain.copy_name(14)):
        store.delete(each)
        store.create(each, b"{}")
    before = store.list(PREFIX)
    assert retain_partition(store, 1, 0, 3).damaged == (name,)
    assert store.list(PREFIX) == before


def three_saves(store: Store) -> tuple[PartitionChain, list[dict[str, list[pa.RecordBatch]]]]:
    chain = PartitionChain(store, 1, 0)
    manifest, previous = chain.claim(), None
    content = []
    for number in range(1, 4):
        tables = {"t": [Chunk(0, number), Chunk(1, number)], "u": [Chunk(5, number)]}
        previous = save(store, number, tables, previous)
        content.append(expected(tables))
        staged = (StagedOutput(0, f"stage/{number}", f"out/{number}", 1, "x"),)
        committed = chain.commit(manifest.version, Manifest(0, 1, previous, staged, {"0": number}))
        assert committed is not None
        manifest = committed
    return chain, content


def test_damaged_segment_falls_back(tmp_path: Path) -> None:
    """Protocol K4: an older state, and the newest manifest's epoch, staged output and hand-over marks."""
    store = Store.open(tmp_path)
    chain, content = three_saves(store)
    newest = PartitionChain(store, 1, 0).claim()
    file = tmp_path / PREFIX / "e000001-000003.arrows"
    whole = file.read_bytes()
    file.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    restored = load_newest(chain)
    assert restored is not None
    assert restored.manifest == newest
    assert restored.tables == content[1]
    assert restored.version == 3
    assert restored.state is not None and restored.state.marks["s"][0] == 2
    assert restored.manifest.handed == {"0": 3}
    assert restored.manifest.staged[0].target == "out/3"
    (damage,) = restored.damaged
    assert f"{PREFIX}/e000001-000003.arrows" in damage and "table='u'" in damage
    (tmp_path / PREFIX / "e000001-000002.arrows").unlink()
    restored = load_newest(chain)
    assert restored is not None and restored.tables == content[0]
    assert "missing" in restored.damaged[1]
    for name in (chain.chain.name(2), chain.chain.copy_name(2)):
        file = tmp_path / name
        file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(CorruptData, match="no saved state of a partition is whole") as caught:
        load_newest(chain)
    assert "000000000002.json" in str(caught.value)
    (tmp_path / chain.chain.name(5)).write_bytes(b"")
    (tmp_path / chain.chain.copy_name(5)).write_bytes(b"")
    with pytest.raises(CorruptData, match=r"its copy are damaged.*restore one of the.*000000000005\.json"):
        load_newest(chain)
    with pytest.raises(CorruptData, match="its copy are damaged"):
        PartitionChain(store, 1, 0).claim()
    claimed = PartitionChain(store, 1, 0).claim(outputs=False)  # nothing was handed over, so an older one will do
    assert (claimed.version, claimed.epoch) == (6, newest.epoch + 1)
    assert claimed.handed == {"0": 3}


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_no_damage_is_ever_believed(data: st.DataObject) -> None:
    store = memory()
    chain, content = three_saves(store)
    objects = [f"{PREFIX}/{name}" for name in store.list(PREFIX) if name != "chain"]
    path = data.draw(st.sampled_from(objects + [chain.chain.name(version) for version in (2, 3, 4)]))
    whole = store.read(path)
    position = data.draw(st.integers(0, len(whole) - 1))
    change = data.draw(st.sampled_from(["flip", "cut", "grow", "gone"]))
    store.delete(path)
    if change == "flip":
        store.create(
            path,
            whole[:position] + bytes([whole[position] ^ (1 << data.draw(st.integers(0, 7)))]) + whole[position + 1 :],
        )
    elif change == "cut":
        store.create(path, whole[:position])
    elif change == "grow":
        store.create(path, whole + b"x")
    try:
        restored = load_newest(chain)
    except CorruptData as error:
        said, restored = str(error), None
    if restored is None:
        assert path == chain.chain.name(4) and path in said
        return
    assert restored.state is not None
    assert restored.tables == content[restored.state.extras["n"] - 1]
    if restored.manifest.version == 4 and restored.state.extras["n"] < 3:
        assert path in restored.damaged[0]


def test_nothing_saved_yet() -> None:
    chain = PartitionChain(memory(), 1, 0)
    assert load_newest(chain) is None
    claimed = chain.claim()
    restored = load_newest(chain)
    assert restored is not None
    assert (restored.manifest, restored.state, restored.tables) == (claimed, None, {})


def test_unknown_table_is_named() -> None:
    store = memory()
    saved = save(store, 1, {"totals": [Chunk(0, 0)]}, None)
    with pytest.raises(CorruptData, match="did you mean 'totals'"):
        load_tables(store, saved, ["total"])

"""Any one object of a real job's store, damaged in any way: what is loaded is what was saved, or an error names the object."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest
from distributed import Client, LocalCluster
from test_job_running import append, monthly, rows
from waiting import until

import flowstate as fs
from flowstate.errors import CorruptData, FlowstateError
from flowstate.sink.staging import read_staged
from flowstate.snapshot.cut import SavedCut, latest_cut
from flowstate.snapshot.job_record import JobChain, JobRecord
from flowstate.snapshot.partition_chain import PartitionChain
from flowstate.snapshot.record import SplitRecord, SplitRecords
from flowstate.snapshot.restore import Restored, load_newest
from flowstate.store import Store

PARTITIONS = 2
SCHEMA = pa.schema(
    {"customer": pa.string(), "kind": pa.string(), "amount": pa.decimal128(12, 2), "at": pa.timestamp("ms", "UTC")}
)


@dataclass(frozen=True)
class Loaded:
    """Everything that a run begins with."""

    job: JobRecord | None
    splits: dict[str, SplitRecord | None]
    partitions: dict[int, Restored]
    staged: dict[str, bytes]
    cut: SavedCut | None


def load(store: Store) -> Loaded:
    job = JobChain(store).load()
    assert job is not None
    records = SplitRecords(store)
    splits = {name: records.load(name) for name in records.names()}
    partitions, staged = {}, {}
    for number in range(PARTITIONS):
        restored = load_newest(PartitionChain(store, job.generation, number))
        if restored is None:
            raise CorruptData("a partition that had a state has none", partition=number)
        partitions[number] = restored
        for each in restored.manifest.staged:
            try:
                staged[each.path] = read_staged(store, each)
            except FileNotFoundError as error:  # as a sink says it
                raise CorruptData("staged output is gone", object=each.path) from error
    return Loaded(job, splits, partitions, staged, latest_cut(store, skip_damaged=True))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a job that ran for some saves and cuts, with output that is staged and not yet dropped, and an idle split."""
    folder = tmp_path_factory.mktemp("recorded")
    given = rows(4000)
    events = fs.scan_files(
        f"{folder}/log/*.jsonl", format="json", schema=SCHEMA, event_time="at", lateness="12h", follow=True
    )
    view = monthly(events)
    (folder / "log").mkdir()
    with (
        LocalCluster(n_workers=1, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
        fs.start(
            view,
            view.final().sink_parquet(folder / "out", partition_by="month", roll_bytes="1GB"),  # so that output stays staged
            snapshots=folder / "snapshots", every="200ms", idle_after="500ms", partitions=PARTITIONS, client=client,
        ) as job,
    ):  # fmt: skip
        append(folder / "log" / "idle.jsonl", given[5:15])
        for begin in range(0, 4000, 500):
            append(folder / "log" / "busy.jsonl", given[begin : begin + 500])
            count = begin + 510
            until(lambda count=count: events_of(job) == count)
        until(lambda: any(part["report"]["floors"] for part in job.status()["partitions"].values()))
        until(
            lambda: any(
                sink["open"] for part in job.status()["partitions"].values() for sink in part["report"]["sinks"]
            )
        )
        until(lambda: all(part["report"]["snapshot"]["version"] > 4 for part in job.status()["partitions"].values()))
    return folder / "snapshots"


def events_of(job: fs.Job) -> int:
    return int(job.sql("select coalesce(sum(events), 0)::bigint from monthly").fetchall()[0][0])


def damages(whole: bytes) -> dict[str, bytes | None]:
    middle = len(whole) // 2
    return {
        "flipped": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        "another bit": whole[:3] + bytes([whole[3] ^ 64]) + whole[4:],
        "truncated": whole[:-7],
        "emptied": b"",
        "deleted": None,
    }


def same_or_older(found: Loaded, true: Loaded) -> list[str]:
    """What was loaded is the truth: all that decides is exact; a state may be older, under the newest manifest, and says so. Returns
    what it said."""
    assert found.job == true.job
    assert found.splits == true.splits
    assert found.staged == true.staged
    said = []
    for number, restored in found.partitions.items():
        wanted = true.partitions[number]
        assert restored.manifest == wanted.manifest
        said += restored.damaged
        if restored.version != wanted.version:
            assert restored.version < wanted.version
            assert restored.damaged
        else:
            assert restored.state == wanted.state
            assert restored.tables == wanted.tables
    return said


def test_any_one_object(recorded: Path) -> None:
    store = Store.open(recorded)
    true = load(store)
    assert not same_or_older(true, true)
    kinds = dict.fromkeys(["manifest", "copy", "segment", "staged", "split", "job", "cut"], 0)
    exact = 0
    for path in sorted(each for each in recorded.rglob("*") if each.is_file()):
        name = str(path.relative_to(recorded))
        kinds[kind_of(name)] += 1
        whole = path.read_bytes()
        for how, content in damages(whole).items():
            if content is None:
                path.unlink()
            else:
                path.write_bytes(content)
            said, error = attempt(store, true)
            if error is None:
                exact += 1
                if kind_of(name) == "segment" and needed(true, name):
                    assert any(name in each for each in said), (name, how)
            else:
                assert name in str(error), (name, how, error)
                assert kind_of(name) == "staged", (name, how, error)
            path.write_bytes(whole)
    assert all(kinds.values()), kinds
    assert exact >= 5 * (sum(kinds.values()) - kinds["staged"])  # whatever happens to anything else
    assert not same_or_older(load(store), true)


def attempt(store: Store, true: Loaded) -> tuple[list[str], FlowstateError | None]:
    try:
        return same_or_older(load(store), true), None
    except FlowstateError as error:
        return [], error


def kind_of(name: str) -> str:
    if ".copy." in name:
        return "copy"
    if "/chain/" in name:
        return "manifest"
    if "/stage/" in name:
        return "staged"
    if name.endswith(".arrows"):
        return "segment"
    return {"splits": "split", "job": "job", "cuts": "cut", "live": "copy"}[name.split("/")[0]]


def needed(true: Loaded, name: str) -> bool:
    return any(each.state is not None and name in each.state.segments for each in true.partitions.values())

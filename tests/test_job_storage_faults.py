"""A job whose snapshot store is damaged, full, slow or away: it goes on applying and answering, says what is wrong, and catches up."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest
import waiting
from distributed import Client
from s3_server import S3Server, s3_server
from test_job_running import SCHEMA, answered, append, expected, monthly, rows

import flowstate as fs
from flowstate.snapshot.chain import Chain
from flowstate.snapshot.partition_chain import PartitionChain
from flowstate.store import Store
from flowstate.testing.tormentor import SmallDisk

PARTITIONS = 2
until = partial(waiting.until, seconds=40.0, pause=0.05)

RUNNING: list[Watched] = []


@pytest.fixture(autouse=True)
def _no_job_is_left() -> Iterator[None]:
    yield
    for each in RUNNING:
        with contextlib.suppress(fs.FlowstateError):
            each.job.stop(snapshot=False)
    RUNNING.clear()


class Watched:
    """A job over a folder of growing files, with invoices of closed months: what it says, and what came out."""

    def __init__(self, folder: Path, client: Client, snapshots: str, *, sink: bool = True, **options: Any) -> None:
        self.folder, self.sent = folder, list[dict[str, Any]]()
        (folder / "log").mkdir(exist_ok=True)
        events = fs.scan_files(
            f"{folder}/log/*.jsonl", format="json", schema=SCHEMA, event_time="at", lateness="12h", follow=True
        )
        view = monthly(events)
        flows = [view, view.final().sink_parquet(folder / "out", partition_by="month")] if sink else [view]
        self.start: Callable[..., fs.Job] = lambda **more: fs.start(
            *flows,
            snapshots=snapshots,
            client=client,
            partitions=PARTITIONS,
            every="300ms",
            idle_after="60s",
            **(options | more),
        )
        self.job = self.start()
        RUNNING.append(self)

    def send(self, given: list[dict[str, Any]]) -> None:
        append(self.folder / "log" / "events.jsonl", given)
        self.sent += given

    def caught_up(self) -> bool:
        return answered(self.job.to_table("monthly")) == expected(self.sent)

    def await_all(self) -> None:
        until(self.caught_up, says=self.job.status)

    def apply(self, given: list[dict[str, Any]]) -> None:
        """Send, and wait until the totals have it."""
        self.send(given)
        self.await_all()

    def problems(self) -> str:
        status = self.job.status()
        return str([status["problems"], *(each["report"].get("problems") for each in status["partitions"].values())])

    def versions(self) -> list[int]:
        parts = self.job.status()["partitions"].values()
        return [each["report"].get("snapshot", {}).get("version", 0) for each in parts]

    def await_saved(self) -> None:
        """Whatever has been applied by now is saved."""
        before = self.versions()
        self.send(self.sent[-1:])
        until(
            lambda: (
                all(new > old for new, old in zip(self.versions(), before, strict=True))
                and self.problems() == "[{}, {}, {}]"
            ),
            says=self.job.status,
        )

    def finish(self) -> None:
        """The end of the input: every total and every invoice is exact."""
        self.job.drain(timeout=60)
        assert self.caught_up()
        self.job.stop()
        published = ds.dataset(self.folder / "out", partitioning="hive").to_table().to_pylist()
        keys = [(row["customer"], str(row["month"])[:10]) for row in published]
        totals = {(name, str(month.date())): total for (name, month), total in expected(self.sent).items()}
        assert sorted(map(str, keys)) == sorted(map(str, totals)), "an invoice is missing, or there twice"
        assert {key: (row["total"], row["events"]) for key, row in zip(keys, published, strict=True)} == totals


# damage


def spoil(store: Store, name: str, how: str) -> None:
    path = Path(store.url) / name
    if how == "delete":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-9])


def test_a_lost_manifest_costs_nothing(client: Client, tmp_path: Path) -> None:
    """The newest manifest of each partition is deleted, or cut short, while nobody runs: output is not written again, and it is said."""
    watched = Watched(tmp_path, client, str(tmp_path / "snapshots"))
    given = rows(4000)
    watched.apply(given[:2000])
    until(lambda: any((tmp_path / "out").glob("month=*/*")))
    watched.job.stop()
    store = Store.open(tmp_path / "snapshots")
    for partition, how in enumerate(["delete", "cut"]):
        chain = PartitionChain(store, 1, partition).chain
        spoil(store, chain.name(chain.newest()), how)
    for split in store.list("splits"):
        chain = Chain(store, f"splits/{split}")
        spoil(store, chain.name(chain.newest()), "delete")
    spoil(store, Chain(store, "job").name(1), "delete")
    watched.job = watched.start()
    watched.apply(given[2000:])
    damaged = [each["report"]["damaged"] for each in watched.job.status()["partitions"].values()]
    assert "its copy is used" in damaged[0][0] and "not what was written" in damaged[1][0], damaged
    watched.finish()


def test_a_manifest_that_is_lost_twice_is_waited_for(client: Client, tmp_path: Path) -> None:
    """Nobody knows what the sinks were given: the job does not come up, and says what can be done. Restored, it goes on."""
    watched = Watched(tmp_path, client, str(tmp_path / "snapshots"))
    given = rows(3000)
    watched.apply(given[:2000])
    watched.job.stop()
    store = Store.open(tmp_path / "snapshots")
    chain = PartitionChain(store, 1, 0).chain
    newest = chain.newest()
    backup = store.read(chain.name(newest))
    for name in (chain.name(newest), chain.copy_name(newest)):
        spoil(store, name, "cut")
    with pytest.raises(
        fs.Unavailable, match=r"copy are damaged.*restore one of the two objects from a backup"
    ) as caught:
        watched.start(timeout=6)
    assert chain.name(newest) in str(caught.value)
    (tmp_path / "snapshots" / chain.name(newest)).write_bytes(backup)
    watched.job = watched.start()
    watched.apply(given[2000:])
    watched.finish()


def test_without_sinks_a_manifest_that_is_lost_twice_is_read_again(client: Client, tmp_path: Path) -> None:
    watched = Watched(tmp_path, client, str(tmp_path / "snapshots"), sink=False)
    given = rows(3000)
    watched.apply(given[:2000])
    watched.job.stop()
    store = Store.open(tmp_path / "snapshots")
    chain = PartitionChain(store, 1, 0).chain
    newest = chain.newest()
    for name in (chain.name(newest), chain.copy_name(newest)):
        spoil(store, name, "cut")
    watched.job = watched.start()
    watched.apply(given[2000:])
    status = watched.job.status()["partitions"]["0"]["report"]
    assert chain.name(newest) in str(status["damaged"])
    watched.job.stop()


# full


def test_a_full_disk(client: Client, tmp_path: Path, small_disk: Callable[[int], SmallDisk]) -> None:
    given = rows(6000)
    disk = small_disk(24 << 20)
    watched = Watched(tmp_path, client, str(disk.folder / "snapshots"))
    watched.apply(given[:2000])
    watched.await_saved()
    disk.fill()
    watched.send(given[2000:4000])
    until(lambda: "no space left; free some" in watched.problems(), says=watched.job.status)
    watched.await_all()
    disk.clear()
    watched.apply(given[4000:])
    watched.await_saved()
    watched.finish()


# slow, and away


@pytest.fixture
def server() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.mark.slow
@pytest.mark.s3
def test_s3_hangs_for_15_seconds(client: Client, tmp_path: Path, server: S3Server) -> None:
    given = rows(6000)
    watched = Watched(tmp_path, client, f"{server.bucket('hangs')}/job", storage_options=server.storage_options)
    watched.apply(given[:2000])
    watched.await_saved()
    assert server.tree is not None
    with server.tree.root.frozen():
        began = time.monotonic()
        watched.apply(given[2000:4000])
        assert time.monotonic() - began < 10, "applying waited for the store"
        longest = 0.0
        while time.monotonic() - began < 15:
            asked = time.monotonic()
            assert watched.caught_up()
            longest = max(longest, time.monotonic() - asked)
            time.sleep(0.1)
        assert longest < 3
    watched.apply(given[4000:])
    watched.await_saved()
    watched.finish()


@pytest.mark.slow
@pytest.mark.s3
def test_s3_is_killed_and_comes_back(client: Client, tmp_path: Path, server: S3Server) -> None:
    given = rows(6000)
    watched = Watched(tmp_path, client, f"{server.bucket('dies')}/job", storage_options=server.storage_options)
    watched.apply(given[:2000])
    watched.await_saved()
    server.kill()
    watched.apply(given[2000:4000])
    until(lambda: "S3 does not answer" in watched.problems(), says=watched.job.status)
    assert watched.caught_up()
    server.start()
    watched.apply(given[4000:])
    watched.await_saved()
    watched.finish()

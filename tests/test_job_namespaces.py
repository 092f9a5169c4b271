"""Workers as hosts of their own, whose link goes down: the job goes on without them, and what is cut off neither writes nor pretends.

The log, the snapshots and the invoices are in a folder that all hosts share, as over a network file system that survives: the worst case,
since a worker that is cut off from everybody could still write there.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import waiting
from job_under_test import invoices, view_totals

import flowstate as fs
from flowstate.snapshot.partition_chain import PartitionChain
from flowstate.store import Store
from flowstate.testing import billing
from flowstate.testing.tormentor import DaskCluster, NetworkHost, PrivateNetwork, ProcessTree

REASON = PrivateNetwork.missing()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(REASON is not None, reason=str(REASON)),
]
PROGRAMS = Path(__file__).resolve().parent
VIEW = "monthly_subtotals"
RATE = 400.0
LEASE = 2.0
until = partial(waiting.until, seconds=40.0, pause=0.05)


class JobOnHosts:
    """Three workers on three hosts, the scheduler and the driver in the hub, and events that keep coming."""

    def __init__(self, folder: Path, seed: int, stack: ExitStack) -> None:
        self.folder = folder
        self.network = PrivateNetwork()
        stack.callback(self.network.close)
        self.hosts = [self.network.host(f"worker{number}") for number in range(3)]
        self.cluster = DaskCluster(folder / "dask", hub=self.network.hub, hosts=self.hosts)
        stack.callback(self.cluster.close)
        self.log, self.seed = billing.FileLog(folder / "log", splits=3), seed
        self.log.begin(billing.events(random.Random(seed)))
        self.stopping, self.sent = threading.Event(), 0
        program = [
            sys.executable,
            str(PROGRAMS / "namespace_job.py"),
            self.cluster.address,
            "3",
            f"{folder}/log/*.jsonl",
            str(folder),
        ]
        paths = {"PYTHONPATH": ":".join(each for each in sys.path if each)}
        command = self.network.hub.command(*program)
        self.driver = ProcessTree(command, folder / "driver.log", environment=paths, talks=True)
        stack.callback(self.driver.close)
        assert self.driver.hear() == "up", self.driver.log.read_text()[-3000:]
        self.producing = threading.Thread(target=self._produce, daemon=True)
        self.producing.start()
        stack.callback(self.stopping.set)
        until(
            lambda: all(each["report"].get("snapshot", {}).get("version", 0) > 3 for each in self.partitions().values())
        )

    def _produce(self) -> None:
        self.sent = self.log.append(
            billing.events(random.Random(self.seed)), events_per_second=RATE, stop=self.stopping
        )

    def ask(self, line: str) -> Any:
        said = self.driver.ask(line)
        assert said, self.driver.log.read_text()[-3000:]
        return json.loads(said)

    def partitions(self) -> dict[str, Any]:
        return dict(self.ask("status")["partitions"])

    def host_of(self, address: str) -> NetworkHost:
        return next(each for each in self.hosts if each.address in address)

    def live_without(self, host: NetworkHost) -> bool:
        found = self.partitions().values()
        return all(each["state"] == "live" and each["worker"] and host.address not in each["worker"] for each in found)

    def flight(self, host: NetworkHost) -> str:
        """The Flight address of the worker on a host that owns something."""
        return str(
            next(location for _, _, location in self.ask("directory") if location and f"//{host.address}:" in location)
        )

    def asker(self, host: NetworkHost, stack: ExitStack) -> ProcessTree:
        """A plain Flight client on the host itself, connected to its worker."""
        command = host.command(sys.executable, str(PROGRAMS / "flight_asker.py"), self.flight(host), VIEW)
        asker = ProcessTree(command, self.folder / "asker.log", talks=True)
        stack.callback(asker.close)
        assert int(asker.hear().split()[1]) > 0, asker.log.read_text()[-2000:]
        return asker

    def finish(self) -> list[billing.BillableEvent]:
        """Drain and stop; what was sent."""
        self.stopping.set()
        self.producing.join(20)
        assert self.ask("drain") == "done"
        assert self.ask("stop") == "done"
        count = sum(path.read_bytes().count(b"\n") for path in self.log.paths)
        events = billing.events(random.Random(self.seed))
        return [next(events) for _ in range(count)]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def owning_host(job: JobOnHosts) -> tuple[NetworkHost, list[str]]:
    """A host that owns some customers but not all, and they."""
    by_partition: dict[int, list[str]] = {}
    for customer in billing.MONTHLY_CENTS:
        by_partition.setdefault(job.ask(f"customer {customer}")["partition"], []).append(customer)
    by_host: dict[str, list[str]] = {}
    for number, each in job.partitions().items():
        by_host.setdefault(job.host_of(each["worker"]).address, []).extend(by_partition.get(int(number), []))
    address = next(each for each, customers in by_host.items() if 0 < len(customers) < len(billing.MONTHLY_CENTS))
    return job.host_of(address), by_host[address]


def check(folder: Path, sent: list[billing.BillableEvent]) -> None:
    """Every total and every invoice is exactly what was sent."""
    expected = billing.customer_totals(sent)
    with fs.open_snapshot(folder / "snapshots") as saved:
        assert view_totals(saved, VIEW) == expected
        assert saved.sql(f"select count(*) from {VIEW}_late").fetchall() == [(0,)]
    assert invoices(folder, VIEW) == sorted((key, month, total) for (key, month), total in expected.items())


def check_epochs(folder: Path) -> None:
    """In no chain does an older incarnation write after a newer one has begun."""
    store = Store.open(folder / "snapshots")
    for partition in range(4):
        chain = PartitionChain(store, 1, partition)
        epochs = [chain.read(version).epoch for version in chain.chain.versions()]
        assert epochs == sorted(epochs), (partition, epochs)


def test_a_host_is_cut_off_for_good(tmp_path: Path, stack: ExitStack) -> None:
    job = JobOnHosts(tmp_path, 11, stack)
    lost, theirs = owning_host(job)
    others = [each for each in billing.MONTHLY_CENTS if each not in theirs]
    before = {each: job.ask(f"customer {each}") for each in billing.MONTHLY_CENTS}
    asker = job.asker(lost, stack)
    assert {each["origin"] for each in json.loads(asker.ask("now"))} == {"live"}

    lost.cut()
    cut = time.monotonic()
    for customer in others:  # nobody else stops
        found = job.ask(f"customer {customer}")
        assert found["origin"] == "live"
        assert found["epoch"] == before[customer]["epoch"]
    answers: list[tuple[float, list[dict[str, Any]]]] = []
    while time.monotonic() - cut < LEASE + 1.0:
        answers.append((time.monotonic() - cut, json.loads(asker.ask("now"))))
        time.sleep(0.05)
    until(lambda: job.live_without(lost))
    back = time.monotonic() - cut
    for customer in theirs:
        found = job.ask(f"customer {customer}")
        assert found["origin"] == "live"
        assert found["epoch"] > before[customer]["epoch"]
    seen = {each: job.ask(f"customer {each}")["events"] for each in billing.MONTHLY_CENTS}
    until(
        lambda: all(job.ask(f"customer {each}")["events"] > seen[each] for each in seen)
    )  # what they read, somebody else does

    # Cut off, it holds its lease to the end, and calls nothing live after it: it refuses, or says that what it gives is saved and old.
    for passed, parts in answers:
        for part in parts:
            assert "error" in part or part["origin"] == "saved" or passed < LEASE + 0.3, (passed, part)
    assert all("error" in part or part["origin"] == "saved" for part in json.loads(asker.ask("now")))
    print(f"partitions of the lost host were live elsewhere {back:.1f} s after the cut")

    check(tmp_path, job.finish())
    check_epochs(tmp_path)


def test_a_link_is_down_for_five_seconds(tmp_path: Path, stack: ExitStack) -> None:
    job = JobOnHosts(tmp_path, 12, stack)
    lost, theirs = owning_host(job)
    before = {each: job.ask(f"customer {each}") for each in theirs}
    asker = job.asker(lost, stack)
    zombies = [each for service in job.cluster.workers for each in service.members() if "spawn_main" in each.command]
    lost.cut()
    time.sleep(5)
    lost.join()
    until(lambda: all(each["state"] == "live" for each in job.partitions().values()))
    for customer in theirs:
        found = job.ask(f"customer {customer}")
        assert found["origin"] == "live"
        assert found["epoch"] > before[customer]["epoch"]
    # Whoever was cut off ends, or serves nothing of what it had: an epoch that is over answers to nobody.
    current = {number: epoch for number, epoch, _ in job.ask("directory")}
    for part in json.loads(asker.ask("now")):
        assert "error" in part or part["origin"] == "saved" or part["epoch"] in current.values(), part
    assert sum(each.alive for each in zombies) <= 3
    until(lambda: len(job.ask("names")) == 3)  # the host is of use again
    check(tmp_path, job.finish())
    check_epochs(tmp_path)

"""What is done to the billing job, scenario by scenario. `scenarios.py` runs them and makes the table."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.billing_run import CUSTOMERS, VIEW, BillingRun, Reckoning, replaced_by_a_file, seen, until
from flowstate.testing import billing
from flowstate.testing.servers.kafka import KafkaBroker
from flowstate.testing.tormentor import PrivateNetwork, SmallDisk, cut_connections, sockets

if TYPE_CHECKING:
    from benchmarks.scenarios import Row

WATCHED = 5.0  # seconds of answers after a fault


@dataclass
class Fault:
    """What a torment did: since when (Unix time), to which keys, and where invoices lie if not where they should."""

    since: float
    affected: Sequence[str] = ()
    notes: list[str] = field(default_factory=list)
    folders: dict[str, Sequence[Path]] | None = None


@dataclass(frozen=True)
class Torment:
    """`act` is given a running job and returns when it has done its worst and everything is up again."""

    killed: str
    act: Callable[[BillingRun, Any], Fault]
    missing: Callable[[], str | None] = lambda: None
    prepare: Callable[[Path, ExitStack], dict[str, Any]] | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __call__(self, folder: Path, bootstrap: str, row: Row, stack: ExitStack) -> Row:
        given = self.prepare(folder, stack) if self.prepare else {}
        tool = given.pop("tool", None)
        run = stack.enter_context(BillingRun(folder, given.pop("bootstrap", bootstrap), **{**self.options, **given}))
        try:
            time.sleep(2)
            fault = self.act(run, tool)
            settled = time.time()
            until(lambda: run.live_since(settled, [*CUSTOMERS, "sql"]), "every key is live again", 120)
            time.sleep(1)
            upto = time.time()
            found = run.finish(folders=fault.folders)
        except BaseException:
            with contextlib.suppress(Exception):
                print(json.dumps(run.status(), indent=1, default=str), file=sys.stderr)
            raise
        reckoned(row, found)
        asked = run.asked()
        surviving = [each for each in CUSTOMERS if each not in fault.affected]
        row.surviving_keys, row.affected_keys = len(surviving), len(fault.affected)
        since = fault.since - 0.5
        if surviving:
            here = seen(asked, surviving, since, upto)
            row.gap_surviving, row.live_surviving = here.gap * 1e3, here.gap_live * 1e3
            row.failed_surviving, row.oldest = len(here.failures), here.oldest
            row.notes += sorted({f"surviving key failed: {each}" for each in here.failures})[:2]
            row.notes += here.went_back[:1]
        if fault.affected:
            there = seen(asked, fault.affected, since, upto)
            row.gap_affected, row.live_affected = there.gap * 1e3, there.gap_live * 1e3
            row.failed_affected, row.oldest = len(there.failures), max(row.oldest, there.oldest)
            row.notes += sorted({f"affected key failed: {each}" for each in there.failures})[:1]
            row.notes += there.went_back[:1]
        sql = seen(asked, ["sql"], since, upto)
        row.notes.append(f"SQL over all keys: longest gap {sql.gap * 1e3:,.0f} ms, {len(sql.failures)} failed")
        row.notes += sorted(set(sql.failures))[:1]
        row.notes += fault.notes
        return row


def reckoned(row: Row, found: dict[str, Reckoning]) -> None:
    row.invoices = sum(each.rows for each in found.values())
    row.duplicates = sum(each.duplicates for each in found.values())
    row.lost = sum(each.lost for each in found.values())
    row.exact = all(each.exact for each in found.values())
    if wrong := sum(each.wrong for each in found.values()):
        row.notes.append(f"{wrong} invoices with a WRONG total")


# what the ancestors show


def nothing(run: BillingRun, _: object) -> Fault:
    since = time.time()
    time.sleep(8)
    return Fault(since)


def late_events(run: BillingRun, _: object) -> Fault:
    since = time.time()
    time.sleep(8)
    newest, behind = 0, 0
    for event in list(run.producer.sent):
        month = event.at // billing.MONTH
        behind += month < newest
        newest = max(newest, month)
    job = run.attach()
    late = job.sql(f"select count(*) from {VIEW}_late").fetchall()[0][0]
    return Fault(since, notes=[f"{behind} events came after their month had ended, {late} of them too late"])


def live_updates(run: BillingRun, _: object) -> Fault:
    since = time.time()
    time.sleep(8)
    mine = [each.events for each in run.asked() if each.name == "Emma" and not each.error]
    rising = all(before <= after for before, after in pairwise(mine))
    return Fault(
        since, notes=[f"Emma was shown {len(set(mine))} different totals, {'only rising' if rising else 'NOT rising'}"]
    )


def worker_killed(run: BillingRun, _: object) -> Fault:
    number, keys = busiest(run)
    since = time.time()
    run.cluster.worker_process(number).kill()
    time.sleep(WATCHED)
    return Fault(since, keys)


def machine_lost(run: BillingRun, _: object) -> Fault:
    number, keys = busiest(run)
    since = time.time()
    run.cluster.workers[number].kill(for_good=True)
    time.sleep(WATCHED)
    return Fault(since, keys)


def all_workers_killed(run: BillingRun, _: object) -> Fault:
    since = time.time()
    for number, each in enumerate(run.cluster.workers):
        each.kill(for_good=number > 0)
    time.sleep(WATCHED)
    until(lambda: run.live_since(time.time() - 1), "one worker has everything")
    return Fault(since, CUSTOMERS)


def scheduler_killed(run: BillingRun, _: object) -> Fault:
    before, since = run.status()["run"], time.time()
    run.cluster.scheduler.kill()
    until(lambda: run.up() and run.status()["run"] > before, "another run is up", 120)
    time.sleep(1)
    return Fault(since, CUSTOMERS)


def sink_away(run: BillingRun, _: object) -> Fault:
    invoices, archive = run.folder / "invoices", run.folder / "invoices-archive"
    until(invoices.exists, "there are invoices")
    since = time.time()
    with replaced_by_a_file(invoices, archive):
        time.sleep(8)
        waiting = sum(each["report"].get("unpublished", 0) for each in run.status()["partitions"].values())
    archived = len(list(archive.glob("**/*.parquet")))
    time.sleep(2)
    notes = [f"{archived} files were archived, {waiting} outputs waited while the folder was away"]
    return Fault(since, notes=notes, folders={"invoices": [archive, invoices]})


# what they do not


def hung_worker(run: BillingRun, _: object) -> Fault:
    number, keys = busiest(run)
    victim, since = run.cluster.worker_process(number), time.time()
    victim.freeze()
    try:
        until(lambda: run.live_since(since + 1, keys), "the keys of the hung worker are live again", 30)
        note = f"the hung process {'was killed' if not victim.alive else 'is still there'}"
    except AssertionError:
        note = "it was NOT replaced within 30 s"
    finally:
        victim.thaw()
    time.sleep(1)
    return Fault(since, keys, [note])


def broker_killed(run: BillingRun, broker: KafkaBroker) -> Fault:
    since = time.time()
    broker.kill()
    time.sleep(4)
    broker.start()
    sent = len(run.producer.sent)
    until(lambda: applied(run) >= sent, "what was produced meanwhile is there", 60)
    return Fault(since)


def sockets_cut(run: BillingRun, _: object) -> Fault:
    addresses = [str(each["location"]) for each in _workers(run)]
    since = time.time()
    ends = 0
    for _ in range(5):
        ends += sum(cut_connections(int(address.rsplit(":", 1)[1])) for address in addresses)
        time.sleep(1)
    return Fault(since, notes=[f"{ends} connections between workers and from readers were reset, in 5 rounds"])


def link_cut(run: BillingRun, network: PrivateNetwork) -> Fault:
    number, keys = busiest(run)
    host = next(each for each in network.hosts if each.name == f"worker{number}")
    since = time.time()
    host.cut()
    time.sleep(5)
    host.join()
    time.sleep(WATCHED)
    return Fault(since, keys)


def link_lost(run: BillingRun, network: PrivateNetwork) -> Fault:
    number, keys = busiest(run)
    since = time.time()
    next(each for each in network.hosts if each.name == f"worker{number}").cut()
    until(lambda: run.live_since(since + 1, keys), "the keys of the lost host are live again", 60)
    time.sleep(1)
    return Fault(since, keys)


def store_full(run: BillingRun, disk: SmallDisk) -> Fault:
    since = time.time()
    disk.fill()
    time.sleep(6)
    told = [
        text for each in run.status()["partitions"].values() for text in each["report"].get("problems", {}).values()
    ]
    disk.clear()
    time.sleep(3)
    left = [
        text for each in run.status()["partitions"].values() for text in each["report"].get("problems", {}).values()
    ]
    notes = [
        f"status said: {told[0][:120]}" if told else "status said NOTHING",
        f"{len(left)} problems left afterwards",
    ]
    return Fault(since, notes=notes)


def months_at_once(run: BillingRun, _: object) -> Fault:
    since = time.time()
    time.sleep(6)
    job = run.attach()
    totals = job[VIEW]["Emma"]["total"].to_pylist()
    even = sum(each == 100 for each in totals)
    return Fault(since, notes=[f"one lookup of Emma: {len(totals)} months, {even} of them even at 100.00"])


def no_job(run: BillingRun, _: object) -> Fault:
    since = time.time()
    run.end_all()
    time.sleep(5)
    run.begin_all()
    return Fault(since, CUSTOMERS)


def applied(run: BillingRun) -> int:
    return int(run.attach().sql(f"select coalesce(sum(events), 0)::bigint from {VIEW}").fetchall()[0][0])


def busiest(run: BillingRun) -> tuple[int, list[str]]:
    """A worker that owns some keys and not all of them, and they."""
    found = {number: keys for number, keys in run.keys_by_worker().items() if 0 < len(keys) < len(CUSTOMERS)}
    number = max(found, key=lambda each: len(found[each]))
    return number, found[number]


def _workers(run: BillingRun) -> list[dict[str, Any]]:
    return [{"location": location} for location in set(run.status()["workers"].values())]


def own_broker(folder: Path, stack: ExitStack) -> dict[str, Any]:
    broker = KafkaBroker(folder / "kafka")
    stack.callback(broker.kill)
    broker.format()
    broker.start()
    return {"bootstrap": broker.bootstrap, "tool": broker}


def own_network(folder: Path, stack: ExitStack) -> dict[str, Any]:
    """This process moves into the hub, with the broker and the scheduler; each worker is a host."""
    network = PrivateNetwork()
    stack.callback(network.close)
    hosts = [network.host(f"worker{number}") for number in range(3)]
    network.hub.enter()
    broker = KafkaBroker(folder / "kafka", host=network.hub.address)
    stack.callback(broker.kill)
    broker.format()
    broker.start()
    return {"bootstrap": broker.bootstrap, "tool": network, "hub": network.hub, "hosts": hosts}


def small_disk(folder: Path, stack: ExitStack) -> dict[str, Any]:
    disk = SmallDisk(folder / "small", 64 << 20)
    stack.callback(disk.close)
    return {"snapshots": disk.folder / "snapshots", "tool": disk}


TORMENTS: dict[str, Torment] = {
    "invoices": Torment("nothing", nothing),
    "late events": Torment("nothing", late_events),
    "live updates": Torment("nothing", live_updates),
    "worker": Torment("SIGKILL of the worker with the most keys; its nanny starts another", worker_killed),
    "machine": Torment("SIGKILL of a worker and its nanny, for good", machine_lost),
    "all workers": Torment("SIGKILL of all workers; one comes back", all_workers_killed),
    "scheduler": Torment("SIGKILL of the Dask scheduler", scheduler_killed),
    "sink": Torment("the invoice folder is moved away for 8 s, a file stands in its place", sink_away),
    "hung worker": Torment("SIGSTOP of the worker with the most keys", hung_worker),
    "broker": Torment("SIGKILL of the Kafka broker, back after 4 s", broker_killed, prepare=own_broker),
    "sockets": Torment("reset of all connections of all workers, five times", sockets_cut, missing=sockets.missing),
    "link for 5 s": Torment(
        "the link of a worker's host is down for 5 s", link_cut, PrivateNetwork.missing, own_network
    ),
    "link for good": Torment(
        "the link of a worker's host is down for good", link_lost, PrivateNetwork.missing, own_network
    ),
    "store full": Torment("the disk of the snapshots is full for 6 s", store_full, SmallDisk.missing, small_disk),
    "several months": Torment("nothing", months_at_once),
    "no job": Torment("SIGKILL of every process of the job for 5 s", no_job),
}

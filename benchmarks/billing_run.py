"""The billing job on real processes, watched: a Dask cluster, ``flowstate run`` joined to it, a producer, a prober, and the reckoning."""

from __future__ import annotations

import contextlib
import json
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import confluent_kafka
import pyarrow.parquet as pq
from distributed import Client

import flowstate as fs
from benchmarks.billing_flow import SINKS
from flowstate.errors import FlowstateError
from flowstate.testing import billing
from flowstate.testing.tormentor import DaskCluster, NetworkHost, ProcessTree
from flowstate_flight.keys import key_batch, owners

ROOT = Path(__file__).resolve().parent.parent
VIEW = "monthly_subtotals"
CUSTOMERS = list(billing.MONTHLY_CENTS)


def until(condition: Callable[[], object], what: str, seconds: float = 60.0) -> None:
    """Ask again and again: what is awaited happens in other processes. Errors that pass count as not yet."""
    deadline, last = time.monotonic() + seconds, ""
    while True:
        try:
            if condition():
                return
        except (FlowstateError, OSError, TimeoutError) as error:
            last = str(error)
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {seconds:g} s {last}")
        time.sleep(0.02)


class Producer(threading.Thread):
    """Sends the events of a seed to a topic at `rate` a second. Its broker may come and go: it repeats, in order, without doubling."""

    def __init__(self, bootstrap: str, topic: str, splits: int, seed: int, rate: float) -> None:
        super().__init__(name="billing-producer", daemon=True)
        self.sent: list[billing.BillableEvent] = []
        self.failed: list[str] = []
        self._topic, self._splits, self._rate = topic, splits, rate
        self._events = billing.events(random.Random(seed))
        self._ending = threading.Event()
        self._producer = confluent_kafka.Producer(
            {
                "bootstrap.servers": bootstrap,
                "enable.idempotence": True,
                "linger.ms": 5,
                "message.timeout.ms": 300_000,
                "reconnect.backoff.max.ms": 500,
                "log_level": 0,
            }
        )

    def run(self) -> None:
        began = time.monotonic()
        while not self._ending.is_set():
            due = int((time.monotonic() - began) * self._rate)
            while len(self.sent) < due:
                self._send(next(self._events))
            self._producer.poll(0)
            self._ending.wait(0.01)
        month = self.sent[-1].at // billing.MONTH  # to the end of a month, so that all of them are even
        for event in self._events:
            if event.at // billing.MONTH > month + 1:
                break
            if event.at // billing.MONTH <= month:
                self._send(event)
        if self._producer.flush(60):
            self.failed.append("the broker did not take everything")

    def _send(self, event: billing.BillableEvent) -> None:
        split = billing.split_of(event.customer, self._splits)
        while True:
            try:
                self._producer.produce(
                    self._topic, event.json(), event.customer.encode(), split, on_delivery=self._delivered
                )
                break
            except BufferError:
                self._producer.poll(0.05)
        self.sent.append(event)

    def _delivered(self, error: object, _: object) -> None:
        if error is not None:
            self.failed.append(str(error))

    def end(self) -> list[billing.BillableEvent]:
        """Finish the month that is begun; everything that was sent."""
        self._ending.set()
        self.join(120)
        assert not self.failed, self.failed[:3]
        return self.sent


@dataclass(frozen=True)
class Asked:
    """One line of the prober."""

    began: float
    ended: float
    name: str
    error: str
    live: bool
    as_of: float
    epoch: int
    events: int
    months: int
    reached: int


@dataclass
class Seen:
    """What readers saw. Gaps in seconds, between the ends of answers that follow on each other; ages in seconds."""

    answers: int = 0
    failures: list[str] = field(default_factory=list)
    gap: float = 0.0
    gap_live: float = 0.0
    oldest: float = 0.0
    went_back: list[str] = field(default_factory=list)


def seen(asked: Sequence[Asked], names: Sequence[str], since: float, upto: float) -> Seen:
    """Over all of `names`: the longest of each."""
    total = Seen()
    for name in names:
        mine = [each for each in asked if each.name == name and since <= each.ended <= upto]
        last = last_live = since
        newest: Asked | None = None
        for each in mine:
            if each.error:
                total.failures.append(each.error)
                continue
            total.answers += 1
            total.gap, last = max(total.gap, each.ended - last), each.ended
            if name != "sql":
                total.oldest = max(total.oldest, each.ended - each.as_of)
            if each.live:
                total.gap_live, last_live = max(total.gap_live, each.ended - last_live), each.ended
                if newest is not None and newest.epoch == each.epoch and each.reached < newest.reached:
                    total.went_back.append(
                        f"{name} WENT BACK from {newest.reached} to {each.reached} in epoch {each.epoch}"
                    )
                newest = each
        total.gap, total.gap_live = max(total.gap, upto - last), max(total.gap_live, upto - last_live)
    return total


@dataclass(frozen=True)
class Reckoning:
    """Invoices against what was sent."""

    rows: int
    duplicates: int
    lost: int
    wrong: int

    @property
    def exact(self) -> bool:
        return not (self.duplicates or self.lost or self.wrong)


def invoices(folders: Sequence[Path], key: str) -> list[tuple[str, datetime, Decimal]]:
    """(key, start of month, total) of every row of every file under its final name."""
    found = []
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    for folder in folders:
        for path in sorted(folder.glob("**/*.parquet")):
            for row in pq.ParquetFile(path).read().to_pylist():
                end = (row["month_end"].replace(tzinfo=UTC) - epoch) // timedelta(milliseconds=1)
                found.append((row[key], epoch + timedelta(milliseconds=end - billing.MONTH), row["total"]))
    return found


def reckon(found: Sequence[tuple[str, datetime, Decimal]], expected: dict[tuple[str, datetime], Decimal]) -> Reckoning:
    rows = Counter((key, month) for key, month, _ in found)
    wrong = sum(expected.get((key, month)) != total for key, month, total in found)
    return Reckoning(len(found), len(found) - len(rows), len(expected.keys() - rows.keys()), wrong)


class BillingRun:
    """From nothing to a running job with a reader; `finish` drains it and reckons. A context manager that leaves nothing."""

    def __init__(
        self,
        folder: Path,
        bootstrap: str,
        *,
        workers: int = 3,
        partitions: int = 4,
        splits: int = 4,
        rate: float = 2000,
        seed: int = 1,
        every: str = "500ms",
        snapshots: Path | None = None,
        hub: NetworkHost | None = None,
        hosts: Sequence[NetworkHost] = (),
        settings: dict[str, str] | None = None,
        keep: str | None = None,
        pause: float = 0.03,
    ) -> None:
        self.folder, self.bootstrap, self.keep = folder, bootstrap, keep
        self.snapshots = snapshots or folder / "snapshots"
        self.topic = f"billable-events-{seed}-{time.time_ns()}"
        self._create_topic(splits)
        self.stack = contextlib.ExitStack()
        self._arguments = {"workers": workers, "hub": hub, "hosts": hosts, "settings": settings}
        self._command = [
            sys.executable, "-m", "flowstate.command", "run", "benchmarks.billing_flow:flow", "--every", every, "--access", "none",
            "--snapshots", str(self.snapshots), "--partitions", str(partitions),
        ]  # fmt: skip
        try:
            self.begin_all()
            self.producer = Producer(bootstrap, self.topic, splits, seed, rate)
            self.producer.start()
            asking = [
                sys.executable,
                "-m",
                "benchmarks.prober",
                str(self.snapshots),
                str(folder / "asked.jsonl"),
                VIEW,
                "0.02",
            ]
            said = folder / "logs" / "prober.log"
            self.prober = self.stack.enter_context(
                ProcessTree([*asking, *CUSTOMERS], said, environment=self.environment(), talks=True)
            )
            until(lambda: {each.name for each in self.asked() if each.live} >= {*CUSTOMERS}, "all keys are answered")
        except BaseException:
            self.close()
            raise

    def begin_all(self) -> None:
        """Cluster and ``flowstate run``, until the job is up."""
        self.job_stack = self.stack.enter_context(contextlib.ExitStack())
        self.cluster = self.job_stack.enter_context(DaskCluster(self.folder / "logs", **self._arguments))
        self.client = self.connect()
        self.cluster.wait_until_up(lambda: len(self.client.scheduler_info(n_workers=-1)["workers"]))
        command = [*self._command, "--scheduler", self.cluster.address]
        said = self.folder / "logs" / "run.log"
        self.command = self.job_stack.enter_context(ProcessTree(command, said, environment=self.environment()))
        until(lambda: self.command.ended or self.up(), "the job comes up", 150)
        assert not self.command.ended, said.read_text()[-3000:]

    def end_all(self) -> None:
        """SIGKILL of everything that belongs to the job. Its readers and its log go on."""
        for each in [*self.cluster.workers, self.cluster.scheduler]:
            each.kill(for_good=True)
        self.command.kill()
        self.job_stack.close()

    def environment(self) -> dict[str, str]:
        paths = [str(ROOT), *(each for each in sys.path if each)]
        return {
            "BILLING_KAFKA": f"{self.bootstrap}/{self.topic}",
            "BILLING_OUT": str(self.folder),
            **({"BILLING_KEEP": self.keep} if self.keep else {}),
            "PYTHONPATH": ":".join(dict.fromkeys(paths)),
        }

    def _create_topic(self, splits: int) -> None:
        from confluent_kafka.admin import AdminClient
        from confluent_kafka.cimpl import NewTopic

        admin = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0})
        admin.create_topics([NewTopic(self.topic, splits, 1)])[self.topic].result(30)

    def connect(self) -> Client:
        client: list[Client] = []
        until(
            lambda: client.append(Client(self.cluster.address, timeout=5, set_as_default=False)) is None,
            "the scheduler comes up",
            120,
        )
        self.job_stack.callback(lambda: client[0].close(timeout=1))
        return client[0]

    # what it does

    def attach(self) -> fs.Job:
        if self.client.status != "running":  # its scheduler died, and it has given up waiting for another
            self.client = self.connect()
        return fs.attach(client=self.client)

    def status(self) -> dict[str, Any]:
        return self.attach().status()

    def up(self) -> bool:
        return bool(self.status()["ready"])

    def worker_of(self, customer: str) -> int:
        """The number of the worker that owns a customer now."""
        job = self.attach()
        directory = job._reader.directory()
        info = directory.views[VIEW]
        number = next(iter(owners(directory, info, key_batch(info, customer))))
        return self.number_of(job.status()["partitions"][str(number)]["worker"])

    def number_of(self, address: str) -> int:
        name = self.client.scheduler_info(n_workers=-1)["workers"][address]["name"]
        return int(str(name).removeprefix("worker-"))

    def keys_by_worker(self) -> dict[int, list[str]]:
        found: dict[int, list[str]] = {number: [] for number in range(len(self.cluster.workers))}
        for customer in CUSTOMERS:
            found[self.worker_of(customer)].append(customer)
        return found

    def asked(self) -> list[Asked]:
        path = self.folder / "asked.jsonl"
        if not path.exists():
            return []
        return [Asked(*json.loads(line)) for line in path.read_text().splitlines() if line.endswith("]")]

    def live_since(self, since: float, names: Sequence[str] = CUSTOMERS) -> bool:
        """Whether each of `names` was answered live by a question that was asked after `since`."""
        return {each.name for each in self.asked() if each.live and each.began > since} >= {*names}

    def stop_probing(self) -> list[Asked]:
        if self.prober.process.stdin is not None and not self.prober.process.stdin.closed:
            self.prober.process.stdin.close()
            self.prober.process.wait(30)
        return self.asked()

    def finish(self, *, folders: dict[str, Sequence[Path]] | None = None, timeout: float = 120) -> dict[str, Reckoning]:
        """No more events; every window closed, every invoice written; then count."""
        sent = self.producer.end()
        until(lambda: self.command.ended or self.drained(), "everything is written", timeout)
        code = self.command.process.wait(60)  # it stops the job and ends by itself
        assert code == 0, f"flowstate run ended with {code}: {self.command.log.read_text()[-2000:]}"
        self.stop_probing()
        expected = {"invoices": billing.customer_totals(sent), "type_totals": billing.kind_totals(sent)}
        places = folders or {}
        return {
            sink: reckon(invoices(places.get(sink, [self.folder / sink]), key), expected[sink])
            for sink, key in SINKS.items()
        }

    def drained(self) -> bool:
        job = self.attach()
        job.drain(timeout=5)
        return True

    def close(self) -> None:
        self.stack.close()

    def __enter__(self) -> BillingRun:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@contextlib.contextmanager
def replaced_by_a_file(folder: Path, archive: Path) -> Iterator[None]:
    """The folder moves away, and where it was stands a file: nobody can write there."""
    folder.rename(archive)
    folder.write_text("not a folder\n")
    try:
        yield
    finally:
        folder.unlink()

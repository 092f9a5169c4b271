"""Every client asks a running job the same questions and gets the same answers: at rest, and while events stream in."""

from __future__ import annotations

import contextlib
import json
import random
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from clients import (
    VIEW,
    Adbc,
    AtLeast,
    Client,
    Go,
    Jdbc,
    OwnDuckDB,
    OwnReader,
    OwnSql,
    Pandas,
    PlainFlight,
    Polars,
    Rows,
    Sums,
)
from clients_http import Curl, FlightChanges, ServerSentEvents
from distributed import Client as Cluster
from flight_page import CHANGES, JSON
from pyarrow import flight

import flowstate as fs
from flowstate.view.answer import Answer

pytestmark = [pytest.mark.go, pytest.mark.timeout(600)]  # the first time, what is not Python is built and fetched
SCHEMA = pa.schema({"customer": pa.string(), "amount": pa.decimal128(12, 2), "at": pa.timestamp("ms", "UTC")})
BEGIN = datetime(2024, 1, 1, tzinfo=UTC)
CUSTOMERS = ["anna", "bob", "carl", "dora", "emma", "o'neill", "ünal"]


class Log:
    """A file that grows, with what it must amount to: for each key the total after each of its events."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.totals: dict[tuple[str, datetime], list[Decimal]] = defaultdict(lambda: [Decimal(0)])
        self.sums: dict[str, list[Decimal]] = defaultdict(lambda: [Decimal(0)])
        self.acknowledged: tuple[int, Counter[tuple[str, datetime]]] = (0, Counter())
        self._sent: Counter[tuple[str, datetime]] = Counter()
        self._random, self._at = random.Random(7), BEGIN
        self._stop = threading.Event()
        self._lock = threading.Lock()

    def append(self, count: int) -> None:
        """Some more events; they are acknowledged when they are in the file, with the place behind them."""
        text = b""
        with self._lock:
            for _ in range(count):
                customer, amount = self._random.choice(CUSTOMERS), Decimal(self._random.randint(-500, 5000)) / 100
                self._at += timedelta(minutes=7)
                month = self._at.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
                self.totals[customer, month].append(self.totals[customer, month][-1] + amount)
                self.sums[customer].append(self.sums[customer][-1] + amount)
                self._sent[customer, month] += 1
                text += f'{{"customer":"{customer}","amount":{amount},"at":"{self._at:%Y-%m-%dT%H:%M:%SZ}"}}\n'.encode()
        with self.path.open("ab") as file:
            file.write(text)
        self.acknowledged = self.path.stat().st_size, self.sent()

    def sent(self) -> Counter[tuple[str, datetime]]:
        """Events by key that are in the file, or soon will be."""
        with self._lock:
            return self._sent.copy()

    @contextlib.contextmanager
    def growing(self) -> Iterator[None]:
        self._stop.clear()
        thread = threading.Thread(target=self._grow)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _grow(self) -> None:
        while not self._stop.wait(0.01):
            self.append(10)

    def check(self, rows: Rows, least: Counter[Any], customers: list[str]) -> None:
        """Each row is what the key amounted to after some number of its events: at least what was acknowledged, at most what was sent."""
        most = self.sent()
        for (customer, month), (total, events) in rows.items():
            assert customer in customers
            assert least[customer, month] <= events <= most[customer, month]
            assert total == self.totals[customer, month][events]
        assert {key for key in least if key[0] in customers} <= set(rows)

    def check_sums(self, sums: Sums, least: Counter[Any]) -> None:
        """The same of a customer, whose rows are all in one partition."""
        least, most = by_customer(least), by_customer(self.sent())
        assert set(least) <= set(sums) <= set(most)
        for customer, (total, events) in sums.items():
            assert least[customer] <= events <= most[customer]
            assert total == self.sums[customer][events]


def by_customer(counts: Counter[Any]) -> Counter[Any]:
    found: Counter[Any] = Counter()
    for (customer, _), count in counts.items():
        found[customer] += count
    return found


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    log = Log(tmp_path_factory.mktemp("matrix") / "events.jsonl")
    log.append(3000)
    return log


@pytest.fixture(scope="module")
def job(client: Cluster, log: Log) -> Iterator[fs.Job]:
    events = fs.scan_files(log.path, schema=SCHEMA, event_time="at", lateness="12h", follow=True)
    view = events.group_by("customer", month=fs.window("at", every="1mo", grace="3d"))
    view = view.agg(total=fs.col("amount").sum(), events=fs.len()).view(VIEW)
    with fs.start(view, snapshots=log.path.parent / "snapshots", client=client, every="500ms", name="matrix") as job:
        yield job


@pytest.fixture(scope="module")
def gateway(job: fs.Job) -> Iterator[str]:
    with fs.gateway(job.address) as gateway:
        yield gateway.address


@pytest.fixture(scope="module")
def split(job: fs.Job) -> str:
    """The name of the log's split, as answers give it."""
    answer = Answer.of(job.to_table(VIEW).schema)
    assert answer is not None
    [split] = answer.parts[0].position
    return split


def made(name: str, job: fs.Job, gateway: str) -> Client:
    makers = {
        "pyarrow at a worker": lambda: PlainFlight(job.address, "matrix"),
        "pyarrow at a gateway": lambda: PlainFlight(gateway, "matrix"),
        "go at a worker": lambda: Go(job.address, "matrix"),
        "go at a gateway": lambda: Go(gateway, "matrix"),
        "mapping": lambda: OwnReader(job),
        "sql": lambda: OwnSql(job),
        "duckdb": lambda: OwnDuckDB(gateway),
        "adbc": lambda: Adbc(gateway),
        "pandas": lambda: Pandas(gateway),
        "polars": lambda: Polars(gateway),
        "jdbc": lambda: Jdbc(gateway),
        "curl": lambda: Curl(gateway),
        "events": lambda: ServerSentEvents(job.address),
        "changes": lambda: FlightChanges(job),
    }
    return makers[name]()


@pytest.mark.parametrize(
    "name",
    [
        "pyarrow at a worker",
        "pyarrow at a gateway",
        "go at a worker",
        "go at a gateway",
        "mapping",
        "sql",
        "duckdb",
        "adbc",
        "pandas",
        "polars",
        pytest.param("jdbc", marks=pytest.mark.jdbc),
        "curl",
        "events",
        "changes",
    ],
)
def test_the_same_question_gets_the_same_answer(name: str, job: fs.Job, gateway: str, split: str, log: Log) -> None:
    asking = made(name, job, gateway)
    with contextlib.closing(asking):
        at_rest(asking, {split: log.acknowledged[0]}, log)
        with log.growing():
            for customer in CUSTOMERS[:3]:
                place, least = log.acknowledged
                log.check(asking.one(customer, {split: place}), least, [customer])
                place, least = log.acknowledged
                log.check(asking.all({split: place}), least, CUSTOMERS)
                place, least = log.acknowledged
                sums = asking.grouped({split: place})
                log.check_sums(sums, least)
        at_rest(asking, {split: log.acknowledged[0]}, log)


def test_the_page_about_changes(job: fs.Job, gateway: str, split: str, log: Log) -> None:
    """Its code follows the view, of a worker by partition and of a gateway as a whole; and goes on where it ended."""
    for address, parts in ((job.address, 2), (gateway, 1)):
        with flight.connect(address) as client:
            said: dict[str, Any] = {"address": address, "client": client, "flight": flight, "json": json}
            said |= {"job": "matrix", "view": VIEW, "keys": ["customer", "month"], "upto": log.acknowledged[0]}
            exec(CHANGES, said)
            assert len(said["followed"]) == parts
            found = [row for rows, _ in said["followed"] for row in rows]
            whole = {key: (totals[-1], len(totals) - 1) for key, totals in log.totals.items()}
            assert {(row["customer"], row["month"]): (row["total"], row["events"]) for row in found} == whole
            assert len(found) == len(whole)

            [endpoint, *_] = client.get_flight_info(flight.FlightDescriptor.for_path(VIEW)).endpoints
            ticket = {**json.loads(endpoint.ticket.ticket), "changes": True, "resume": said["followed"][0][1]}
            with flight.connect(endpoint.locations[0] if endpoint.locations else address) as service:
                reader = service.do_get(flight.Ticket(json.dumps(ticket)))
                message = reader.read_chunk()
                told = json.loads(message.app_metadata.to_pybytes())
                assert told["kind"] == "position", "nothing has changed, so nothing is told anew"
                assert set(told) == set(JSON["change"])
                assert message.data.num_rows == 0
                reader.cancel()


def at_rest(asking: Client, at_least: AtLeast, log: Log) -> None:
    """All that was sent is in, and nothing is sent: every client gets just this."""
    whole = {key: (totals[-1], len(totals) - 1) for key, totals in log.totals.items()}
    assert asking.all(at_least) == whole
    for customer in CUSTOMERS:
        assert asking.one(customer, at_least) == {key: value for key, value in whole.items() if key[0] == customer}
    assert asking.grouped(at_least) == {each: (sums[-1], len(sums) - 1) for each, sums in log.sums.items()}

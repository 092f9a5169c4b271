"""What clients that read nothing cost the job: how it applies a backlog beside them, against without them, by turns.

    python -m benchmarks.slow_readers [--clients 50] [--rows 300000] [--keys 100000] [--pieces 4] [--repeat 3]

One worker process follows a file log; a gateway with HTTP is in this process. A turn opens its clients, appends the backlog twice, so that
they stand still and what they hold is copied, waits until nobody computes any more, and then times `pieces` more backlogs until they are
applied. The turns: scans and streams of changes of which nothing is ever read and whose connections take no more than 64 KB, so that
they stand still in the middle; SQL over the gateway of which one batch is read; and Server-Sent Events that nobody takes from the socket.
A service may refuse some of many: "open" are those that it has let in.

Each turn comes right after one without clients, and is compared with that one: by the worker's processor time per row, which other
programs disturb little, and by the clock, which they disturb much. "Speed" is that beside the clients to that alone: 1 is nothing lost.
The medians are recorded.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
from distributed import Client, LocalCluster
from pyarrow import flight

import flowstate as fs
from benchmarks.results import record
from flowstate_flight.flight_sql.messages import pack
from flowstate_flight.pool import STEADY
from flowstate_flight.protobuf import write
from flowstate_flight.ticket import Ticket

SCHEMA = pa.schema({"customer": pa.string(), "amount": pa.int64()})
FLOWING = "select a.* from totals a, range(1000)"


def backlog(rows: int, keys: int) -> bytes:
    chance = np.random.default_rng(1)
    pairs = zip(chance.integers(0, keys, rows).tolist(), chance.integers(1, 1000, rows).tolist(), strict=True)
    return "".join(f'{{"customer":"customer-{who:08d}","amount":{much}}}\n' for who, much in pairs).encode()


class Readers:
    """The clients of one turn, which come all at once; `opened` of them were let in."""

    def __init__(self, job: fs.Job, gateway: Any, count: int) -> None:
        self._job, self._gateway, self._count = job, gateway, count
        self._held = contextlib.ExitStack()
        self._streams: list[Any] = []
        self.opened = 0

    def none(self) -> None:
        """Nobody."""

    def scans(self) -> None:
        self._tickets(Ticket(self._job.name, "totals", 0))

    def changes(self) -> None:
        self._tickets(Ticket(self._job.name, "totals", 0, changes=True))

    def _tickets(self, ticket: Ticket) -> None:
        self._open(self._job.address, STEADY, lambda client: client.do_get(flight.Ticket(ticket.to_bytes())))

    def sql(self) -> None:
        command = flight.FlightDescriptor.for_command(pack("CommandStatementQuery", write([(1, FLOWING.encode())])))
        self._open(self._gateway.address, [], lambda client: _begun(client, command))

    def events(self) -> None:
        host, _, port = self._gateway.http_address.partition("//")[2].partition(":")
        clients = [
            self._held.enter_context(socket.create_connection((host, int(port)), timeout=20))
            for _ in range(self._count)
        ]
        for each in clients:
            each.sendall(f"GET /views/totals/changes HTTP/1.1\r\nhost: {host}\r\n\r\n".encode())
        self.opened = sum(each.recv(12, socket.MSG_PEEK).endswith(b"200") for each in clients)

    def _open(self, address: str, options: list[Any], begin: Callable[[flight.FlightClient], Any]) -> None:
        clients = [
            self._held.enter_context(flight.connect(address, generic_options=options)) for _ in range(self._count)
        ]

        def begun(client: flight.FlightClient) -> Any:
            try:
                return begin(client)
            except flight.FlightError:
                return None

        with ThreadPoolExecutor(self._count) as threads:
            self._streams = [each for each in threads.map(begun, clients) if each is not None]
        self.opened = len(self._streams)

    def close(self) -> None:
        for each in self._streams:
            each.cancel()
        self._held.close()


def _begun(client: flight.FlightClient, command: flight.FlightDescriptor) -> Any:
    stream = client.do_get(client.get_flight_info(command).endpoints[0].ticket)
    stream.read_chunk()
    return stream


def applied(job: fs.Job) -> int:
    return sum(each["report"]["rows"] for each in job.status()["partitions"].values())


def wait(job: fs.Job, rows: int) -> None:
    until = time.monotonic() + 300
    while applied(job) < rows:
        assert time.monotonic() < until, f"{applied(job)} of {rows} rows"
        time.sleep(0.005)


@dataclass(frozen=True)
class Measured:
    """Of one turn: nanoseconds per row, of the worker's processors and by the clock."""

    processor: float
    clock: float
    opened: int


class Turns:
    """One running job, and how many rows its log has."""

    def __init__(
        self, job: fs.Job, gateway: Any, worker: psutil.Process, log: Path, options: argparse.Namespace
    ) -> None:
        self._job, self._gateway, self._worker, self._log, self._options = job, gateway, worker, log, options
        self._piece = backlog(options.rows, options.keys)
        self.sent = 0

    def more(self, pieces: int) -> int:
        """The rows of so many backlogs, which are applied when this returns."""
        for _ in range(pieces):
            with self._log.open("ab") as file:
                file.write(self._piece)
            self.sent += self._options.rows
            wait(self._job, self.sent)
        return pieces * int(self._options.rows)

    def measure(self, turn: str) -> Measured:
        readers = Readers(self._job, self._gateway, self._options.clients)
        getattr(readers, turn)()
        self.more(2)
        settle(self._worker)
        used, began = _used(self._worker), time.monotonic()
        rows = self.more(self._options.pieces)
        clock, processor = time.monotonic() - began, _used(self._worker) - used
        readers.close()
        return Measured(processor / rows * 1e9, clock / rows * 1e9, readers.opened)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--pieces", type=int, default=4)
    parser.add_argument("--turns", nargs="+", default=["scans", "changes", "sql", "events"])
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as place,
        LocalCluster(n_workers=1, threads_per_worker=1, memory_limit=0, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        log = Path(place) / "log.jsonl"
        log.touch()
        events = fs.scan_files(log, schema=SCHEMA, follow=True)
        view = events.group_by("customer").agg(total=fs.col("amount").sum(), events=fs.len()).view("totals")
        (worker,) = (psutil.Process(info["pid"]) for info in client.run(_pid).values())
        with (
            fs.start(view, snapshots=Path(place) / "snapshots", client=client, every="60s") as job,
            fs.gateway(job.address, http_port=0) as gateway,
        ):
            turns = Turns(job, gateway, worker, log, options)
            turns.more(2)
            pairs = [
                (turn, turns.measure("none"), turns.measure(turn))
                for _ in range(options.repeat)
                for turn in options.turns
            ]
            total = job.sql("select sum(events)::bigint from totals").fetchall()[0][0]
            assert total == turns.sent, f"{total} of {turns.sent} rows are in the view"
            report(pairs, options)


def _pid() -> dict[str, int]:
    import os

    return {"pid": os.getpid()}


def _used(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def settle(worker: psutil.Process) -> None:
    """Until it, and the gateway here, have sent what the network takes: what clients cost by being there is measured, not their coming."""
    until, both = time.monotonic() + 20, (worker, psutil.Process())
    while time.monotonic() < until:
        used = sum(_used(each) for each in both)
        time.sleep(0.5)
        if sum(_used(each) for each in both) - used < 0.1:
            return


def report(pairs: list[tuple[str, Measured, Measured]], options: argparse.Namespace) -> None:
    settings = {"clients": options.clients, "rows": options.rows, "keys": options.keys}
    median = statistics.median
    print("clients   open   worker CPU ns/row   without   speed (least, most)   ns/row by the clock   without   speed")
    for turn in options.turns:
        mine = [(alone, beside) for name, alone, beside in pairs if name == turn]
        processor = [alone.processor / beside.processor for alone, beside in mine]
        clock = [alone.clock / beside.clock for alone, beside in mine]
        print(
            f"{turn:8} {mine[-1][1].opened:5} {median(each.processor for _, each in mine):19,.0f}"
            f" {median(each.processor for each, _ in mine):9,.0f}"
            f" {median(processor):7.2f} ({min(processor):.2f}, {max(processor):.2f})"
            f" {median(each.clock for _, each in mine):23,.0f} {median(each.clock for each, _ in mine):9,.0f}"
            f" {median(clock):7.2f}"
        )
        for measure, ratios in (
            ("rows per worker CPU second, beside them to alone", processor),
            ("rows per second, beside them to alone", clock),
        ):
            record("slow_readers", measure, median(ratios), "x", turn=turn, **settings)


if __name__ == "__main__":
    main()

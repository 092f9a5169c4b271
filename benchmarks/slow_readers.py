"""What clients that read slowly, or are gone, cost the job: how fast it applies a backlog with them, against without, by turns.

    python -m benchmarks.slow_readers [--clients 50] [--rows 300000] [--keys 100000] [--before 8] [--repeat 5]

One worker process follows a file log; a gateway with HTTP is in this process. Each turn opens its clients, appends the backlog `before`
times, so that what the network takes for those who do not read is full, and then once more, timed, until it is applied. The turns: scans
and streams of changes of which nothing is ever read, SQL over the gateway of which one batch is read and then no more, and Server-Sent
Events that nobody takes from the socket. Rates are wall time, in rows a second; on a machine that others use, look at the worker's
processor time, which is beside them in nanoseconds per row. A service may refuse some of many: "open" are those that it has let in.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
from distributed import Client, LocalCluster
from pyarrow import flight

import flowstate as fs
from flowstate_flight.flight_sql.messages import pack
from flowstate_flight.protobuf import write
from flowstate_flight.ticket import Ticket

SCHEMA = pa.schema({"customer": pa.string(), "amount": pa.int64()})
FLOWING = "select a.* from totals a, range(1000)"


def backlog(rows: int, keys: int) -> bytes:
    chance = np.random.default_rng(1)
    pairs = zip(chance.integers(0, keys, rows).tolist(), chance.integers(1, 1000, rows).tolist(), strict=True)
    return "".join(f'{{"customer":"customer-{who:08d}","amount":{much}}}\n' for who, much in pairs).encode()


class Readers:
    """The clients of one turn; `opened` of them were let in."""

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
        for _ in range(self._count):
            client = self._held.enter_context(flight.connect(self._job.address))
            self._stream(lambda: client.do_get(flight.Ticket(ticket.to_bytes())))  # noqa: B023

    def sql(self) -> None:
        command = flight.FlightDescriptor.for_command(pack("CommandStatementQuery", write([(1, FLOWING.encode())])))
        for _ in range(self._count):
            client = self._held.enter_context(flight.connect(self._gateway.address))
            self._stream(lambda: _begun(client, command))  # noqa: B023

    def events(self) -> None:
        host, _, port = self._gateway.http_address.partition("//")[2].partition(":")
        for _ in range(self._count):
            client = self._held.enter_context(socket.create_connection((host, int(port)), timeout=20))
            client.sendall(f"GET /views/totals/changes HTTP/1.1\r\nhost: {host}\r\n\r\n".encode())
            self.opened += client.recv(12, socket.MSG_PEEK).endswith(b"200")

    def _stream(self, open_one: Callable[[], Any]) -> None:
        with contextlib.suppress(flight.FlightError):
            self._streams.append(open_one())
            self.opened += 1

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


def append(log: Path, piece: bytes, sent: int, rows: int) -> int:
    """The rows that the log has then."""
    with log.open("ab") as file:
        file.write(piece)
    return sent + rows


def wait(job: fs.Job, rows: int) -> None:
    until = time.monotonic() + 300
    while applied(job) < rows:
        assert time.monotonic() < until, f"{applied(job)} of {rows} rows"
        time.sleep(0.005)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--before", type=int, default=8)
    parser.add_argument("--turns", nargs="+", default=["scans", "changes", "sql", "events"])
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    piece = backlog(options.rows, options.keys)
    with (
        tempfile.TemporaryDirectory() as place,
        LocalCluster(n_workers=1, threads_per_worker=1, memory_limit=0, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        log = Path(place) / "log.jsonl"
        log.write_bytes(piece)
        events = fs.scan_files(log, schema=SCHEMA, follow=True)
        view = events.group_by("customer").agg(total=fs.col("amount").sum(), events=fs.len()).view("totals")
        (worker,) = (psutil.Process(info["pid"]) for info in client.run(_pid).values())
        with (
            fs.start(view, snapshots=Path(place) / "snapshots", client=client, every="60s") as job,
            fs.gateway(job.address, http_port=0) as gateway,
        ):
            wait(job, sent := options.rows)
            turns = ["none", *options.turns]
            rates: dict[str, list[float]] = {each: [] for each in turns}
            costs: dict[str, list[float]] = {each: [] for each in turns}
            opened: dict[str, int] = {}
            for _ in range(options.repeat):
                for turn in turns:
                    readers = Readers(job, gateway, options.clients)
                    getattr(readers, turn)()
                    opened[turn] = readers.opened
                    for _ in range(options.before):
                        settle(worker)
                        wait(job, sent := append(log, piece, sent, options.rows))
                    settle(worker)
                    used, began = _used(worker), time.monotonic()
                    wait(job, sent := append(log, piece, sent, options.rows))
                    rates[turn].append(options.rows / (time.monotonic() - began))
                    costs[turn].append((_used(worker) - used) / options.rows * 1e9)
                    readers.close()
            total = job.sql("select sum(events)::bigint from totals").fetchall()[0][0]
            assert total == sent, f"{total} of {sent} rows are in the view"
            report(rates, costs, opened)


def _pid() -> dict[str, int]:
    import os

    return {"pid": os.getpid()}


def _used(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def settle(worker: psutil.Process) -> None:
    """Until it, and the gateway here, have sent what the network takes: what clients cost by being there is measured, not their coming."""
    until, both = time.monotonic() + 60, (worker, psutil.Process())
    while time.monotonic() < until:
        used = sum(_used(each) for each in both)
        time.sleep(1.0)
        if sum(_used(each) for each in both) - used < 0.2:
            return


def report(rates: dict[str, list[float]], costs: dict[str, list[float]], opened: dict[str, int]) -> None:
    print("clients      open   rows/s   of none   worker CPU ns/row   of none")
    rate, cost = statistics.median(rates["none"]), statistics.median(costs["none"])
    for turn, each in rates.items():
        fast, dear = statistics.median(each), statistics.median(costs[turn])
        print(f"{turn:10} {opened[turn]:6} {fast:8,.0f} {fast / rate:9.2f} {dear:19,.0f} {dear / cost:9.2f}")


if __name__ == "__main__":
    main()

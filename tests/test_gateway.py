"""The gateway by a plain Arrow Flight client with nothing of ours: it asks as it asks a worker, and needs to know of no partition."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from counting_process import KEYS as CUSTOMERS
from counting_process import CountingProcess, append
from flight_memory import MemoryPartition, Worker, directory_of, partitions_of
from flight_tables import TABLES, VIEWS, ordered
from pyarrow import flight
from waiting import until

import flowstate as fs
from flowstate.errors import InvalidFlow, Unavailable
from flowstate.view.directory import Directory, ViewInfo
from flowstate_flight import FlightReader, FlightService
from flowstate_flight.flight_sql.messages import pack
from flowstate_flight.flight_sql.statements import Query
from flowstate_flight.gateway import Gateway
from flowstate_flight.protobuf import write
from flowstate_flight.ticket import write_keys

COUNT = 3


class Served:
    """A job of three partitions in two services, and a gateway to it."""

    def __init__(self) -> None:
        self.workers = [FlightService(), FlightService()]
        self.partitions = partitions_of("billing", VIEWS, TABLES, COUNT, epoch=4)
        first, second = (each.location for each in self.workers)
        self.directory = directory_of("billing", VIEWS, [first, first, second], epoch=4)
        for each in self.partitions:
            self.workers[each.partition // 2].register(each)
        for worker in self.workers:
            worker.set_directory(self.directory)
            worker.set_cut_handler(self.cut)
        self.gateway = Gateway(FlightReader([first, second], grace=1.0, patience=4.0))
        self.client = flight.connect(self.gateway.address)

    def cut(self, job: str, timeout: float) -> dict[str, Any]:
        for each in self.partitions:
            each.cuts[7] = dict(each.tables)
        return {"cut": 7, "position": {"events-0": [100, 1]}}

    def act(self, kind: str, body: Mapping[str, Any] | None = None) -> Any:
        [result] = self.client.do_action(flight.Action(kind, json.dumps(body or {}).encode()))
        return json.loads(result.body.to_pybytes())

    def close(self) -> None:
        self.client.close()
        self.gateway.close()
        for each in self.workers:
            each.close()


@pytest.fixture
def served() -> Iterator[Served]:
    served = Served()
    yield served
    served.close()


def command(**fields: Any) -> bytes:
    return json.dumps({"v": 1, "job": "billing", "view": "subtotals", **fields}).encode()


def read_all(client: flight.FlightClient, descriptor: flight.FlightDescriptor) -> pa.Table:
    """As any client would, from a worker or a gateway: each endpoint at its location, or here if it has none."""
    tables = []
    for endpoint in client.get_flight_info(descriptor).endpoints:
        if not endpoint.locations:
            tables.append(client.do_get(endpoint.ticket).read_all())
            continue
        with flight.connect(endpoint.locations[0]) as other:
            tables.append(other.do_get(endpoint.ticket).read_all().replace_schema_metadata())
    return pa.concat_tables(tables)


def answer_of(table: pa.Table) -> dict[str, Any]:
    return dict(json.loads(table.schema.metadata[b"flowstate.answer"]))


def fault(error: pytest.ExceptionInfo[Any]) -> dict[str, Any]:
    """The error as data; nothing of the server's inside may be in its text."""
    assert "Traceback" not in str(error.value)
    assert ".py" not in str(error.value)
    return dict(json.loads(error.value.extra_info))


def test_a_client_of_a_worker_is_a_client_of_the_gateway(served: Served) -> None:
    with flight.connect(served.workers[1].location) as worker:
        for name, table in TABLES.items():
            path = flight.FlightDescriptor.for_path(name)
            assert ordered(read_all(served.client, path)) == ordered(read_all(worker, path)) == ordered(table)
            assert served.client.get_flight_info(path).schema == worker.get_flight_info(path).schema == table.schema
            assert served.client.get_schema(flight.FlightDescriptor.for_path("billing", name)).schema == table.schema
        assert {tuple(each.descriptor.path) for each in served.client.list_flights()} == {
            tuple(each.descriptor.path) for each in worker.list_flights()
        }
        assert {each.type for each in served.client.list_actions()} == {each.type for each in worker.list_actions()}
    [endpoint] = served.client.get_flight_info(flight.FlightDescriptor.for_path("subtotals")).endpoints
    assert endpoint.locations == []
    assert json.loads(endpoint.ticket.ticket) == {"v": 1, "job": "billing", "view": "subtotals"}


def test_columns_filter_and_limit(served: Served) -> None:
    schema = TABLES["subtotals"].schema
    for condition in (pc.field("events") > 20, pc.field("customer").isin(["customer-1", "customer-7"])):
        encoded = b64encode(bytes(condition.to_substrait(schema))).decode()
        asked = flight.FlightDescriptor.for_command(command(filter=encoded, columns=["total", "customer"]))
        assert ordered(read_all(served.client, asked)) == ordered(
            TABLES["subtotals"].filter(condition).select(["total", "customer"])
        )
    owners = {each.partition for each in served.partitions if each.scanned or each._index}
    assert owners == {0, 1, 2}
    assert read_all(served.client, flight.FlightDescriptor.for_command(command(limit=5))).num_rows == 5
    with pytest.raises(flight.FlightServerError) as error:
        served.client.do_get(flight.Ticket(command(filter=b64encode(b"no").decode())))
    assert "Substrait" in fault(error)["message"]


def test_a_filter_of_the_key_asks_its_owner_alone(served: Served) -> None:
    condition = (pc.field("customer") == "customer-1") & (pc.field("kind") == "b")
    encoded = b64encode(bytes(condition.to_substrait(TABLES["subtotals"].schema))).decode()
    found = served.client.do_get(flight.Ticket(command(filter=encoded))).read_all()
    assert ordered(found) == ordered(TABLES["subtotals"].filter(condition))
    assert [each["partition"] for each in answer_of(found)["parts"]] == [
        each.partition for each in served.partitions if each._index
    ]


def keys_of(*names: str) -> pa.RecordBatch:
    kinds = ["ab"[int(each.partition("-")[2]) % 2] for each in names]
    return pa.record_batch({"customer": list(names), "kind": kinds})


def test_keys_of_all_partitions_in_one_ticket_and_one_action(served: Served) -> None:
    names = [f"customer-{each}" for each in range(20)]
    wanted = ordered(TABLES["subtotals"].filter(pc.field("customer").isin(names)))
    body = command(keys=b64encode(write_keys(keys_of(*names))).decode())
    found = served.client.do_get(flight.Ticket(body)).read_all()
    assert ordered(found) == wanted
    assert {each["partition"] for each in answer_of(found)["parts"]} == {0, 1, 2}
    [result] = served.client.do_action(flight.Action("lookup", body))
    assert ordered(pa.ipc.open_stream(result.body).read_all()) == wanted
    few = command(keys=b64encode(write_keys(keys_of(*names))).decode(), columns=["events"], limit=3)
    table = served.client.do_get(flight.Ticket(few)).read_all()
    assert (table.num_rows, table.schema.names) == (3, ["events"])
    none = command(keys=b64encode(write_keys(keys_of(*names).slice(0, 0))).decode())
    assert served.client.do_get(flight.Ticket(none)).read_all().num_rows == 0


def exchange(client: flight.FlightClient, **fields: Any) -> Any:
    asked = {"v": 1, "kind": "lookup", "job": "billing", "view": "subtotals", **fields}
    return client.do_exchange(flight.FlightDescriptor.for_command(json.dumps(asked).encode()))


def test_an_exchange_takes_keys_of_all_partitions_and_an_error_ends_nothing(served: Served) -> None:
    writer, reader = exchange(served.client)
    with writer:
        writer.begin(keys_of("customer-1").schema)

        def ask(*names: str, **metadata: Any) -> tuple[dict[str, Any], pa.RecordBatch | None]:
            writer.write_with_metadata(keys_of(*names), json.dumps({"id": 1, **metadata}).encode())
            chunk = reader.read_chunk()
            return json.loads(chunk.app_metadata.to_pybytes()), chunk.data

        names = [f"customer-{each}" for each in range(10)]
        reply, rows = ask(*names)
        assert rows is not None
        assert ordered(pa.Table.from_batches([rows])) == ordered(
            TABLES["subtotals"].filter(pc.field("customer").isin(names))
        )
        assert {each["partition"] for each in reply["answer"]["parts"]} == {0, 1, 2}
        for metadata, message in (
            ({"partition": 0}, "a message to a gateway"),
            ({"fresh": {"at_least": {"events-0": 1000}}}, "has not come as far"),
            ({"fresh": {"max_age": -1}}, "max_age is a number of seconds"),
        ):
            reply, rows = ask("customer-1", **metadata)
            assert message in reply["error"]["message"]
        reply, rows = ask("customer-1", fresh={"at_least": {"events-0": 100}})
        assert rows is not None
        assert rows.num_rows == 2
        reply, rows = ask("customer-1", fresh={"consistent": True})
        assert reply["answer"]["consistent"] is True
        assert rows is not None
        assert rows.num_rows == 2
        reply, rows = ask("customer-99")
        assert rows is not None
        assert (rows.num_rows, rows.schema) == (0, TABLES["subtotals"].schema)
        writer.done_writing()


def test_how_fresh_an_answer_must_be(served: Served) -> None:
    def read(**fresh: Any) -> pa.Table:
        return served.client.do_get(flight.Ticket(command(fresh=fresh))).read_all()

    assert read(at_least={"events-0": [100, 1]}).num_rows == 122
    assert read(max_age=0).num_rows == 122
    with pytest.raises(flight.FlightUnavailableError) as error:
        read(at_least={"events-0": 102})
    assert fault(error)["kind"] == "Behind"
    assert fault(error)["facts"]["missed_by"] in (1, 2)
    made = served.act("cut")
    assert made == {"cut": 7, "position": {"events-0": [100, 1]}}
    for partition in served.partitions:
        partition.tables["subtotals"] = partition.tables["subtotals"].slice(0, 0)
    for fresh in ({"cut": made["cut"]}, {"cut": 7}):
        table = read(**fresh)
        assert table.num_rows == 122
        assert answer_of(table)["consistent"] is True
    assert read().num_rows == 0
    assert read(consistent=True).num_rows == 0
    with pytest.raises(flight.FlightServerError) as error:
        read(snapshot=3)
    assert "snapshots=" in fault(error)["message"]


def test_actions(served: Served) -> None:
    assert Directory.from_json(json.dumps(served.act("directory"))) == served.directory
    assert served.act("status") == {
        "gateway": True,
        "jobs": {"billing": {"directory": 1, "partitions": {"0": 4, "1": 4, "2": 4}, "away": []}},
    }
    assert served.act("ping") == {}
    with FlightReader(served.gateway.address) as reader:  # asked where the job is, it tells
        assert ordered(reader.scan("subtotals")) == ordered(TABLES["subtotals"])
    for kind, body, message in (
        ("directory", {"job": "biling"}, "there is no job 'biling' here; did you mean 'billing'?"),
        ("lookups", {}, "there is no action 'lookups'; did you mean 'lookup'?"),
        ("lookup", {"v": 1, "job": "billing", "view": "subtotals"}, "the ticket of a lookup has 'keys'"),
    ):
        with pytest.raises(flight.FlightServerError) as error:
            served.act(kind, body)
        assert message in fault(error)["message"]


def test_names_and_fields_that_are_not_known_are_met_with_a_hint(served: Served) -> None:
    for raw, message in (
        (command(view="subtotal"), "no view 'subtotal'; did you mean 'subtotals'?"),
        (command(job="x"), "there is no job 'x' here"),
        (command(partition=0), "a command is for all partitions"),
        (command(columns=["totl"]), "did you mean 'total'?"),
        (b"\x80", "the command is not JSON"),
        (b"", "the command is not JSON"),
    ):
        with pytest.raises(flight.FlightServerError) as error:
            served.client.do_get(flight.Ticket(raw))
        assert message in fault(error)["message"]
        if raw:
            with pytest.raises(flight.FlightServerError) as error:
                served.client.get_flight_info(flight.FlightDescriptor.for_command(raw))
            assert message in fault(error)["message"]
    with pytest.raises(flight.FlightServerError) as error:
        served.client.get_flight_info(flight.FlightDescriptor.for_path("total"))
    assert fault(error)["kind"] == "InvalidFlow"
    _writer, reader = exchange(served.client, view="no")
    with pytest.raises(flight.FlightServerError) as error:
        reader.read_chunk()
    assert "no view 'no'" in fault(error)["message"]


def test_a_partition_that_moves_is_followed() -> None:
    workers = [Worker("billing", VIEWS, TABLES, 2, [each]) for each in (0, 1)]
    locations: list[str | None] = [each.location for each in workers]
    for each in workers:
        each.set_directory(directory_of("billing", VIEWS, locations))
    gateway = Gateway(FlightReader(workers[0].location))
    client = flight.connect(gateway.address)
    try:
        path = flight.FlightDescriptor.for_path("subtotals")
        assert ordered(read_all(client, path)) == ordered(TABLES["subtotals"])
        workers[1].kill()
        workers[1] = Worker("billing", VIEWS, TABLES, 2, [1], epoch=2)
        moved = directory_of("billing", VIEWS, [locations[0], workers[1].location], version=2, epoch=1)
        moved = Directory.from_json(moved.to_json().replace("[1, 1, ", "[1, 2, "))
        for each in workers:
            each.set_directory(moved)
        table = read_all(client, path)
        assert ordered(table) == ordered(TABLES["subtotals"])
        assert {each["partition"]: each["epoch"] for each in answer_of(table)["parts"]} == {0: 1, 1: 2}
    finally:
        client.close()
        gateway.close()
        for each in workers:
            each.close()


def test_without_a_job_it_says_so_and_serves_it_when_it_comes() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with (
        Gateway(FlightReader(f"127.0.0.1:{port}", patience=1.0, timeout=1.0)) as gateway,
        flight.connect(gateway.address) as client,
    ):
        with pytest.raises(flight.FlightUnavailableError):
            list(client.list_flights())
        with FlightService(port=port) as worker:
            for each in partitions_of("billing", VIEWS, TABLES, 1):
                worker.register(each)
            worker.set_directory(directory_of("billing", VIEWS, [worker.location]))
            path = flight.FlightDescriptor.for_path("subtotals")
            assert until(lambda: attempt(client, path)).num_rows == 122


def attempt(client: flight.FlightClient, path: flight.FlightDescriptor) -> Any:
    try:
        return read_all(client, path)
    except flight.FlightUnavailableError:
        return None


def test_it_ends_within_a_second_with_idle_exchanges_and_starts_again_on_its_port(served: Served) -> None:
    writer, reader = exchange(served.client)
    writer.begin(keys_of("customer-1").schema)
    writer.write_with_metadata(keys_of("customer-1"), b'{"id": 1}')
    reader.read_chunk()
    begun = time.monotonic()
    served.gateway.close()
    assert time.monotonic() - begun < 10.0
    served.gateway.close()
    with pytest.raises((pa.ArrowException, flight.FlightError, StopIteration)):
        reader.read_chunk()
    with Gateway(FlightReader(served.workers[0].location), port=served.gateway.port) as again:
        assert again.address == served.gateway.address
        path = flight.FlightDescriptor.for_path("subtotals")
        assert until(lambda: attempt(served.client, path)).num_rows == 122
        with (
            Gateway(FlightReader(served.workers[0].location)) as beside,
            flight.connect(beside.address) as client,
        ):
            assert read_all(client, path).num_rows == 122
        with pytest.raises(Unavailable, match="choose another port"):
            Gateway(served.gateway.reader, port=again.port)


class Endless(MemoryPartition):
    """Its scan has no end, and notes when nobody reads it any more."""

    ended = False

    def scan(self, view: str, *_: Any, **__: Any) -> Any:
        batch = pa.record_batch({"number": pa.array(range(100_000), pa.int64())})

        def batches() -> Iterator[pa.RecordBatch]:
            try:
                while True:
                    yield batch
            finally:
                self.ended = True

        return batch.schema, batches(), self._answer(view)


def test_a_client_that_goes_away_ends_its_scan() -> None:
    views = {"numbers": ViewInfo("numbers", pa.schema({"number": pa.int64()}), "append")}
    part = Endless("billing", 0, 1, views, {})
    with FlightService() as worker:
        worker.register(part)
        worker.set_directory(directory_of("billing", views, [worker.location]))
        with Gateway(FlightReader(worker.location)) as gateway, flight.connect(gateway.address) as client:
            stream = client.do_get(flight.Ticket(command(view="numbers")))
            assert stream.read_chunk().data.num_rows > 0
            assert not part.ended
            stream.cancel()
            until(lambda: part.ended)


def test_it_listens_to_others_only_if_that_is_said() -> None:
    with pytest.raises(InvalidFlow, match="access="):
        fs.gateway("127.0.0.1:1", host="0.0.0.0")
    with pytest.raises(InvalidFlow, match="say where the job is"):
        fs.gateway()
    with fs.gateway("127.0.0.1:1", host="0.0.0.0", access="none") as gateway:
        assert gateway.port > 0


class GatewayProcess:
    """``flowstate gateway`` as a user runs it."""

    def __init__(self, snapshots: Path, port: int = 0) -> None:
        command = [sys.executable, "-m", "flowstate.command", "gateway", str(snapshots), "--port", str(port)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()

    def end(self) -> str:
        """What it said on standard error. It obeys SIGTERM at once."""
        self.process.send_signal(signal.SIGTERM)
        said = self.process.communicate(timeout=20)[1]
        assert self.process.returncode == 0, said
        assert all(each.startswith("flowstate gateway: ") for each in said.splitlines()), said
        return said


def origins(table: pa.Table | None) -> set[str]:
    return set() if table is None else {each["origin"] for each in answer_of(table)["parts"]}


def test_a_real_job_is_found_and_answered_for_while_it_is_down(tmp_path: Path) -> None:
    append(tmp_path, 400)
    snapshots, path = tmp_path / "snapshots", flight.FlightDescriptor.for_path("totals")
    processes: list[Any] = [CountingProcess(tmp_path)]
    try:
        job = processes[0]
        processes.append(gateway := GatewayProcess(snapshots))
        client = flight.connect(gateway.address)

        def events(origin: str) -> int:
            table = attempt(client, path)
            return sum(table["events"].to_pylist()) if origins(table) == {origin} else -1

        until(lambda: events("live") == 400, 60.0)
        until(lambda: saved_events(snapshots) == 400, 60.0)
        job.kill()
        down = time.time()
        until(lambda: events("saved") == 400)
        table = read_all(client, path)
        assert all(down - 120 < each["as_of"] <= down for each in answer_of(table)["parts"])
        asked = {"v": 1, "job": "counting", "view": "totals", "fresh": {"max_age": 0.001}}
        with pytest.raises(flight.FlightUnavailableError) as error:
            client.do_get(flight.Ticket(json.dumps(asked).encode())).read_all()
        assert "older than max_age" in fault(error)["message"]
        # a reader that knows only the gateway asks partitions where they are, and the gateway where they are not
        with fs.connect(gateway.address, patience=15.0) as reads:
            assert reads.sql("select sum(events)::bigint from totals").fetchall() == [(400,)]
            assert not reads.last_answers["totals"].live
            one = reads["totals"].lookup(CUSTOMERS[0], max_age=1e6)
            assert one.num_rows == 1
            assert one.equals(reads["totals"].to_table(filter=pc.field("customer") == CUSTOMERS[0]))
            with pytest.raises(fs.Unavailable, match="older than max_age"):
                reads["totals"].lookup(CUSTOMERS[0], max_age=0.001)
        # it ends in order, and comes back at its address, to the same client, though it never saw the job live
        assert "serves job 'counting': views totals" in gateway.end()
        processes.append(again := GatewayProcess(snapshots, int(gateway.address.rpartition(":")[2])))
        assert again.address == gateway.address
        until(lambda: events("saved") == 400)
        keys = pa.record_batch({"customer": CUSTOMERS[:3]})
        asked = {"v": 1, "job": "counting", "view": "totals", "keys": b64encode(write_keys(keys)).decode()}
        assert client.do_get(flight.Ticket(json.dumps(asked).encode())).read_all().num_rows == 3
        query = pack(
            "TicketStatementQuery", write([(1, Query("select sum(events)::bigint as n from totals").handle())])
        )
        assert client.do_get(flight.Ticket(query)).read_all().to_pylist() == [{"n": 400}]
        # a saved cut, by its number
        listed = Query("select max(snapshot) as snapshot from flowstate_snapshots where consistent").handle()
        [cut] = client.do_get(flight.Ticket(pack("TicketStatementQuery", write([(1, listed)])))).read_all().to_pylist()
        asked = {"v": 1, "job": "counting", "view": "totals", "fresh": cut}
        table = client.do_get(flight.Ticket(json.dumps(asked).encode())).read_all()
        assert sum(table["events"].to_pylist()) == 400
        with fs.connect(gateway.address) as reads:
            assert sum(reads["totals"].to_table(snapshot=cut["snapshot"])["events"].to_pylist()) == 400
        header = flight.FlightCallOptions(headers=[(b"x-flowstate-snapshot", str(cut["snapshot"]).encode())])
        assert client.do_get(flight.Ticket(query), header).read_all().to_pylist() == [{"n": 400}]
        client.close()
        again.end()
    finally:
        for each in processes:
            if each.process.poll() is None:
                each.kill() if isinstance(each, CountingProcess) else each.process.kill()


def saved_events(snapshots: Path) -> int:
    try:
        with fs.open_snapshot(snapshots) as snapshot:
            return int(sum(snapshot.to_table("totals")["events"].to_pylist()))
    except fs.Unavailable:
        return 0


def test_the_command_tells_what_must_be_changed() -> None:
    command = [sys.executable, "-m", "flowstate.command", "gateway", "nowhere://x", "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("flowstate: ")
    assert "Traceback" not in done.stderr

"""The Flight service by a plain pyarrow client with nothing of ours, over real sockets; then its errors, adversity and end."""

from __future__ import annotations

import json
import os
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from flight_memory import MemoryPartition, Worker, directory_of, partitions_of
from flight_tables import JANUARY, TABLES, VIEWS, late_rows, ordered
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import flight

from flowstate.errors import Fenced, Unavailable
from flowstate.view.answer import Answer
from flowstate.view.directory import Directory, ViewInfo
from flowstate_flight import FlightService
from flowstate_flight.connections import sever

COUNT = 3


class Served:
    def __init__(self) -> None:
        self.service = FlightService()
        self.partitions = partitions_of("billing", VIEWS, TABLES, COUNT, epoch=4)
        for each in self.partitions:
            self.service.register(each)
        self.service.set_directory(directory_of("billing", VIEWS, [self.service.location] * COUNT, epoch=4))
        self.client = flight.connect(self.service.location)

    def close(self) -> None:
        self.client.close()
        self.service.close()


@pytest.fixture
def served() -> Iterator[Served]:
    served = Served()
    yield served
    served.close()


def ticket(**fields: Any) -> flight.Ticket:
    return flight.Ticket(json.dumps({"v": 1, "job": "billing", "view": "subtotals", "partition": 0, **fields}).encode())


def read_all(info: flight.FlightInfo) -> pa.Table:
    """As any client would: each endpoint at its location."""
    tables = []
    for endpoint in info.endpoints:
        with flight.connect(endpoint.locations[0]) as client:
            tables.append(client.do_get(endpoint.ticket).read_all().replace_schema_metadata())
    return pa.concat_tables(tables)


def fault(error: pytest.ExceptionInfo[Any]) -> dict[str, Any]:
    """The error as data; nothing of the server's inside may be in its text."""
    text = str(error.value)
    assert "Traceback" not in text
    assert ".py" not in text
    return dict(json.loads(error.value.extra_info))


def test_a_plain_client_reads_everything_from_other_processes() -> None:
    workers = [Worker("billing", VIEWS, TABLES, COUNT, serves) for serves in ([0, 1], [2])]
    try:
        directory = directory_of("billing", VIEWS, [workers[0].location, workers[0].location, workers[1].location])
        for worker in workers:
            worker.set_directory(directory)
        with flight.connect(workers[1].location) as client:
            flights = {tuple(each.descriptor.path): each for each in client.list_flights()}
            assert set(flights) == {(b"billing", b"subtotals"), (b"billing", b"subtotals_late")}
            for name, table in TABLES.items():
                assert ordered(read_all(flights[(b"billing", name.encode())])) == ordered(table)
                info = client.get_flight_info(flight.FlightDescriptor.for_path(name))
                assert info.schema == table.schema
                assert ordered(read_all(info)) == ordered(table)
                assert client.get_schema(flight.FlightDescriptor.for_path("billing", name)).schema == table.schema
            listed = {each.type for each in client.list_actions()}
            assert listed == {"directory", "lookup", "status", "cut", "ping", "overview", "stop"}
            [raw] = client.do_action("directory")
            assert Directory.from_json(raw.body.to_pybytes()) == directory
            [raw] = client.do_action("status")
            assert json.loads(raw.body.to_pybytes())["jobs"]["billing"] == {"directory": 1, "partitions": {"2": 1}}
    finally:
        for worker in workers:
            worker.close()


def test_an_answer_says_how_fresh_it_is(served: Served) -> None:
    schema = served.client.do_get(ticket()).schema
    data = json.loads(schema.metadata[b"flowstate.answer"])
    assert (data["job"], data["view"], data["consistent"]) == ("billing", "subtotals", False)
    [part] = data["parts"]
    assert (part["partition"], part["epoch"], part["position"]) == (0, 4, {"events-0": [100, 1]})
    assert Answer.of(schema) == served.partitions[0]._answer("subtotals")


def test_columns_filter_and_limit(served: Served) -> None:
    mine = served.partitions[0].tables["subtotals"]
    schema = mine.schema
    for condition in (
        pc.field("events") > 20,
        pc.field("customer").isin(["customer-1", "customer-7"]) | pc.field("customer").is_null(),
        pc.field("month") == pa.scalar(JANUARY, schema.field("month").type),
        (pc.field("total") >= pa.scalar(pc.max(mine["total"]).as_py(), pa.decimal128(12, 2)))
        & (pc.field("kind") == "a"),
        ~(pc.field("kind") == "a"),
        pc.scalar(True),
    ):
        encoded = b64encode(bytes(condition.to_substrait(schema))).decode()
        got = served.client.do_get(ticket(filter=encoded, columns=["total", "customer"])).read_all()
        assert ordered(got) == ordered(mine.filter(condition).select(["total", "customer"]))
    assert served.client.do_get(ticket(limit=5)).read_all().num_rows == 5
    assert served.client.do_get(ticket(limit=0)).read_all().num_rows == 0


def test_a_filter_reads_only_what_it_names(served: Served) -> None:
    base = pa.schema([TABLES["subtotals"].schema.field("kind")])
    encoded = b64encode(bytes((pc.field("kind") == "a").to_substrait(base))).decode()
    served.client.do_get(ticket(filter=encoded, columns=["events"])).read_all()
    assert served.partitions[0].scanned == [("subtotals", ["kind", "events"])]


def test_batches_have_a_size_that_flight_carries_well() -> None:
    table = pa.table({"key": pa.array(range(1_000_000), pa.int64()), "text": ["x" * 8] * 1_000_000})
    views = {"wide": ViewInfo("wide", table.schema, "append")}
    for rows_per_batch in (700, 10_000_000):
        with FlightService() as service:
            part = MemoryPartition("j", 0, 1, views, {"wide": table}, rows_per_batch=rows_per_batch)
            service.register(part)
            service.set_directory(directory_of("j", views, [service.location]))
            with flight.connect(service.location) as client:
                got = client.do_get(ticket(job="j", view="wide"))
                sizes = [chunk.data.nbytes for chunk in got]
        assert sum(sizes) > 15 << 20
        assert max(sizes) <= 4 << 20
        assert all(size >= 1 << 19 for size in sizes[:-1])


def test_the_command_of_a_descriptor_carries_columns_and_filter(served: Served) -> None:
    schema = TABLES["subtotals"].schema
    encoded = b64encode(bytes((pc.field("events") < 6).to_substrait(schema))).decode()
    command = {"v": 1, "job": "billing", "view": "subtotals", "columns": ["events"], "filter": encoded}
    info = served.client.get_flight_info(flight.FlightDescriptor.for_command(json.dumps(command)))
    assert info.schema.names == ["events"]
    assert sorted(read_all(info)["events"].to_pylist()) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


def test_lookup_by_action_and_by_ticket(served: Served) -> None:
    keys = pa.record_batch({"customer": ["customer-3", None, "nobody"], "kind": ["b", "a", "a"]})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, keys.schema) as writer:
        writer.write_batch(keys)
    encoded = b64encode(sink.getvalue().to_pybytes()).decode()
    found = []
    for number in range(COUNT):
        asked = ticket(partition=number, keys=encoded)
        rows = served.client.do_get(asked).read_all()
        [raw] = served.client.do_action(flight.Action("lookup", asked.ticket))
        assert pa.ipc.open_stream(raw.body).read_all().to_pylist() == rows.to_pylist()
        found += rows.to_pylist()
    assert sorted((each["customer"] or "", each["month"]) for each in found) == sorted(
        (name, month) for name in ("customer-3", "") for month in (JANUARY, JANUARY.replace(month=2))
    )


def test_one_exchange_for_many_lookups_and_an_error_ends_nothing(served: Served) -> None:
    command = json.dumps({"v": 1, "kind": "lookup", "job": "billing", "view": "subtotals"})
    writer, reader = served.client.do_exchange(flight.FlightDescriptor.for_command(command))
    keys = pa.record_batch({"customer": ["customer-3"], "kind": ["b"]})
    writer.begin(keys.schema)
    rows = 0
    for number in range(COUNT):
        writer.write_with_metadata(keys, json.dumps({"partition": number, "id": f"q{number}"}).encode())
        chunk = reader.read_chunk()
        reply = json.loads(chunk.app_metadata.to_pybytes())
        assert reply["id"] == f"q{number}"
        assert reply["answer"]["parts"][0]["epoch"] == 4
        rows += chunk.data.num_rows
    assert rows == 2
    for metadata, kind in (
        (b"not json", "InvalidFlow"),
        (b'{"partition": 77}', "InvalidFlow"),
        (b'{"partition": 0, "epoch": 3}', "Moved"),
        (b'{"partition": "0"}', "InvalidFlow"),
    ):
        writer.write_with_metadata(keys, metadata)
        chunk = reader.read_chunk()
        assert chunk.data is None
        assert json.loads(chunk.app_metadata.to_pybytes())["error"]["kind"] == kind
    writer.write_metadata(b'{"partition": 0, "id": 1}')
    assert "batch of keys" in json.loads(reader.read_chunk().app_metadata.to_pybytes())["error"]["message"]
    served.partitions[1].loading = True
    writer.write_with_metadata(keys, b'{"partition": 1, "id": 2}')
    error = json.loads(reader.read_chunk().app_metadata.to_pybytes())["error"]
    assert (error["kind"], error["facts"]["retry_after"]) == ("Unavailable", 0.1)
    writer.write_with_metadata(keys, b'{"partition": 0, "id": 3}')
    assert "answer" in json.loads(reader.read_chunk().app_metadata.to_pybytes())
    writer.close()


def test_keys_of_an_exchange_must_fit(served: Served) -> None:
    command = json.dumps({"v": 1, "kind": "lookup", "job": "billing", "view": "subtotals"})
    for keys in (
        pa.record_batch({"customer": ["customer-3"]}),
        pa.record_batch({"kind": ["b"], "customer": ["customer-3"]}),
        pa.record_batch({"customer": ["customer-3"], "kind": [1]}),
    ):
        writer, reader = served.client.do_exchange(flight.FlightDescriptor.for_command(command))
        writer.begin(keys.schema)
        writer.write_with_metadata(keys, b'{"partition": 0}')
        error = json.loads(reader.read_chunk().app_metadata.to_pybytes())["error"]
        assert error["kind"] == "InvalidFlow"
        assert "is keyed by (customer: string, kind: string, month" in error["message"]
        writer.close()


def test_unknown_names_are_met_with_a_hint(served: Served) -> None:
    with pytest.raises(flight.FlightServerError, match="did you mean 'subtotals'") as error:
        served.client.get_flight_info(flight.FlightDescriptor.for_path("subtotal"))
    assert fault(error)["kind"] == "InvalidFlow"
    with pytest.raises(flight.FlightServerError, match="did you mean 'billing'") as error:
        served.client.get_flight_info(flight.FlightDescriptor.for_path("biling", "subtotals"))
    fault(error)
    with pytest.raises(flight.FlightServerError, match="has no column 'totals'; did you mean 'total'") as error:
        served.client.do_get(ticket(columns=["totals"])).read_all()
    fault(error)
    with pytest.raises(flight.FlightServerError, match="there is no such partition") as error:
        served.client.do_get(ticket(partition=9)).read_all()
    assert fault(error)["facts"] == {"partition": 9, "partitions": COUNT}
    with pytest.raises(flight.FlightServerError, match="did you mean 'status'") as error:
        list(served.client.do_action("statsu"))
    fault(error)
    _, reader = served.client.do_exchange(flight.FlightDescriptor.for_command(b'{"v": 1, "kind": "x"}'))
    with pytest.raises(flight.FlightServerError, match="kind") as error:
        reader.read_chunk()
    fault(error)
    writer, _ = served.client.do_put(flight.FlightDescriptor.for_path("x"), pa.schema([("a", pa.int64())]))
    with pytest.raises(flight.FlightServerError, match="read only") as error:
        writer.close()
    fault(error)


def test_two_jobs_with_the_same_view(served: Served) -> None:
    others = partitions_of("other", VIEWS, {"subtotals_late": late_rows(4)}, 1)
    served.service.register(others[0])
    served.service.set_directory(directory_of("other", VIEWS, [served.service.location]))
    with pytest.raises(flight.FlightServerError, match=r"several jobs.*\(job, view\)"):
        served.client.get_flight_info(flight.FlightDescriptor.for_path("subtotals"))
    with pytest.raises(flight.FlightServerError, match="several jobs"):
        list(served.client.do_action("directory"))
    path = flight.FlightDescriptor.for_path("other", "subtotals_late")
    assert read_all(served.client.get_flight_info(path)).num_rows == 4
    served.service.drop_job("other")
    with pytest.raises(flight.FlightServerError, match="no job 'other'"):
        served.client.get_flight_info(path)


def test_a_stale_epoch_and_a_partition_elsewhere_have_moved(served: Served) -> None:
    with pytest.raises(flight.FlightUnavailableError, match="moved") as error:
        served.client.do_get(ticket(epoch=3)).read_all()
    assert fault(error) == {
        "kind": "Moved",
        "message": "this partition moved to another epoch; ask for its directory or flight info again",
        "facts": {"partition": 0, "asked": 3, "serving": 4},
    }
    served.service.set_directory(directory_of("billing", VIEWS, ["grpc://elsewhere:1", None, None], version=2, epoch=5))
    for number in range(2):
        served.service.unregister("billing", number)
    with pytest.raises(flight.FlightUnavailableError, match="moved") as error:
        served.client.do_get(ticket(epoch=4)).read_all()
    assert fault(error)["facts"] == {"partition": 0, "asked": 4, "serving": 5, "location": "grpc://elsewhere:1"}
    with pytest.raises(flight.FlightUnavailableError, match="being recovered") as error:
        served.client.do_get(ticket(partition=1)).read_all()
    assert fault(error)["kind"] == "Unavailable"


def test_an_older_incarnation_and_an_older_directory_do_not_replace_the_newer(served: Served) -> None:
    old = MemoryPartition("billing", 0, 3, VIEWS, {})
    with pytest.raises(Fenced, match="epoch=3 served=4"):
        served.service.register(old)
    served.service.set_directory(directory_of("billing", {}, [], version=0))
    assert served.service.requests.directory("billing").version == 1


class Broken(MemoryPartition):
    """Fails like a bug, at once or in the middle of a stream."""

    late = False

    def scan(self, view: str, columns: list[str] | None = None, cut: int | None = None, once: bool = False) -> Any:
        schema, batches, answer = super().scan(view, columns, cut)

        def failing() -> Iterator[pa.RecordBatch]:
            yield from batches
            raise KeyError("secret")

        if not self.late:
            raise ZeroDivisionError("secret")
        return schema, failing(), answer


@pytest.mark.parametrize("late", [False, True])
def test_a_bug_in_a_partition_leaks_nothing(served: Served, late: bool, caplog: pytest.LogCaptureFixture) -> None:
    broken = Broken("billing", 0, 5, VIEWS, dict(served.partitions[0].tables))
    broken.late = late
    served.service.register(broken)
    with pytest.raises(flight.FlightInternalError, match="its log says why") as error:
        served.client.do_get(ticket()).read_all()
    assert "secret" not in str(error.value)
    assert fault(error)["kind"] == "InternalError"
    assert "a Flight handler failed" in caplog.text


def test_data_exchange_is_handed_over_whole(served: Served) -> None:
    command = {"kind": "partition-exchange", "job": "billing", "from": 1}
    descriptor = flight.FlightDescriptor.for_command(json.dumps(command))
    with pytest.raises(flight.FlightUnavailableError, match="takes no data"):
        served.client.do_exchange(descriptor)[1].read_chunk()

    def echo(asked: dict[str, Any], reader: Any, writer: Any, context: Any) -> None:
        assert asked == command
        for chunk in reader:
            if chunk.app_metadata.to_pybytes() == b"fence":
                raise Fenced("a newer epoch owns this", asked=1, serving=2)
            writer.write_metadata(chunk.app_metadata)

    served.service.set_exchange_handler(echo)
    writer, reader = served.client.do_exchange(descriptor)
    for each in (b"one", b"two"):
        writer.write_metadata(each)
        assert reader.read_chunk().app_metadata.to_pybytes() == each
    writer.write_metadata(b"fence")
    with pytest.raises(flight.FlightUnavailableError, match="newer epoch") as error:
        reader.read_chunk()
    assert fault(error)["kind"] == "Fenced"


def test_close_is_quick_with_idle_exchanges_and_the_port_is_free() -> None:
    served = Served()
    command = json.dumps({"v": 1, "kind": "lookup", "job": "billing", "view": "subtotals"})
    idle = [served.client.do_exchange(flight.FlightDescriptor.for_command(command)) for _ in range(8)]
    keys = pa.record_batch({"customer": ["customer-3"], "kind": ["b"]})
    for writer, reader in idle:
        writer.begin(keys.schema)
        writer.write_with_metadata(keys, b'{"partition": 0}')
        reader.read_chunk()
    begin = time.monotonic()
    served.service.close(grace=0.2)
    assert time.monotonic() - begin < 1.0
    again = FlightService(port=served.service.port)
    with pytest.raises(Unavailable, match="cannot listen here"):
        FlightService(port=served.service.port)
    again.close()
    for writer, _ in idle:
        with pytest.raises((pa.ArrowException, flight.FlightError)):
            writer.close()
    served.client.close()


def test_cutting_connections_leaves_no_file_open(tmp_path: Path) -> None:
    served = Served()
    with (tmp_path / "no socket").open("w"):
        before = len(os.listdir("/dev/fd"))
        for _ in range(10):
            assert sever(1) == 0
        assert len(os.listdir("/dev/fd")) < before + 10
    served.close()


def test_a_stream_under_way_at_close_gets_its_grace() -> None:
    table = pa.table({"key": pa.array(range(4_000_000), pa.int64())})
    views = {"long": ViewInfo("long", table.schema, "append")}
    service = FlightService()
    service.register(MemoryPartition("j", 0, 1, views, {"long": table}, rows_per_batch=100_000))
    service.set_directory(directory_of("j", views, [service.location]))
    with flight.connect(service.location) as client:
        reader = client.do_get(ticket(job="j", view="long"))
        first = reader.read_chunk().data.num_rows
        closing = threading.Thread(target=service.close, args=(20.0,))
        closing.start()
        assert first + reader.read_all().num_rows == table.num_rows
        closing.join(10)
        assert not closing.is_alive()


raw_commands = st.binary(max_size=60) | st.dictionaries(
    st.sampled_from(
        ["v", "kind", "job", "view", "partition", "columns", "filter", "keys", "limit", "fresh", "wait", "epoch", "q"]
    ),
    st.sampled_from(
        [1, 0, -1, "lookup", "billing", "subtotals", "AAAA", None, True, 1.5, 2**80, ["total"], [], {}, "ÿ"]
    ),
).map(lambda data: json.dumps(data).encode())


def test_fuzz_gives_errors_and_the_service_lives(served: Served) -> None:
    """Tickets, commands, actions and exchanges of any bytes; damaged Substrait; damaged keys."""
    schema = TABLES["subtotals"].schema
    filters = [
        bytes(each.to_substrait(schema))
        for each in (pc.field("events") > 3, pc.field("customer").isin(["a", "b"]), pc.field("total").is_null())
    ]

    def harmless(call: Any) -> None:
        try:
            call()
        except (flight.FlightServerError, flight.FlightUnavailableError) as error:
            text, data = str(error), json.loads(error.extra_info)
        else:
            return
        assert "Traceback" not in text
        assert data["kind"] in ("InvalidFlow", "Unavailable", "Moved")

    @given(raw_commands, st.data())
    @settings(deadline=None, max_examples=150)
    def run(raw: bytes, data: st.DataObject) -> None:
        client = served.client
        harmless(lambda: client.do_get(flight.Ticket(raw)).read_all())
        harmless(lambda: client.get_flight_info(flight.FlightDescriptor.for_command(raw)))
        harmless(lambda: list(client.do_action(flight.Action("lookup", raw))))
        harmless(lambda: list(client.do_action(flight.Action("directory", raw))))
        damaged = bytearray(data.draw(st.sampled_from(filters)))
        for _ in range(data.draw(st.integers(1, 3))):
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
        harmless(lambda: client.do_get(ticket(filter=b64encode(bytes(damaged)).decode())).read_all())

    run()
    assert served.client.do_get(ticket()).read_all().num_rows > 0

"""Flight SQL below the drivers: its messages, and what it does with a client that goes away."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import flight
from sql_gateway import ENDLESS, FLOWING, SqlGateway, sql_gateway
from waiting import until

from flowstate.errors import InvalidFlow
from flowstate.view.answer import Answer, answer_of_data
from flowstate.view.freshness import LATEST, checked
from flowstate.view.sql import RunSql
from flowstate_flight import FlightReader
from flowstate_flight.flight_sql.call import Call, read_headers
from flowstate_flight.flight_sql.columns import Reads, parameter_schema, sent_batch, sent_schema
from flowstate_flight.flight_sql.messages import Message, is_flight_sql, pack, unpack
from flowstate_flight.flight_sql.metadata import _like
from flowstate_flight.flight_sql.sql_info import sql_info
from flowstate_flight.flight_sql.statements import Query
from flowstate_flight.gateway import Gateway
from flowstate_flight.handlers import clean_iterator
from flowstate_flight.protobuf import write
from flowstate_sql.served import ServedSql


@pytest.fixture(scope="module")
def served() -> Iterator[SqlGateway]:
    with sql_gateway() as served:
        yield served


@pytest.fixture
def client(served: SqlGateway) -> Iterator[flight.FlightClient]:
    with flight.connect(served.address) as client:
        yield client


def statement(query: str) -> flight.FlightDescriptor:
    return flight.FlightDescriptor.for_command(pack("CommandStatementQuery", write([(1, query.encode())])))


def read(client: flight.FlightClient, descriptor: flight.FlightDescriptor, options: Any = None) -> pa.Table:
    info = client.get_flight_info(descriptor, options)
    [endpoint] = info.endpoints
    assert endpoint.locations == []  # drivers that are told a location connect anew for every query
    table = client.do_get(endpoint.ticket, options).read_all()
    assert table.schema.equals(info.schema)  # ADBC compares them
    return table


def test_rows_say_how_fresh_they_are(client: flight.FlightClient) -> None:
    table = read(client, statement("select count(*) as n from subtotals"))
    assert table.to_pylist() == [{"n": 122}]
    answers = json.loads(table.schema.metadata[b"flowstate.answers"])
    answer: Answer = answer_of_data(answers["subtotals"])
    assert (answer.live, {each.partition for each in answer.parts}) == (True, {0, 1})
    assert client.get_schema(statement("select 1 as one")).schema.names == ["one"]


def test_headers_of_a_call_say_how_fresh(client: flight.FlightClient) -> None:
    consistent = flight.FlightCallOptions(headers=[(b"x-flowstate-consistent", b"true")])
    table = read(client, statement("select count(*) as n from subtotals"), consistent)
    assert json.loads(table.schema.metadata[b"flowstate.answers"])["subtotals"]["consistent"] is True
    wrong = flight.FlightCallOptions(headers=[(b"x-flowstate-snapshots", b"1")])
    with pytest.raises(flight.FlightServerError, match="did you mean 'snapshot'"):
        client.get_flight_info(statement("select 1"), wrong)


def test_what_headers_may_say() -> None:
    assert read_headers({}) == (LATEST, None, False)
    fresh, timeout, naive = read_headers(
        {"x-flowstate-max-age": " 2.5", "x-flowstate-at-least": '{"t/0": [7, 1]}', "x-flowstate-timeout": "3"}
    )
    assert (fresh, timeout, naive) == (checked(max_age=2.5, at_least={"t/0": (7, 1)}), 3.0, False)
    assert read_headers({"x-flowstate-snapshot": "5", "x-flowstate-timestamps": "naive"}) == (
        checked(snapshot=5),
        None,
        True,
    )
    for name, value in (
        ("timeout", "-1"), ("timeout", "nan"), ("timestamps", "utc"), ("consistent", "perhaps"), ("at-least", "[" * 100_000),
        ("max-age", "nan"), ("snapshot", "1.5"), ("other", ""),
    ):  # fmt: skip
        with pytest.raises(InvalidFlow):
            read_headers({f"x-flowstate-{name}": value})


class Recording:
    """A `RunSql` that notes how its queries began and ended."""

    def __init__(self, sql: RunSql) -> None:
        self._sql, self.begun, self.ended = sql, threading.Event(), threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sql, name)

    def run(self, *arguments: Any, **options: Any) -> Any:
        self.begun.set()
        try:
            return self._sql.run(*arguments, **options)
        finally:
            self.ended.set()


def test_a_client_that_goes_away_ends_its_query(
    served: SqlGateway, client: flight.FlightClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert served.gateway.flight_sql is not None
    recording = Recording(served.gateway.flight_sql._sql)
    monkeypatch.setattr(served.gateway.flight_sql, "_sql", recording)
    ticket = client.get_flight_info(statement(ENDLESS)).endpoints[0].ticket

    def goes_away() -> bool:
        with pytest.raises(flight.FlightTimedOutError):
            client.do_get(ticket, flight.FlightCallOptions(timeout=0.5)).read_all()
        return recording.begun.is_set()

    until(goes_away)
    assert recording.ended.wait(20)
    # one whose rows were flowing
    stream = client.do_get(client.get_flight_info(statement(FLOWING)).endpoints[0].ticket)
    assert stream.read_chunk().data.num_rows > 0
    assert served.gateway.flight_sql._under_way()
    stream.cancel()
    until(lambda: not served.gateway.flight_sql._under_way())
    assert read(client, statement("select 42 as n")).to_pylist() == [{"n": 42}]


def test_rows_that_nobody_begins_to_read_are_let_go(served: SqlGateway) -> None:
    """A client may be gone before its first row, and then nothing is ever asked of the stream, nor may the call be."""
    asked: list[bool] = []
    flight_sql = served.gateway.flight_sql
    assert flight_sql is not None
    call = Call(gone=lambda: bool(asked.append(True)))
    _, batches = flight_sql.read(call, pack("CommandStatementQuery", write([(1, FLOWING.encode())])))
    stream = clean_iterator(batches)
    assert len(flight_sql._under_way()) == 1
    del stream, batches
    assert flight_sql._under_way() == []
    assert call.cancelled()
    asked.clear()
    assert isinstance(served.gateway.sql, ServedSql)
    until(lambda: not served.gateway.sql._slots.taken())
    assert asked == []


def test_a_query_is_cancelled_by_another_connection(client: flight.FlightClient, served: SqlGateway) -> None:
    info = client.get_flight_info(statement(FLOWING))

    def cancel() -> bytes:
        body = write([(1, info.serialize())])
        with flight.connect(served.address) as other:
            [result] = other.do_action(flight.Action("CancelFlightInfo", body))
            return bytes(result.body.to_pybytes())

    assert cancel() == b"\x08\x03"  # nothing runs
    stream = client.do_get(info.endpoints[0].ticket)
    assert stream.read_chunk().data.num_rows > 0
    assert cancel() == b"\x08\x01"
    with pytest.raises(flight.FlightError):
        stream.read_all()


def test_sessions_have_nothing_to_set(client: flight.FlightClient) -> None:
    def act(kind: str, body: bytes = b"") -> bytes:
        [result] = client.do_action(flight.Action(kind, body))
        return bytes(result.body.to_pybytes())

    def option(name: str, value: str) -> bytes:
        return write([(1, write([(1, name.encode()), (2, write([(1, value.encode())]))]))])

    assert act("SetSessionOptions", option("catalog", "temp") + option("schema", "main")) == b""
    refused = [
        Message(each) for each in Message(act("SetSessionOptions", option("schema", "x") + option("y", "z"))).all(1)
    ]
    assert [(each.text(1), each.message(2).numbers(1)) for each in refused] == [("schema", [2]), ("y", [1])]  # type: ignore[union-attr]
    assert [Message(each).text(1) for each in Message(act("GetSessionOptions")).all(1)] == ["catalog", "schema"]
    assert act("CloseSession") == b"\x08\x01"
    assert {each.type for each in client.list_actions()} >= {"CreatePreparedStatement", "directory", "lookup"}


def test_commands_that_are_not_served_are_refused(client: flight.FlightClient) -> None:
    for name, message in (
        ("CommandStatementUpdate", "read only"),
        ("CommandStatementIngest", "read only"),
        ("CommandSomething", "is not known"),
    ):
        with pytest.raises(flight.FlightServerError, match=message):
            client.get_flight_info(flight.FlightDescriptor.for_command(pack(name, b"")))
    writer, _ = client.do_put(flight.FlightDescriptor.for_path("x"), pa.schema({"a": pa.int64()}))
    with pytest.raises(flight.FlightServerError, match="read only"):
        writer.close()


def test_messages() -> None:
    raw = pack("CommandGetTables", write([(3, b"a"), (3, b"b"), (4, b"T"), (4, b"U"), (5, 1)]))
    assert is_flight_sql(raw)
    assert not is_flight_sql(b'{"v": 1}')
    assert not is_flight_sql(b"\n{}")
    name, message = unpack(raw)
    assert (name, message.text(3), message.texts(4), message.flag(5), message.text(1)) == (
        "CommandGetTables", "b", ["T", "U"], True, None,
    )  # fmt: skip
    packed = write([(1, b"\x00\x7f\x80\x01\xff\xff\x03"), (1, 9)])
    assert Message(packed).numbers(1) == [0, 127, 128, 65535, 9]
    for broken in (b"\x0a", b"\x0a\x05ab", b"\x0b", b"\xff" * 12, write([(1, b"\xff")])):
        with pytest.raises(InvalidFlow):
            unpack(broken)
    query = Query("select $who", ("who",)).bind(pa.table({"0": [1, 2]}))
    assert Query.of(query.handle()) == query
    assert query.parameters() == [{"who": 1}, {"who": 2}]


@pytest.mark.parametrize(
    ("pattern", "text", "fits"),
    [
        (None, "x", True), ("%", "", True), ("sub%", "subtotals", True), ("%als", "subtotals", True), ("sub", "subtotals", False),
        ("s_b%t_l%", "subtotals", True), ("a\\_b", "a_b", True), ("a\\_b", "axb", False), ("100\\%", "100%", True), ("", "", True),
        ("", "a", False), ("%a%a%b", "aaaaab", True), ("%" + "a%" * 40 + "b", "a" * 1000, False), ("a.c", "abc", False),
    ],
)  # fmt: skip
def test_patterns(pattern: str | None, text: str, fits: bool) -> None:
    assert _like(pattern, text) is fits


def test_columns_that_every_driver_reads() -> None:
    batch = pa.record_batch(
        {
            "word": pa.array(["a", None, "a"]).dictionary_encode(),
            "view": pa.array(["x", None, "y" * 40], pa.string_view()),
            "words": pa.array([["a"], None, []], pa.list_(pa.string_view())),
            "big": pa.array([2**64 - 1, None, 0], pa.uint64()),
            "when": pa.array([0, None, 1], pa.timestamp("us", "UTC")),
        }
    )
    schema = sent_schema(batch.schema)
    assert schema.types == [
        pa.string(), pa.string(), pa.list_(pa.string()), pa.uint64(), pa.timestamp("us", "UTC"),
    ]  # fmt: skip
    assert sent_batch(batch, schema).to_pylist() == batch.to_pylist()
    java = sent_schema(batch.schema, Reads(naive=True, signed=True))
    assert java.types[3:] == [pa.decimal128(20, 0), pa.timestamp("us")]
    assert sent_batch(batch, java).column("big").to_pylist() == [2**64 - 1, None, 0]
    asked = pa.schema({"1": pa.int16(), "2": pa.timestamp("us", "UTC"), "3": pa.null(), "4": pa.decimal128(9, 2)})
    assert parameter_schema(asked).types == [
        pa.int64(), pa.timestamp("ms", "UTC"), pa.string(), pa.decimal128(9, 2),
    ]  # fmt: skip


def test_information_of_the_server() -> None:
    found = {each["info_name"]: each["value"] for each in sql_info([], "1.2").to_pylist()}
    assert (found[0], found[1], found[3], found[8]) == ("flowstate", "1.2", True, 0)
    assert set(found) <= {*range(12), 100, 101, *range(500, 577)}  # one that JDBC does not know breaks all of them
    assert [each["info_name"] for each in sql_info([1, 10_000, 504], "1").to_pylist()] == [1, 504]


def test_a_prepared_query_outlives_its_gateway_and_a_running_one_does_not_delay_its_end() -> None:
    with sql_gateway() as served, flight.connect(served.address) as client:
        request = pack("ActionCreatePreparedStatementRequest", write([(1, b"select count(*) as n from subtotals")]))
        [result] = client.do_action(flight.Action("CreatePreparedStatement", request))
        handle = unpack(result.body.to_pybytes())[1].raw(1)
        assert handle is not None
        ticket = client.get_flight_info(statement(ENDLESS)).endpoints[0].ticket
        ended: list[BaseException] = []

        def ask() -> None:
            try:
                client.do_get(ticket).read_all()
            except flight.FlightError as error:
                ended.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        assert isinstance(served.gateway.sql, ServedSql)
        until(lambda: served.gateway.sql._slots.taken())
        begun = time.monotonic()
        served.gateway.close()
        assert time.monotonic() - begun < 10.0
        thread.join(20)
        assert len(ended) == 1
        reader = FlightReader(served.worker.location)
        with Gateway(reader, port=served.gateway.port, sql=ServedSql(reader)):
            prepared = flight.FlightDescriptor.for_command(pack("CommandPreparedStatementQuery", write([(1, handle)])))
            assert until(lambda: attempt(client, prepared)).to_pylist() == [{"n": 122}]


def attempt(client: flight.FlightClient, descriptor: flight.FlightDescriptor) -> Any:
    """None while the gateway is away."""
    try:
        return read(client, descriptor)
    except flight.FlightUnavailableError:
        return None

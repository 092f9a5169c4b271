"""How long `at_least` may be waited for at a gateway and over HTTP: as the question says, and not for as long as the gateway would."""

from __future__ import annotations

import http.client
import json
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from urllib.parse import quote

import adbc_driver_flightsql.dbapi as adbc
import duckdb
import pyarrow as pa
import pytest
from hand_job import HandJob
from pyarrow import flight

import flowstate as fs
from flowstate.errors import Behind, FlowstateError
from flowstate.view.freshness import checked
from flowstate_flight import FlightReader
from flowstate_flight.gateway import Gateway
from flowstate_flight.ticket import write_keys
from flowstate_http import HttpService
from flowstate_sql.served import ServedSql

PATIENCE, WAIT = 25.0, 0.6
KEYS = pa.record_batch({"who": ["anna", "bert", "carla"]})  # of both partitions


class Served:
    def __init__(self, stack: ExitStack) -> None:
        self.job = stack.enter_context(HandJob())
        self.job.append("a", [("anna", 10, 1, "x"), ("bert", 20, 2, "y"), ("carla", 30, 3, "z")])
        for service in self.job.services:
            service.set_cut_handler(lambda job, timeout: {"cut": 7, "position": {"a": [3, 0]}, "epochs": []})
        self.reader = FlightReader([each.location for each in self.job.services], patience=PATIENCE)
        sql = ServedSql(self.reader)
        self.gateway = stack.enter_context(Gateway(self.reader, sql=sql))
        self.http = stack.enter_context(HttpService(self.reader, sql))
        self.client = stack.enter_context(flight.connect(self.gateway.address))

    def command(self, offset: int, wait: float | None, **fields: Any) -> bytes:
        given = {} if wait is None else {"wait": wait}
        asked = {"v": 1, "job": "hand", "view": "totals", "fresh": {"at_least": {"a": offset}}, **given, **fields}
        return json.dumps(asked).encode()

    def scan(self, offset: int, wait: float | None) -> int:
        return int(self.client.do_get(flight.Ticket(self.command(offset, wait))).read_all().num_rows)

    def consistent(self, offset: int, wait: float | None) -> int:
        asked = self.command(offset, wait, fresh={"at_least": {"a": offset}, "consistent": True})
        return int(self.client.do_get(flight.Ticket(asked)).read_all().num_rows)

    def keys(self, offset: int, wait: float | None) -> int:
        ticket = self.command(offset, wait, keys=b64encode(write_keys(KEYS)).decode())
        return int(self.client.do_get(flight.Ticket(ticket)).read_all().num_rows)

    def action(self, offset: int, wait: float | None) -> int:
        body = self.command(offset, wait, keys=b64encode(write_keys(KEYS)).decode())
        [found] = self.client.do_action(flight.Action("lookup", body))
        return int(pa.ipc.open_stream(found.body).read_all().num_rows)

    def exchange(self, offset: int, wait: float | None) -> int:
        command = json.dumps({"v": 1, "kind": "lookup", "job": "hand", "view": "totals"})
        writer, reader = self.client.do_exchange(flight.FlightDescriptor.for_command(command))
        with writer:
            writer.begin(KEYS.schema)
            asked = {"id": 1, "fresh": {"at_least": {"a": offset}}, **({} if wait is None else {"wait": wait})}
            writer.write_with_metadata(KEYS, json.dumps(asked).encode())
            chunk = reader.read_chunk()
            said = json.loads(chunk.app_metadata.to_pybytes())
            writer.done_writing()
        if "error" in said:
            raise flight.FlightUnavailableError("refused", json.dumps(said["error"]))
        return int(chunk.data.num_rows)

    def read(self, offset: int, wait: float | None) -> int:
        return self.reader.lookup("totals", KEYS, fresh=checked(at_least={"a": offset}, wait=wait)).num_rows

    def python(self, offset: int, wait: float | None) -> int:
        with fs.connect(self.gateway.address, patience=PATIENCE) as reads:
            return reads.at(at_least={"a": offset}, wait=wait).to_table("totals").num_rows

    def python_sql(self, offset: int, wait: float | None) -> int:
        with fs.connect(self.gateway.address, patience=PATIENCE) as reads:
            return len(reads.sql("select * from totals", at_least={"a": offset}, wait=wait).fetchall())

    def flight_sql(self, offset: int, wait: float | None) -> int:
        headers = {"at-least": json.dumps({"a": offset})} | ({} if wait is None else {"wait": str(wait)})
        options = {f"adbc.flight.sql.rpc.call_header.x-flowstate-{name}": value for name, value in headers.items()}
        with (
            adbc.connect(self.gateway.address.replace("grpc:", "grpc+tcp:"), options, autocommit=True) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute("select * from totals")
            return int(cursor.fetch_arrow_table().num_rows)

    def by_http(self, offset: int, wait: float | None) -> int:
        more = "" if wait is None else f"&wait={wait}"
        return self._answered("GET", f"/views/totals?at_least={quote(json.dumps({'a': offset}))}{more}")

    def sql_by_http(self, offset: int, wait: float | None) -> int:
        fresh = {"at_least": {"a": offset}, **({} if wait is None else {"wait": wait})}
        return self._answered("POST", "/sql", json.dumps({"query": "select * from totals", "fresh": fresh}))

    def _answered(self, method: str, path: str, body: str | None = None) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.http.port, timeout=60)
        connection.request(method, path, body, {"content-type": "application/json"})
        response = connection.getresponse()
        said = json.loads(response.read())
        connection.close()
        if response.status != 200:
            raise flight.FlightUnavailableError("refused", json.dumps(said["error"]))
        return len(said["rows"])


@pytest.fixture
def served() -> Iterator[Served]:
    with ExitStack() as stack:
        yield Served(stack)


WAYS: dict[str, Callable[[Served, int, float | None], int]] = {
    "scan": Served.scan,
    "keys": Served.keys,
    "action": Served.action,
    "exchange": Served.exchange,
    "reader": Served.read,
    "Python": Served.python,
    "SQL in Python": Served.python_sql,
    "Flight SQL": Served.flight_sql,
    "HTTP": Served.by_http,
    "SQL by HTTP": Served.sql_by_http,
}


def told(error: BaseException) -> str:
    """What a refusal says, however it came."""
    if isinstance(error, FlowstateError):
        return type(error).__name__
    raw = getattr(error, "extra_info", b"")
    return str(json.loads(raw)["kind"]) if raw else str(error)


@pytest.mark.parametrize("way", [*WAYS, "consistent"])
def test_it_is_refused_when_it_has_waited_for_so_long(served: Served, way: str) -> None:
    ask = WAYS.get(way, Served.consistent)
    for wait in (0, WAIT):
        begun = time.monotonic()
        with pytest.raises((flight.FlightError, Behind, adbc.Error, duckdb.Error)) as error:
            ask(served, 1000, wait)
        took = time.monotonic() - begun
        assert "Behind" in told(error.value) or "has not come as far" in str(error.value)
        assert wait <= took < wait + 5.0 < PATIENCE, "a busy machine is slow, and a gateway has patience for 25 s"


@pytest.mark.parametrize("way", WAYS)
def test_within_that_time_it_is_waited_for(served: Served, way: str) -> None:
    found: list[int] = []
    asking = threading.Thread(target=lambda: found.append(WAYS[way](served, 4, 20.0)))
    asking.start()
    with pytest.raises((flight.FlightError, Behind, adbc.Error, duckdb.Error)):
        WAYS[way](served, 4, 0)
    assert found == []
    served.job.append("a", [("dora", 40, 4, "v")])
    asking.join(20)
    assert found == [len(served.job.rows("totals")) if way not in ("keys", "action", "exchange", "reader") else 3]


def test_without_it_a_gateway_has_patience(served: Served) -> None:
    found: list[int] = []
    asking = threading.Thread(target=lambda: found.append(served.scan(4, None)))
    asking.start()
    with pytest.raises(flight.FlightUnavailableError):
        served.scan(4, 0.2)
    assert found == []
    served.job.append("a", [("dora", 40, 4, "v")])
    asking.join(20)
    assert found == [4]


def test_who_does_not_answer_is_looked_for_a_little_longer(served: Served) -> None:
    served.job.services[1].close()
    for wait in (0, WAIT):
        begun = time.monotonic()
        with pytest.raises(flight.FlightUnavailableError) as error:
            served.scan(3, wait)
        assert told(error.value) == "Unavailable"
        assert time.monotonic() - begun < wait + 8.0 < PATIENCE


def test_a_wait_that_is_none_is_refused(served: Served) -> None:
    for way in ("scan", "exchange", "Flight SQL", "HTTP", "SQL by HTTP"):
        for wait in (-1, 61):
            with pytest.raises((flight.FlightError, adbc.Error), match=r"wait|refused") as error:
                WAYS[way](served, 1, wait)
            assert "Behind" not in told(error.value)

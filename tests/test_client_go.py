"""A client in Go, which knows nothing but docs/flight.md, gets the same answers as pyarrow, from workers and from a gateway."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
from base64 import b64decode, b64encode
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from flight_memory import Worker, directory_of
from flight_tables import TABLES, VIEWS, ordered
from go_reader import GoReader
from pyarrow import flight

from flowstate_flight import FlightReader
from flowstate_flight.gateway import Gateway

pytestmark = [pytest.mark.go, pytest.mark.timeout(600)]  # building takes a minute or two, once
COUNT = 3
KEYS = [{"customer": "customer-7", "kind": "b"}, {"customer": None, "kind": "a"}, {"customer": "nobody", "kind": "a"}]


@pytest.fixture(scope="module")
def addresses() -> Iterator[dict[str, str]]:
    """Of a worker that hosts one of the partitions, beside one with the others; and of a gateway."""
    with contextlib.ExitStack() as stack:
        workers = []
        for serves in ([0, 1], [2]):
            workers.append(Worker("billing", VIEWS, TABLES, COUNT, serves))
            stack.callback(workers[-1].close)
        directory = directory_of("billing", VIEWS, [workers[0].location, workers[0].location, workers[1].location])
        for worker in workers:
            worker.set_directory(directory)
        gateway = stack.enter_context(Gateway(FlightReader(workers[0].location, patience=3.0)))
        yield {"worker": workers[1].location, "gateway": gateway.address}


@pytest.fixture(params=["worker", "gateway"])
def address(addresses: dict[str, str], request: pytest.FixtureRequest) -> str:
    return addresses[request.param]


def by_pyarrow(address: str, command: dict[str, Any]) -> pa.Table:
    with flight.connect(address) as client:
        tables = []
        for endpoint in client.get_flight_info(flight.FlightDescriptor.for_command(json.dumps(command))).endpoints:
            with flight.connect(endpoint.locations[0] if endpoint.locations else address) as service:
                tables.append(service.do_get(endpoint.ticket).read_all().replace_schema_metadata())
        return pa.concat_tables(tables)


def expected(keys: list[dict[str, Any]]) -> list[dict[str, object]]:
    return ordered(
        pa.Table.from_pylist(
            [row for row in TABLES["subtotals"].to_pylist() for key in keys if row.items() >= key.items()]
        )
    )


def test_flights_and_all_rows(address: str) -> None:
    with GoReader(address) as go, flight.connect(address) as client:
        listed = {tuple(each["path"]): each for each in go.answer(do="list")}
        by_arrow = {tuple(name.decode() for name in each.descriptor.path): each for each in client.list_flights()}
        assert set(listed) == set(by_arrow) == {("billing", name) for name in TABLES}
        for path, each in listed.items():
            assert set(each["columns"]) == set(by_arrow[path].schema.names)
            assert each["endpoints"] == len(by_arrow[path].endpoints)
            assert ordered(go.table(do="read", path=list(path))) == ordered(TABLES[path[1]])
            assert ordered(go.table(do="read", path=[path[1]])) == ordered(TABLES[path[1]])


def test_values_are_understood_there(address: str) -> None:
    with GoReader(address) as go:
        command = {"columns": ["customer", "kind", "month", "total", "events"]}
        parts = go.answer(do="lookup", job="billing", view="subtotals", keys=KEYS[:1], command=command)
    rows = sorted((row for part in parts for row in part["values"]), key=repr)
    assert [(row["customer"], row["kind"], row["total"], row["events"]) for row in rows] == [
        ("customer-7", "b", "0.71", 7),
        ("customer-7", "b", "0.72", 7),
    ]
    months = [dt.datetime.fromisoformat(row["month"].replace(" ", "T")[:19]) for row in rows]
    assert months == [dt.datetime(2026, 1, 1), dt.datetime(2026, 2, 1)]


def test_columns_filter_and_limit(address: str) -> None:
    condition = (pc.field("events") >= 10) & (pc.field("kind") == "a")
    encoded = b64encode(bytes(condition.to_substrait(TABLES["subtotals"].schema))).decode()
    command = {"v": 1, "job": "billing", "view": "subtotals", "columns": ["total", "customer"], "filter": encoded}
    with GoReader(address) as go:
        got = go.table(do="read", command=command)
        assert ordered(got) == ordered(TABLES["subtotals"].filter(condition).select(["total", "customer"]))
        assert ordered(got) == ordered(by_pyarrow(address, command))
        parts = go.answer(do="read", command={**command, "limit": 2})
        assert all(len(part["values"]) <= 2 for part in parts)


def test_lookups_by_ticket_and_by_exchange(address: str) -> None:
    with GoReader(address) as go:
        found = go.table(do="lookup", job="billing", view="subtotals", keys=KEYS)
        assert ordered(found) == expected(KEYS)
        assert found.num_rows == 4
        asked = [{"keys": KEYS}, {"keys": KEYS[1:]}, {"keys": []}]
        parts = go.answer(do="exchange", job="billing", view="subtotals", messages=asked)
        for number, message in enumerate(asked):
            mine = [part for part in parts if part["reply"]["id"] == number]
            rows = go_rows(mine)
            assert ordered(rows) == expected(message["keys"])
            assert all(part["reply"]["answer"]["view"] == "subtotals" for part in mine)


def go_rows(parts: list[dict[str, Any]]) -> pa.Table:
    tables = [pa.ipc.open_stream(b64decode(part["ipc"])).read_all() for part in parts]
    return pa.concat_tables(tables)


def test_an_answer_says_how_fresh_it_is(address: str) -> None:
    with GoReader(address) as go:
        parts = go.answer(do="read", path=["subtotals"])
        found = {each["partition"]: each for part in parts for each in part["answer"]["parts"]}
        assert set(found) == set(range(COUNT))
        for number, each in found.items():
            assert (each["epoch"], each["position"], each["origin"]) == (1, {"events-0": [100 + number, 1]}, "live")


def test_what_is_refused(address: str) -> None:
    command = {"v": 1, "job": "billing", "view": "subtotals", "fresh": {"at_least": {"events-0": 200}}, "wait": 0.1}
    with GoReader(address) as go:
        refused = go.ask(do="read", command=command)["error"]
        assert (refused["code"], refused["details"]["kind"]) == ("Unavailable", "Behind")
        facts = refused["details"]["facts"]
        assert facts["asked"] == [200, 0]
        assert facts["missed_by"] == 200 - facts["reached"][0]
        assert facts["retry_after"] > 0
        # the refusal of a message ends nothing
        asked = [{"keys": KEYS, "metadata": {"fresh": command["fresh"], "wait": 0.1}}, {"keys": KEYS}]
        parts = go.answer(do="exchange", job="billing", view="subtotals", messages=asked)
        errors = [part["reply"] for part in parts if "error" in part["reply"]]
        assert errors
        assert {(each["id"], each["error"]["kind"]) for each in errors} == {(0, "Behind")}
        assert ordered(go_rows([part for part in parts if part["reply"]["id"] == 1])) == expected(KEYS)

        wrong = go.ask(do="read", path=["subtotal"])["error"]
        assert (wrong["code"], wrong["details"]["kind"]) == ("Unknown", "InvalidFlow")
        assert "did you mean 'subtotals'?" in wrong["message"]


def test_a_ticket_of_another_epoch_has_moved(addresses: dict[str, str]) -> None:
    with flight.connect(addresses["worker"]) as client:
        endpoint = client.get_flight_info(flight.FlightDescriptor.for_path("subtotals")).endpoints[2]
        old = {**json.loads(endpoint.ticket.ticket), "epoch": 0}
        with pytest.raises(flight.FlightUnavailableError) as moved:
            client.do_get(flight.Ticket(json.dumps(old))).read_all()
        assert json.loads(moved.value.extra_info)["kind"] == "Moved"
    with GoReader(addresses["worker"]) as go:
        refused = go.ask(do="action", action="lookup", body={**old, "keys": ""})["error"]
        assert (refused["code"], refused["details"]["kind"]) == ("Unavailable", "Moved")
        status = go.answer(do="action", action="status")
        assert status["jobs"]["billing"]["partitions"] == {"2": 1}

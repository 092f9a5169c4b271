"""A gateway gives to each what is there for her, as the workers behind it do, which it asks for everything."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from flight_tables import ordered
from guarded import (
    CALLS,
    HERS,
    INTERNAL,
    MINE,
    NOBODYS,
    PASSWORD,
    SEES,
    SUBTOTALS,
    THEIRS,
    WHERE,
    Guarded,
    act,
    near,
    outcome,
    shows,
    ticket,
    token,
)
from pyarrow import flight

import flowstate as fs
from flowstate.errors import InvalidFlow
from flowstate_flight import FlightReader, auth, connect
from flowstate_flight.gateway import Gateway
from flowstate_flight.ticket import write_keys


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    guarded = Guarded()
    reader = FlightReader(guarded.service.location, "billing", token=INTERNAL)
    with Gateway(reader, access=guarded.access) as gateway:
        yield gateway
    guarded.close()


@pytest.fixture(scope="module")
def flight_client(gateway: Gateway) -> Iterator[flight.FlightClient]:
    with flight.connect(gateway.address) as client:
        yield client


def exchange(
    client: flight.FlightClient, who: str, view: str, keys: pa.RecordBatch, job: str = "billing"
) -> pa.RecordBatch:
    command = flight.FlightDescriptor.for_command(json.dumps({"v": 1, "kind": "lookup", "job": job, "view": view}))
    writer, reader = client.do_exchange(command, shows(token(who)))
    writer.begin(keys.schema)
    writer.write_with_metadata(keys, b'{"id": 1}')
    chunk = reader.read_chunk()
    reply = json.loads(chunk.app_metadata.to_pybytes())
    writer.done_writing()
    writer.close()
    if "error" in reply:
        raise flight.FlightServerError(json.dumps(reply["error"]))
    return chunk.data


#: As those of a worker, with tickets for all partitions at once.
ASKED: dict[str, Any] = {name: call for name, call in CALLS.items() if name.startswith(("flight info", "schema"))} | {
    "scan": lambda c, o, job, view: c.do_get(flight.Ticket(ticket(view, None, job=job)), o).read_all(),
    "lookup by do_get": lambda c, o, job, view: c.do_get(
        flight.Ticket(ticket(view, None, job=job, keys=write_keys(MINE))), o
    ).read_all(),
    "lookup by action": lambda c, o, job, view: act(c, "lookup", ticket(view, None, job=job, keys=write_keys(MINE)), o),
}


@pytest.mark.parametrize("who", SEES)
@pytest.mark.parametrize("call", ASKED)
def test_what_may_not_be_seen_is_not_there(flight_client: flight.FlightClient, who: str, call: str) -> None:
    options, asks = shows(token(who)), ASKED[call]
    for view in ("subtotals", "subtotals_late"):
        got = outcome(lambda: asks(flight_client, options, "billing", view), view)  # noqa: B023
        if view in SEES[who]:
            assert got == ("there", None) or (view == "subtotals_late" and "lookup" in call)
        else:
            assert got[0] != "there"
            assert got == outcome(lambda: asks(flight_client, options, "billing", near(view)), near(view))  # noqa: B023


def test_lists_name_what_is_there(flight_client: flight.FlightClient) -> None:
    for who, seen in SEES.items():
        views = {each for each in seen if WHERE[each] == "billing"}
        listed = {each.descriptor.path[1].decode() for each in flight_client.list_flights(options=shows(token(who)))}
        assert listed == views
        status = json.loads(act(flight_client, "status", b"", shows(token(who))))
        assert set(status["jobs"]) == ({"billing"} if views else set())
        if views:
            directory = json.loads(act(flight_client, "directory", b"", shows(token(who))))
            assert {each["name"] for each in directory["views"]} == views


def test_rows_and_keys(flight_client: flight.FlightClient, gateway: Gateway) -> None:
    def scan(who: str, **fields: Any) -> list[dict[str, object]]:
        asked = flight.Ticket(ticket("subtotals", None, **fields))
        return ordered(flight_client.do_get(asked, shows(token(who))).read_all())

    def encoded(condition: pc.Expression, *columns: str) -> bytes:
        return bytes(condition.to_substrait(pa.schema([SUBTOTALS.schema.field(each) for each in columns])))

    assert scan("boss") == ordered(SUBTOTALS)
    assert scan("anna") == HERS
    assert scan("anna", filter=encoded(pc.field("customer") == "customer-4", "customer")) == []
    assert scan("anna", columns=("events",), filter=encoded(pc.field("events") >= 0, "events"), limit=1) == [
        {"events": HERS[0]["events"]}
    ]
    assert ordered(pa.Table.from_batches([exchange(flight_client, "anna", "subtotals", MINE)])) == HERS
    assert exchange(flight_client, "anna", "subtotals", THEIRS) == exchange(flight_client, "anna", "subtotals", NOBODYS)
    assert exchange(flight_client, "anna", "subtotals", THEIRS).num_rows == 0
    assert exchange(flight_client, "boss", "subtotals", THEIRS).num_rows == 2
    with fs.connect(gateway.address, login=("anna", PASSWORD)) as reads:
        assert list(reads) == ["subtotals"]
        assert ordered(reads["subtotals"].to_table()) == HERS
        assert ordered(reads["subtotals"]["customer-3", "b"]) == HERS
        with pytest.raises(KeyError):
            reads["subtotals"]["customer-4", "a"]


def test_nobody_else_is_let_in(flight_client: flight.FlightClient, gateway: Gateway) -> None:
    for given in (INTERNAL, "x", token("former")):  # the token of the job's own processes is none of the gateway's
        with pytest.raises(flight.FlightUnauthenticatedError, match=auth.NOT_LET_IN):
            list(flight_client.list_flights(options=shows(given)))
    with pytest.raises(InvalidFlow, match="refused these credentials"):
        connect(gateway.address)
    with pytest.raises(InvalidFlow, match="access="):
        fs.gateway("127.0.0.1:1", host="0.0.0.0")

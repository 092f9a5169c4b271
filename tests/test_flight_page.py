"""docs/flight.md is run: its code in its order, and each of its pieces of JSON, against a worker and against a gateway."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from flight_memory import directory_of, partitions_of
from flight_page import CODE, JSON, PAGE
from flight_tables import TABLES, VIEWS, ordered
from pyarrow import flight

from flowstate.view.access import Access
from flowstate_flight import FlightReader, FlightService
from flowstate_flight.gateway import Gateway

COUNT = 3
PATH = flight.FlightDescriptor.for_path("subtotals")


def table_of(heading: str) -> dict[str, list[str]]:
    """A table of the page by its first column, whose cells are ``code``; `heading` is that of the column."""
    lines = PAGE.partition(f"| {heading} |")[2].partition("\n\n")[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {name: row[1:] for row in rows for name in re.findall(r"`(\w+)`", row[0])}


@pytest.fixture(params=["worker", "gateway"])
def address(request: pytest.FixtureRequest) -> Iterator[str]:
    with FlightService() as service:
        for each in partitions_of("billing", VIEWS, TABLES, COUNT):
            service.register(each)
        service.set_directory(directory_of("billing", VIEWS, [service.location] * COUNT))
        if request.param == "worker":
            yield service.location
        else:
            with Gateway(FlightReader(service.location, patience=3.0)) as gateway:
                yield gateway.address


def shape(data: object) -> object:
    """Data without its values."""
    if isinstance(data, dict):
        return {name: shape(value) for name, value in data.items()}
    if isinstance(data, list):
        return [shape(value) for value in data]
    return type(data).__name__


def rows(parts: list[pa.Table]) -> list[dict[str, object]]:
    return ordered(pa.concat_tables([each.replace_schema_metadata() for each in parts]))


def test_the_code(address: str) -> None:
    said: dict[str, Any] = {"address": address, "token": b"none is needed here"}
    for block in CODE:
        exec(block, said)
    whole = TABLES["subtotals"]
    assert said["flights"] == {(b"billing", b"subtotals"), (b"billing", b"subtotals_late")}
    assert rows(said["everything"]) == ordered(whole)
    assert all(part.schema.names == ["customer", "total"] for part in said["some"])
    assert rows(said["filtered"]) == ordered(whole.filter((pc.field("events") >= 10) & (pc.field("kind") == "a")))
    wanted = [
        row for row in whole.to_pylist() if (row["customer"], row["kind"]) in {("customer-1", "b"), ("customer-2", "a")}
    ]
    assert len(wanted) == 4
    assert rows(said["found"]) == sorted(wanted, key=repr)
    for number in range(3):
        found = [pa.Table.from_batches([batch]) for reply, batch in said["replies"] if reply["id"] == number]
        assert rows(found) == sorted(wanted, key=repr)
    assert [part["partition"] for each in said["answers"] for part in each["parts"]] == list(range(COUNT))
    assert said["types"] == whole.schema
    assert said["mine"].schema == whole.schema
    assert shape(said["refused"]) == shape(JSON["error"])
    assert said["refused"]["kind"] == JSON["error"]["kind"]
    said["client"].close()


def test_the_json(address: str) -> None:
    with flight.connect(address) as client:
        gateway = client.get_flight_info(PATH).endpoints[0].locations == []

        def read(command: dict[str, Any]) -> list[pa.Table]:
            info = client.get_flight_info(flight.FlightDescriptor.for_command(json.dumps(command)))
            return [client.do_get(each.ticket).read_all() for each in info.endpoints]

        found = read(JSON["command"])
        assert all(part.schema.names == ["customer", "total"] and part.num_rows <= 100 for part in found)
        whole = TABLES["subtotals"].select(["customer", "total"]).to_pylist()
        assert all(row in whole for row in rows(found))
        assert sum(part.num_rows for part in found) == (100 if gateway else len(whole))
        found = read({"v": 1, "job": "billing", "view": "subtotals", "fresh": JSON["fresh"]})
        answer = json.loads(found[0].schema.metadata[b"flowstate.answer"])
        if gateway:
            assert [part["partition"] for part in answer["parts"]] == list(range(COUNT))
            answer["parts"] = answer["parts"][:1]
        assert answer == JSON["answer"]

        message = dict(JSON["message"])
        if gateway:
            del message["partition"], message["epoch"]
        writer, reader = client.do_exchange(flight.FlightDescriptor.for_command(json.dumps(JSON["exchange"])))
        keys = pa.record_batch({"customer": ["customer-1"], "kind": ["b"]})
        with writer:
            writer.begin(keys.schema)
            writer.write_with_metadata(keys, json.dumps(message).encode())
            reply = json.loads(reader.read_chunk().app_metadata.to_pybytes())
            assert set(reply) == {"id", "answer"}
            assert (reply["id"], set(reply["answer"])) == (7, set(JSON["answer"]))
            late = {**message, "fresh": {"at_least": {"events-0": 200}}, "wait": 0}
            writer.write_with_metadata(keys, json.dumps(late).encode())
            chunk = reader.read_chunk()
            assert chunk.data is None
            reply = json.loads(chunk.app_metadata.to_pybytes())
            assert set(reply) == {"id", "error"}
            assert (shape(reply["error"]), reply["error"]["kind"]) == (shape(JSON["error"]), "Behind")
            if not gateway:
                assert reply["error"] == JSON["error"]
            writer.done_writing()

        [result] = client.do_action("directory")
        directory = json.loads(result.body.to_pybytes())
        [described] = JSON["directory"]["views"]
        [real] = [each for each in directory["views"] if each["name"] == described["name"]]
        assert {**real, "schema": ""} == {**described, "schema": ""}
        assert [each[:2] for each in directory["partitions"]] == [[0, 1], [1, 1], [2, 1]]
        assert directory.pop("gateway", False) == gateway
        page = {**JSON["directory"], "views": [], "partitions": []}
        assert {**directory, "views": [], "partitions": []} == page
        assert shape(directory["partitions"][0]) == shape(JSON["directory"]["partitions"][0])


def test_a_cut_is_read_as_the_page_says() -> None:
    with FlightService() as service, flight.connect(service.location) as client:
        partitions = partitions_of("billing", VIEWS, TABLES, COUNT)
        for each in partitions:
            service.register(each)
            each.cuts[7] = dict(each.tables)
        service.set_directory(directory_of("billing", VIEWS, [service.location] * COUNT))
        service.set_cut_handler(lambda job, timeout: {"cut": 7, "position": {"events-0": [100, 1]}})
        [result] = client.do_action(flight.Action("cut", b'{"timeout": 2}'))
        made = json.loads(result.body.to_pybytes())
        for each in partitions:
            each.tables["subtotals"] = each.tables["subtotals"].slice(0, 0)
        for fresh in ({"cut": made["cut"]}, {"cut": made["cut"], "once": True}):
            command = json.dumps({"v": 1, "job": "billing", "view": "subtotals", "fresh": fresh})
            info = client.get_flight_info(flight.FlightDescriptor.for_command(command))
            found = [client.do_get(each.ticket).read_all() for each in info.endpoints]
            assert rows(found) == ordered(TABLES["subtotals"])


def test_its_tables_name_what_there_is(address: str) -> None:
    from flowstate_flight import fault, ticket

    fields = table_of("field")
    assert fields
    assert set(fields) <= ticket._FIELDS
    fresh = table_of("field of `fresh`")
    assert fresh
    assert set(fresh) <= ticket._FRESH
    assert set(table_of("`kind`")) == set(fault._KINDS)
    actions = table_of("action")
    with flight.connect(address) as client:
        assert set(actions) <= {each.type for each in client.list_actions()}
        for name in ("status", "ping"):
            [result] = client.do_action(name)
            assert isinstance(json.loads(result.body.to_pybytes()), dict)


def test_who_is_let_in() -> None:
    token, kept = Access.make_token()
    access = Access(
        {"principals": {"anna": {"tokens": [kept], "grants": [{"actions": ["read"], "views": ["subtotals"]}]}}}
    )
    with FlightService(access=access) as service, flight.connect(service.location) as client:
        for each in partitions_of("billing", VIEWS, TABLES, COUNT):
            service.register(each)
        service.set_directory(directory_of("billing", VIEWS, [service.location] * COUNT))
        with pytest.raises(flight.FlightUnauthenticatedError):
            client.get_flight_info(PATH)
        said: dict[str, Any] = {"client": client, "flight": flight, "token": token.encode()}
        [block] = [each for each in CODE if "token" in each]
        exec(block, said)
        assert said["mine"].schema == TABLES["subtotals"].schema
        hidden, absent = (flight.FlightDescriptor.for_path(name) for name in ("subtotals_late", "subtotals_lost"))
        texts = []
        for each in (hidden, absent):
            with pytest.raises(flight.FlightServerError) as refused:
                client.get_flight_info(each, said["shown"])
            texts.append(str(refused.value).replace("subtotals_late", "_").replace("subtotals_lost", "_"))
        assert texts[0] == texts[1]

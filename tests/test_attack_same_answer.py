"""Whether a key is another's or nobody's, who may not see it is answered the same, byte for byte, on every path."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from attack import ANNA, Target, patiently, shows
from pyarrow import flight

from flowstate_flight.flight_sql.messages import pack
from flowstate_flight.flight_sql.statements import Query
from flowstate_flight.protobuf import write
from flowstate_flight.ticket import Ticket, write_keys
from flowstate_http import HttpService

HERS, THEIRS, NOBODYS = "anna", "bert", "bart"
#: What time alone changes in an answer.
CLOCKS = ("as_of", "lag")


def keys(who: str) -> pa.RecordBatch:
    return pa.record_batch({"who": [who]})


def condition(who: str) -> bytes:
    return bytes((pc.field("who") == who).to_substrait(pa.schema({"who": pa.string()})))


def plain(table: pa.Table | pa.RecordBatch) -> Any:
    metadata = {name: timeless(json.loads(each)) for name, each in (table.schema.metadata or {}).items()}
    return str(table.schema.remove_metadata()), table.to_pylist(), metadata


def timeless(data: Any) -> Any:
    if isinstance(data, dict):
        return {name: timeless(each) for name, each in data.items() if name not in CLOCKS}
    return [timeless(each) for each in data] if isinstance(data, list) else data


def got(client: flight.FlightClient, ticket: bytes) -> Any:
    return plain(client.do_get(flight.Ticket(ticket), shows(ANNA[0])).read_all())


def acted(client: flight.FlightClient, ticket: bytes) -> Any:
    (result,) = client.do_action(flight.Action("lookup", ticket), shows(ANNA[0]))
    return plain(pa.ipc.open_stream(result.body).read_all())


def told(client: flight.FlightClient, ticket: bytes) -> Any:
    """What changes tell first, up to their position."""
    stream, found = client.do_get(flight.Ticket(ticket), shows(ANNA[0])), list[Any]()
    try:
        while not found or found[-1][0]["kind"] != "position":
            chunk = stream.read_chunk()
            said = timeless(json.loads(chunk.app_metadata.to_pybytes()))
            found.append(({name: each for name, each in said.items() if name != "resume"}, chunk.data.to_pylist()))
        return sorted(found, key=str)  # partitions tell as they come
    finally:
        stream.cancel()


def exchanged(client: flight.FlightClient, more: dict[str, Any], who: str) -> Any:
    command = json.dumps({"v": 1, "kind": "lookup", "job": "hand", "view": "totals"})
    writer, reader = client.do_exchange(flight.FlightDescriptor.for_command(command), shows(ANNA[0]))
    writer.begin(keys(who).schema)
    writer.write_with_metadata(keys(who), json.dumps({"id": 1, **more}).encode())
    chunk = reader.read_chunk()
    writer.done_writing()
    writer.close()
    return timeless(json.loads(chunk.app_metadata.to_pybytes())), plain(chunk.data)


def queried(client: flight.FlightClient, query: str, who: str) -> Any:
    handle = Query(query).bind(pa.table({"0": [who]})).handle()
    return got(client, pack("CommandPreparedStatementQuery", write([(1, handle)])))


def requested(web: HttpService, path: str, who: str, body: Any = None) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", web.port, timeout=20)
    sent = {"authorization": f"Bearer {ANNA[0]}", "content-type": "application/json"}
    try:
        connection.request("GET" if body is None else "POST", path, None if body is None else json.dumps(body), sent)
        response = connection.getresponse()
        if "changes" in path:
            lines = [response.readline().decode() for _ in range(6)]
            return response.status, [each for each in lines if not each.startswith(("id:", "data:"))]
        said = timeless(json.loads(response.read()))
        named = [name for name, _ in response.getheaders() if name != "date"]
        return response.status, named, said
    finally:
        connection.close()


QUERIES = (
    "select * from totals where who = ?",
    "select count(*), sum(total), max(newest) from totals where who = ?",
    "select 1 / count(*) from totals where who = ?",
    "select * from hours where who = ?",
)


def ways(attacked: Target, web: HttpService) -> dict[str, Callable[[str], Any]]:
    found: dict[str, Callable[[str], Any]] = {}
    for name, address, partition in (
        ("worker 0", attacked.workers[0], 0),
        ("worker 1", attacked.workers[1], 1),
        ("gateway", attacked.gateway.address, None),
    ):
        client = flight.connect(address)
        ticket = partial(Ticket, "hand", "totals", partition)
        more = {} if partition is None else {"partition": partition}
        found |= {
            f"scan, {name}": lambda who, c=client, t=ticket: got(c, t(filter=condition(who)).to_bytes()),
            f"lookup, {name}": lambda who, c=client, t=ticket: got(c, t(keys=write_keys(keys(who))).to_bytes()),
            f"lookup by action, {name}": lambda who, c=client, t=ticket: acted(
                c, t(keys=write_keys(keys(who))).to_bytes()
            ),
            f"lookup by exchange, {name}": lambda who, c=client, m=more: exchanged(c, m, who),
            f"changes, {name}": lambda who, c=client, t=ticket: told(
                c, t(filter=condition(who), changes=True).to_bytes()
            ),
        }
    for query in QUERIES:
        found[f"Flight SQL, {query}"] = lambda who, c=client, q=query: queried(c, q, who)
        found[f"SQL by HTTP, {query}"] = lambda who, q=query: requested(web, "/sql", who, {"query": q, "params": [who]})
    found["HTTP, a key"] = lambda who: requested(web, f"/views/totals/{who}", who)
    found["HTTP, a key and its columns"] = lambda who: requested(web, f'/views/hours?key=["{who}"]&columns=total', who)
    found["HTTP, changes"] = lambda who: requested(web, f'/views/totals/changes?key=["{who}"]', who)
    return found


def test_whether_a_key_is_there_is_not_told(attacked: Target, web: HttpService) -> None:
    asked = ways(attacked, web)
    assert len(asked) == 26
    apart = 0
    for name, ask in asked.items():
        theirs, nobodys, hers = (patiently(partial(outcome, ask, who)) for who in (THEIRS, NOBODYS, HERS))
        assert theirs == nobodys, name
        apart += hers != nobodys
    assert apart >= 20  # two partitions cannot both have her


def outcome(ask: Callable[[str], Any], who: str) -> Any:
    """The answer, or the error, without the name."""
    try:
        return str(ask(who)).replace(who, "NAME")
    except flight.FlightUnavailableError:
        raise
    except flight.FlightError as error:
        return type(error).__name__, str(error).partition(" gRPC")[0].replace(who, "NAME"), error.extra_info

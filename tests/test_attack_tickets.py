"""Tickets, commands, descriptors and actions of any content, at the service of a worker and at a gateway."""

from __future__ import annotations

import contextlib
import json
from base64 import b64decode, b64encode
from itertools import islice
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from attack import ANNA, VALUES, Target, cases, clean, damaged, nested, only_hers, shows
from hand_job import WHO
from pyarrow import flight
from waiting import until

from flowstate_flight.ticket import write_keys
from flowstate_sql.partial import PartialQuery

FIELDS = [
    *("v", "job", "view", "partition", "columns", "filter", "keys", "limit", "fresh", "wait", "epoch", "partial", "changes", "resume"),
    *("kind", "q"),
]  # fmt: skip
COLUMNS = ["who", "total", "longest", "newest"]
FILTERS = [
    bytes(each.to_substrait(pa.schema({"who": pa.string(), "newest": pa.string()})))
    for each in (pc.field("who") == "anna", pc.field("who").isin(["anna", "b"]), pc.field("newest").is_null())
]
KEYS = pa.record_batch({"who": ["anna", "bert"]})
#: Of the tables of the partitions.
IDENTITIES: list[str] = []
RESUMED = ("epoch", "table", "serial", "oldest", "splits", "x")
ACTIONS = ["lookup", "lookup", "directory", "cut", "status", "ping", "nonsense", "Lookup\0", "x" * 30_000, "", "é"]


@pytest.fixture(scope="module")
def service(attacked: Target) -> Target:
    IDENTITIES[:] = [each.identity for each in attacked.job.served.values()]
    return attacked


def maybe(chance: Random, raw: bytes) -> bytes:
    return damaged(chance, raw) if chance.random() < 0.5 else raw


def sound(chance: Random, partition: bool) -> dict[str, Any]:
    data: dict[str, Any] = {"v": 1, "job": "hand", "view": chance.choice(["totals", "totals", "hours", "hours_late"])}
    if partition:
        data["partition"] = chance.choice((0, 0, 0, 1))
    match chance.randrange(8):
        case 0 | 1:
            data["filter"] = b64encode(maybe(chance, chance.choice(FILTERS))).decode()
        case 2 | 3:
            data["keys"] = b64encode(maybe(chance, write_keys(KEYS))).decode()
        case 4:
            data["columns"] = chance.sample(COLUMNS, 2)
        case 5:
            data["changes"] = True
            if chance.random() < 0.5:
                data["resume"] = chance.choice(
                    [*VALUES, {**resume(chance), chance.choice(RESUMED): chance.choice(VALUES)}]
                )
        case 6:
            data["partial"] = partial(chance)
    return data


def partial(chance: Random) -> str:
    """A query for one partition alone."""
    query = PartialQuery("select count(*), max(newest) from __rows where who = $a", {"a": "anna"})
    data = json.loads(query.to_text())
    match chance.randrange(6):
        case 0:
            data["sql"] = damaged(chance, data["sql"].encode()).decode(errors="surrogateescape")
        case 1:
            data["values"] = b64encode(damaged(chance, b64decode(data["values"]))).decode()
        case 2:
            odd = pa.record_batch(
                {"a": pa.array([2**62], chance.choice([pa.timestamp("us"), pa.timestamp("s", "UTC"), pa.time64("us")]))}
            )
            data["values"] = b64encode(write_keys(odd)).decode()
        case 3:
            data[chance.choice(("engine", "sql", "values", "zone"))] = chance.choice(VALUES)
        case 4:
            return damaged(chance, json.dumps(data).encode()).decode(errors="replace")
    return json.dumps(data)


def resume(chance: Random) -> dict[str, Any]:
    splits = {"a": [chance.choice((1, 2**62)), chance.choice((0, 10**9))], "": [0, 0]}
    return {"epoch": 1, "table": chance.choice(IDENTITIES), "serial": 2**80, "oldest": -(2**80), "splits": splits}


def raw_ticket(chance: Random, partition: bool) -> bytes:
    match chance.randrange(9):
        case 0 if chance.random() < 0.3:
            return chance.randbytes(chance.randrange(60))
        case 1:
            return damaged(chance, json.dumps(sound(chance, partition)).encode())
        case 2 | 3:
            return json.dumps({**sound(chance, partition), chance.choice(FIELDS): chance.choice(VALUES)}).encode()
        case 4 if chance.random() < 0.5:
            fields = chance.sample(FIELDS, chance.randint(0, 6))
            return json.dumps({each: chance.choice(VALUES) for each in fields}).encode()
        case 5 if chance.random() < 0.3:
            whole = json.dumps(sound(chance, partition))
            return f'{whole[:-1]}, "{chance.choice(FIELDS)}": {nested(chance)}}}'.encode()
        case _:
            return json.dumps(sound(chance, partition)).encode()


def asked(chance: Random, client: flight.FlightClient, worker: bool) -> bool:
    """One case; whether it was answered."""
    hers = shows(ANNA[0])
    raw = raw_ticket(chance, worker)
    match chance.randrange(12):
        case 0 | 1 | 2 | 3 | 4:
            return read(client, raw, hers)
        case 5 | 6:
            command = flight.FlightDescriptor.for_command(raw_ticket(chance, False))
            return clean(lambda: client.get_flight_info(command, hers)) is not None
        case 7:
            names = ["hand", "totals", "x" * 5000, "é", raw.decode(errors="replace"), ""]
            path = chance.choices(names, k=chance.randrange(4))
            return clean(lambda: client.get_flight_info(flight.FlightDescriptor.for_path(*path), hers)) is not None
        case 8 if chance.random() < 0.2:
            return opened(chance, client, hers)
        case _:
            kind = chance.choice(ACTIONS)
            done = clean(lambda: [each.body.to_pybytes() for each in client.do_action(flight.Action(kind, raw), hers)])
            if done and kind == "lookup":
                only_hers(pa.ipc.open_stream(done[0]).read_all())
            return done is not None


def read(client: flight.FlightClient, raw: bytes, options: Any) -> bool:
    def rows() -> pa.Table:
        stream = client.do_get(flight.Ticket(raw), options)
        if b"changes" not in raw:
            return stream.read_all()
        try:
            return pa.Table.from_batches([each.data for each in islice(stream, 1)], stream.schema)
        finally:
            stream.cancel()  # it stays open

    found = clean(rows)
    only_hers(found)
    return found is not None


def opened(chance: Random, client: flight.FlightClient, options: Any) -> bool:
    """An exchange that begins with anything."""
    begin = raw_ticket(chance, False)
    if chance.random() < 0.5:
        begin = begin.replace(b'"v"', b'"kind": "lookup", "v"')
    writer, reader = client.do_exchange(flight.FlightDescriptor.for_command(begin), options)

    def asks() -> Any:
        if chance.random() < 0.5:
            writer.begin(KEYS.schema)
        writer.done_writing()
        with contextlib.suppress(StopIteration):
            return reader.read_chunk()

    found = clean(asks)
    with contextlib.suppress(pa.ArrowException, flight.FlightError):
        writer.close()
    return found is not None


@pytest.mark.timeout(900)
def test_tickets_commands_and_actions(service: Target) -> None:
    chance, answered = Random(5), [0, 0]
    places = [service.workers[0], service.gateway.address]
    with flight.connect(places[0]) as worker, flight.connect(places[1]) as gateway:
        count = 0
        for number in cases(grows=16):
            count, which = number + 1, number % 5 > 2
            answered[which] += asked(chance, gateway if which else worker, not which)
        print(f"{answered} of {count} answered")
        assert min(answered) > count // 20
        assert sum(answered) < count // 2
        until(lambda: sum(each.subscribers() for each in service.job.served.values()) == 0)
    service.check(places[0], worker=True)
    service.check(places[1], worker=False)
    assert set(WHO) == {row["who"] for row in service.job.rows("totals")}

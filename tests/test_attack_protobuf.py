"""Messages of Flight SQL of any content at a gateway: no message at all, changed ones, deep ones, and numbers and lengths beyond all."""

from __future__ import annotations

import contextlib
import json
import time
from random import Random
from typing import Any

import pyarrow as pa
import pytest
from attack import ANNA, Target, cases, clean, damaged, only_hers, patiently, shows
from pyarrow import flight

from flowstate.errors import InvalidFlow
from flowstate_flight.flight_sql.messages import PREFIX, pack, unpack
from flowstate_flight.flight_sql.statements import Query
from flowstate_flight.protobuf import write

BOUND = Query("select who, total from totals where who = ?").bind(pa.table({"0": ["anna", "bert"]}))
NAMED = Query("select $a::int + 1 as n", ("a",)).bind(pa.table({"0": [1]}))
#: Sound ones; those of the first kind are commands and tickets, of the second bodies of actions.
COMMANDS = [
    pack("CommandStatementQuery", write([(1, b"select who, total from totals")])),
    pack("TicketStatementQuery", write([(1, BOUND.handle())])),
    pack("CommandPreparedStatementQuery", write([(1, BOUND.handle())])),
    pack("CommandPreparedStatementQuery", write([(1, NAMED.handle())])),
    pack("CommandGetTables", write([(1, b"temp"), (2, b"%"), (3, b"to%_ls"), (4, b"TABLE"), (4, b"VIEW"), (5, 1)])),
    pack("CommandGetPrimaryKeys", write([(1, b"temp"), (2, b"main"), (3, b"totals")])),
    pack("CommandGetSqlInfo", write([(1, bytes(range(12)))])),
    pack("CommandGetCrossReference", write([(3, b"a"), (6, b"b")])),
    pack("CommandGetDbSchemas", write([(1, b"temp"), (2, b"m%")])),
    *(pack(f"CommandGet{each}", b"") for each in ("Catalogs", "TableTypes", "XdbcTypeInfo")),
    *(pack(f"CommandStatement{each}", write([(1, b"delete from totals")])) for each in ("Update", "Ingest")),
]
_CANCELLED = flight.FlightInfo(
    pa.schema([]), flight.FlightDescriptor.for_command(b"x"), [flight.FlightEndpoint(COMMANDS[1], [])], -1, -1
)
BODIES = {
    "CreatePreparedStatement": pack(
        "ActionCreatePreparedStatementRequest", write([(1, b"select ? + 1, who from totals")])
    ),
    "ClosePreparedStatement": pack("ActionClosePreparedStatementRequest", write([(1, BOUND.handle())])),
    "SetSessionOptions": write([(1, write([(1, b"catalog"), (2, write([(1, b"temp")]))]))]),
    "GetSessionOptions": b"",
    "CancelFlightInfo": write([(1, _CANCELLED.serialize())]),
    "CloseSession": b"",
}
NAMES = [each[len(PREFIX) + 2 : 60].split(b"\x12")[0].decode() for each in COMMANDS]
QUERIES = [
    "select 1",
    "",
    "selec",
    "from totals",
    "select '\ud800'",
    "from read_text('/etc/passwd')",
    "select ?",
    "(" * 3000,
    "\0",
]


def fields(chance: Random, depth: int = 0) -> bytes:
    """A message that nobody has defined: any fields with any values, of any wire type."""
    raw = bytearray()
    for _ in range(chance.choice((0, 1, 2, 3, 8))):
        number = chance.choice((1, 1, 2, 3, 4, 5, 6, 15, 16, 2**29 - 1, 0, 2**60))
        match chance.randrange(7):
            case 0:
                raw += varint(number << 3) + chance.choice(
                    (varint(chance.choice((0, 1, 2**31, 2**63, 2**64 - 1))), b"\xff" * 10 + b"\x01")
                )
            case 1:
                raw += (
                    varint(number << 3 | 2) + varint(chance.choice((1, 2**31, 2**63, 2**64 - 1))) + b"x"
                )  # a length that is not there
            case 2:
                raw += varint(number << 3 | chance.choice((1, 5, 3, 4, 6, 7))) + chance.randbytes(
                    chance.choice((0, 4, 8))
                )
            case 3 if depth < 4:
                inner = fields(chance, depth + 1)
                raw += varint(number << 3 | 2) + varint(len(inner)) + inner
            case _:
                value = chance.choice(
                    [*(each.encode("utf-8", "surrogatepass") for each in QUERIES), b"%", b"\\", b"\x80", b"temp"]
                )
                raw += varint(number << 3 | 2) + varint(len(value)) + value
    return bytes(raw)


def varint(number: int) -> bytes:
    raw = bytearray()
    while number > 127:
        raw.append(number & 127 | 128)
        number >>= 7
    return bytes([*raw, number])


def deep(chance: Random) -> bytes:
    """A message in a message, and so on; or one thing very often."""
    raw = b""
    for _ in range(chance.choice((10, 300, 3000))):
        raw = b"\x0a" + varint(len(raw)) + raw
    return chance.choice((raw, b"\x08\x01" * 3000, b"\x0a\x00" * 3000, b"\x0a\x03" + b"\xff" * 3000, b"\x80" * 3000))


def handle(chance: Random) -> bytes:
    """What a query becomes between two calls, with other parts."""
    bound = BOUND.bound or b""
    message: list[tuple[int, Any]] = [(1, chance.choice([*QUERIES, BOUND.sql]).encode("utf-8", "surrogatepass"))]
    if chance.random() < 0.7:
        message.append((2, damaged(chance, bound) if chance.random() < 0.8 else bound))
    if chance.random() < 0.2:
        message += [(3, b"a")] * chance.choice((1, 2, 3000))
    return write(message)


def message(chance: Random, sound: bytes) -> bytes:
    match chance.randrange(8):
        case 0:
            return chance.randbytes(chance.randrange(80))
        case 1 | 2:
            return changed(chance, sound)
        case 3:
            return pack(chance.choice(NAMES), fields(chance))
        case 4:
            return pack(chance.choice(NAMES), deep(chance)) if chance.random() < 0.3 else deep(chance)
        case 5:
            return pack(
                chance.choice(("TicketStatementQuery", "CommandPreparedStatementQuery")), write([(1, handle(chance))])
            )
        case 6:
            name = chance.choice(("CommandStatementQuery", "ActionCreatePreparedStatementRequest"))
            return pack(name, write([(1, chance.choice(QUERIES).encode("utf-8", "surrogatepass"))]))
        case _:
            return sound


def changed(chance: Random, sound: bytes) -> bytes:
    """Most changes behind the name of the message, without which it is none of Flight SQL."""
    if chance.random() < 0.3 or not sound.startswith(b"\x0a"):
        return damaged(chance, sound)
    begins = min(len(sound), len(PREFIX) + 20)
    return sound[:begins] + damaged(chance, sound[begins:])


def asked(chance: Random, client: flight.FlightClient) -> bool:
    """One case; whether it was answered."""
    hers = shows(ANNA[0])
    match chance.randrange(8):
        case 0 | 1 | 2:
            raw = message(chance, chance.choice(COMMANDS))
            found = clean(lambda: client.do_get(flight.Ticket(raw), hers).read_all())
            only_hers(found)
            return found is not None
        case 3 | 4:
            raw = message(chance, chance.choice(COMMANDS))
            return clean(lambda: client.get_flight_info(flight.FlightDescriptor.for_command(raw), hers)) is not None
        case 5 if chance.random() < 0.5:
            return bound(chance, client, message(chance, COMMANDS[2]), hers)
        case _:
            kind = chance.choice(list(BODIES))
            action = flight.Action(kind, message(chance, BODIES[kind]))
            return clean(lambda: list(client.do_action(action, hers))) is not None


def bound(chance: Random, client: flight.FlightClient, raw: bytes, options: Any) -> bool:
    """Rows that are put to a query."""
    rows = chance.choice(
        [
            pa.table({"0": ["anna"]}),
            pa.table({}),
            pa.table({"0": pa.array([2**62], pa.timestamp("s"))}),
            pa.table({"0": pa.nulls(1500)}),
            pa.table({"0": [[{"a": 1}]], "": [b"\xff"]}),
        ]
    )

    def put() -> Any:
        writer, reader = client.do_put(flight.FlightDescriptor.for_command(raw), rows.schema, options)
        try:
            writer.write_table(rows)
            writer.done_writing()
            return reader.read()
        finally:
            with contextlib.suppress(pa.ArrowException, flight.FlightError):
                writer.close()

    return clean(put) is not None


@pytest.mark.parametrize("part", [b"\x08\x01", b"\x0a\x00", b"\x82\x01\x00"])
def test_messages_of_millions_of_parts_are_not_read_to_their_end(attacked: Target, part: bytes) -> None:
    """They would keep everybody else waiting for seconds."""
    whole = part * (3_900_000 // len(part))
    for raw in (pack("CommandGetSqlInfo", whole), pack("CommandGetSqlInfo", write([(1, whole)]))):
        began = time.process_time()
        with pytest.raises(InvalidFlow, match="too many"):
            metadata_numbers(raw)
        assert time.process_time() - began < 0.5
        with flight.connect(attacked.gateway.address) as client:
            assert clean(lambda: client.do_get(flight.Ticket(raw), shows(ANNA[0])).read_all()) is None  # noqa: B023


def metadata_numbers(raw: bytes) -> list[int]:
    return unpack(raw)[1].numbers(1)


@pytest.mark.timeout(900)
def test_messages_of_flight_sql(attacked: Target) -> None:
    chance, answered, count = Random(20), 0, 0
    with flight.connect(attacked.gateway.address) as client:
        for number in cases(grows=16):
            count = number + 1
            answered += asked(chance, client)
        print(f"{answered} of {count} answered")
        assert count // 10 < answered < count * 2 // 3
        command = flight.FlightDescriptor.for_command(COMMANDS[2])
        ticket = patiently(lambda: client.get_flight_info(command, shows(ANNA[0]))).endpoints[0].ticket
        table = patiently(lambda: client.do_get(ticket, shows(ANNA[0])).read_all())
        assert table.column("who").to_pylist() == ["anna"]
        assert json.loads(table.schema.metadata[b"flowstate.answers"])["totals"]["job"] == "hand"
    attacked.check(attacked.gateway.address, worker=False)
    assert attacked.gateway.flight_sql is not None
    assert attacked.gateway.flight_sql._under_way() == []

"""Batches of keys of any content in an exchange: values and types by Arrow's rules that are not the view's, and bytes that keep to no rule,
at a worker and at a gateway."""

from __future__ import annotations

import contextlib
import json
import struct
from random import Random
from typing import Any

import pyarrow as pa
import pytest
import raw_grpc
from attack import ALL, ANNA, CASES, VALUES, Target, cases, clean, damaged, nested, only_hers, shows
from hand_job import WHO
from pyarrow import flight
from raw_grpc import Exchange, flight_data

KINDS = ("InvalidFlow", "Moved", "Unavailable", "Behind", "Fenced")
FIELDS = ["partition", "id", "epoch", "fresh", "wait", "x"]
COMMAND = {"v": 1, "kind": "lookup", "job": "hand", "view": "totals"}
SOUND = pa.record_batch({"who": ["anna", "bert", None]})


def utf8(values: bytes, offsets: list[int]) -> pa.Array:
    buffers = [None, pa.py_buffer(struct.pack(f"<{len(offsets)}i", *offsets)), pa.py_buffer(values)]
    return pa.Array.from_buffers(pa.string(), len(offsets) - 1, buffers)


def batch(chance: Random) -> pa.RecordBatch:
    """Keys with the type that they should have."""
    match chance.randrange(6):
        case 0:
            return pa.RecordBatch.from_arrays([utf8(chance.randbytes(6), [0, 2, 4, 6])], ["who"])  # no UTF-8
        case 1:
            return pa.RecordBatch.from_arrays(
                [utf8(b"abcdef", chance.choice(([0, 5, 2, 6], [0, -1, 6, 6], [0, 99, 2, 6])))], ["who"]
            )
        case 2:
            return pa.record_batch(
                {"who": pa.array([chance.choice(("", "\0", "x" * 50_000, "\U0010ffff"))], pa.string())}
            )
        case 3:
            return SOUND.slice(0, chance.choice((0, 1)))
        case _:
            return pa.record_batch(
                {"who": pa.array(chance.choices([*WHO, "ÿ"], k=chance.choice((1, 3, 50))), pa.string())}
            )


def others(chance: Random) -> pa.RecordBatch:
    """Keys of other types, or in other columns."""
    return chance.choice(
        [
            pa.record_batch({"who": [1, 2]}),
            pa.record_batch({"who": pa.array(["anna"], pa.large_string())}),
            pa.record_batch({"who": pa.array(["anna"]).dictionary_encode()}),
            pa.record_batch({"who": pa.array(["anna"], pa.string_view())}),
            pa.record_batch({"who": pa.nulls(3)}),
            pa.record_batch({"who": [["anna"]]}),
            pa.record_batch({"who": [{"a": b"\xff"}]}),
            pa.record_batch({"total": ["anna"]}),
            pa.record_batch({"who": ["anna"], "total": [1]}),
            pa.RecordBatch.from_arrays([pa.array(["anna"])] * 2, ["who", "who"]),
            pa.RecordBatch.from_arrays([pa.array(["anna"])] * 500, [f"{'x' * 100}{each}" for each in range(500)]),
            pa.RecordBatch.from_arrays([], []),
        ]
    )


def metadata(chance: Random, number: int) -> bytes:
    asked: Any = {"partition": chance.randrange(2), "id": number}
    match chance.randrange(8):
        case 0:
            asked = {**asked, chance.choice(FIELDS): chance.choice(VALUES)}
        case 1:
            asked = chance.choice([*VALUES, {}])
        case 2:
            return damaged(chance, json.dumps(asked).encode())
        case 3 if chance.random() < 0.3:
            return f'{{"partition": 0, "id": {nested(chance)}}}'.encode()
    return json.dumps(asked).encode()


def told(raw: bytes, rows: pa.RecordBatch | None) -> bool:
    """Whether a reply is an answer."""
    reply = json.loads(raw)
    assert ("answer" in reply) != ("error" in reply)
    if "error" in reply:
        assert reply["error"]["kind"] in KINDS, reply
        return False
    assert rows is not None
    only_hers(pa.Table.from_batches([rows]))
    return True


def begin(client: flight.FlightClient, keys: pa.Schema) -> tuple[Any, Any]:
    descriptor = flight.FlightDescriptor.for_command(json.dumps(COMMAND).encode())
    writer, reader = client.do_exchange(descriptor, flight.FlightCallOptions(headers=shows_headers()))
    writer.begin(keys)
    return writer, reader


def shows_headers() -> list[tuple[bytes, bytes]]:
    return [(b"authorization", b"Bearer " + ANNA[0].encode())]


@pytest.mark.timeout(900)
def test_batches_of_keys(attacked: Target) -> None:
    """Each message has its answer, in order, and the exchange goes on."""
    chance, answered, count = Random(6), [0, 0], 0
    with contextlib.ExitStack() as stack:
        places = [attacked.workers[0], attacked.gateway.address]
        clients = [stack.enter_context(flight.connect(each)) for each in places]
        streams = [begin(each, SOUND.schema) for each in clients]
        for number in cases(grows=16, count=CASES // 2):
            count, which = number + 1, number % 2
            if chance.random() < 0.05:  # an exchange of other keys
                keys = others(chance)
                writer, reader = begin(clients[which], keys.schema)
                writer.write_with_metadata(keys, json.dumps({"partition": 0} if which == 0 else {}).encode())
                assert not told(reader.read_chunk().app_metadata.to_pybytes(), None)
                writer.close()
                continue
            writer, reader = streams[which]
            raw = metadata(chance, number)
            if which:
                raw = raw.replace(b'"partition": 0, ', b"").replace(b'"partition": 1, ', b"")
            writer.write_with_metadata(batch(chance), raw)
            chunk = reader.read_chunk()
            answered[which] += told(chunk.app_metadata.to_pybytes(), chunk.data)
        for writer, _ in streams:
            writer.close()
    print(f"{answered} of {count} answered")
    assert min(answered) > count // 20
    attacked.check(places[0], worker=True)
    attacked.check(places[1], worker=False)


def damaged_data(chance: Random, schema: bytes, header: bytes, body: bytes) -> bytes:
    """A FlightData with a batch in which something is wrong."""
    asked = json.dumps({"partition": 0, "id": 1}).encode()
    match chance.randrange(8):
        case 0 | 1 | 2:
            return flight_data(damaged(chance, header), asked, body)
        case 3:
            return flight_data(header, asked, damaged(chance, body)[: chance.choice((0, 8, 1000))])
        case 4:
            return flight_data(schema if chance.random() < 0.5 else damaged(chance, schema), asked, body)
        case 5:
            return damaged(chance, flight_data(header, asked, body))
        case 6:
            return flight_data(b"", metadata(chance, 1), chance.choice((b"", body)))
        case _:
            return flight_data(header, metadata(chance, 1), body)


@pytest.mark.timeout(900)
def test_bytes_that_are_no_batches(attacked: Target) -> None:
    """Arrow's own reading of what came meets it: the exchange goes on, or ends; nobody else's does, and the process lives."""
    chance, replies, ends, count = Random(7), 0, 0, 0
    schema = pa.ipc.read_message(SOUND.schema.serialize()).metadata.to_pybytes()
    message = pa.ipc.read_message(SOUND.serialize())
    header, body = message.metadata.to_pybytes(), message.body.to_pybytes()
    ports = (attacked.job.services[0].port, attacked.gateway.port)
    headers = {"authorization": f"Bearer {ANNA[0]}"}
    command = json.dumps(COMMAND).encode()
    with contextlib.ExitStack() as stack:
        exchange: Exchange | None = None
        for number in cases(grows=16, count=CASES // 2):
            count = number + 1
            if exchange is None or exchange.ended:
                if exchange is not None:
                    exchange.__exit__(None, None, None)
                exchange = stack.enter_context(Exchange(ports[number % 2], headers))
                sound = chance.random() < 0.9
                exchange.send(flight_data(schema if sound else damaged(chance, schema), None, b"", command))
                if exchange.receive() is None:  # the schema of the rows
                    ends += 1
                    continue
            exchange.send(damaged_data(chance, schema, header, body))
            found = exchange.receive()
            if found is None:
                ends += 1
                continue
            replies += 1
            said = next(value for at, value in found if at == raw_grpc.METADATA)
            assert isinstance(said, bytes)
            reply = json.loads(said)
            if "error" in reply:
                assert reply["error"]["kind"] in KINDS, reply
            assert b"bert" not in b"".join(value for _, value in found if isinstance(value, bytes))
    print(f"{replies} replies and {ends} ends of {count}")
    assert min(replies, ends) > count // 20
    attacked.check(attacked.workers[0], worker=True)
    attacked.check(attacked.gateway.address, worker=False)
    with flight.connect(attacked.workers[0]) as client:
        descriptor = flight.FlightDescriptor.for_path("totals")
        assert clean(lambda: client.get_flight_info(descriptor, shows(ALL[0]))) is not None

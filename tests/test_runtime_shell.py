"""Small parts of the runtime's shell: the gate, links between processes, tables as plain data."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from distributed.protocol.core import dumps, loads

import flowstate as fs
from flowstate.exchange.message import Attach, Batch, Message, Start, StreamId
from flowstate.plan.compile import compile as compile_plan
from flowstate.plan.portable import dump_tables, load_tables
from flowstate.plan.position import NEVER, Floor, Place
from flowstate.runtime.gate import Gate
from flowstate.runtime.link import TOGETHER, ClientLink, LocalPort, Port, ServerLink
from flowstate.runtime.table import ReaderOf, SplitEntry, Table
from flowstate_flight.server import FlightService


def test_a_busy_pump_starves_no_reader() -> None:
    gate, stop = Gate(), threading.Event()
    turns = {"pump": 0, "reader": 0}

    def pump() -> None:
        while not stop.is_set():
            with gate:
                turns["pump"] += 1
                stop.wait(0.0005)

    thread = threading.Thread(target=pump)
    thread.start()
    try:
        for _ in range(200):
            before = turns["pump"]
            with gate:
                turns["reader"] += 1
            assert turns["pump"] <= before + 3  # the block that runs, and those that queued before this reader did
    finally:
        stop.set()
        thread.join()
    assert turns["reader"] == 200


class Box:
    """A pump's mailbox that only remembers."""

    def __init__(self) -> None:
        self.attached: list[tuple[Attach, Port]] = []
        self.messages: list[tuple[StreamId, Message]] = []
        self.acknowledged: list[tuple[StreamId, int]] = []
        self.closed: list[StreamId] = []
        self.changed = threading.Condition()

    def _note(self, what: list, value: object) -> None:
        with self.changed:
            what.append(value)
            self.changed.notify_all()

    def post_attach(self, attach: Attach, port: Port) -> None:
        self._note(self.attached, (attach, port))

    def post_message(self, stream: StreamId, message: Message) -> None:
        self._note(self.messages, (stream, message))

    def post_acknowledged(self, stream: StreamId, count: int) -> None:
        self._note(self.acknowledged, (stream, count))

    def post_closed(self, stream: StreamId) -> None:
        self._note(self.closed, stream)

    def wait(self, condition: object) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, timeout=10)  # type: ignore[arg-type]


@pytest.fixture
def ends() -> Iterator[tuple[Box, Box, FlightService]]:
    """An owner's and a reader's mailbox, the reader's behind a real Flight service."""
    owner, reader = Box(), Box()
    with FlightService() as service:

        def exchange(command: dict, incoming: object, outgoing: object, context: object) -> None:
            ServerLink(lambda number: reader if number == 0 else None, lambda: False).serve(incoming, outgoing, context)

        service.set_exchange_handler(exchange)
        yield owner, reader, service


STREAM = StreamId("split", 1, 1, 1, 1)


def test_streams_cross_a_flight_exchange(ends: tuple[Box, Box, FlightService]) -> None:
    owner, reader, service = ends
    link = ClientLink(service.location, "job", owner, "test")
    link.attach(0, Attach(STREAM, Place(7, 1)))
    reader.wait(lambda: reader.attached)
    attach, port = reader.attached[0]
    assert attach == Attach(STREAM, Place(7, 1))
    rows = pa.record_batch({"customer": ["anna", None], "__offset": [8, 9]})
    port.put(STREAM, Start(Place(7, 1), NEVER, (Floor(3, 4),)))
    port.put(STREAM, Batch(Place(7, 1), Place(10, 1), 5, 6, {"totals": rows}))
    owner.wait(lambda: len(owner.messages) == 2)
    assert owner.messages[0] == (STREAM, Start(Place(7, 1), NEVER, (Floor(3, 4),)))
    batch = owner.messages[1][1]
    assert isinstance(batch, Batch)
    assert batch.rows["totals"].equals(rows)
    link.acknowledge(STREAM, 2)
    reader.wait(lambda: reader.acknowledged == [(STREAM, 2)])
    port.close(STREAM)
    owner.wait(lambda: owner.closed == [STREAM])
    link.stop()


def test_messages_are_acknowledged_together_while_more_of_them_wait(ends: tuple[Box, Box, FlightService]) -> None:
    owner, reader, service = ends
    link = ClientLink(service.location, "job", owner, "test")
    link.attach(0, Attach(STREAM, Place(0)))
    reader.wait(lambda: reader.attached)
    for place in range(TOGETHER + 3):
        reader.attached[0][1].put(STREAM, Batch(Place(place), Place(place + 1), NEVER, NEVER))
    owner.wait(lambda: len(owner.messages) == TOGETHER + 3)
    for _ in range(TOGETHER + 2):
        link.acknowledge(STREAM, 1)
    other = STREAM._replace(split="other")
    link.attach(0, Attach(other, Place(0)))  # controls come in order: no more was said before it
    reader.wait(lambda: len(reader.attached) == 2)
    assert reader.acknowledged == [(STREAM, TOGETHER)]
    link.acknowledge(STREAM, 1)  # nothing waits any more
    reader.wait(lambda: reader.acknowledged == [(STREAM, TOGETHER), (STREAM, 3)])
    link.stop()


def test_a_reader_that_is_not_there_and_a_link_that_breaks_close_streams(ends: tuple[Box, Box, FlightService]) -> None:
    owner, reader, service = ends
    link = ClientLink(service.location, "job", owner, "test")
    link.attach(3, Attach(STREAM, Place(0)))
    owner.wait(lambda: owner.closed == [STREAM])
    other = STREAM._replace(attempt=2)
    link.attach(0, Attach(other, Place(0)))
    reader.wait(lambda: reader.attached)
    service.close(grace=0.1)
    owner.wait(lambda: other in owner.closed)
    reader.wait(lambda: other in reader.closed)
    link.attach(0, Attach(STREAM._replace(attempt=3), Place(0)))
    owner.wait(lambda: STREAM._replace(attempt=3) in owner.closed)


def test_both_ends_in_one_process() -> None:
    owner, reader = Box(), Box()
    port = LocalPort(owner, lambda number: reader if number == 0 else None)
    port.attach(1, Attach(STREAM, Place(0)))
    assert owner.closed == [STREAM]
    port.attach(0, Attach(STREAM, Place(0)))
    _, back = reader.attached[0]
    back.put(STREAM, Start(Place(0), NEVER, ()))
    assert owner.messages == [(STREAM, Start(Place(0), NEVER, ()))]
    port.acknowledge(STREAM, 1)
    port.close(STREAM)
    assert (reader.acknowledged, reader.closed) == ([(STREAM, 1)], [STREAM])


def test_the_table_survives_a_dask_message() -> None:
    splits = {"a/b": SplitEntry(0, "label", 3, None, {"path": "x"}, -1)}
    table = Table(4, {"a/b": ReaderOf(2, 1)}, {0: 3, 1: 1}, {1: "grpc://127.0.0.1:1"}, splits, 2, 1, True, False, True)
    assert Table.load(loads(dumps(table.dump()))) == table


def test_tables_as_plain_data(tmp_path: Path) -> None:
    schema = pa.schema({"who": pa.string(), "much": pa.decimal128(12, 2), "at": pa.timestamp("ms", "Europe/Berlin")})
    events = fs.from_arrow(
        pa.table({name: pa.array([], kind) for name, kind in zip(schema.names, schema.types, strict=True)}),
        event_time="at",
    )
    windowed = events.group_by("who", week=fs.window("at", every="1w", offset="6h", grace="2d", keep="9d"))
    one = windowed.agg(total=fs.col("much").sum(), spread=fs.col("much").std(ddof=0), last=fs.col("much").last()).view(
        "one"
    )
    two = events.group_by(fs.col("at").dt.year().alias("year")).agg(n=fs.len()).view("two")
    plan = compile_plan([one.node, two.node])
    assert load_tables(json.loads(json.dumps(dump_tables(plan.tables)))) == dict(plan.tables)

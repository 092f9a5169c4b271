"""What a partition holds for readers stays within its budget, and goes in the right order."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow.compute as pc
import pytest
from one_partition import VIEW, OnePartition

from flowstate.clock import SystemClock
from flowstate.errors import InvalidFlow, Unavailable
from flowstate.plan.spec import AggregateSpec
from flowstate.runtime.contents import Frozen
from flowstate.runtime.kept import Stream, beyond, cost
from flowstate.runtime.pump import Pump
from flowstate.state.pieces import Pieces
from flowstate.view.freshness import Freshness, checked
from flowstate_flight import FlightReader
from flowstate_flight.gateway import Gateway
from flowstate_flight.ticket import Ticket

KEYS = 20_000
NAMES = [f"customer-{each}" for each in range(KEYS)]


class Held:
    def __init__(self, *pieces: tuple[int, int]) -> None:
        self.pieces = Pieces.of(pieces)


def test_what_is_shared_is_counted_once_and_what_the_table_has_not_at_all() -> None:
    own = Pieces.of([(1, 100), (2, 100)])
    held = [Held((1, 100), (3, 1000)), Held((3, 1000), (4, 2000)), Held((1, 100), (2, 100)), Held((4, 2000), (5, 7))]
    free = cost([held[2]], own)[0]
    assert [each - free for each in cost(held, own)] == [1000, 2000, 0, 7]
    assert cost([], own) == []
    assert beyond(held, own, 10**6)[0] == []
    gone, spent = beyond(held, own, 3000 + 3 * free)
    assert gone == held[3:]
    assert spent == 3000 + 3 * free
    assert beyond(held, own, 0)[0] == held


def test_a_view_costs_what_the_table_copied_since() -> None:
    import pyarrow as pa

    from flowstate.plan.spec import TableSpec
    from flowstate.state.table import KeyedTable

    spec = TableSpec("t", (pa.field("k", pa.int64()),), None, (AggregateSpec("s", "sum", "a", pa.int64(), pa.int64()),))
    table = KeyedTable(spec, seed=1, chunk_rows=64)
    table.apply(pa.record_batch({"k": range(640), "a": range(640), "__offset": range(640)}))
    view = table.view()

    class Of:
        pieces = view.pieces()

    def costs() -> int:
        return cost([Of], table.pieces())[0] - cost([Held()], table.pieces())[0]

    assert costs() == 0
    block = Of.pieces.total // 10
    table.apply(pa.record_batch({"k": [0], "a": [1], "__offset": [640]}))
    assert costs() == block
    table.apply(pa.record_batch({"k": range(640), "a": range(640), "__offset": range(640)}))
    assert costs() == 10 * block == Of.pieces.total


def test_a_stream_that_was_given_up_ends_with_an_error() -> None:
    import pyarrow as pa

    batches = (pa.record_batch({"a": [each]}) for each in range(5))
    stream = Stream(batches, Pieces.of(()), SystemClock())
    assert next(stream).column(0).to_pylist() == [0]
    stream.give_up()
    for _ in range(2):
        with pytest.raises(Unavailable, match="read so slowly"):
            next(stream)
    whole = Stream(iter([pa.record_batch({"a": [1]})]), Pieces.of(()), SystemClock())
    assert len(list(whole)) == 1


@pytest.fixture
def one(tmp_path: Path) -> Iterator[OnePartition]:
    with OnePartition(tmp_path, [(name, 1) for name in NAMES]) as partition:
        partition.wait_applied()
        partition.served.budget = 1 << 20
        yield partition


def session_cut(reader: FlightReader) -> int:
    made = reader.make_cut()
    reader.keep_cut(made)
    return int(made["cut"])


def test_a_cut_is_told_when_it_is_kept_and_no_sooner(one: OnePartition) -> None:
    """The reporter tells what it finds at any moment; who hears of a cut before it is kept would be refused."""
    told = []
    keep = one.keep_cut

    def keep_cut(pump: Pump, cut: int, frozen: Frozen) -> None:
        told.append(pump.cut.get("cut") == cut)
        keep(pump, cut, frozen)

    one.keep_cut = keep_cut  # type: ignore[method-assign]
    for _ in range(3):
        one.make_cut()
    assert told == [False] * 3


def touch_every_chunk(one: OnePartition) -> None:
    """Rows for keys everywhere, so that the table copies every chunk that anybody holds."""
    one.append([(name, 1) for name in NAMES[::500]])
    one.wait_applied()


def limit(one: OnePartition) -> int:
    with one.pump.gate:
        own = Pieces.union(each.pieces() for each in one.pump._contents.tables.values())
    return max(one.served.budget, own.total)


def test_a_hundred_kept_snapshots_and_a_hundred_abandoned_streams_stay_within_the_budget(one: OnePartition) -> None:
    """Each of them would cost a whole copy of the state."""
    state = limit(one)
    resident = psutil.Process().memory_info().rss
    with one.reader() as reader:
        cuts, streams = [], []
        for _ in range(100):
            cuts.append(session_cut(reader))
            streams.append(one.served.scan(VIEW))
            touch_every_chunk(one)
            one.served.expire()
            assert one.served.held["cuts"] <= limit(one)
            assert one.served.held["streams"] <= limit(one)
        # What is held is what was said: everything else is free.
        assert 1 <= len(one.served._cuts) < 20
        assert 1 <= len(one.served._streams) < 20
        grown = psutil.Process().memory_info().rss - resident
        assert grown < 20 * state + (64 << 20), grown
        assert reader.scan(VIEW, fresh=Freshness(cut=cuts[-1])).num_rows == KEYS
        with pytest.raises(InvalidFlow, match="not kept any more"):
            reader.scan(VIEW, fresh=Freshness(cut=cuts[0]))
        with pytest.raises(Unavailable, match="read so slowly"):
            list(streams[0][1])
        assert sum(each.num_rows for each in streams[-1][1]) == KEYS
        del streams
        gc.collect()
        one.served.expire()
        assert len(one.served._streams) == 0
        assert one.served.held["streams"] == 0


def test_abandoned_flight_streams_are_given_up_and_say_so(one: OnePartition) -> None:
    """Clients that begin to read and stop: their states do not stay, and one that comes back hears why there is no more."""
    from pyarrow import flight

    # Large answers, so that Flight's own buffers do not take them whole.
    one.append([(f"{name}-{'x' * 2000}", 1) for name in NAMES])
    one.wait_applied()
    client = flight.connect(one.service.location)
    try:
        ticket = flight.Ticket(Ticket("one", VIEW, 0).to_bytes())
        readers = []
        for _ in range(12):
            readers.append(client.do_get(ticket))
            assert readers[-1].read_chunk().data.num_rows > 0
            one.append([(name, 1) for name in NAMES[::500]])
            one.wait_applied()
            one.served.expire()
        assert len(one.served._streams) < 12
        with pytest.raises(flight.FlightUnavailableError, match="read so slowly"):
            readers[0].read_all()
        for each in readers:
            each.cancel()
    finally:
        client.close()


def test_single_reads_push_out_no_cut_that_a_session_reads(one: OnePartition) -> None:
    """Hundreds of them, each of which would keep a copy of everything, while a session reads its own now and then."""
    once = checked(consistent=True)
    with one.reader() as reader:
        session = Freshness(cut=session_cut(reader))
        first = pc.sum(reader.scan(VIEW, ["total"], fresh=session)["total"]).as_py()
        for turn in range(150):
            touch_every_chunk(one)
            now = pc.sum(reader.scan(VIEW, ["total"], fresh=once)["total"]).as_py()
            assert now == first + (turn + 1) * len(NAMES[::500])
        one.served.expire()
        assert pc.sum(reader.scan(VIEW, ["total"], fresh=session)["total"]).as_py() == first
        assert len(one.cuts) == 151
        assert len(one.served._cuts) < 20


def test_a_cut_that_a_session_has_not_read_here_yet_stays_too(one: OnePartition) -> None:
    with one.reader() as reader:
        session = Freshness(cut=session_cut(reader))
        for _ in range(100):
            touch_every_chunk(one)
            reader.lookup(VIEW, NAMES[0], fresh=checked(consistent=True))
        one.served.expire()
        assert reader.lookup(VIEW, NAMES[0], fresh=session)["total"].to_pylist() == [1]


def test_of_sessions_the_one_that_reads_keeps_its_cut(one: OnePartition) -> None:
    with one.reader() as reader:
        reads, idle = Freshness(cut=session_cut(reader)), Freshness(cut=session_cut(reader))
        for _ in range(60):
            touch_every_chunk(one)
            session_cut(reader)
            assert reader.scan(VIEW, ["customer"], limit=1, fresh=reads).num_rows == 1
            one.served.expire()
        with pytest.raises(InvalidFlow, match="not kept any more"):
            reader.scan(VIEW, fresh=idle)
        assert np.all(np.array(reader.scan(VIEW, ["total"], fresh=reads)["total"]) == 1)


def test_through_a_gateway_single_reads_push_out_no_cut_either(one: OnePartition) -> None:
    with Gateway(one.reader()) as gateway, FlightReader(gateway.address) as reader:
        session = Freshness(cut=session_cut(reader))
        for _ in range(60):
            touch_every_chunk(one)
            assert reader.scan(VIEW, ["total"], limit=1, fresh=checked(consistent=True)).num_rows == 1
        one.served.expire()
        assert len(one.served._cuts) < 20
        assert pc.sum(reader.scan(VIEW, ["total"], fresh=session)["total"]).as_py() == KEYS

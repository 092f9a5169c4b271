"""Lookups while rows wait: all exchanges together have their share of a processor, and no more."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from time import monotonic
from typing import Any

import pyarrow as pa
import pytest
from flight_memory import directory_of, partitions_of
from flight_tables import TABLES, VIEWS
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import flight
from waiting import until

from flowstate.clock import ManualClock
from flowstate_flight import FlightReader, FlightService
from flowstate_flight.share import AT_ONCE, LONGEST, SHARE, Share

SECONDS = st.floats(0.0001, 0.1)


@given(st.integers(1, 5), st.lists(st.tuples(st.integers(0, 4), SECONDS), min_size=1, max_size=60))
def test_exchanges_have_their_share_together(exchanges: int, asked: list[tuple[int, float]]) -> None:
    """Each exchange goes on when its pause is over; whoever asked last may still be ahead of the rest by what it took."""
    clock = ManualClock()
    share, free, used = Share(clock), [0.0] * exchanges, 0.0
    for which, seconds in asked:
        exchange = which % exchanges
        clock.now = max(clock.now, free[exchange])
        before, used = used, used + seconds
        wait = share.spend(seconds, lambda: True)
        assert 0 <= wait <= LONGEST
        if wait < LONGEST:
            assert used <= AT_ONCE + SHARE * (clock.now + wait) + 1e-9
        assert wait > 0 or used <= AT_ONCE + SHARE * clock.now + 1e-9
        if before == 0 and seconds <= AT_ONCE:
            assert wait == 0
        free[exchange] = clock.now + wait


def test_where_no_rows_wait_nobody_does_and_nothing_is_owed_later() -> None:
    clock = ManualClock()
    share = Share(clock)
    assert [share.spend(5.0, lambda: False) for _ in range(3)] == [0.0] * 3
    assert share.spend(0.15, lambda: True) == pytest.approx(0.15 / SHARE)
    clock.advance(100)
    assert share.spend(AT_ONCE, lambda: True) == 0


class Served:
    """A service of one partition where rows wait, or not, and what it was told of its lookups."""

    def __init__(self) -> None:
        self.pressed, self.used = True, list[float]()
        self.service = FlightService()
        self.service.set_pressed_handler(lambda: self.pressed)
        spend = self.service._share.spend

        def counted(seconds: float, pressed: Any) -> float:
            self.used.append(seconds)
            return spend(seconds, pressed)

        self.service._share.spend = counted  # type: ignore[method-assign]
        [part] = partitions_of("billing", VIEWS, TABLES, 1)
        self.service.register(part)
        directory = directory_of("billing", VIEWS, [self.service.location])
        self.service.set_directory(directory)
        self.reader = FlightReader(lambda: directory)


@pytest.fixture
def served() -> Iterator[Served]:
    served = Served()
    with served.service, served.reader:
        yield served


def test_who_asks_without_end_is_answered_as_ever_within_the_share(served: Served) -> None:
    begun, table = monotonic(), TABLES["subtotals"]
    key = table["customer"][0].as_py(), table["kind"][0].as_py()
    expected = served.reader.lookup("subtotals", key)
    assert expected.num_rows > 0
    for _ in range(200):
        assert served.reader.lookup("subtotals", key).equals(expected)
    paused = sum(served.used[:200])  # a pause may still follow the last answer
    assert 0 < paused <= AT_ONCE + SHARE * (monotonic() - begun)


def test_a_service_that_closes_waits_for_no_pause(served: Served) -> None:
    share = served.service._share
    assert share.spend(100.0, lambda: True) == LONGEST
    done = threading.Event()
    waiting = threading.Thread(target=lambda: (share.pause(60.0), done.set()))
    waiting.start()
    served.service.close()
    until(done.is_set)
    waiting.join(10)


def test_an_exchange_of_anybody_counts(served: Served) -> None:
    """Also one of another client, with a question that is refused."""
    client = flight.connect(served.service.location)
    command = b'{"v": 1, "kind": "lookup", "job": "billing", "view": "subtotals"}'
    to, back = client.do_exchange(flight.FlightDescriptor.for_command(command))
    keys = pa.record_batch({"nobody": ["anna"]})
    to.begin(keys.schema)
    to.write_with_metadata(keys, b'{"partition": 0, "id": 1}')
    assert b'"error"' in back.read_chunk().app_metadata.to_pybytes()
    until(lambda: len(served.used) == 1)
    to.done_writing()
    to.close()
    client.close()

"""Changes: at every position that a subscriber is told, the table that it built from what it was told is the state there."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hand_job import WHO, HandJob, Told, events, ordered_rows
from pyarrow import flight
from waiting import until

from flowstate.errors import InvalidFlow, Unavailable
from flowstate.view.changes import Change
from flowstate.view.freshness import Freshness
from flowstate.view.rights import Grant, Principal
from flowstate_flight.client import FlightReader
from flowstate_flight.gateway import Gateway
from flowstate_flight.mapping import ViewMapping
from flowstate_flight.restricted import RestrictedReader
from flowstate_flight.subscribing import read_change
from flowstate_flight.ticket import Ticket


@pytest.fixture
def job() -> Iterator[HandJob]:
    with HandJob() as job:
        yield job


@pytest.fixture
def reader(job: HandJob) -> Iterator[FlightReader]:
    with FlightReader([each.location for each in job.services]) as reader:
        yield reader


def told(changes: Any, table: Told, job: HandJob, view: str, seconds: float = 30.0) -> None:
    """Take changes until their position is that of the log; then the table must be the state."""
    deadline = time.monotonic() + seconds
    wanted = {(number, split): len(log) for split, log in job.log.items() for number in job.pumps}
    while True:
        assert time.monotonic() < deadline, f"told {table.position}, of {wanted}"
        change = changes.take(1.0)
        if change is not None:
            table.take(change)
            if change.kind == "position" and table.position == wanted:
                break
    assert ordered_rows(table.rows()) == ordered_rows(job.rows(view))


@pytest.mark.parametrize("view", ["totals", "hours", "hours_late"])
def test_what_was_told_is_the_state_at_the_position_told(job: HandJob, reader: FlightReader, view: str) -> None:
    chance, table = random.Random(view), Told(job.keys(view))
    job.append("a", events(chance, 20))
    with reader.changes(view) as changes:
        told(changes, table, job, view)
        for step in range(12):
            # windows close, are forgotten an hour later, and rows for them come late
            job.append(chance.choice("ab"), events(chance, chance.randrange(1, 30), since=step * 1800))
            if chance.random() < 0.7:
                told(changes, table, job, view)
        told(changes, table, job, view)
    assert table.resets == 2  # one for each partition, at the beginning
    assert table.missed == 0


def test_a_key_that_changes_often_is_told_once_to_whoever_is_slow() -> None:
    with HandJob(1) as job:
        job.append("a", [(who, 1, 1, "x") for who in WHO])
        subscription = job.served[0].changes("totals")
        assert [each.kind for each in subscription.round(1.0)] == ["reset", "rows", "position"]
        for second in range(300):
            job.append("a", [("anna", second, 1, "x")])
        found = list(subscription.round(1.0))
        assert [each.kind for each in found] == ["rows", "position"]
        assert [(row["who"], row["total"]) for row in found[0].rows.to_pylist()] == [("anna", 301)]
        assert [each.kind for each in subscription.round(0.0)] == ["position"]


def test_only_what_changed_is_told(job: HandJob, reader: FlightReader) -> None:
    table = Told(job.keys("totals"))
    job.append("a", [(f"customer-{each}", 1, each, "x") for each in range(1000)])
    with reader.changes("totals") as changes:
        told(changes, table, job, "totals")
        job.append("a", [("customer-7", 2, 1, None), ("customer-8", 2, 0, None)])
        found: list[Change] = []
        while table.position != {(number, "a"): 1002 for number in job.pumps}:
            found.append(next(changes))
            table.take(found[-1])
    names = [row["who"] for each in found if each.kind == "rows" for row in each.rows.to_pylist()]
    # the state of customer-8 is written, and changed: its row counts for how many there were, though it shows in no result
    assert sorted(set(names)) in (["customer-7"], ["customer-7", "customer-8"])
    assert ordered_rows(table.rows()) == ordered_rows(job.rows("totals"))


@pytest.mark.parametrize("view", ["totals", "hours", "hours_late"])
def test_a_subscriber_that_comes_back_goes_on_without_a_gap(job: HandJob, reader: FlightReader, view: str) -> None:
    chance, table = random.Random(view), Told(job.keys(view))
    for step in range(6):
        with reader.changes(view, resume=table.resume) as changes:
            job.append("a", events(chance, 20, step * 60, 5400))  # no window goes meanwhile
            told(changes, table, job, view)
        job.append("b", events(chance, 20, step * 60, 5400))  # while nobody is there
    with reader.changes(view, resume=table.resume) as changes:
        told(changes, table, job, view)
    assert table.resets == 2


def test_a_subscriber_that_comes_back_after_a_window_went_is_told_anew(job: HandJob, reader: FlightReader) -> None:
    table = Told(job.keys("hours"))
    job.append("a", [(who, 10, 1, "x") for who in WHO])
    with reader.changes("hours") as changes:
        told(changes, table, job, "hours")
    job.append("a", [(who, 6 * 3600, 1, "x") for who in WHO])  # the first window is closed, and forgotten
    with reader.changes("hours", resume=table.resume) as changes:
        told(changes, table, job, "hours")
    assert table.resets == 4
    assert {row["hour"].hour for row in table.rows()} == {6}


def test_windows_that_go_are_told_as_keys(job: HandJob, reader: FlightReader) -> None:
    table = Told(job.keys("hours"))
    job.append("a", [(who, 10, 1, "x") for who in WHO])
    with reader.changes("hours") as changes:
        told(changes, table, job, "hours")
        job.append("a", [("anna", 6 * 3600, 1, "x")])
        kinds = []
        while len(table.rows()) > 1 or table.position != {(0, "a"): 7, (1, "a"): 7}:
            change = next(changes)
            kinds.append(change.kind)
            table.take(change)
            if change.kind == "removed":
                assert set(change.rows.schema.names) == set(reader.info("hours").schema.names)
                assert change.rows.column("total").null_count == change.rows.num_rows
    assert "removed" in kinds
    assert ordered_rows(table.rows()) == ordered_rows(job.rows("hours"))


@pytest.mark.parametrize("view", ["totals", "hours_late"])
def test_a_partition_that_moves_is_followed(job: HandJob, reader: FlightReader, view: str) -> None:
    """Its keys are told anew; rows of an append view are not, although the new incarnation is behind at first."""
    chance, table = random.Random(3), Told(job.keys(view))
    job.append("a", events(chance, 60))
    with reader.changes(view) as changes:
        told(changes, table, job, view)
        for number in (0, 1, 0):
            job.append("a", events(chance, 10))
            job.move(number, {"a": 30})
            job.append("a", events(chance, 10))
            told(changes, table, job, view)
    assert table.resets == (5 if view == "totals" else 2)
    assert table.missed == 0


def test_a_partition_that_stays_away_ends_the_subscription_after_patience(job: HandJob) -> None:
    with FlightReader([each.location for each in job.services], patience=0.5) as reader:
        table = Told(job.keys("totals"))
        job.append("a", [("anna", 1, 1, "x")])
        changes = reader.changes("totals")
        told(changes, table, job, "totals")
        job.pumps[0].stop()
        with pytest.raises(Unavailable):
            until(lambda: changes.take(0.1) and None, 20)


def test_a_filter_tells_of_rows_that_come_in_and_go_out(job: HandJob, reader: FlightReader) -> None:
    chance, table = random.Random(5), Told(job.keys("totals"))
    condition = pc.field("total") > pa.scalar(20, pa.decimal128(12, 2))
    with reader.changes("totals", filter=condition) as changes:
        for _ in range(12):
            job.append("a", events(chance, 8))
            wanted = {(number, "a"): len(job.log["a"]) for number in job.pumps}
            while table.position != wanted:
                table.take(next(changes))
            right = [row for row in job.rows("totals") if row["total"] is not None and row["total"] > 20]
            assert ordered_rows(table.rows()) == ordered_rows(right)


def test_a_filter_that_fixes_the_key_asks_its_owner_alone(job: HandJob, reader: FlightReader) -> None:
    job.append("a", [(who, 1, 1, "x") for who in WHO])
    with reader.changes("totals", ["who", "total"], pc.field("who") == "anna") as changes:
        kinds = [next(changes) for _ in range(3)]
        assert [each.kind for each in kinds] == ["reset", "rows", "position"]
        assert [row["who"] for row in kinds[1].rows.to_pylist()] == ["anna"]
        assert kinds[1].rows.schema.names == ["who", "total"]
        answer = kinds[2].answer
        assert answer is not None
        assert len(answer.parts) == 1


@pytest.mark.parametrize("condition", [pc.scalar(False), pc.field("who").is_null(), pc.field("longest") == "x"])
def test_who_may_see_some_rows_is_told_of_those(job: HandJob, reader: FlightReader, condition: pc.Expression) -> None:
    chance, table = random.Random(6), Told(job.keys("totals"))
    who = Principal("somebody", (Grant(rows=condition),))
    with RestrictedReader(reader, who).changes("totals") as changes:
        for _ in range(4):
            job.append("a", events(chance, 8))
            while set(table.position.values()) != {len(job.log["a"])}:  # of the partitions that may have such rows
                table.take(next(changes))
            rows = pa.Table.from_pylist(job.rows("totals"), reader.info("totals").schema)
            assert ordered_rows(table.rows()) == ordered_rows(rows.filter(condition).to_pylist())


def test_changes_are_of_what_is_live(job: HandJob, reader: FlightReader) -> None:
    with pytest.raises(InvalidFlow, match="live"):
        ViewMapping(reader, "totals", Freshness(snapshot=1)).changes()
    with ViewMapping(reader, "totals").changes() as changes:
        assert next(changes).kind == "reset"


def test_a_reader_that_is_closed_ends_its_subscriptions(job: HandJob) -> None:
    with FlightReader(job.services[0].location) as reader:
        changes = reader.changes("totals")
        while next(changes).kind != "position":
            pass
    with pytest.raises(Unavailable, match="closed"):
        changes.take(10)
    changes.close()


def test_a_gateway_tells_the_same(job: HandJob) -> None:
    chance, table = random.Random(8), Told(job.keys("totals"))
    job.append("a", events(chance, 30))
    with (
        Gateway(FlightReader([each.location for each in job.services])) as gateway,
        flight.connect(gateway.address) as client,
    ):
        for _ in range(2):  # the second time it comes back
            ticket = Ticket("hand", "totals", changes=True, resume=table.resume)
            stream = client.do_get(flight.Ticket(ticket.to_bytes()))
            job.append("a", events(chance, 5))
            while table.position != {(number, "a"): len(job.log["a"]) for number in job.pumps}:
                table.take(read(stream))
            stream.cancel()
    assert ordered_rows(table.rows()) == ordered_rows(job.rows("totals"))
    assert table.resets == 2


def read(stream: Any) -> Change:
    chunk = stream.read_chunk()
    return read_change(chunk.data, chunk.app_metadata.to_pybytes())


def test_a_subscriber_that_reads_nothing_costs_nothing(job: HandJob) -> None:
    """It holds no view, and what is applied goes on; when it goes, nothing is left of it."""
    job.append("a", [(f"customer-{each}", 1, 1, "note " * 20) for each in range(30_000)])
    with flight.connect(job.services[0].location) as client:
        ticket = Ticket("hand", "totals", 0, changes=True)
        stream = client.do_get(flight.Ticket(ticket.to_bytes()))
        assert read(stream).kind == "reset"
        served = job.served[0]
        assert served.subscribers() == 1
        for second in range(200):
            job.append("a", [(f"customer-{second}", 1, 1, None)])
        stream.cancel()
    until(lambda: served.subscribers() == 0, 20)


def test_too_many_subscribers_are_refused(job: HandJob) -> None:
    served = job.served[0]
    held = [served.changes("totals") for _ in range(64)]
    with pytest.raises(Unavailable, match="too many"):
        served.changes("totals")
    del held
    assert served.changes("totals").round(0.0)


@pytest.mark.parametrize(
    "resume",
    [
        {},
        {"epoch": 1},
        {"epoch": 1, "table": "x", "serial": "7"},
        {"splits": 7},
        {"splits": {"a": [1]}},
        {"splits": {"a": None}},
    ],
)
def test_a_token_that_means_nothing_begins_anew(job: HandJob, resume: dict[str, Any]) -> None:
    job.append("a", events(random.Random(1), 10))
    for view in ("totals", "hours_late"):
        kinds = [each.kind for each in job.served[0].changes(view, resume=resume).round(0.1)]
        assert kinds[0] == "reset"
        assert kinds[-1] == "position"


def test_what_cannot_be_subscribed_to_is_refused(job: HandJob, reader: FlightReader) -> None:
    with pytest.raises(InvalidFlow, match="columns of the key"):
        reader.changes("hours", ["who", "total"])
    with pytest.raises(InvalidFlow, match="no view"):
        reader.changes("nothing")
    with pytest.raises(InvalidFlow, match="token"):
        reader.changes("totals", resume="no token")
    with flight.connect(job.services[0].location) as client:
        for ticket in (
            {"v": 1, "job": "hand", "view": "totals", "partition": 0, "changes": True, "limit": 1},
            {"v": 1, "job": "hand", "view": "totals", "partition": 0, "changes": 1},
            {"v": 1, "job": "hand", "view": "totals", "partition": 0, "resume": {}},
        ):
            with pytest.raises(flight.FlightServerError):
                client.do_get(flight.Ticket(json.dumps(ticket).encode())).read_chunk()


def test_an_iterator_ends_when_it_is_closed(job: HandJob, reader: FlightReader) -> None:
    changes = reader.changes("totals")
    found: list[Change] = []
    thread = threading.Thread(target=lambda: found.extend(changes))
    thread.start()
    until(lambda: any(each.kind == "position" for each in found))
    changes.close()
    thread.join(10)
    assert not thread.is_alive()

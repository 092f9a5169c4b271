"""Freshness: what may be asked, and that it is kept or refused on every way to a partition that is really there."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from flight_memory import directory_of, partitions_of
from flight_tables import TABLES, VIEWS
from one_partition import JOB, VIEW, OnePartition

import flowstate as fs
from flowstate.api.finding import saved_states
from flowstate.api.job import Reads
from flowstate.errors import Behind, InvalidFlow, Unavailable
from flowstate.plan.position import Place
from flowstate.runtime.awaited import MOST, Awaited
from flowstate.view.answer import Answer
from flowstate.view.freshness import LATEST, MAX_SPLITS, Freshness, behind, checked, missing, refined
from flowstate_flight import FlightReader, FlightService
from flowstate_flight.lookups import among
from flowstate_flight.requests import Requests
from flowstate_flight.ticket import Ticket, freshness_of

# what may be asked


@pytest.mark.parametrize(
    "asked",
    [
        {"max_age": -1},
        {"max_age": True},
        {"max_age": float("nan")},
        {"max_age": "1"},
        {"at_least": 17},
        {"at_least": {"topic/0": -1}},
        {"at_least": {"topic/0": True}},
        {"at_least": {"topic/0": 1.5}},
        {"at_least": {"topic/0": (1, 2, 3)}},
        {"at_least": {"topic/0": ()}},
        {"at_least": {"topic/0": (1, True)}},
        {"at_least": {"topic/0": 2**63}},
        {"at_least": {7: 1}},
        {"at_least": dict.fromkeys(map(str, range(MAX_SPLITS + 1)), 1)},
        {"consistent": 1},
        {"consistent": None},
        {"snapshot": -1},
        {"snapshot": True},
        {"snapshot": "7"},
        {"cut": 2**63},
        {"once": True},
        {"once": 1, "cut": 7},
    ],
)
def test_what_makes_no_sense_is_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(InvalidFlow):
        checked(**asked)
    with pytest.raises(InvalidFlow):
        freshness_of(asked)


@pytest.mark.parametrize(
    "asked",
    [
        {"consistent": True, "snapshot": 3},
        {"consistent": True, "cut": 3},
        {"snapshot": 3, "cut": 3},
        {"snapshot": 3, "at_least": {"topic/0": 1}},
        {"snapshot": 3, "max_age": 1},
        {"cut": 3, "at_least": {"topic/0": 1}},
    ],
)
def test_a_moment_that_is_past_takes_nothing_else(asked: dict[str, Any]) -> None:
    with pytest.raises(InvalidFlow, match="has a position of its own"):
        checked(**asked)


def test_a_read_asks_for_more_than_its_view() -> None:
    base = checked(max_age=5)
    assert refined(base, {}) is base
    assert refined(base, {"at_least": {"t": 3}}) == Freshness(5.0, {"t": Place(3)})
    assert refined(base, {"max_age": None}) == LATEST
    assert refined(base, {"consistent": True}) == Freshness(5.0, consistent=True)
    with pytest.raises(InvalidFlow, match="position of its own"):
        refined(Freshness(cut=3), {"consistent": True})
    with pytest.raises(InvalidFlow, match="position of its own"):
        refined(base, {"snapshot": 3})


def test_places_are_given_as_offsets_or_as_an_answer_has_them() -> None:
    fresh = checked(at_least={"a": 1, "b": (2,), "c": [3, 4], "d": Place(5, 6)}, max_age=float("inf"))
    assert fresh.at_least == {"a": Place(1), "b": Place(2), "c": Place(3, 4), "d": Place(5, 6)}
    assert fresh.max_age is None


def test_a_split_is_known_by_the_end_of_its_name_where_that_is_enough() -> None:
    position = {"kafka/id/one/0": Place(5), "kafka/id/two/0": Place(7), "kafka/id/two/1": Place(9)}
    assert missing({"two/1": Place(9), "kafka/id/one/0": Place(5)}, position) == {}
    assert missing({"two/0": Place(8)}, position) == {"two/0": (Place(8), Place(7))}
    assert missing({"0": Place(1)}, position) == {"0": (Place(1), None)}  # there are two
    assert missing({"wo/1": Place(1)}, position) == {"wo/1": (Place(1), None)}  # part of a name
    assert missing({"a": Place(3, 2)}, {"a": Place(3, 1)}) == {"a": (Place(3, 2), Place(3, 1))}


def test_a_refusal_says_how_far_it_missed() -> None:
    error = behind(3, {"b": (Place(9), Place(2)), "a": (Place(9), Place(7))}, 0.25)
    assert error.facts.items() >= {"partition": 3, "split": "a", "missed_by": 2, "waited": 0.25}.items()
    assert (error.facts["asked"], error.facts["reached"]) == ([9, 0], [7, 0])
    unknown = behind(None, {"a": (Place(9), None)}, 0.0)
    assert "look for its name" in unknown.message
    assert "partition" not in unknown.facts


def test_tickets_carry_it() -> None:
    for fresh in (checked(at_least={"t/0": (4, 1)}, max_age=2), checked(cut=7, once=True), checked(consistent=True)):
        ticket = Ticket("job", "view", 1, fresh=fresh, wait=1.5)
        assert Ticket.from_bytes(ticket.to_bytes()) == ticket
        assert json.loads(ticket.to_bytes())["fresh"] == fresh.to_data()
    assert "fresh" not in json.loads(Ticket("job", "view", 1).to_bytes())
    with pytest.raises(InvalidFlow, match="fresh"):
        freshness_of({"max_age": 1, "more": 2})


# readers that wait


def test_no_wake_up_is_lost() -> None:
    """A writer counts and tells; readers wait for numbers close ahead, thousands of times, and never for a whole timeout."""
    awaited, count, over = Awaited(), [0], threading.Event()

    def write() -> None:
        while not over.is_set():
            count[0] += 1
            awaited.tell()

    def read(_: int) -> float:
        longest = 0.0
        for _ in range(300):
            goal, begun = count[0] + 2, time.monotonic()
            awaited.wait(lambda goal=goal: count[0] >= goal, 30.0)
            assert count[0] >= goal
            longest = max(longest, time.monotonic() - begun)
        return longest

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with ThreadPoolExecutor(4) as pool:
            assert max(pool.map(read, range(4))) < 25.0
    finally:
        over.set()
        writer.join()
    assert len(awaited) == 0


def test_waiting_ends_with_the_pump_and_is_bounded_in_number() -> None:
    awaited = Awaited()
    threads = [threading.Thread(target=awaited.wait, args=(lambda: False, 60.0)) for _ in range(MOST)]
    for each in threads:
        each.start()
    while len(awaited) < MOST:
        time.sleep(0.001)
    with pytest.raises(Unavailable, match="too many reads wait"):
        awaited.wait(lambda: False, 60.0)
    awaited.end()
    for each in threads:
        each.join(10)
        assert not each.is_alive()
    awaited.wait(lambda: False, 60.0)  # nothing more comes


# a partition that is there


@pytest.fixture
def one(tmp_path: Path) -> Iterator[OnePartition]:
    with OnePartition(tmp_path) as partition:
        partition.wait_applied()
        yield partition


def test_a_read_waits_for_what_is_written_meanwhile(one: OnePartition) -> None:
    """By key, as a scan, and as a scan over an exchange that is already open; each sees its own write."""
    with one.reader() as reader, ThreadPoolExecutor(2) as pool:
        for turn in range(10):
            line = len(json.dumps({"customer": "anna", "amount": 1}) + "\n")
            fresh = checked(at_least={one.split: one.written + line})
            looking = pool.submit(reader.lookup, VIEW, "anna", fresh=fresh)
            scanning = pool.submit(reader.scan, VIEW, fresh=fresh)
            while len(one.pump.awaited) < 2:
                assert not looking.done()
                assert not scanning.done()
                time.sleep(0.001)
            assert one.append([("anna", 1)]) == fresh.at_least[one.split].offset
            assert looking.result(20)["events"].to_pylist() == [2 + turn]
            found = scanning.result(20)
            assert (
                dict(zip(found["customer"].to_pylist(), found["events"].to_pylist(), strict=True))["anna"] == 2 + turn
            )
            answer = Answer.of(found.schema)
            assert answer is not None
            assert answer.parts[0].position[one.split] >= fresh.at_least[one.split]


def test_a_state_frozen_for_another_is_not_shared_if_it_is_older(one: OnePartition) -> None:
    """Scans without a promise go on all the time, so that there always is such a state."""
    over = threading.Event()

    def scan() -> None:
        while not over.is_set():
            one.served.scan(VIEW)

    thread = threading.Thread(target=scan)
    thread.start()
    try:
        with one.reader() as reader:
            for turn in range(40):
                offset = one.append([("anna", 1)])
                found = reader.scan(VIEW, fresh=checked(at_least={one.split: offset}))
                assert max(found["events"].to_pylist()) == 2 + turn
    finally:
        over.set()
        thread.join()


def test_what_never_comes_is_refused_in_time_and_the_partition_is_not_away(one: OnePartition) -> None:
    ahead = checked(at_least={one.split: one.written + 100})
    with one.reader(patience=1.5, grace=0.3) as reader:
        for read in (lambda: reader.lookup(VIEW, "anna", fresh=ahead), lambda: reader.scan(VIEW, fresh=ahead)):
            begun = time.monotonic()
            with pytest.raises(Behind, match="has not come as far") as caught:
                read()
            assert 1.4 <= time.monotonic() - begun < 8.0
            facts = caught.value.facts
            assert facts["split"] == one.split
            assert facts["asked"] == [one.written + 100, 0]
            assert facts["reached"][0] == one.written
            assert facts["missed_by"] == 100
            assert facts["waited"] == 1.5
            assert caught.value.retry_after > 0
            assert reader.away() == []
        answer = Answer.of(reader.lookup(VIEW, "anna").schema)
        assert answer is not None
        assert answer.live
        with pytest.raises(Behind, match="not known here"):
            reader.lookup(VIEW, "anna", fresh=checked(at_least={"nothing/0": 1}))
    assert len(one.pump.awaited) == 0


def test_one_partition_alone_makes_no_cut(one: OnePartition) -> None:
    for fresh in (checked(consistent=True), checked(snapshot=1)):
        with pytest.raises(InvalidFlow, match="at no common position"):
            Requests.moment(one.served, fresh, None)
    assert Requests.moment(one.served, checked(cut=3), None) == 3
    with pytest.raises(Behind):
        Requests.moment(one.served, checked(at_least={one.split: 10**9}), None)


def test_a_partition_that_stopped_is_not_behind_but_away(one: OnePartition) -> None:
    """Whoever waits there hears at once that it must look elsewhere."""
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(one.served.reached, {one.split: Place(10**9)}, 60.0)
        while len(one.pump.awaited) < 1:
            time.sleep(0.001)
        one.stop()
        with pytest.raises(Unavailable) as caught:
            waiting.result(20)
    assert not isinstance(caught.value, Behind)


# cuts by any worker, without Dask


def test_a_consistent_read_makes_its_cut_by_the_worker(one: OnePartition) -> None:
    with Reads(FlightReader(one.service.location)) as reads:
        assert reads["totals"].lookup("anna", consistent=True)["total"].to_pylist() == [1]
        found = reads["totals"].to_table(consistent=True)
        assert sorted(found["total"].to_pylist()) == [1, 2]
        answer = Answer.of(found.schema)
        assert answer is not None
        assert answer.consistent
        relation = reads.sql("select sum(total)::bigint from totals", consistent=True)
        made = len(one.cuts)
        assert relation.fetchall() == [(3,)]
        one.append([("anna", 10)])
        one.wait_applied()
        assert relation.fetchall() == [(3,)]  # it runs again, in the same cut
        assert len(one.cuts) == made == 3
        with reads.snapshot() as moment:
            one.append([("anna", 10)])
            one.wait_applied()
            assert moment["totals"]["anna"]["total"].to_pylist() == [11]
            assert moment.sql("select max(total) from totals").fetchall() == [(11,)]
            with pytest.raises(InvalidFlow, match="position of its own"):
                moment.sql("select 1 from totals", consistent=True)


def test_a_consistent_read_comes_as_far_as_was_asked(one: OnePartition) -> None:
    with one.reader(patience=1.0) as reader:
        offset = one.append([("anna", 1)])
        fresh = checked(at_least={one.split: offset}, consistent=True)
        assert reader.lookup(VIEW, "anna", fresh=fresh)["events"].to_pylist() == [2]
        begun = time.monotonic()
        with pytest.raises(Behind) as caught:
            reader.scan(VIEW, fresh=checked(at_least={one.split: offset + 5}, consistent=True))
        assert caught.value.facts["missed_by"] == 5
        assert time.monotonic() - begun < 8.0


def test_no_cut_without_a_worker_that_makes_one(one: OnePartition) -> None:
    one.service.set_cut_handler(None)
    with one.reader() as reader:
        with pytest.raises(Unavailable, match="part of no running job"):
            reader.make_cut(timeout=0.3)
        one.directory = replace(
            one.directory, version=2, partitions=(replace(one.directory.partitions[0], location=None),)
        )
        with one.reader(patience=0.5) as other, pytest.raises(Unavailable, match="no worker is there to make a cut"):
            other.make_cut(timeout=0.3)


# what was saved


def test_saved_state_answers_only_if_it_has_come_so_far(tmp_path: Path) -> None:
    with OnePartition(tmp_path, every=0.1) as one:
        one.wait_applied()
        offset = one.written
        states = saved_states(one.url, {})

        def saved() -> bool:
            part = states.find(0, VIEW, 0.0).part
            try:
                if part is not None:
                    part.reached({one.split: Place(offset)}, 0.0)
            except Behind:
                return False
            return part is not None

        deadline = time.monotonic() + 30
        while not saved():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        one.save_cut(1)
        one.stop()
        one.service.close()
        with FlightReader([], saved=states, grace=0.1, patience=2.0) as reader:
            found = reader.lookup(VIEW, "anna", fresh=checked(at_least={one.split: offset}))
            answer = Answer.of(found.schema)
            assert answer is not None
            assert answer.parts[0].origin == "saved"
            begun = time.monotonic()
            with pytest.raises(Behind) as caught:
                reader.lookup(VIEW, "anna", fresh=checked(at_least={one.split: offset + 3}))
            assert time.monotonic() - begun < 10.0
            assert caught.value.facts["missed_by"] == 3

            old = reader.scan(VIEW, fresh=checked(snapshot=1))
            assert sorted(old["total"].to_pylist()) == [1, 2]
            assert reader.lookup(VIEW, "bert", fresh=checked(snapshot=1))["total"].to_pylist() == [2]
            with pytest.raises(InvalidFlow, match="no such cut"):
                reader.scan(VIEW, fresh=checked(snapshot=7))
            begun = time.monotonic()
            with pytest.raises(Unavailable):
                reader.scan(VIEW, fresh=checked(consistent=True))  # nobody is there to make one
            assert time.monotonic() - begun < 10.0
        with fs.open_snapshot(one.url, at=1) as snapshot:
            assert snapshot["totals"].lookup("anna", max_age=3600)["total"].to_pylist() == [1]
            reader = snapshot._reader
            reader._reading.patience = 0.5
            with pytest.raises(Behind, match="older than max_age") as caught:
                snapshot.to_table("totals", max_age=0)
            assert caught.value.facts["missed_by"] > 0


def test_a_reader_without_snapshots_has_no_past(one: OnePartition) -> None:
    with one.reader() as reader, pytest.raises(InvalidFlow, match="snapshots="):
        reader.scan(VIEW, fresh=checked(snapshot=1))
    assert one.directory.job == JOB


def test_many_keys_are_looked_up_in_a_cut(one: OnePartition) -> None:
    names = [f"customer-{each}" for each in range(5_000)]
    one.append([(name, 7) for name in names])
    one.wait_applied()
    with one.reader() as reader:
        for count in (1, 32, 33, 4_000):
            asked = [*names[:count], "nobody"]
            found = reader.lookup(VIEW, asked, ["total", "customer"], checked(consistent=True))
            assert found.schema.names == ["total", "customer"]
            assert sorted(found["customer"].to_pylist()) == sorted(names[:count])
            answer = Answer.of(found.schema)
            assert answer is not None
            assert answer.consistent


def test_keys_of_several_columns_are_found_among_rows() -> None:
    kinds = {"a": pa.string(), "b": pa.int64(), "c": pa.timestamp("us", "UTC")}
    rows = [(a, b, c) for a in ("x", "y", None) for b in (1, 2, None) for c in (0, 1_000_000)]
    columns = dict(zip(kinds, zip(*rows, strict=True), strict=True))
    table = pa.table({name: pa.array(columns[name], kind) for name, kind in kinds.items()})
    table = table.append_column("number", pa.array(range(len(rows))))
    keys = [0, 3, 5, 8, 17]
    batch = table.take(pa.array(keys)).drop_columns("number").combine_chunks().to_batches()[0]
    assert among(table, batch)["number"].to_pylist() == keys
    assert among(table, batch.select(["b"]))["number"].to_pylist() == list(range(len(rows)))
    assert among(table, batch.slice(0, 1).select(["a", "b"]))["number"].to_pylist() == [0, 1]


def test_a_cut_of_incarnations_that_the_reader_does_not_know_yet_is_read() -> None:
    """It was made after a partition was replaced: its directory is old, the cut is not lost."""
    with FlightService() as service:
        for each in partitions_of("billing", VIEWS, TABLES, 2):
            service.register(each)
        service.set_directory(directory_of("billing", VIEWS, [service.location] * 2))
        with FlightReader(service.location) as reader:
            assert reader.scan("subtotals").num_rows == TABLES["subtotals"].num_rows
            for each in partitions_of("billing", VIEWS, TABLES, 2, epoch=2):
                each.cuts[9] = dict(each.tables)
                service.register(each)
            made = {"cut": 9, "position": {}, "epochs": [[0, 2], [1, 2]]}
            service.set_cut_handler(lambda job, timeout: made)
            service.set_directory(directory_of("billing", VIEWS, [service.location] * 2, version=2, epoch=2))
            for _ in range(2):
                found = reader.scan("subtotals", fresh=checked(consistent=True))
                assert found.num_rows == TABLES["subtotals"].num_rows

"""The Kafka source against a real broker."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest
from confluent_kafka import Producer
from kafka_broker import KafkaBroker, free_port

from flowstate.errors import CorruptData, InvalidFlow, Unavailable
from flowstate.plan.spec import ScanSpec
from flowstate.source import Rows, SourceReader, SplitInfo, make_source
from flowstate.source.kafka_library import Unfit

pytestmark = [pytest.mark.kafka, pytest.mark.usefixtures("way")]

SCHEMA = pa.schema([pa.field("n", pa.int64(), nullable=False), pa.field("at", pa.timestamp("ms", "UTC"))])


def scan(kafka: KafkaBroker, topic: str, max_ahead: int | None = None, **options: Any) -> ScanSpec:
    options = {"topic": topic, "bootstrap": kafka.bootstrap, **options}
    return ScanSpec("events", "kafka", SCHEMA, event_time="at", max_ahead=max_ahead, options=options)


@pytest.fixture(params=["many at once", "one by one"])
def way(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kafka: KafkaBroker,
) -> Iterator[None]:
    """How messages are fetched, in a test whose topics are gone afterwards. What is fetched many at once stays so to the end."""

    def unfit(*_: object) -> None:
        raise Unfit("of the test")

    if request.param == "one by one":
        monkeypatch.setattr("flowstate.source.kafka.BatchFetcher", unfit)
    before = kafka.admin.list_topics(timeout=10).topics
    yield
    for each in kafka.admin.list_topics(timeout=10).topics.keys() - before.keys():
        if not each.startswith("__"):
            kafka.delete_topic(each)
    said = [each.getMessage() for each in caplog.records if "one by one" in each.getMessage()]
    assert not said or (request.param == "one by one" and all("of the test" in each for each in said))


def event(number: int, at: int = 1000) -> bytes:
    return json.dumps({"n": number, "at": at}).encode()


def events(*numbers: int) -> list[bytes]:
    return [event(each) for each in numbers]


def read(
    reader: SourceReader,
    wanted: dict[str, int | None],
    until: dict[str, int],
    seconds: float = 20,
    max_rows: int = 1000,
) -> list[Rows]:
    """Poll until every split has reached its offset in `until`."""
    given: list[Rows] = []
    reached: dict[str, int] = {}
    deadline = time.monotonic() + seconds
    while any(reached.get(split, -1) < offset for split, offset in until.items()):
        assert time.monotonic() < deadline, f"reached {reached}, wanted {until}"
        for rows in reader.poll(wanted, max_rows=max_rows, timeout=0.2):
            assert rows.since == reached.get(rows.split, rows.since)
            reached[rows.split] = rows.to
            given.append(rows)
    return given


def numbers(given: list[Rows]) -> list[int]:
    return [each for rows in given for each in rows.batch.column("n").to_pylist()]


def read_all(spec: ScanSpec, ends: dict[int, int]) -> list[Rows]:
    source = make_source(spec)
    reader = source.open()
    try:
        infos = {int(each.name.rpartition("/")[2]): each for each in source.splits()}
        for each in infos.values():
            reader.assign(each, each.start)
        return read(
            reader, dict.fromkeys(each.name for each in infos.values()), {infos[p].name: e for p, e in ends.items()}
        )
    finally:
        reader.close()


def test_reads_all_partitions_with_their_times_and_dead_letters(kafka: KafkaBroker) -> None:
    kafka.create_topic("plain", 2)
    kafka.produce("plain", [event(1, 5), b"{", event(2, 6)], 0, timestamp=7000)
    kafka.produce("plain", events(3), 1)
    source = make_source(scan(kafka, "plain"))
    splits = source.splits()
    assert splits[0].hint is not None and len(splits[0].hint["topic_id"]) == 22
    assert [replace(each, hint=None) for each in splits] == [
        SplitInfo("events/plain/0", "plain[0]"),
        SplitInfo("events/plain/1", "plain[1]"),
    ]
    given = read_all(scan(kafka, "plain"), {0: 3, 1: 1})
    first = [each for each in given if each.split.endswith("/0")]
    assert numbers(first) == [1, 2]
    assert [t for rows in first for t in rows.batch.column("__time").to_pylist()] == [5000, 6000]
    assert [o for rows in first for o in rows.batch.column("__offset").to_pylist()] == [0, 2]
    (dead,) = [each for rows in given for each in rows.dead.to_pylist()]
    assert (dead["offset"], dead["raw"], dead["split"]) == (1, b"{", "events/plain/0")
    assert dead["recorded"] == datetime.fromtimestamp(7, UTC)
    assert dead["reason"].startswith("not JSON")


def test_a_time_too_far_ahead_of_its_record_is_a_dead_letter(kafka: KafkaBroker) -> None:
    kafka.create_topic("ahead")
    now = 1_700_000_000_000
    kafka.produce("ahead", [event(1, now + 60_000), event(2, now + 60_001), event(3, 4_070_908_800_000)], timestamp=now)
    given = read_all(scan(kafka, "ahead", max_ahead=60_000_000), {0: 3})
    assert numbers(given) == [1]
    reasons = [each for rows in given for each in rows.dead.column("reason").to_pylist()]
    assert reasons[0] == "event time 'at' is 60.001 s ahead of its record, max_ahead is 60.000 s"
    assert len(reasons) == 2


def test_tombstones_move_the_position_and_are_no_rows(kafka: KafkaBroker) -> None:
    kafka.create_topic("tombstones")
    kafka.produce("tombstones", [event(1), None, event(2), None], key=b"k")
    given = read_all(scan(kafka, "tombstones"), {0: 4})
    assert numbers(given) == [1, 2]
    assert not sum(each.dead.num_rows for each in given)


def test_only_committed_transactions_and_gaps_move_the_position(kafka: KafkaBroker) -> None:
    kafka.create_topic("transactions")
    kafka.produce("transactions", events(1, 2), transaction="t", commit=True)  # 0 1, marker 2
    kafka.produce("transactions", events(90, 91), transaction="t", commit=False)  # 3 4, marker 5
    kafka.produce("transactions", events(3), transaction="t", commit=True)  # 6, marker 7
    given = read_all(scan(kafka, "transactions"), {0: 8})
    assert numbers(given) == [1, 2, 3]
    assert [o for rows in given for o in rows.batch.column("__offset").to_pylist()] == [0, 1, 6]
    uncommitted = read_all(scan(kafka, "transactions", config={"isolation.level": "read_uncommitted"}), {0: 8})
    assert numbers(uncommitted) == [1, 2, 90, 91, 3]


def test_end_offset_and_stops_are_exact_with_gaps(kafka: KafkaBroker) -> None:
    kafka.create_topic("stops")
    kafka.produce("stops", events(*range(5)), transaction="t", commit=True)  # 0-4, marker 5
    kafka.produce("stops", events(9), transaction="t", commit=False)  # 6, marker 7
    source = make_source(scan(kafka, "stops"))
    (split,) = source.splits()
    reader = source.open()
    for stop in (1, 3, 5, 6, 7, 8):
        reader.assign(split, 0)
        given = read(reader, {split.name: stop}, {split.name: stop}, max_rows=2)
        assert given[-1].to == stop
        assert numbers(given) == list(range(min(stop, 5)))
        assert reader.poll({split.name: stop}, max_rows=10, timeout=0.05) == []
    assert reader.end_offset(split.name) == 8
    reader.close()


def test_an_open_transaction_is_no_end_that_a_drain_would_wait_for(kafka: KafkaBroker) -> None:
    kafka.create_topic("open")
    kafka.produce("open", events(1, 2))
    producer = Producer({"bootstrap.servers": kafka.bootstrap, "transactional.id": "open", "log_level": 0})
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce("open", event(3))
    assert producer.flush(30) == 0
    source = make_source(scan(kafka, "open"))
    (split,) = source.splits()
    reader = source.open()
    reader.assign(split, 0)
    assert reader.end_offset(split.name) == 2
    assert numbers(read(reader, {split.name: None}, {split.name: 2})) == [1, 2]
    assert [each.start for each in make_source(scan(kafka, "open", start="latest")).splits()] == [2]
    producer.commit_transaction(30)
    assert numbers(read(reader, {split.name: None}, {split.name: 4})) == [3]
    assert reader.end_offset(split.name) == 4
    reader.close()


def test_start_latest_offsets_and_timestamp(kafka: KafkaBroker) -> None:
    kafka.create_topic("starts", 2)
    for number in range(10):
        kafka.produce("starts", events(number), timestamp=1_700_000_000_000 + number * 1000)
    at = datetime.fromtimestamp(1_700_000_004.5, UTC)

    def begins(start: Any) -> list[int]:
        return [each.start for each in make_source(scan(kafka, "starts", start=start)).splits()]

    assert begins("earliest") == [0, 0]
    assert begins("latest") == [10, 0]
    assert begins({0: 7}) == [7, 0]
    assert begins(at) == [5, 0]
    assert begins(datetime.fromtimestamp(1_800_000_000, UTC)) == [10, 0]
    with pytest.raises(InvalidFlow, match=r"start=11 first=0 end=10"):
        begins({0: 11})
    with pytest.raises(InvalidFlow, match="partition=5"):
        begins({5: 1})
    with pytest.raises(InvalidFlow, match="aware"):
        make_source(scan(kafka, "starts", start=datetime(2024, 1, 1)))


def test_a_partition_that_appears_later_is_read_from_its_beginning(kafka: KafkaBroker) -> None:
    kafka.create_topic("growing", 1)
    kafka.produce("growing", events(1, 2))
    source = make_source(scan(kafka, "growing", start="latest"))
    assert [each.start for each in source.splits()] == [2]
    kafka.add_partitions("growing", 2)
    kafka.produce("growing", events(3), 1)
    assert [(each.label, each.start) for each in source.splits()] == [("growing[0]", 2), ("growing[1]", 0)]


def test_offsets_deleted_by_retention_are_a_named_error_and_no_reset(kafka: KafkaBroker) -> None:
    kafka.create_topic("retention", 2)
    kafka.produce("retention", events(*range(10)))
    kafka.produce("retention", events(100), 1)
    source = make_source(scan(kafka, "retention"))
    splits = source.splits()
    kafka.delete_records("retention", 0, 6)
    reader = source.open()
    for each in splits:
        reader.assign(each, 0)
    wanted: dict[str, int | None] = dict.fromkeys(each.name for each in splits)
    assert numbers(read(reader, {splits[1].name: None}, {splits[1].name: 1})) == [100]
    for _ in range(2):  # It stays an error until somebody decides.
        with pytest.raises(CorruptData, match=r"^6 offsets .* lost='skip'.*partition=0 offset=0 first=6 end=10 lost=6"):
            read(reader, wanted, {splits[0].name: 10})
    reader.assign(splits[0], 6)
    assert numbers(read(reader, wanted, {splits[0].name: 10})) == [6, 7, 8, 9]
    reader.close()
    assert source.splits()[0].start == 0, "where a split begins is settled when it is found"
    assert make_source(scan(kafka, "retention")).splits()[0].start == 6


def test_two_losses_of_a_split_that_is_not_wanted_are_two_letters(
    kafka: KafkaBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second is found before the first was given."""
    monkeypatch.setattr("flowstate.source.kafka.PAUSE_ROWS", 1)
    kafka.create_topic("lost-twice", 2)
    kafka.produce("lost-twice", events(*range(10)))
    kafka.delete_records("lost-twice", 0, 6)
    source = make_source(scan(kafka, "lost-twice", lost="skip"))
    one, two = source.splits()
    reader = source.open()
    for each in (one, two):
        reader.assign(each, 0)
    state = reader._splits[0]  # type: ignore[attr-defined]

    def poll(until: Callable[[], bool], max_rows: int) -> None:
        deadline = time.monotonic() + 20
        while not until():
            assert time.monotonic() < deadline, vars(state)
            assert not [rows for rows in reader.poll({two.name: None}, max_rows=max_rows, timeout=0.1) if rows.batch]

    poll(lambda: state.paused and len(state.waiting) == 2, 1)
    kafka.produce("lost-twice", events(*range(10, 20)))
    kafka.delete_records("lost-twice", 0, 15)
    poll(lambda: len(state.waiting) == 7, 1000)
    given = read(reader, {one.name: None}, {one.name: 20})
    assert numbers(given) == [6, 7, *range(15, 20)]
    assert [letter["offset"] for rows in given for letter in rows.dead.to_pylist()] == [5, 14]
    reader.close()


def test_an_unwanted_split_is_left_alone_and_nothing_of_it_is_lost(kafka: KafkaBroker) -> None:
    kafka.create_topic("unwanted", 2)
    kafka.produce("unwanted", events(*range(4000)), 0)
    kafka.produce("unwanted", events(*range(10_000, 14_000)), 1)
    source = make_source(scan(kafka, "unwanted"))
    one, two = source.splits()
    reader = source.open()
    reader.assign(one, 0)
    reader.assign(two, 0)
    given: list[Rows] = []
    reached = {one.name: 0, two.name: 0}
    deadline = time.monotonic() + 30
    turn = 0
    while min(reached.values()) < 4000:
        assert time.monotonic() < deadline, reached
        turn += 1
        chosen = (one, two)[turn % 2].name
        for rows in reader.poll({chosen: None}, max_rows=400, timeout=0.1):
            assert rows.split == chosen
            assert rows.since == reached[chosen]
            reached[chosen] = rows.to
            given.append(rows)
    assert numbers([each for each in given if each.split == one.name]) == list(range(4000))
    assert numbers([each for each in given if each.split == two.name]) == list(range(10_000, 14_000))
    reader.close()


def test_a_paused_split_that_is_assigned_again_is_read_again(
    kafka: KafkaBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowstate.source.kafka.PAUSE_ROWS", 1)
    kafka.create_topic("paused")
    kafka.produce("paused", events(*range(100)))
    source = make_source(scan(kafka, "paused"))
    (split,) = source.splits()
    reader = source.open()
    reader.assign(split, 0)
    for again in range(5):
        deadline = time.monotonic() + 20
        while not reader.poll({}, max_rows=1, timeout=0) and time.monotonic() < deadline:
            partition = reader._splits[0]  # type: ignore[attr-defined]
            if partition.paused:
                break
        assert partition.paused
        reader.assign(split, again)
        given = read(reader, {split.name: None}, {split.name: 100}, max_rows=30)
        assert numbers(given) == list(range(again, 100))
        reader.assign(split, 0)
    reader.close()


@pytest.mark.parametrize(
    ("form", "values"),
    [
        ("csv", [b"1,1970-01-01T00:00:01Z", b'"2",1000']),
        ("arrow", [bytes(pa.BufferOutputStream().getvalue())]),
    ],
)
def test_other_formats(kafka: KafkaBroker, form: str, values: list[bytes]) -> None:
    if form == "arrow":
        values = [_ipc([1]), _ipc([2]), _ipc([3, 4]), b"nonsense"]
    kafka.create_topic(f"form-{form}")
    kafka.produce(f"form-{form}", values)
    given = read_all(scan(kafka, f"form-{form}", format=form), {0: len(values)})
    wanted = [1, 2, 3, 4] if form == "arrow" else [1, 2]
    assert numbers(given) == wanted
    assert [t for rows in given for t in rows.batch.column("__time").to_pylist()] == [1_000_000] * len(wanted)
    assert sum(each.dead.num_rows for each in given) == (form == "arrow")


def _ipc(numbers: list[int]) -> bytes:
    batch = pa.RecordBatch.from_pydict({"n": numbers, "at": pa.array([1000] * len(numbers), pa.timestamp("ms", "UTC"))})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write(batch)
    return sink.getvalue().to_pybytes()


def test_wrong_topic_broker_and_login_are_clear_errors_within_ten_seconds(kafka: KafkaBroker) -> None:
    kafka.create_topic("customer-events")
    login = {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN", "sasl.username": "anna"}
    began = time.monotonic()
    with pytest.raises(InvalidFlow, match=r"did you mean 'customer-events'\?"):
        make_source(scan(kafka, "customer-event")).splits()
    assert time.monotonic() - began < 3
    began = time.monotonic()
    with pytest.raises(Unavailable, match=r"check bootstrap=.*bootstrap='127\.0\.0\.1:\d+'"):
        make_source(scan(kafka, "x", bootstrap=f"127.0.0.1:{free_port()}")).splits()
    assert time.monotonic() - began < 10
    began = time.monotonic()
    with pytest.raises(InvalidFlow, match="correct the credentials"):
        make_source(
            scan(kafka, "x", bootstrap=kafka.sasl_bootstrap, config={**login, "sasl.password": "wrong"})
        ).splits()
    assert time.monotonic() - began < 10
    right = scan(kafka, "customer-events", bootstrap=kafka.sasl_bootstrap, config={**login, "sasl.password": "secret"})
    kafka.produce("customer-events", events(1, 2))
    assert numbers(read_all(right, {0: 2})) == [1, 2]
    with pytest.raises(InvalidFlow, match="correct config="):
        make_source(scan(kafka, "customer-events", config={"no.such.setting": 1})).splits()


def test_a_broker_that_is_killed_and_comes_back_on_the_same_data(kafka: KafkaBroker) -> None:
    kafka.create_topic("outage", config={"flush.messages": "1"})
    kafka.produce("outage", events(*range(100)))
    source = make_source(scan(kafka, "outage"))
    (split,) = source.splits()
    reader = source.open()
    reader.assign(split, 0)
    assert numbers(read(reader, {split.name: None}, {split.name: 100})) == list(range(100))
    kafka.kill()
    try:
        began = time.monotonic()
        for _ in range(5):
            assert reader.poll({split.name: None}, max_rows=10, timeout=0.1) == []
        assert time.monotonic() - began < 5
        with pytest.raises(Unavailable):
            reader.end_offset(split.name)
    finally:
        kafka.start()
    kafka.produce("outage", events(100, 101))
    assert numbers(read(reader, {split.name: None}, {split.name: 102})) == [100, 101]
    assert reader.end_offset(split.name) == 102
    reader.close()


def test_the_end_of_a_split_is_known_without_reading_on(kafka: KafkaBroker) -> None:
    """By the client, which is told it with every fetch; nobody is asked."""
    kafka.create_topic("known", 1)
    kafka.produce("known", events(1, 2, 3))
    source = make_source(scan(kafka, "known"))
    (split,) = source.splits()
    reader = source.open()
    assert reader.known_end(split.name) is None
    reader.assign(split, 0)
    read(reader, {split.name: None}, {split.name: 3})
    assert reader.known_end(split.name) == 3
    kafka.produce("known", events(4, 5))
    deadline = time.monotonic() + 20
    while reader.known_end(split.name) != 5:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    reader.close()
    assert reader.known_end(split.name) is None

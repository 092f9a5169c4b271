"""Both ways to fetch messages give the same, and the fast one knows when it may not be used."""

from __future__ import annotations

import ctypes
import gc
import logging
import random
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition
from confluent_kafka.admin._config import AlterConfigOpType, ConfigEntry, ConfigResource
from hypothesis import given
from hypothesis import strategies as st
from kafka_broker import KafkaBroker

from flowstate.plan.position import NEVER
from flowstate.plan.spec import ScanSpec
from flowstate.source import kafka_batches, kafka_library, make_source
from flowstate.source.kafka import KafkaReader, KafkaSource
from flowstate.source.kafka_batches import BatchFetcher, by_partition
from flowstate.source.kafka_client import Outages, open_consumer
from flowstate.source.kafka_fetch import Fetcher, MessageFetcher, Messages, Surprise, Told, Waiting, joined, places
from flowstate.source.kafka_library import Unfit
from flowstate.source.kernels import messages as kernel

WAYS: dict[str, Callable[[Consumer, str], Fetcher]] = {
    "one by one": lambda consumer, topic: MessageFetcher(consumer),
    "many at once": lambda consumer, topic: BatchFetcher(consumer, topic, "rdkafka"),
}


ANY_TIME = {"message.timestamp.after.max.ms": str(2**63 - 1)}


class Seen(NamedTuple):
    offset: int
    recorded: int
    payload: bytes | None


def seen(block: Messages) -> list[Seen]:
    """Message by message, with everything that the block promises."""
    for each in (block.offsets, block.recorded, block.starts, block.ends):
        assert each.dtype == np.int64
        assert len(each) == len(block) > 0
    found = []
    for row in range(len(block)):
        begin, end = int(block.starts[row]), int(block.ends[row])
        present = block.present is None or bool(block.present[row])
        if present:
            assert block.buffer[end : end + 1] == b"\n"
        payload = block.buffer[begin:end] if present else None
        found.append(Seen(int(block.offsets[row]), int(block.recorded[row]), payload))
    assert [each.offset for each in found] == sorted({each.offset for each in found})
    return found


class Log:
    """What a fetcher gives of a topic's partitions, from `begins` to where the client says that they end."""

    def __init__(self, fetcher: Fetcher, begins: dict[int, int]) -> None:
        self.fetcher = fetcher
        self.messages: dict[int, list[Seen]] = {each: [] for each in begins}
        self.ends: dict[int, int] = {}
        self.errors: list[Told] = []

    def fetch(self, most: int, timeout: float = 0.1) -> int:
        count = 0
        for each in self.fetcher.fetch(most, timeout):
            if isinstance(each, Messages):
                self.messages[each.partition] += seen(each)
                count += len(each)
            elif each.error.name() == "_PARTITION_EOF":
                assert each.partition is not None
                assert each.offset is not None
                self.ends[each.partition] = each.offset
            else:
                self.errors.append(each)
        assert count <= most
        return count


def read(bootstrap: str, topic: str, way: str, begins: dict[int, int], dice: random.Random, **config: Any) -> Log:
    consumer = open_consumer("test", bootstrap, config, Outages("test"))
    fetcher = WAYS[way](consumer, topic)
    try:
        log = Log(fetcher, begins)
        for each in begins:
            fetcher.begin(each)
        consumer.incremental_assign([TopicPartition(topic, each, offset) for each, offset in begins.items()])
        most = dice.choice((1, 7, 100, 5000))
        deadline = time.monotonic() + 30
        while log.ends.keys() != begins.keys():
            assert time.monotonic() < deadline, log.ends
            log.fetch(dice.randint(1, most))
        return log
    finally:
        fetcher.close()
        consumer.close()


@pytest.fixture(scope="module")
def mixed(kafka: KafkaBroker) -> str:
    """Everything that a log may hold: no payloads, empty ones, large ones, bytes of every kind, keys, headers, own times and none,
    transactions that were committed, aborted or left in the middle of another's messages, every compression."""
    kafka.create_topic("mixed", 3, ANY_TIME)
    kafka.create_topic("stamped", 1, {"message.timestamp.type": "LogAppendTime"})
    dice = random.Random(7)
    for number, compression in enumerate(("none", "gzip", "snappy", "lz4", "zstd") * 3):
        transaction = {"transactional.id": f"mixed-{number}"} if number % 2 else {}
        producer = Producer(
            {
                "bootstrap.servers": kafka.bootstrap,
                "compression.type": compression,
                "message.max.bytes": 900_000,
                "log_level": 0,
                **transaction,
            }
        )
        if transaction:
            producer.init_transactions(30)
            producer.begin_transaction()
        for each in range(dice.randint(1, 60)):
            size = dice.choice((0, 1, 5, 80, 80, 80, 3000, 700_000 if each == 3 else 9))
            value = dice.choice(
                (None, dice.randbytes(size), b'{"n":%d}' % each, b"\n" * size, zlib.compress(b"x" * size))
            )
            extra: dict[str, Any] = (
                {"timestamp": dice.choice((1, 1_700_000_000_000 + each, 2**52))} if dice.random() < 0.5 else {}
            )
            headers: Any = [("trace", dice.randbytes(20)), ("none", None)] if dice.random() < 0.3 else None
            key = dice.choice((None, b"", dice.randbytes(9)))
            producer.produce("mixed", value, key, dice.randrange(3), headers=headers, **extra)
            producer.produce("stamped", value, key, 0, headers=headers)
        assert producer.flush(30) == 0
        if transaction:
            producer.commit_transaction(30) if number % 4 == 1 else producer.abort_transaction(30)
    return "mixed"


@pytest.mark.kafka
@pytest.mark.parametrize("isolation", ["read_committed", "read_uncommitted"])
def test_both_ways_give_the_same_messages(kafka: KafkaBroker, mixed: str, isolation: str) -> None:
    dice = random.Random(isolation)
    config = {"isolation.level": isolation}
    for topic, partitions in ((mixed, 3), ("stamped", 1)):
        slow = read(kafka.bootstrap, topic, "one by one", dict.fromkeys(range(partitions), 0), dice, **config)
        fast = read(kafka.bootstrap, topic, "many at once", dict.fromkeys(range(partitions), 0), dice, **config)
        assert fast.messages == slow.messages
        assert fast.ends == slow.ends
        assert not slow.errors + fast.errors
        assert any(each.payload is None for each in slow.messages[0])
        assert any(each.payload == b"" for each in slow.messages[0])
        begins = {each: dice.randint(0, slow.ends[each]) for each in range(partitions)}
        later = read(kafka.bootstrap, topic, "many at once", begins, dice, **config)
        for partition, begin in begins.items():
            assert later.messages[partition] == [each for each in slow.messages[partition] if each.offset >= begin]


@pytest.mark.kafka
def test_a_message_without_a_time_and_one_too_late_for_microseconds(kafka: KafkaBroker) -> None:
    kafka.create_topic("times", 1, ANY_TIME)
    for each in (1, 2**62, 2**53):
        kafka.produce("times", [b"x"], timestamp=each)
    for way in WAYS:
        log = read(kafka.bootstrap, "times", way, {0: 0}, random.Random(1))
        assert [each.recorded for each in log.messages[0]] == [1000, NEVER, 2**53 * 1000]


@pytest.mark.kafka
@pytest.mark.parametrize("way", WAYS)
def test_partitions_that_are_assigned_again_and_again_give_what_follows(kafka: KafkaBroker, way: str) -> None:
    """The end of an assignment is carried out after the next one began: nothing of the old one may come, and all of the new."""
    topic = f"again-{len(way)}"
    kafka.create_topic(topic, 2)
    for each in range(2):
        kafka.produce(topic, (b"%d" % number for number in range(3000)), each)
    dice = random.Random(3)
    consumer = open_consumer("test", kafka.bootstrap, {}, Outages("test"))
    fetcher = WAYS[way](consumer, topic)
    fetcher.begin(1)
    consumer.incremental_assign([TopicPartition(topic, 1, 0)])
    log = Log(fetcher, {0: 0, 1: 0})
    deadline = time.monotonic() + 30
    for _ in range(60):
        begin = dice.randrange(2900)
        fetcher.begin(0)
        consumer.incremental_assign([TopicPartition(topic, 0, begin)])
        log.messages[0].clear()
        wanted = dice.choice((0, 1, 50, 100))
        while len(log.messages[0]) < wanted:
            assert time.monotonic() < deadline
            log.fetch(dice.choice((1, 20, 500)))
        offsets = [each.offset for each in log.messages[0]]
        assert offsets == list(range(begin, begin + len(offsets)))
        consumer.incremental_unassign([TopicPartition(topic, 0, 0)])
        fetcher.end(0)
    while len(log.messages[1]) < 3000:
        assert time.monotonic() < deadline
        log.fetch(500)
    assert [each.payload for each in log.messages[1]] == [b"%d" % number for number in range(3000)]
    fetcher.close()
    consumer.close()


@pytest.mark.kafka
def test_offsets_that_compaction_removed_are_gaps(kafka: KafkaBroker) -> None:
    cluster = ConfigResource(ConfigResource.Type.BROKER, "1")
    cluster.add_incremental_config(
        ConfigEntry("log.cleaner.backoff.ms", "100", incremental_operation=AlterConfigOpType.SET)
    )
    kafka.admin.incremental_alter_configs([cluster])[cluster].result(30)
    settings = {"cleanup.policy": "compact", "min.cleanable.dirty.ratio": "0.001", "segment.ms": "1"}
    kafka.create_topic("compacted", 1, settings)
    for turn in range(5):
        for key in range(10):
            kafka.produce("compacted", [b"%d" % turn, None if key % 3 == 0 else b"%d!" % turn], key=b"%d" % (key % 7))
    deadline = time.monotonic() + 30
    while True:
        slow = read(kafka.bootstrap, "compacted", "one by one", {0: 0}, random.Random(5))
        if len(slow.messages[0]) < 50:
            break
        assert time.monotonic() < deadline, len(slow.messages[0])
    while True:
        # The log may shrink between two readings; not for ever.
        fast = read(kafka.bootstrap, "compacted", "many at once", {0: 0}, random.Random(5))
        again = read(kafka.bootstrap, "compacted", "one by one", {0: 0}, random.Random(6))
        if again.messages == slow.messages:
            break
        slow = again
        assert time.monotonic() < deadline
    assert fast.messages == slow.messages
    assert fast.ends == slow.ends == {0: 100}


SCHEMA = pa.schema([pa.field("n", pa.int64(), nullable=False)])


def scan(kafka: KafkaBroker, topic: str, **options: Any) -> KafkaSource:
    spec = ScanSpec("events", "kafka", SCHEMA, options={"topic": topic, "bootstrap": kafka.bootstrap, **options})
    source = make_source(spec)
    assert isinstance(source, KafkaSource)
    return source


def everything(source: KafkaSource, ends: dict[int, int], max_rows: int = 100) -> tuple[list[int], KafkaReader]:
    reader = source.open()
    assert isinstance(reader, KafkaReader)
    splits = source.splits()
    for each in splits:
        reader.assign(each, 0)
    reached = dict.fromkeys((each.name for each in splits), 0)
    given: list[int] = []
    deadline = time.monotonic() + 30
    while any(reached[splits[each].name] < end for each, end in ends.items()):
        assert time.monotonic() < deadline, reached
        for rows in reader.poll(dict.fromkeys(reached), max_rows=max_rows, timeout=0.1):
            assert rows.since == reached[rows.split]
            reached[rows.split] = rows.to
            given += rows.batch.column("n").to_pylist()
    return given, reader


@pytest.fixture(scope="module")
def counted(kafka: KafkaBroker) -> str:
    """0 to 3999 in two partitions."""
    kafka.create_topic("counted", 2)
    for each in range(2):
        kafka.produce("counted", (b'{"n":%d}' % number for number in range(2000 * each, 2000 * each + 2000)), each)
    return "counted"


@pytest.mark.kafka
@pytest.mark.parametrize("when", [0, 1, 3])
def test_a_surprise_on_the_way_loses_and_repeats_nothing(
    kafka: KafkaBroker, counted: str, when: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Blocks were read and the messages are gone from the client; what it has fetched ahead is of no use either."""
    whole = kafka_batches._block
    blocks = iter(range(1000))

    def surprised(found: Any) -> Messages:
        if next(blocks) == when:
            raise Surprise("of the test")
        return whole(found)

    monkeypatch.setattr(kafka_batches, "_block", surprised)
    monkeypatch.setattr("flowstate.source.kafka.PAUSE_ROWS", 2)
    given, reader = everything(scan(kafka, counted), {0: 2000, 1: 2000})
    assert sorted(given) == list(range(4000))
    assert isinstance(reader._fetcher, MessageFetcher)
    (said,) = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert said.startswith("kafka source 'events': messages are read one by one") and said.endswith(": of the test")
    reader.close()


@pytest.mark.kafka
def test_messages_by_another_way_than_expected_are_a_surprise(kafka: KafkaBroker, counted: str) -> None:
    consumer = open_consumer("test", kafka.bootstrap, {}, Outages("test"))
    fetcher = BatchFetcher(consumer, counted, "rdkafka")
    consumer.incremental_assign([TopicPartition(counted, 0, 0)])
    deadline = time.monotonic() + 20
    fetcher._queues._partitions[0] = 0  # as if it had begun

    def fetch() -> None:
        while time.monotonic() < deadline:
            fetcher._others()

    with pytest.raises(Surprise, match="another way"):
        fetch()
    del fetcher._queues._partitions[0]
    fetcher.close()
    consumer.close()


@pytest.mark.kafka
def test_the_fast_way_is_taken_by_itself_and_an_unfit_client_is_told_of_once(
    kafka: KafkaBroker, counted: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    given, reader = everything(scan(kafka, counted, config={"client.id": "own name"}), {0: 2000, 1: 2000})
    assert sorted(given) == list(range(4000))
    assert isinstance(reader._fetcher, BatchFetcher)
    reader.close()
    assert not caplog.records
    monkeypatch.setattr("flowstate.source.kafka_library._HANDLE", 1 << 60)
    given, reader = everything(scan(kafka, counted), {0: 2000, 1: 2000})
    assert sorted(given) == list(range(4000))
    assert isinstance(reader._fetcher, MessageFetcher)
    reader.close()
    assert len([each for each in caplog.records if "no handle where it is expected" in each.getMessage()]) == 1


@pytest.mark.kafka
def test_readers_in_several_threads_open_read_and_close_at_once(kafka: KafkaBroker, counted: str) -> None:
    kafka_library._tried.cache_clear()

    def read_it(turn: int) -> list[int]:
        found, reader = everything(scan(kafka, counted), {0: 2000, 1: 2000}, max_rows=50 + turn)
        assert isinstance(reader._fetcher, BatchFetcher)
        reader.close()
        return found

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(read_it, range(16)):
            assert sorted(found) == list(range(4000))


@pytest.mark.kafka
def test_every_message_is_given_back(kafka: KafkaBroker) -> None:
    """20 MB, ten times: who kept them would hold 200."""
    kafka.create_topic("large")
    kafka.produce("large", (bytes(100_000) for _ in range(200)))
    most = []
    for _ in range(10):
        assert len(read(kafka.bootstrap, "large", "many at once", {0: 0}, random.Random(4)).messages[0]) == 200
        most.append(resident())
    assert max(most[5:]) - most[1] < 60 << 20, [each >> 20 for each in most]


@pytest.mark.kafka
def test_large_messages_are_taken_a_few_at_once_and_small_ones_many(kafka: KafkaBroker) -> None:
    kafka.create_topic("sizes")
    for size in (200_000, 1):
        kafka.produce("sizes", (bytes(size) for _ in range(100)))
    consumer = open_consumer("test", kafka.bootstrap, {}, Outages("test"))
    fetcher = BatchFetcher(consumer, "sizes", "rdkafka")
    fetcher.begin(0)
    consumer.incremental_assign([TopicPartition("sizes", 0, 0)])
    taken: list[int] = []
    deadline = time.monotonic() + 20
    fetcher._room = 1
    while sum(taken) < 200:
        assert time.monotonic() < deadline
        if count := sum(len(each) for each in fetcher.fetch(1000, 0.1) if isinstance(each, Messages)):
            taken.append(count)
    large = [each for each, before in zip(taken, np.cumsum([0, *taken]), strict=False) if before + each <= 100]
    assert max(large) * 200_000 <= kafka_batches.AT_ONCE + 2 * 200_000
    assert len(taken) < len(large) + 30
    fetcher.close()
    consumer.close()


def resident() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.fixture
def consumer() -> Iterator[Consumer]:
    """Of a broker that is not there."""
    made = Consumer({"bootstrap.servers": "127.0.0.1:1", "group.id": "test", "client.id": "own", "log_level": 0})
    yield made
    made.close()


def test_a_closed_fetcher_touches_nothing_and_may_be_closed_again(consumer: Consumer) -> None:
    fetcher = BatchFetcher(consumer, "topic", "own")
    fetcher.begin(0)
    assert list(fetcher.fetch(10, 0)) == []
    fetcher.close()
    fetcher.close()
    fetcher.end(0)
    for use in (lambda: fetcher.fetch(10, 0), lambda: fetcher.begin(0)):
        with pytest.raises(RuntimeError, match="closed"):
            use()


def test_a_fetcher_that_nobody_closes_releases_its_queues_before_its_consumer() -> None:
    made = Consumer({"bootstrap.servers": "127.0.0.1:1", "group.id": "test", "log_level": 0})
    fetcher = BatchFetcher(made, "topic", "rdkafka")
    fetcher.begin(0)
    release, queues = fetcher._release, fetcher._queues
    del made, fetcher
    gc.collect()
    assert not release.alive
    with pytest.raises(RuntimeError, match="closed"):
        _ = queues.own


def test_another_client_than_the_named_one_is_unfit(consumer: Consumer) -> None:
    found = kafka_library.library()
    assert kafka_library.handle(found, consumer, "own")
    with pytest.raises(Unfit, match="another handle"):
        kafka_library.handle(found, consumer, "other")
    producer: Any = Producer({"client.id": "own", "log_level": 0})
    with pytest.raises(Unfit, match="another handle"):
        kafka_library.handle(found, producer, "own")


class NoHandle:
    """An object with something else behind its head."""

    __slots__ = ("word",)


@pytest.mark.parametrize("word", [None, "text", 3])
def test_an_object_that_is_no_consumer_is_unfit(word: object) -> None:
    other: Any = NoHandle()
    if word is not None:
        other.word = word
    with pytest.raises(Unfit, match="handle"):
        kafka_library.handle(kafka_library.library(), other, "rdkafka")


@pytest.fixture
def untried() -> Iterator[None]:
    kafka_library._tried.cache_clear()
    yield
    kafka_library._tried.cache_clear()


def _shifted(field: int) -> type[ctypes.Structure]:
    fields = list(kafka_library.Message._fields_)
    fields[field], fields[field + 1] = fields[field + 1], fields[field]
    return type("Message", (ctypes.Structure,), {"_fields_": fields})


@pytest.mark.usefixtures("untried")
@pytest.mark.parametrize("field", range(8))
def test_another_layout_of_messages_is_found_at_start(field: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_library, "Message", _shifted(field))
    with pytest.raises(Unfit, match="laid out otherwise"):
        kafka_library.library()
    with pytest.raises(Unfit, match="laid out otherwise"):  # and is not tried again
        kafka_library.library()


@pytest.mark.usefixtures("untried")
def test_places_that_the_kernel_reads_otherwise_are_found_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_library, "LAYOUT", np.roll(kafka_library.LAYOUT, 1))
    with pytest.raises(Unfit, match="read otherwise"):
        kafka_library.library()


@pytest.mark.usefixtures("untried")
def test_another_version_and_a_missing_function_are_unfit(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as changed:
        changed.setattr("confluent_kafka.libversion", lambda: ("9.9.9", 0x09090900))
        with pytest.raises(Unfit, match="another version"):
            kafka_library.library()
    kafka_library._tried.cache_clear()
    with monkeypatch.context() as changed:
        changed.setitem(kafka_library._USED, "no_such_function", (None, ()))
        with pytest.raises(Unfit, match="no rd_kafka_no_such_function"):
            kafka_library.library()
    kafka_library._tried.cache_clear()
    kafka_library.library()


def test_looking_at_an_address_that_is_none_is_no_fault() -> None:
    held = ctypes.create_string_buffer(b"held", 16)
    assert kafka_library._peek(ctypes.addressof(held), 4) == b"held"
    for address in (0, 1, 2**47 - 4096, 2**63, 2**64 - 8):
        assert kafka_library._peek(address, 16) is None


class Naive(NamedTuple):
    offset: int
    payload: bytes | None


def block(messages: Sequence[Naive]) -> Messages:
    present = np.array([each.payload is not None for each in messages])
    starts, ends = places(np.array([len(each.payload or b"") for each in messages], np.int64), present)
    offsets = np.array([each.offset for each in messages], np.int64)
    buffer = b"".join(each.payload + b"\n" for each in messages if each.payload is not None)
    return Messages(0, offsets, offsets * 3, starts, ends, None if present.all() else present, buffer)


@given(st.data())
def test_waiting_messages_are_taken_as_from_a_list(data: st.DataObject) -> None:
    gaps = data.draw(st.lists(st.integers(1, 4), max_size=30))
    log = [Naive(int(at), data.draw(st.none() | st.binary(max_size=4))) for at in np.cumsum(gaps)]
    since = data.draw(st.integers(0, 20))
    waiting, naive = Waiting(), [each for each in log if each.offset >= since]
    while log:
        cut = data.draw(st.integers(1, len(log)))
        waiting.add(block(log[:cut]), since)
        log = log[cut:]
    while naive:
        assert (len(waiting), waiting.first, waiting.last) == (len(naive), naive[0].offset, naive[-1].offset)
        most = data.draw(st.integers(1, 8))
        stop = data.draw(st.none() | st.integers(naive[0].offset + 1, naive[-1].offset + 2))
        assert waiting.take(most, naive[0].offset) == []
        wanted = [each for each in naive[:most] if stop is None or each.offset < stop]
        taken = waiting.take(most, stop)
        assert [int(offset) for each in taken for offset in each.offsets] == [each.offset for each in wanted]
        naive = naive[len(wanted) :]
        if taken:
            records = joined(taken)
            kept = [each for each in wanted if each.payload is not None]
            assert [records.raw(row) for row in range(len(records))] == [each.payload for each in kept]
            assert records.offsets.tolist() == [each.offset for each in kept]
            assert [records.at(row) for row in range(len(records))] == [each.offset * 3 for each in kept]
    assert len(waiting) == 0


@given(
    st.lists(
        st.tuples(st.integers(-1, 3), st.sampled_from([0, 0, 0, KafkaError._PARTITION_EOF, KafkaError._TRANSPORT])),
        min_size=1,
    )
)
def test_what_comes_of_several_partitions_at_once_is_ordered_by_partition(came: list[tuple[int, int]]) -> None:
    found = np.zeros((kernel.FIELDS, len(came)), np.int64)
    found[kernel.PARTITION], found[kernel.ERROR] = zip(*came, strict=True)
    order = by_partition(found).tolist()
    expected = []
    for partition in sorted({each for each, _ in came}):
        places = [place for place, (of, _) in enumerate(came) if of == partition]
        expected += [each for each in places if came[each][1] != KafkaError._PARTITION_EOF or each == places[-1]]
    assert order == expected

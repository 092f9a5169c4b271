"""The Kafka sink against a real broker: what a reader of committed messages sees, whoever dies when."""

from __future__ import annotations

import json
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pytest
from confluent_kafka import Consumer, TopicPartition
from kafka_broker import KafkaBroker, free_port

from flowstate.errors import CorruptData, FlowstateError, InvalidFlow, Unavailable
from flowstate.plan.output import StagedOutput
from flowstate.plan.spec import EPOCH, REVISION, ScanSpec, SinkSpec
from flowstate.sink import Sink, Stage, kafka_transaction, make_sink
from flowstate.sink import kafka as kafka_sink
from flowstate.sink.kafka import KafkaSink
from flowstate.sink.kafka_records import keys_of
from flowstate.sink.staging import sequence_of
from flowstate.source import make_source
from flowstate.store import Store
from flowstate.testing.conformance_sink import CHANGES_CHECKS, CHECKS, SinkUnderTest

pytestmark = pytest.mark.kafka

STEPS = ("init", "begin", "produced", "commit", "committed")
SCHEMA = pa.schema({"customer": pa.string(), "n": pa.int64()})
PREFIX = "g0001/p0000"

CHILD = """
import os, pickle, signal, sys
spec, store, staged, step = pickle.load(sys.stdin.buffer)
from flowstate.sink.kafka import KafkaSink
reached = lambda name: os.kill(os.getpid(), signal.SIGKILL) if name == step else None
sink = KafkaSink(spec, reached=reached)
for each in staged:
    sink.publish(store, each)
"""


class Seen(NamedTuple):
    partition: int
    key: bytes | None
    value: bytes
    headers: dict[str, bytes]


def committed(kafka: KafkaBroker, topic: str, seconds: float = 20) -> list[Seen]:
    """All that a reader of committed messages sees once no transaction is open, in the order of each partition."""
    settings = {"bootstrap.servers": kafka.bootstrap, "group.id": "seen", "log_level": 0, "auto.offset.reset": "error"}
    raw = Consumer({**settings, "isolation.level": "read_uncommitted"})
    partitions = sorted(raw.list_topics(topic, timeout=10).topics[topic].partitions)
    reader = Consumer({**settings, "isolation.level": "read_committed", "enable.partition.eof": True})
    found, deadline = [], time.monotonic() + seconds
    try:
        for partition in partitions:
            low, end = raw.get_watermark_offsets(TopicPartition(topic, partition), timeout=10)
            place = low
            reader.assign([TopicPartition(topic, partition, low)])
            while place < end:
                assert time.monotonic() < deadline, f"a transaction is open: {place=} {end=}"
                message: Any
                for message in reader.consume(5000, 0.1):
                    place = message.offset() + (message.error() is None)
                    if message.error() is None:
                        headers = dict(message.headers() or [])
                        found.append(Seen(partition, message.key(), message.value(), headers))
    finally:
        raw.close()
        reader.close()
    return found


def numbers(kafka: KafkaBroker, topic: str) -> Counter[int]:
    return Counter(json.loads(each.value)["n"] for each in committed(kafka, topic))


def spec(kafka: KafkaBroker, topic: str, mode: Any = "append", keys: tuple[str, ...] = (), **options: Any) -> SinkSpec:
    return SinkSpec(
        "kafka", "totals", f"kafka://{topic}", mode=mode, keys=keys,
        options={"topic": topic, "bootstrap": kafka.bootstrap, **options},
    )  # fmt: skip


def rows(first: int, count: int = 6) -> pa.Table:
    these = range(first * 1000, first * 1000 + count)
    return pa.table({"customer": [f"c{n % 3}" for n in these], "n": list(these)}, schema=SCHEMA)


def stage(store: Store, number: int, epoch: int = 1, partition: int = 0, generation: int = 1) -> Stage:
    return Stage(store, f"g{generation:04d}/p{partition:04d}", partition, epoch, number)


def prepared(sink: KafkaSink, store: Store, *firsts: int, **where: int) -> list[StagedOutput]:
    return [one for first in firsts for one in sink.prepare(stage(store, first, **where), rows(first))]


def expected(*firsts: int) -> Counter[int]:
    return Counter(n for first in firsts for n in rows(first)["n"].to_pylist())


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "snapshots")


# Messages.


def read_back(kafka: KafkaBroker, topic: str, form: str, schema: pa.Schema, count: int) -> pa.Table:
    source = make_source(
        ScanSpec("back", "kafka", schema, options={"topic": topic, "bootstrap": kafka.bootstrap, "format": form})
    )
    reader = source.open()
    (split,) = source.splits()
    reader.assign(split, split.start)
    given: list[pa.RecordBatch] = []
    deadline = time.monotonic() + 20
    while sum(each.num_rows for each in given) < count:
        assert time.monotonic() < deadline
        for each in reader.poll({split.name: None}, max_rows=1000, timeout=0.2):
            assert each.dead.num_rows == 0, each.dead.to_pylist()
            given.append(each.batch.select(schema.names))
    reader.close()
    return pa.Table.from_batches(given)


@pytest.mark.parametrize("form", ["json", "arrow"])
def test_our_own_source_reads_the_same_values_back(kafka: KafkaBroker, store: Store, form: str) -> None:
    kafka.create_topic(f"back-{form}")
    schema = pa.schema({
        "customer": pa.string(), "total": pa.decimal128(38, 9), "month": pa.timestamp("ms", "UTC"), "day": pa.date32(),
        "share": pa.float64(), "tags": pa.list_(pa.string()), "ok": pa.bool_(),
    })  # fmt: skip
    table = pa.table({
        "customer": ['a"\\\n', None, "ä"], "total": [Decimal("1.000000001"), Decimal("-99999999999999999999.5"), None],
        "month": [0, -1, None], "day": [0, 20000, None], "share": [0.1, -1e300, None], "tags": [["x", None], [], ["y"]],
        "ok": [True, False, None],
    }, schema=schema)  # fmt: skip
    sink = KafkaSink(spec(kafka, f"back-{form}", format=form))
    sink.check(schema)
    (staged,) = sink.prepare(stage(store, 1), table)
    sink.publish(store, staged)
    sink.close()
    assert read_back(kafka, f"back-{form}", form, schema, 3).equals(table)


def test_keys_are_plain_text_or_arrays_and_never_meet() -> None:
    table = pa.table({"k": ["anna", "[1]", "", None, 'a"b', "null", '["[1]"]'], "n": [1, 2, 3, 4, 5, 6, 7]})
    keys = keys_of(table, ["k"])
    assert keys == [b"anna", b'["[1]"]', b"", b"[null]", b'a"b', b"null", b'["[\\"[1]\\"]"]']
    assert len(set(keys)) == 7
    assert keys_of(table, ["n"])[:2] == [b"1", b"2"]
    assert keys_of(table, ["n", "k"])[:4] == [b'[1,"anna"]', b'[2,"[1]"]', b'[3,""]', b"[4,null]"]


def test_rows_that_change_come_per_key_in_order_with_epoch_and_revision(kafka: KafkaBroker, store: Store) -> None:
    kafka.create_topic("changes", 3, {"cleanup.policy": "compact"})
    sink = KafkaSink(spec(kafka, "changes", "changes", ("customer", "n")))
    schema = pa.schema([*SCHEMA, pa.field(EPOCH, pa.int64()), pa.field(REVISION, pa.int64())])
    sink.check(schema)
    chance, revisions = random.Random(7), dict.fromkeys(range(20), 0)
    epoch = 1 << 32 | 1
    for save in range(1, 9):
        picked = sorted(chance.sample(sorted(revisions), 12))
        for each in picked:
            revisions[each] += chance.randint(1, 3)
        table = pa.table({
            "customer": [f"c{each}" for each in picked], "n": picked,
            EPOCH: [epoch] * 12, REVISION: [revisions[each] for each in picked],
        }, schema=schema)  # fmt: skip
        for staged in sink.prepare(stage(store, save), table):
            sink.publish(store, staged)
        if save == 4:  # another incarnation goes on
            sink.close()
            sink = KafkaSink(sink.spec)
    sink.close()
    held: dict[bytes | None, int] = {}
    where: dict[bytes | None, int] = {}
    for seen in committed(kafka, "changes"):
        row = json.loads(seen.value)
        assert seen.key == json.dumps([row["customer"], row["n"]], separators=(",", ":")).encode()
        assert seen.headers == {"flowstate-epoch": b"%d" % epoch, "flowstate-revision": b"%d" % row[REVISION]}
        assert where.setdefault(seen.key, seen.partition) == seen.partition
        assert row[REVISION] > held.get(seen.key, 0)
        held[seen.key] = row[REVISION]
    assert len(set(where.values())) == 3
    assert held == {f'["c{each}",{each}]'.encode(): count for each, count in revisions.items() if count}


def test_large_saves_are_several_transactions(
    kafka: KafkaBroker, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    kafka.create_topic("parts", 2)
    monkeypatch.setattr(kafka_sink, "PART_ROWS", 1000)
    sink = KafkaSink(spec(kafka, "parts", key="customer"))
    staged = sink.prepare(stage(store, 1), rows(0, 2500))
    assert [each.rows for each in staged] == [1000, 1000, 500]
    assert [each.target for each in staged] == [f"p0000-g0001-e000001-000001-{part}" for part in range(3)]
    for each in staged:
        sink.publish(store, each)
    assert [json.loads(each.value)["sequence"] for each in committed(kafka, "parts-flowstate")][-1] == [1, 1, 2, 0]
    sink.close()
    assert numbers(kafka, "parts") == Counter(range(2500))
    monkeypatch.setattr(kafka_sink, "PART_BYTES", 4000)
    assert len(sink.prepare(stage(store, 2), rows(0, 1000))) > 3


# Exactly once.


def die_at(step: str, sink: KafkaSink, store: Store, staged: Sequence[StagedOutput]) -> None:
    """Publish in a process that kills itself, by SIGKILL, when it comes to `step`."""
    data = pickle.dumps((sink.spec, store, staged, step))
    done = subprocess.run([sys.executable, "-c", CHILD], input=data, capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


def test_each_row_comes_once_when_publishers_are_killed_at_every_step(kafka: KafkaBroker, store: Store) -> None:
    kafka.create_topic("sink-killed", 2)
    sink = KafkaSink(spec(kafka, "sink-killed", key="customer"))
    sink.check(SCHEMA)
    # A partition for each step, with output that waited there before and some that comes after.
    staged = {
        step: prepared(sink, store, *range(10 * p + 1, 10 * p + 4), partition=p) for p, step in enumerate(STEPS, 1)
    }
    with ThreadPoolExecutor(3) as pool:
        for died in [pool.submit(die_at, step, sink, store, staged[step][:2]) for step in STEPS]:
            died.result()
    # The commit of the one that died behind it holds, though it told nobody.
    publisher = sink._publisher(store, sequence_of(staged["committed"][0]), 5)
    assert publisher.refresh((1, 51, 0, 0))
    assert not publisher.refresh((1, 52, 0, 0))
    for step in STEPS:
        successor = KafkaSink(sink.spec)
        for each in [*staged[step], *staged[step]]:
            successor.publish(store, each)
        successor.close()
    sink.close()
    assert numbers(kafka, "sink-killed") == expected(*(10 * p + each for p in range(1, 6) for each in (1, 2, 3)))


@pytest.mark.parametrize("step", STEPS)
def test_a_zombie_and_a_live_publisher_meet_at_every_step(kafka: KafkaBroker, store: Store, step: str) -> None:
    """When one comes to `step`, the other publishes all of it; the first is overtaken, and finds that it is done."""
    topic = f"zombie-{step}"
    kafka.create_topic(topic, 2)
    live = KafkaSink(spec(kafka, topic))
    staged = prepared(live, store, 1, 2, 3)
    met: list[int] = []

    def meet(name: str) -> None:
        if name == step and len(met) < 2:
            met.append(1)
            for each in staged[: len(met) + 1]:
                live.publish(store, each)

    zombie = KafkaSink(live.spec, reached=meet)
    for each in staged:
        zombie.publish(store, each)
    for each in staged:
        live.publish(store, each)
    zombie.close()
    live.close()
    assert met
    assert numbers(kafka, topic) == expected(1, 2, 3)


def test_a_late_zombie_fences_nobody(kafka: KafkaBroker, store: Store) -> None:
    kafka.create_topic("late")
    live, steps = KafkaSink(spec(kafka, "late")), list[str]()
    first, second = prepared(live, store, 1, 2)
    live.publish(store, first)
    zombie = KafkaSink(live.spec, reached=steps.append)
    zombie.publish(store, first)
    assert steps == []
    producer = next(iter(live._publishers.values()))._producer
    live.publish(store, second)
    assert next(iter(live._publishers.values()))._producer is producer
    live.close()
    assert numbers(kafka, "late") == expected(1, 2)


def test_many_publishers_at_once(kafka: KafkaBroker, store: Store) -> None:
    kafka.create_topic("many", 2)
    sinks = [KafkaSink(spec(kafka, "many")) for _ in range(3)]
    staged = {p: prepared(sinks[0], store, 10 * p + 1, 10 * p + 2, 10 * p + 3, partition=p) for p in range(2)}

    def publish(sink: KafkaSink, partition: int) -> None:
        for each in staged[partition]:
            while True:
                try:
                    sink.publish(store, each)
                    break
                except Unavailable:
                    continue

    with ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(publish, sink, partition) for sink in sinks for partition in range(2)]:
            done.result(60)
    for sink in sinks:
        sink.close()
    assert numbers(kafka, "many") == expected(1, 2, 3, 11, 12, 13)


def test_partitions_generations_and_jobs_have_sequences_of_their_own(
    kafka: KafkaBroker, store: Store, tmp_path: Path
) -> None:
    kafka.create_topic("apart")
    sinks = [
        (KafkaSink(spec(kafka, "apart")), store),
        (KafkaSink(spec(kafka, "apart"), sink=1), store),
        (KafkaSink(spec(kafka, "apart")), Store.open(tmp_path / "another")),
    ]
    first = 0
    for sink, each_store in sinks:
        for generation, partition in ((1, 0), (1, 1), (2, 0)):
            first += 1
            where = stage(each_store, 5, epoch=3, partition=partition, generation=generation)
            for staged in sink.prepare(where, rows(first)):
                KafkaSink(sink.spec, sink=sink.sink).publish(each_store, staged)
                sink.publish(each_store, staged)
        sink.close()
    assert numbers(kafka, "apart") == expected(*range(1, 10))


def test_a_commit_behind_an_open_transaction_of_another_partition_is_seen(
    kafka: KafkaBroker, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its record lies where read_committed does not reach yet: it must be waited for, not overlooked."""
    kafka.create_topic("behind")
    sink = KafkaSink(spec(kafka, "behind"))
    first, mine = prepared(sink, store, 1, 2)
    sink.publish(store, first)
    (other,) = prepared(sink, store, 3, partition=1)
    successor = KafkaSink(sink.spec)

    def meanwhile(step: str) -> None:
        if step != "commit":
            return
        # Delivered, but open: librdkafka sends the record now, and not with the commit.
        publisher = next(iter(holder._publishers.values()))
        assert publisher._producer is not None
        assert publisher._producer.flush(10) == 0
        sink.publish(store, mine)
        monkeypatch.setattr(kafka_transaction, "PATIENCE", 1.0)
        with pytest.raises(Unavailable, match="still open"):
            successor.publish(store, mine)
        monkeypatch.undo()

    holder = KafkaSink(sink.spec, reached=meanwhile)
    holder.publish(store, other)
    successor.publish(store, mine)
    for each in (sink, holder, successor):
        each.close()
    assert numbers(kafka, "behind") == expected(1, 2, 3)


@pytest.mark.parametrize("when", ["produced", pytest.param("during", marks=pytest.mark.slow)])
def test_the_broker_is_killed_while_publishing(
    kafka: KafkaBroker, store: Store, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """With rows in flight; or a moment after the commit was sent, so that nobody knows what became of it."""
    kafka.create_topic(f"outage-{when}", 2)
    monkeypatch.setattr(kafka_transaction, "PATIENCE", 2.0)
    killers: list[threading.Timer] = []

    def reached(step: str) -> None:
        if not killers and step == ("produced" if when == "produced" else "commit") and len(done) == 1:
            killers.append(threading.Timer(0 if when == "produced" else 0.003, kafka.kill))
            killers[0].start()
            if when == "produced":
                killers[0].join()

    sink = KafkaSink(spec(kafka, f"outage-{when}"), reached=reached)
    staged, done = prepared(sink, store, 1, 2, 3), list[StagedOutput]()
    for each in staged:
        while each not in done:
            began = time.monotonic()
            try:
                sink.publish(store, each)
                done.append(each)
            except Unavailable:
                assert time.monotonic() - began < 12
            if killers and kafka._process is None:
                killers[0].join()
                kafka.start()
    assert killers
    for each in staged:
        sink.publish(store, each)
    sink.close()
    assert numbers(kafka, f"outage-{when}") == expected(1, 2, 3)


def test_what_was_staged_and_is_gone_is_named(kafka: KafkaBroker, store: Store) -> None:
    kafka.create_topic("gone")
    sink, zombie = KafkaSink(spec(kafka, "gone")), KafkaSink(spec(kafka, "gone"))
    one, two, three = prepared(sink, store, 1, 2, 3)
    zombie.publish(store, one)
    sink.publish(store, two)
    store.delete(two.path)
    # It has a producer, and does not know yet that the other was there before.
    zombie.publish(store, two)
    store.delete(three.path)
    with pytest.raises(CorruptData, match="gone") as caught:
        sink.publish(store, three)
    assert three.path in str(caught.value)
    sink.close()
    zombie.close()
    assert numbers(kafka, "gone") == expected(1, 2)


# What every sink must do.


def crash_points(sink: Sink, step: Callable[[str], None]) -> None:
    assert isinstance(sink, KafkaSink)
    sink._reached = step


def visible(kafka: KafkaBroker, topic: str) -> list[dict[str, Any]]:
    return [json.loads(each.value) for each in committed(kafka, topic)]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_conformance(check: Callable[[SinkUnderTest], None], kafka: KafkaBroker, store: Store) -> None:
    topic = f"conforms-{check.__name__}"
    kafka.create_topic(topic, 2)
    made = spec(kafka, topic)
    check(
        SinkUnderTest(
            lambda: KafkaSink(made), store, lambda: visible(kafka, topic), crash_points, deaths=3, histories=1
        )
    )


@pytest.mark.parametrize("check", CHANGES_CHECKS, ids=lambda check: check.__name__)
def test_conformance_of_changes(check: Callable[[SinkUnderTest], None], kafka: KafkaBroker, store: Store) -> None:
    topic = f"conforms-{check.__name__}"
    kafka.create_topic(topic, 2, {"cleanup.policy": "compact"})
    made = spec(kafka, topic, "changes", ("kind",))
    check(SinkUnderTest(lambda: KafkaSink(made), store, lambda: visible(kafka, topic), crash_points, deaths=2))


# What is told.


def test_a_row_that_is_too_large_is_named_and_the_next_save_waits_for_it(kafka: KafkaBroker, store: Store) -> None:
    kafka.create_topic("small", config={"max.message.bytes": "2000"})
    sink = KafkaSink(spec(kafka, "small", key="customer", config={"compression.type": "none"}))
    table = pa.table({"customer": ["anna", "bob"], "n": ["x", "y" * 5000]})
    (staged,) = sink.prepare(stage(store, 1), table)
    with pytest.raises(InvalidFlow, match=r"too large.*key='bob'"):
        sink.publish(store, staged)
    assert committed(kafka, "small") == []
    wider = KafkaSink(spec(kafka, "small", key="customer", config={"message.max.bytes": 4000}))
    with pytest.raises(InvalidFlow, match=r"too large.*key='bob'"):
        wider.publish(store, staged)
    for each in (sink, wider):
        each.close()


def refused(make: Callable[[], Any], kind: type[FlowstateError] = InvalidFlow) -> str:
    began = time.monotonic()
    with pytest.raises(kind) as caught:
        make()
    assert time.monotonic() - began < 12
    assert "hunter2" not in str(caught.value) + repr(caught.value) + repr(caught.value.__cause__)
    return str(caught.value)


def test_what_cannot_work_is_told_at_the_start(kafka: KafkaBroker) -> None:
    kafka.create_topic("checked")
    kafka.create_topic("checked-compact", config={"cleanup.policy": "compact"})
    kafka.create_topic("two-partitions", 2, config={"cleanup.policy": "compact"})

    def check(topic: str = "checked", schema: pa.Schema = SCHEMA, **options: Any) -> None:
        make_sink(spec(kafka, topic, **options)).check(schema)

    assert "'checked'" in refused(lambda: check("checkde"))
    assert "create it" in refused(lambda: check("checkde"))
    assert "did you mean 'customer'" in refused(lambda: check(key="custmer"))
    assert "need a key" in refused(lambda: check(mode="changes"))
    assert "compacted topic" in refused(lambda: check("checked-compact"))
    assert "must be compacted" in refused(lambda: check(commits_topic="checked", topic="checked-compact", key="n"))
    assert "one partition" in refused(lambda: check(commits_topic="two-partitions"))
    assert "topic of their own" in refused(lambda: check(commits_topic="checked"))
    assert "did you mean 'json'" in refused(lambda: check(format="jsn"))
    assert "did you mean 'bootstrap'" in refused(lambda: check(bootstap="x"))
    assert "exactly once" in refused(lambda: check(config={"acks": 1}))
    assert "no JSON" in refused(lambda: check(schema=pa.schema({"m": pa.map_(pa.string(), pa.string())})))
    config = {"sasl.password": "hunter2", "sasl.mechanism": "PLAIN", "nonsense": "hunter2"}
    assert "nonsense" in refused(lambda: check(config=config))
    away = SinkSpec("kafka", "t", "", mode="append", options={"topic": "t", "bootstrap": f"127.0.0.1:{free_port()}"})
    assert "check bootstrap" in refused(lambda: make_sink(away).check(SCHEMA), Unavailable)
    check()
    check()
    check("checked-compact", key="n")


def test_a_refused_login_is_told_without_the_password(kafka: KafkaBroker, store: Store) -> None:
    kafka.create_topic("login")
    login = {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN", "sasl.username": "anna"}

    def sink(password: str) -> KafkaSink:
        config = {**login, "sasl.password": password}
        return KafkaSink(spec(kafka, "login", bootstrap=kafka.sasl_bootstrap, config=config))

    assert "credentials" in refused(lambda: sink("hunter2").check(SCHEMA))
    (staged,) = prepared(sink("hunter2"), store, 1)
    assert "credentials" in refused(lambda: sink("hunter2").publish(store, staged))
    right = sink("secret")
    right.check(SCHEMA)
    right.publish(store, staged)
    right.close()
    assert numbers(kafka, "login") == expected(1)
    assert "hunter2" not in repr(sink("hunter2")) + repr(sink("hunter2").target)

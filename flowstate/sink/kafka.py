"""A Kafka topic, each row once: rows wait in the snapshot store and come out in one transaction each (`kafka_transaction`).

`prepare` stages rows as Arrow IPC, at most `PART_ROWS` to an object; `publish` sends one object as one transaction, in order. Rows are
seen once by consumers that read committed messages only (``isolation.level=read_committed``, which is `scan_kafka`'s default; Java's
default is not).

For rows of ``changes`` the message key is the row's key, and the greatest (epoch, revision) per key holds. Messages of one key are in
one partition of the topic, in order, since one partition of state makes them, one transaction after the other; a compacted topic keeps
the last.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from flowstate.clock import SystemClock
from flowstate.errors import CorruptData, InvalidFlow, did_you_mean
from flowstate.plan.output import StagedOutput
from flowstate.plan.spec import SinkSpec
from flowstate.sink import json_text
from flowstate.sink.base import Sink, Stage
from flowstate.sink.identity import identity
from flowstate.sink.kafka_client import Target, Topics
from flowstate.sink.kafka_records import FORMATS, messages
from flowstate.sink.kafka_transaction import Publisher
from flowstate.sink.staging import StageOrder, from_ipc, partition_of, read_staged, sequence_of, stage_rows
from flowstate.store import Store

_OPTIONS = ("topic", "bootstrap", "format", "key", "config", "commits_topic")
#: A transaction is no larger than this, so that it ends long before the broker would end it.
PART_ROWS = 50_000
PART_BYTES = 64 << 20


class KafkaSink(Sink):
    """`spec.options`: `topic`, `bootstrap`, `format` (``json`` or ``arrow``), `key` (a column or several; default: the row's keys, for rows
    of a keyed table), `config` (librdkafka's settings; its ``transactional.id`` is the prefix of ours, default ``flowstate``),
    `commits_topic` (default ``<topic>-flowstate``, created if absent). `sink` is the number by which the job knows it; `reached` is
    told before each step of publishing (`Publisher`), for tests."""

    def __init__(self, spec: SinkSpec, *, sink: int = 0, reached: Callable[[str], None] | None = None) -> None:
        options: Mapping[str, Any] = spec.options
        for name in options:
            if name not in _OPTIONS:
                raise InvalidFlow(f"sink_kafka has no option {name!r}{did_you_mean(name, _OPTIONS)}", table=spec.table)
        topic, config = options.get("topic"), dict(options.get("config") or {})
        if not topic:
            raise InvalidFlow("sink_kafka needs the name of a topic", table=spec.table)
        bootstrap = options.get("bootstrap") or config.get("bootstrap.servers")
        if not bootstrap:
            raise InvalidFlow("no broker is named; pass bootstrap='host:9092'", table=spec.table, topic=topic)
        self.format = str(options.get("format") or "json")
        if self.format not in FORMATS:
            hint = did_you_mean(self.format, FORMATS)
            raise InvalidFlow(f"unknown format{hint}", table=spec.table, topic=topic, format=self.format)
        commits = str(options.get("commits_topic") or f"{topic}-flowstate")
        if commits == topic:
            message = "commits need a topic of their own; give another commits_topic="
            raise InvalidFlow(message, table=spec.table, topic=topic)
        key = options.get("key")
        self.key: tuple[str, ...] = tuple(spec.keys) if key is None else (key,) if isinstance(key, str) else tuple(key)
        if len(set(self.key)) != len(self.key):
            raise InvalidFlow("key names a column twice", table=spec.table, key=self.key)
        if spec.mode == "changes" and not self.key:
            raise InvalidFlow("rows that change need a key; pass key=", table=spec.table, topic=topic)
        hosts = bootstrap if isinstance(bootstrap, str) else ",".join(bootstrap)
        self.target = Target(str(topic), commits, hosts, config)
        self.target.check()
        self.spec, self.sink = spec, sink
        self._reached = reached or _nothing
        self._lock = threading.Lock()
        self._publishers: dict[str, Publisher] = {}
        self._ready = False

    def __getstate__(self) -> tuple[SinkSpec, int]:
        return self.spec, self.sink

    def __setstate__(self, state: tuple[SinkSpec, int]) -> None:
        spec, sink = state
        KafkaSink.__init__(self, spec, sink=sink)

    def check(self, schema: pa.Schema) -> None:
        for name in self.key:
            if name not in schema.names:
                hint = did_you_mean(name, schema.names)
                raise InvalidFlow(f"key names no column: {name!r}{hint}", table=self.spec.table)
        fields = [schema.field(name) for name in self.key] if self.format == "arrow" else list(schema)
        for field in fields:
            if not json_text.supports(field.type):
                message = "this column has no JSON; cast it, or leave it out with select"
                raise InvalidFlow(message, table=self.spec.table, column=field.name, type=str(field.type))
        topics = Topics(self.target, SystemClock())
        topics.partitions()
        if not self.key and topics.compacted(self.target.topic):
            message = "a compacted topic takes no messages without a key; pass key="
            raise InvalidFlow(message, table=self.spec.table, topic=self.target.topic)
        topics.ensure_commits()

    def prepare(self, stage: Stage, rows: pa.Table | None, open: Sequence[StagedOutput] = ()) -> Sequence[StagedOutput]:
        if rows is None or rows.num_rows == 0:
            return list(open)
        return [*open, *stage_rows(stage, self.sink, rows, most_rows=PART_ROWS, most_bytes=PART_BYTES)]

    def publish(self, store: Store, staged: StagedOutput) -> int:
        order = sequence_of(staged)
        sequence = (order.epoch, order.number, order.part, order.attempt)
        publisher = self._publisher(store, order, partition_of(staged))
        try:
            publisher.publish(sequence, lambda: messages(from_ipc(read_staged(store, staged)), self.format, self.key))
        except FileNotFoundError as error:
            # A zombie may come so late that the output was published and its stage deleted.
            if not publisher.refresh(sequence):
                message = "staged output is gone, and was not published here; restore the snapshot folder from a backup"
                raise CorruptData(message, object=staged.path, target=staged.target) from error
        return 0

    def close(self) -> None:
        with self._lock:
            publishers, self._publishers = list(self._publishers.values()), {}
        for each in publishers:
            each.close()

    def _publisher(self, store: Store, order: StageOrder, partition: int) -> Publisher:
        name = f"g{order.generation:04d}-p{partition:04d}"
        with self._lock:
            if not self._ready:
                Topics(self.target, SystemClock()).ensure_commits()
                self._ready = True
            if name not in self._publishers:
                # Chance: which of two publishers begins anew first. It must differ between them.
                self._publishers[name] = Publisher(
                    self.target, identity(store, self.sink), name, SystemClock(), random.Random(), self._reached
                )
            return self._publishers[name]


def _nothing(step: str) -> None:
    return None

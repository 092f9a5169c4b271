"""Kafka partitions as splits: manual assignment, no consumer group, and no offset that Kafka remembers for us.

Options: `topic`, `bootstrap`, `format` (``json``, ``csv``, ``arrow``), `start` (``"earliest"``, ``"latest"``, ``{partition: offset}`` or a
datetime), `config` (librdkafka settings as they are: SASL, TLS, sizes).

Only committed transactions are read unless `config` says otherwise. Offsets have gaps (transaction markers, aborted rows,
compaction): a stretch covers them, up to the next record, or up to the end that the broker reports.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import numpy as np
from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from flowstate.clock import Clock, SystemClock
from flowstate.errors import FlowstateError, InternalError, InvalidFlow, Unavailable, did_you_mean
from flowstate.plan.position import NEVER
from flowstate.plan.spec import ScanSpec
from flowstate.source.base import Rows, Source, SourceReader, SplitInfo
from flowstate.source.decode import Decoder
from flowstate.source.kafka_client import Outages, Topic, open_consumer, reading_error
from flowstate.source.records import Records, check_scan, dead_letters, no_rows

FORMATS = ("json", "csv", "arrow")
#: A partition with this many messages waiting here is paused; after that it has to be fetched anew, which takes a round trip or two.
PAUSE_ROWS = 1000


class KafkaSource(Source):
    def __init__(self, spec: ScanSpec) -> None:
        check_scan(spec)
        options = spec.options
        self._spec = spec
        self.topic = str(options.get("topic") or spec.name)
        self.format = str(options.get("format") or "json")
        if self.format not in FORMATS:
            raise InvalidFlow(
                f"unknown format{did_you_mean(self.format, FORMATS)}", source=spec.name, format=self.format
            )
        config = dict(options.get("config") or {})
        bootstrap = options.get("bootstrap") or config.get("bootstrap.servers")
        if not bootstrap:
            raise InvalidFlow("no broker is named; pass bootstrap='host:9092'", source=spec.name, topic=self.topic)
        self._bootstrap = bootstrap if isinstance(bootstrap, str) else ",".join(bootstrap)
        self._config = config
        self._start = options.get("start", "earliest")
        _check_start(spec.name, self._start)
        Decoder(spec, self.format)  # Refuses types that the format has no values of.
        self._seen: set[int] | None = None

    def splits(self) -> Sequence[SplitInfo]:
        topic = Topic(self._spec.name, self.topic, self._bootstrap, self._config)
        try:
            partitions = topic.partitions()
            # A partition that appears later is read from its beginning: nobody could have chosen to skip it.
            new = [] if self._seen is None else [each for each in partitions if each not in self._seen]
            starts = topic.starts([each for each in partitions if each not in new], self._start)
            starts.update(topic.starts(new, "earliest"))
        finally:
            topic.close()
        if self._seen is None:
            self._seen = set(partitions)
        return [
            SplitInfo(f"{self._spec.name}/{self.topic}/{each}", f"{self.topic}[{each}]", starts[each])
            for each in partitions
        ]

    @property
    def follows(self) -> bool:
        return True

    def open(self) -> SourceReader:
        return KafkaReader(self._spec, self)

    def consumer(self, outages: Outages) -> Consumer:
        return open_consumer(self._spec.name, self._bootstrap, self._config, outages)


def _check_start(source: str, start: object) -> None:
    if isinstance(start, datetime):
        if start.tzinfo is None:
            raise InvalidFlow("start has no time zone; pass an aware datetime", source=source, start=str(start))
    elif isinstance(start, Mapping):
        for partition, offset in start.items():
            if not isinstance(partition, int) or not isinstance(offset, int) or offset < 0:
                raise InvalidFlow("start maps partition numbers to offsets", source=source, start=dict(start))
    elif start not in ("earliest", "latest"):
        raise InvalidFlow(
            "start is 'earliest', 'latest', a datetime, or a dict {partition: offset}", source=source, start=start
        )


class _Split:
    """A partition that is read: `position` is the next offset to give, `waiting` the messages fetched but not given."""

    def __init__(self, name: str, partition: int, offset: int) -> None:
        self.name = name
        self.partition = partition
        self.position = offset
        self.waiting: list[Message] = []
        self.end: int | None = None  # where the broker said the partition ends, after all of `waiting`
        self.paused = False
        self.broken: FlowstateError | None = None


class KafkaReader(SourceReader):
    """One consumer over all assigned partitions. What comes of a partition that is not wanted waits here, and it is
    paused when that is enough."""

    def __init__(self, spec: ScanSpec, source: KafkaSource, clock: Clock | None = None) -> None:
        self._spec = spec
        self._topic = source.topic
        self._decoder = Decoder(spec, source.format)
        self._clock = clock or SystemClock()
        self._outages = Outages(spec.name)
        self._consumer = source.consumer(self._outages)
        self._splits: dict[int, _Split] = {}
        self._names: dict[str, int] = {}

    def assign(self, split: SplitInfo, offset: int) -> None:
        self.unassign(split.name)
        prefix, _, number = split.name.rpartition("/")
        if not prefix.endswith(f"/{self._topic}") or not number.isdecimal():
            raise InternalError("this split is of another topic", split=split.name, topic=self._topic)
        partition = int(number)
        self._splits[partition] = _Split(split.name, partition, offset)
        self._names[split.name] = partition
        with self._client_errors(split.name):
            self._consumer.incremental_assign([TopicPartition(self._topic, partition, offset)])

    def unassign(self, split: str) -> None:
        partition = self._names.pop(split, None)
        if partition is not None:
            paused = self._splits.pop(partition).paused
            with self._client_errors(split):
                if paused:
                    # librdkafka remembers a pause by the user over assignments: the next one would never be fetched.
                    self._consumer.resume([TopicPartition(self._topic, partition)])
                self._consumer.incremental_unassign([TopicPartition(self._topic, partition)])

    @contextmanager
    def _client_errors(self, split: str) -> Iterator[None]:
        try:
            yield
        except KafkaException as error:
            raise Unavailable(
                f"the kafka client cannot do this now ({error.args[0].str()}); try again",
                source=self._spec.name,
                split=split,
            ) from error

    def poll(self, wanted: Mapping[str, int | None], *, max_rows: int, timeout: float) -> Sequence[Rows]:
        splits = [self._splits[self._names[each]] for each in wanted if each in self._names]
        self._pause(max_rows)
        given = self._ready(splits, wanted, max_rows)
        if not given:
            self._fetch(max_rows, timeout if splits else 0)
            given = self._ready(splits, wanted, max_rows)
        if not given:
            # Only then: what the other splits have is not held back by one that is broken.
            for split in splits:
                if split.broken is not None:
                    raise split.broken
        return given

    def _pause(self, max_rows: int) -> None:
        # Pausing throws away what librdkafka has fetched ahead, so a split is paused only once enough of it waits here.
        for split in self._splits.values():
            pause = len(split.waiting) >= max(PAUSE_ROWS, 2 * max_rows)
            if pause != split.paused:
                where = [TopicPartition(self._topic, split.partition)]
                with self._client_errors(split.name):
                    (self._consumer.pause if pause else self._consumer.resume)(where)
                split.paused = pause

    def _fetch(self, most: int, timeout: float) -> None:
        """Take what the consumer has. `consume` would wait for its full number, so the wait is for the first message alone."""
        messages = self._consumer.consume(most, 0)
        if not messages and timeout > 0:
            first = self._consumer.poll(timeout)
            if first is not None:
                messages = [first]
                if most > 1:
                    messages += self._consumer.consume(most - 1, 0)
        for message in messages:
            partition = message.partition()
            split = self._splits.get(partition) if partition is not None else None
            error = message.error()
            if error is None:
                self._outages.errors.clear()
                if split is not None and _offset(message) >= split.position:
                    split.waiting.append(message)
            elif split is not None:
                self._event(split, message, error)
            else:
                self._outages.note(error)

    def _event(self, split: _Split, message: Message, error: Any) -> None:
        if error.name() == "_PARTITION_EOF":
            split.end = message.offset()
            return
        broken = reading_error(self._spec.name, self._topic, split.partition, split.position, error, self._consumer)
        if broken is None:
            self._outages.note(error)
        else:
            split.broken = broken

    def _ready(self, splits: Sequence[_Split], wanted: Mapping[str, int | None], max_rows: int) -> list[Rows]:
        given = []
        active = [each for each in splits if each.waiting]
        share = max(1, max_rows // max(1, len(active)))
        for split in splits:
            rows = self._stretch(split, wanted[split.name], share)
            if rows is not None:
                given.append(rows)
        return given

    def _stretch(self, split: _Split, stop: int | None, most: int) -> Rows | None:
        since = split.position
        if stop is not None and since >= stop:
            return None
        taken = split.waiting[:most]
        if stop is not None:
            taken = [each for each in taken if _offset(each) < stop]
        left = split.waiting[len(taken) :]
        to = since
        if taken:
            to = _offset(taken[-1]) + 1
        if not left and split.end is not None:
            to = max(to, split.end)
        elif left:
            # Everything before the next record is a gap.
            to = _offset(left[0])
        if stop is not None:
            to = min(to, stop)
        if to == since:
            return None
        split.waiting = left
        split.position = to
        if not taken:
            return Rows(split.name, since, to, no_rows(self._spec), dead_letters(self._spec.name, split.name, ()))
        batch, dead = self._decoder.decode(split.name, _records(taken))
        return Rows(split.name, since, to, batch, dead)

    def end_offset(self, split: str) -> int:
        if split not in self._names:
            raise InternalError("asked for the end of a split that is not assigned", split=split)
        return self._outages.end_offset(self._consumer, self._topic, self._names[split])

    def close(self) -> None:
        self._consumer.close()


def _offset(message: Message) -> int:
    offset = message.offset()
    assert offset is not None  # Of a fetched message; None is for one that is not produced yet.
    return offset


def _records(messages: Sequence[Message]) -> Records:
    """The payloads in one buffer, a newline after each. Tombstones (records without a payload) are no rows."""
    kept = [(each, value) for each in messages if (value := each.value()) is not None]
    lengths = np.array([len(value) for _, value in kept], np.int64)
    ends = np.cumsum(lengths + 1) - 1
    times = [each.timestamp() for each, _ in kept]
    return Records(
        b"".join([part for _, value in kept for part in (value, b"\n")]),
        ends - lengths,
        ends,
        np.array([each.offset() for each, _ in kept], np.int64),
        np.array([time * 1000 if kind else NEVER for kind, time in times], np.int64),
    )

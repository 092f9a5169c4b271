"""Kafka partitions as splits: manual assignment, no consumer group, and no offset that Kafka remembers for us.

Options: `topic`, `bootstrap`, `format` (``json``, ``csv``, ``arrow``), `start` (``"earliest"``, ``"latest"``, ``{partition: offset}`` or a
datetime), `lost` (``"refuse"``, ``"skip"``), `config` (librdkafka settings as they are: SASL, TLS, sizes).

Offsets that the log no longer has are never passed over in silence. A topic that was made anew (`kafka_identity`), and a log that ends
before the offset to read next, are refused with the numbers. So are offsets that retention deleted before they were read, unless
``lost="skip"``: then the stretch is given without rows and with one dead letter at its last offset, which names it and how long it is; so
the total says visibly what is missing. What holds then: state is still a function of the position, of the log *as it was when it was
read*, and of these letters; but a partition that recovers reads a log that may have lost more by then, so partitions may have lost
different parts of a stretch. A partition that finds it lost when it reads the log for itself has a letter of its own for it, which may be
the second of one stretch; whoever has applied the stretch before it was lost keeps its rows and gets no letter. Rows behind it are judged
late by what the reader could still read, so a row that is out of order by more than `lateness` just there may count where it would have
been late.

Only committed transactions are read unless `config` says otherwise. Offsets have gaps (transaction markers, aborted rows,
compaction): a stretch covers them, up to the next record, or up to the end that the broker reports.

Messages are taken thousands at a time where the client allows it (`kafka_batches`), and else one by one (`kafka_fetch`), which is said
once in the log.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from confluent_kafka import Consumer, KafkaException, TopicPartition

from flowstate.clock import Clock, SystemClock
from flowstate.errors import CorruptData, FlowstateError, InternalError, InvalidFlow, Unavailable, did_you_mean
from flowstate.plan.spec import ScanSpec
from flowstate.source.base import TOPIC_ID, Rows, Source, SourceReader, SplitInfo
from flowstate.source.decode import Decoder
from flowstate.source.kafka_batches import BatchFetcher
from flowstate.source.kafka_client import (
    Outages,
    Topic,
    check_start,
    gone,
    lost_upto,
    made_anew,
    open_consumer,
    reading_error,
    skips_lost,
)
from flowstate.source.kafka_fetch import Fetcher, MessageFetcher, Messages, Surprise, Told, Waiting, joined
from flowstate.source.kafka_identity import TopicWatch
from flowstate.source.kafka_library import Unfit
from flowstate.source.records import Refused, check_scan, dead_letters, no_rows

FORMATS = ("json", "csv", "arrow")
#: A partition with this many messages waiting here is paused; after that it has to be fetched anew, which takes a round trip or two.
PAUSE_ROWS = 1000

log = logging.getLogger(__name__)


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
        self.bootstrap = bootstrap if isinstance(bootstrap, str) else ",".join(bootstrap)
        self._config = config
        self._start = options.get("start", "earliest")
        check_start(spec.name, self._start)
        self.skips_lost = skips_lost(spec)
        Decoder(spec, self.format)  # Refuses types that the format has no values of.
        self._starts: dict[int, int] | None = None

    def splits(self) -> Sequence[SplitInfo]:
        topic = Topic(self._spec.name, self.topic, self.bootstrap, self._config)
        try:
            partitions = topic.partitions()
            # A partition that appears later is read from its beginning: nobody could have chosen to skip it. Where the others begin is
            # settled: what was chosen then may by now be outside of what they hold.
            chosen = self._start if self._starts is None else "earliest"
            known = self._starts or {}
            starts = known | topic.starts([each for each in partitions if each not in known], chosen)
            identity = topic.identity()
        finally:
            topic.close()
        self._starts = starts
        hint = {TOPIC_ID: identity} if identity else None
        return [
            SplitInfo(f"{self._spec.name}/{self.topic}/{each}", f"{self.topic}[{each}]", starts[each], hint=hint)
            for each in partitions
        ]

    @property
    def follows(self) -> bool:
        return True

    def open(self) -> SourceReader:
        return KafkaReader(self._spec, self)

    def consumer(self, outages: Outages) -> Consumer:
        return open_consumer(self._spec.name, self.bootstrap, self._config, outages)

    @property
    def client_id(self) -> str:
        return str(self._config.get("client.id", "rdkafka"))

    def watch(self, clock: Clock) -> TopicWatch:
        return TopicWatch(self.bootstrap, self._config, self.topic, clock)


class _Split:
    """A partition that is read: `position` is the next offset to give, `waiting` the messages fetched but not given."""

    def __init__(self, name: str, partition: int, offset: int, topic_id: str) -> None:
        self.name = name
        self.partition = partition
        self.position = offset
        self.topic_id = topic_id  # of the topic that the offsets belong to; '' if that is not known
        self.waiting = Waiting()
        self.end: int | None = None  # where the broker said the partition ends, after all of `waiting`
        self.assigned = False  # to the client
        self.again = False  # to be fetched anew from `next_fetched` on: what comes now does not follow what waits
        self.paused = False
        self.broken: FlowstateError | None = None
        self.lost: list[tuple[int, int]] = []  # stretches that retention deleted, between what is in `waiting`

    @property
    def next_fetched(self) -> int:
        """The offset that the consumer fetches next."""
        fetched = self.waiting.last + 1 if self.waiting else self.position
        return max(fetched, self.lost[-1][1]) if self.lost else fetched


class KafkaReader(SourceReader):
    """One consumer over all assigned partitions. What comes of a partition that is not wanted waits here, and it is
    paused when that is enough. `batches` is off in the tests and measurements that compare the ways to fetch."""

    hears_rows = True

    def __init__(
        self, spec: ScanSpec, source: KafkaSource, clock: Clock | None = None, *, batches: bool = True
    ) -> None:
        self._spec = spec
        self._topic = source.topic
        self._decoder = Decoder(spec, source.format)
        self._clock = clock or SystemClock()
        self._outages = Outages(spec.name)
        self._source = source
        self._consumer = source.consumer(self._outages)
        self._fetcher: Fetcher = MessageFetcher(self._consumer)
        if batches:
            try:
                self._fetcher = BatchFetcher(self._consumer, self._topic, source.client_id)
            except Unfit as reason:
                self._one_by_one(str(reason))
        self._watch = source.watch(self._clock)
        self._troubles = 0
        self._skips_lost = source.skips_lost
        self._splits: dict[int, _Split] = {}
        self._names: dict[str, int] = {}
        self._ending, self._closed = threading.Lock(), False

    def assign(self, split: SplitInfo, offset: int) -> None:
        self.unassign(split.name)
        prefix, _, number = split.name.rpartition("/")
        if not prefix.endswith(f"/{self._topic}") or not number.isdecimal():
            raise InternalError("this split is of another topic", split=split.name, topic=self._topic)
        partition = int(number)
        self._splits[partition] = _Split(split.name, partition, offset, (split.hint or {}).get(TOPIC_ID, ""))
        self._names[split.name] = partition
        self._watch.doubt()
        self._fetch_from(self._splits[partition], offset)

    def _fetch_from(self, split: _Split, offset: int) -> None:
        """What the client has of the partition is thrown away. After an error, `poll` tries again."""
        split.again = True
        place = TopicPartition(self._topic, split.partition, offset)
        with self._client_errors(split.name):
            if split.assigned:
                self._consumer.incremental_unassign([place])
                split.assigned = False
            try:
                self._fetcher.begin(split.partition)
            except Surprise as reason:
                self._fall_back(str(reason))  # with this partition, too
                return
            self._consumer.incremental_assign([place])
            split.assigned, split.again = True, False

    def unassign(self, split: str) -> None:
        partition = self._names.pop(split, None)
        if partition is not None:
            known = self._splits.pop(partition)
            with self._client_errors(split):
                if known.paused:
                    # librdkafka remembers a pause by the user over assignments: the next one would never be fetched.
                    self._consumer.resume([TopicPartition(self._topic, partition)])
                if known.assigned:
                    self._consumer.incremental_unassign([TopicPartition(self._topic, partition)])
            self._fetcher.end(partition)

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
        self._fetch_again()
        self._pause(max_rows)
        self._check_topic(splits)
        given = self._ready(splits, wanted, max_rows)
        if not given:
            self._fetch(max_rows, timeout if splits else 0)
            self._check_topic(splits)
            given = self._ready(splits, wanted, max_rows)
        if not given:
            # Only then: what the other splits have is not held back by one that is broken.
            for split in splits:
                if split.broken is not None:
                    raise split.broken
        return given

    def _check_topic(self, splits: Sequence[_Split]) -> None:
        """Whether the topic is still the one that the offsets belong to."""
        if self._outages.count != self._troubles:
            self._troubles = self._outages.count
            self._watch.doubt()
        if not self._outages.errors and not any(each.topic_id for each in splits):
            return
        seen = self._watch.look()
        if seen is not None:
            self._outages.errors.clear()  # the broker answers again, also where there is nothing to read
        for each in splits:
            if seen and each.topic_id and seen != each.topic_id and not isinstance(each.broken, CorruptData):
                each.broken = made_anew(
                    self._spec.name, self._topic, each.partition, each.position, each.topic_id, seen, self._consumer
                )

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
        """Take what the consumer has."""
        try:
            arrived = self._fetcher.fetch(most, timeout)
        except Surprise as reason:
            self._fall_back(str(reason))
            return
        refused: FlowstateError | None = None
        for each in arrived:
            split = None if each.partition is None else self._splits.get(each.partition)
            if isinstance(each, Messages):
                self._outages.errors.clear()
                if split is not None and not split.again:
                    split.waiting.add(each, split.position)
            elif split is not None:
                try:
                    self._event(split, each)
                except FlowstateError as error:
                    refused = refused or error  # what else arrived is not given again
            else:
                self._outages.note(each.error)
        if refused is not None:
            raise refused

    def _fall_back(self, reason: str) -> None:
        """Go on with single messages, of another consumer, from what is here."""
        self._one_by_one(reason)
        for split in self._splits.values():
            split.again = True
        consumer = self._source.consumer(self._outages)
        self.close()
        self._consumer, self._fetcher = consumer, MessageFetcher(consumer)
        for split in self._splits.values():
            split.assigned, split.paused, split.end = False, False, None
        self._fetch_again()

    def _fetch_again(self) -> None:
        for split in [each for each in self._splits.values() if each.again]:
            self._fetch_from(split, split.next_fetched)

    def _one_by_one(self, reason: str) -> None:
        log.warning(
            "kafka source %r: messages are read one by one, which takes several times as long, since the kafka client cannot "
            "be asked for many at once: %s",
            self._spec.name,
            reason,
        )

    def _event(self, split: _Split, told: Told) -> None:
        error = told.error
        if error.name() == "_PARTITION_EOF":
            split.end = told.offset
            return
        self._watch.doubt()
        where = split.partition, split.next_fetched
        lost = lost_upto(self._topic, *where, error, self._consumer) if self._skips_lost else None
        if lost is not None:
            split.lost.append((split.next_fetched, lost))
            self._fetch_from(split, lost)
            return
        broken = reading_error(self._spec.name, self._topic, *where, error, self._consumer)
        if broken is None:
            self._outages.note(error)
        else:
            split.broken = broken

    def _ready(self, splits: Sequence[_Split], wanted: Mapping[str, int | None], max_rows: int) -> list[Rows]:
        given = []
        active = [each for each in splits if each.waiting]
        share = max(1, int(max_rows / max(1, len(active)) / self._decoder.rows_per_record))
        for split in splits:
            if split.topic_id and self._watch.seen is None:
                continue  # not before it is known that this is still the topic
            if isinstance(split.broken, CorruptData):
                continue
            rows = self._stretch(split, wanted[split.name], share)
            if rows is not None:
                given.append(rows)
        return given

    def _stretch(self, split: _Split, stop: int | None, most: int) -> Rows | None:
        since = split.position
        if stop is not None and since >= stop:
            return None
        if split.lost:
            begin, end = split.lost[0]
            if since >= begin:
                return self._lost(split, min(end, end if stop is None else stop))
            stop = begin if stop is None else min(begin, stop)
        taken = split.waiting.take(most, stop)
        to = int(taken[-1].offsets[-1]) + 1 if taken else since
        if split.waiting:
            # Everything before the next record is a gap.
            to = split.waiting.first
        elif split.end is not None:
            to = max(to, split.end)
        if stop is not None:
            to = min(to, stop)
        if to == since:
            return None
        split.position = to
        if not taken:
            return Rows(split.name, since, to, no_rows(self._spec), dead_letters(self._spec.name, split.name, ()))
        batch, dead = self._decoder.decode(split.name, joined(taken))
        return Rows(split.name, since, to, batch, dead)

    def _lost(self, split: _Split, to: int) -> Rows:
        """The stretch up to `to`, of which nothing is left. The letter is at its last offset, so that an owner that has applied the
        beginning of it hears of the rest."""
        since, end = split.position, split.lost[0][1]
        reason = (
            f"{to - since} offsets, {since} to {to - 1}, were deleted from the log before they were read (retention); "
            f"the log begins at {end}"
        )
        letters = dead_letters(self._spec.name, split.name, [Refused(to - 1, reason, None, None)])
        split.position = to
        if to >= end:
            del split.lost[0]
        return Rows(split.name, since, to, no_rows(self._spec), letters)

    def trouble(self, split: str) -> str | None:
        if self._watch.gone:
            return f"InvalidFlow: {gone(self._spec.name, self._topic, self._names.get(split))}"
        return self._outages.told(self._topic, self._source.bootstrap)

    def end_offset(self, split: str) -> int:
        if split not in self._names:
            raise InternalError("asked for the end of a split that is not assigned", split=split)
        return self._outages.end_offset(self._consumer, self._topic, self._names[split])

    def known_end(self, split: str) -> int | None:
        with self._ending:  # a client that is just being closed must not be asked
            partition = self._names.get(split)
            if partition is None or self._closed:
                return None
            try:
                known = self._consumer.get_watermark_offsets(TopicPartition(self._topic, partition), cached=True)
            except KafkaException:
                return None
        return int(known[1]) if known and known[1] >= 0 else None

    def close(self) -> None:
        with self._ending:
            self._closed = True
        self._fetcher.close()
        self._consumer.close()

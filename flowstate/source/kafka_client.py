"""The user's options, the consumer, the topic, and what librdkafka's errors mean to a user."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from flowstate.clock import Clock, SystemClock
from flowstate.errors import CorruptData, FlowstateError, InvalidFlow, Unavailable, did_you_mean
from flowstate.plan.spec import ScanSpec
from flowstate.source.kafka_identity import topic_id

REACH_SECONDS = 8.0
_TRY_SECONDS = 1.0

#: Offsets are ours: Kafka may not commit them, skip them, or hide that a partition has ended.
_OURS = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "error",
    "enable.partition.eof": True,
}
_DEFAULTS = {
    "isolation.level": "read_committed",
    "check.crcs": True,
    "fetch.queue.backoff.ms": 20,
    "fetch.wait.max.ms": 100,
    "reconnect.backoff.max.ms": 2000,
    "socket.connection.setup.timeout.ms": 5000,
    "log_level": 0,
}
_REFUSED = {"_AUTHENTICATION", "SASL_AUTHENTICATION_FAILED", "_SSL", "_INVALID_ARG", "UNSUPPORTED_SASL_MECHANISM"}
_FORBIDDEN = {"TOPIC_AUTHORIZATION_FAILED", "CLUSTER_AUTHORIZATION_FAILED", "GROUP_AUTHORIZATION_FAILED"}
_LOST = {"_AUTO_OFFSET_RESET", "OFFSET_OUT_OF_RANGE", "_LOG_TRUNCATION"}

log = logging.getLogger(__name__)


class Outages:
    """What the client says about its connections. A broker that is away is waited for, and said once until it is back."""

    def __init__(self, source: str) -> None:
        self._source = source
        self.errors: list[KafkaError] = []
        self.count = 0

    def note(self, error: KafkaError) -> None:
        self.count += 1
        if not any(each.code() == error.code() for each in self.errors):
            log.warning("kafka source %r: %s; reading goes on when the broker is back", self._source, error.str())
            self.errors.append(error)

    def told(self, topic: str, bootstrap: str) -> str | None:
        """What a user should know while it lasts."""
        return f"Unavailable: {_away(self._source, topic, self.errors[-1], bootstrap)}" if self.errors else None

    def end_offset(self, consumer: Consumer, topic: str, partition: int) -> int:
        try:
            answer = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=2)
        except KafkaException as error:
            raise _away(self._source, topic, error.args[0], None) from error
        if answer is None:
            raise Unavailable("the broker gives no end offset; try again", source=self._source, topic=topic)
        self.errors.clear()
        return int(answer[1])


def skips_lost(spec: ScanSpec) -> bool:
    chosen = spec.options.get("lost", "refuse")
    if chosen not in ("refuse", "skip"):
        message = "lost is 'refuse' (offsets that retention deleted are an error), or 'skip' (they are a dead letter)"
        raise InvalidFlow(message, source=spec.name, lost=chosen)
    return bool(chosen == "skip")


def check_start(source: str, start: object) -> None:
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


def open_consumer(source: str, bootstrap: str, config: Mapping[str, Any], outages: Outages) -> Consumer:
    for name in ("auto.offset.reset", "enable.auto.commit"):
        if name in config and config[name] != _OURS[name]:
            raise InvalidFlow(
                f"{name} cannot be set: offsets live in flowstate's snapshots; choose where to begin with start=",
                source=source,
                setting=name,
            )
    settings = {"group.id": f"flowstate-{source}", **_DEFAULTS, **config, **_OURS}
    settings["bootstrap.servers"] = bootstrap
    settings["error_cb"] = outages.note
    try:
        return Consumer(settings)
    except (KafkaException, ValueError, TypeError) as error:
        reason = error.args[0].str() if isinstance(error, KafkaException) else str(error)
        raise InvalidFlow(f"a kafka setting is refused: {reason}; correct config=", source=source) from error


class Topic:
    """A topic as its brokers describe it. Every question is answered, or a clear error, within `REACH_SECONDS`."""

    def __init__(
        self, source: str, topic: str, bootstrap: str, config: Mapping[str, Any], clock: Clock | None = None
    ) -> None:
        self._source = source
        self._topic = topic
        self._bootstrap = bootstrap
        self._config = config
        self._clock = clock or SystemClock()
        self._outages = Outages(source)
        self._deadline = self._clock.monotonic() + REACH_SECONDS
        self._consumer = open_consumer(source, bootstrap, {**config, "log_level": 0}, self._outages)

    def close(self) -> None:
        self._consumer.close()

    def partitions(self) -> list[int]:
        while True:
            try:
                found = self._consumer.list_topics(self._topic, timeout=self._patience()).topics[self._topic]
            except KafkaException as error:
                self._check(error.args[0])
                continue
            if found.error is None and found.partitions:
                return sorted(found.partitions)
            if found.error is not None and found.error.name() in _FORBIDDEN:
                raise InvalidFlow(
                    "these credentials may not read the topic; grant them Read and Describe on it",
                    source=self._source,
                    topic=self._topic,
                )
            if found.error is not None and found.error.name() == "UNKNOWN_TOPIC_OR_PART" and not self._listed():
                raise InvalidFlow(
                    f"the broker has no such topic{did_you_mean(self._topic, self._names)}; create it, or correct topic=",
                    source=self._source,
                    topic=self._topic,
                    bootstrap=self._bootstrap,
                )
            self._check(found.error)

    def _listed(self) -> bool:
        """Whether the list of all topics has ours: one that was just created may answer "unknown" for a moment."""
        try:
            topics = self._consumer.list_topics(timeout=self._patience()).topics
        except KafkaException as error:
            self._check(error.args[0])
            return True
        self._names = sorted(each for each in topics if not each.startswith("__"))
        return self._topic in topics and topics[self._topic].error is None

    def starts(self, partitions: Sequence[int], start: Any) -> dict[int, int]:
        """Where to begin in each partition, by the user's choice."""
        if isinstance(start, datetime):
            return self._starts_at(partitions, start)
        if isinstance(start, Mapping):
            unknown = sorted(set(start) - set(partitions))
            if unknown:
                raise InvalidFlow(
                    "start names a partition that the topic does not have",
                    source=self._source,
                    partition=unknown[0],
                    partitions=len(partitions),
                )
        starts = {}
        for each in partitions:
            low, high = self._watermarks(each)
            if isinstance(start, Mapping) and each in start:
                starts[each] = start[each]
                if not low <= start[each] <= high:
                    raise InvalidFlow(
                        "start is outside of what the partition holds; choose an offset between the two",
                        source=self._source,
                        partition=each,
                        start=start[each],
                        first=low,
                        end=high,
                    )
            else:
                starts[each] = high if start == "latest" else low
        return starts

    def identity(self) -> str:
        """The id of the topic; '' if it has none, or the broker does not tell."""
        while True:
            found = topic_id(self._bootstrap, self._config, self._topic, max(1.0, self._patience()))
            if found is not None:
                return found
            self._check(None)

    def _starts_at(self, partitions: Sequence[int], start: datetime) -> dict[int, int]:
        wanted = [TopicPartition(self._topic, each, int(start.timestamp() * 1000)) for each in partitions]
        while wanted:
            try:
                found = self._consumer.offsets_for_times(wanted, timeout=self._patience())
            except KafkaException as error:
                self._check(error.args[0])
                continue
            failed = [each for each in found if each.error is not None]
            if not failed:
                # No record is that young: begin at the end.
                return {e.partition: e.offset if e.offset >= 0 else self._watermarks(e.partition)[1] for e in found}
            self._check(failed[0].error)
        return {}

    def _watermarks(self, partition: int) -> tuple[int, int]:
        while True:
            try:
                answer = self._consumer.get_watermark_offsets(
                    TopicPartition(self._topic, partition), timeout=self._patience()
                )
            except KafkaException as error:
                self._check(error.args[0])
                continue
            if answer is not None:
                return int(answer[0]), int(answer[1])
            self._check(None)

    def _patience(self) -> float:
        # Short tries: a refused login is told by a callback, which is served between them.
        return max(0.1, min(_TRY_SECONDS, self._deadline - self._clock.monotonic()))

    def _check(self, error: KafkaError | None) -> None:
        """Serve callbacks; raise if waiting has no use or took too long."""
        self._consumer.poll(0.05)
        for each in [*([error] if error is not None else []), *self._outages.errors]:
            if each.name() in _REFUSED or each.name() in _FORBIDDEN:
                raise InvalidFlow(
                    f"the broker refuses the connection ({each.str()}); correct the credentials and the security settings in"
                    " config=",
                    source=self._source,
                    bootstrap=self._bootstrap,
                )
        if self._clock.monotonic() >= self._deadline:
            last = self._outages.errors[-1] if self._outages.errors else error
            raise _away(self._source, self._topic, last, self._bootstrap)


def _away(source: str, topic: str, error: KafkaError | None, bootstrap: str | None) -> Unavailable:
    reason = f" ({error.str()})" if error is not None else ""
    told = f"no answer from the kafka broker{reason}; check bootstrap=, and that the broker is running"
    if bootstrap is None:
        return Unavailable(told, source=source, topic=topic)
    return Unavailable(told, source=source, topic=topic, bootstrap=bootstrap)


def _held(consumer: Consumer, topic: str, partition: int) -> tuple[int, int] | None:
    """The first offset and the end of a partition; None if the broker does not tell within 2 s."""
    try:
        answer = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=2)
    except KafkaException:
        return None
    return None if answer is None else (int(answer[0]), int(answer[1]))


def lost_upto(topic: str, partition: int, offset: int, error: KafkaError, consumer: Consumer) -> int | None:
    """Where a partition begins, if that is why the consumer cannot go on at `offset`."""
    held = _held(consumer, topic, partition) if error.name() in _LOST else None
    return held[0] if held is not None and held[0] > offset else None


def made_anew(
    source: str, topic: str, partition: int, offset: int, was: str, now: str, consumer: Consumer
) -> CorruptData:
    """The topic has another id than the one that the offsets belong to."""
    held = _held(consumer, topic, partition)
    return CorruptData(
        "the topic was deleted and made anew, so its offsets mean other records; restore the old topic, or start anew with another "
        "snapshots folder to count what the new one holds",
        source=source,
        topic=topic,
        partition=partition,
        offset=offset,
        first=held[0] if held else None,
        end=held[1] if held else None,
        topic_id=now,
        was=was,
    )


def gone(source: str, topic: str, partition: int | None) -> InvalidFlow:
    """There is no such topic any more."""
    message = "the topic or its partition is gone; bring it back with its records, or start anew with another snapshots folder"
    return InvalidFlow(message, source=source, topic=topic, partition=partition)


def reading_error(
    source: str, topic: str, partition: int, offset: int, error: KafkaError, consumer: Consumer
) -> FlowstateError | None:
    """What an error about one partition means; None if it passes by itself."""
    if error.name() in _LOST:
        held = _held(consumer, topic, partition)
        facts: dict[str, Any] = {"source": source, "topic": topic, "partition": partition, "offset": offset}
        if held is None:
            return Unavailable("the partition does not give the offset to read next; asking again why", **facts)
        first, end = held
        if offset < first:
            return CorruptData(
                f"{first - offset} offsets were deleted before they were read (retention); restore the records, or accept the loss "
                "with scan_kafka(..., lost='skip'), which makes a dead letter of it, or start anew with another snapshots folder",
                **facts,
                first=first,
                end=end,
                lost=first - offset,
            )
        if offset > end:
            return CorruptData(
                f"the log ends {offset - end} offsets before the one to read next: the topic was made anew, or a broker lost its "
                "newest records (an unclean election of a leader); restore the records, or start anew with another snapshots folder",
                **facts,
                first=first,
                end=end,
            )
        return Unavailable("the partition refused the offset to read next, and holds it now; trying again", **facts)
    if error.name() in ("_BAD_MSG", "CORRUPT_MESSAGE"):
        return CorruptData(
            f"the broker gives damaged records ({error.str()}); repair the partition",
            source=source,
            topic=topic,
            partition=partition,
            offset=offset,
        )
    if error.name() in ("UNKNOWN_TOPIC_OR_PART", "_UNKNOWN_TOPIC", "_UNKNOWN_PARTITION"):
        return gone(source, topic, partition)
    if error.name() in _FORBIDDEN:
        return InvalidFlow(
            "these credentials may no longer read the topic; grant them Read and Describe on it",
            source=source,
            topic=topic,
        )
    return None

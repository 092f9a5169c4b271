"""One transaction per staged object: its rows, and one record that says so, become visible together or not at all.

librdkafka cannot resume a transaction that it prepared, so nothing is left open in the broker between a manifest and its publishing:
rows wait in the snapshot store, and a transaction is made of them when the manifest has decided. The record goes to a compacted topic,
under a key that names target, sink, generation and partition, and holds the sequence: (epoch, number, part, attempt) of the staged
object, which grows along the manifests of a partition, as does the order in which they are published. Partitions of another generation
are others: each (generation, partition) has a sequence of its own.

**Why several publishers at once neither duplicate nor lose.** All publishers of one (generation, partition) share a transactional id.

1. `init_transactions` raises the producer's epoch in the broker: what an older producer had open is aborted, or, if its commit had
   begun, completed; whatever it sends from now on is refused. It cannot commit any more.
2. *Then* the sequence is read, up to the end that the topic has after 1. A record of ours may lie behind the open transaction of
   another partition, where `read_committed` does not reach yet: the end is asked for without isolation, and reading waits for it.
3. What is at or below the sequence is skipped. Else rows and record are sent and committed. If nobody else has passed 1 since, what was
   read in 2 is still true, since only our own commits can have moved it. If somebody has, our commit is refused: nothing of it is
   visible, and we begin at 1 again, or leave it to them.

So between 2 and a commit that succeeds there is no commit of another, and each object is decided on the newest sequence: published once.
Nothing is skipped unpublished, since every publisher goes through the objects in the order of the manifests, from the oldest that is not
known to be published: whoever is at one knows that all before it are. The producer stays open, so in the usual course 1 and 2 happen once.

Interleavings: (a) killed before 3 ends: the broker aborts at 1 of the successor, or after `transaction.timeout.ms`; the successor reads
the sequence before. (b) Killed after the commit was sent, or its answer was lost: 1 of the successor completes it, 2 reads it, 3 skips.
(c) A zombie begins 1 while the live one is before its commit: the commit is refused, the live one begins anew; the zombie publishes the
same bytes, or has nothing to publish and has fenced nobody, since it looks at the sequence before 1. (d) They fence each other in turns:
each waits a random time before it begins anew, and gives up as Unavailable after some turns.
"""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Iterable
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from flowstate.clock import Clock
from flowstate.errors import CorruptData, FlowstateError, InvalidFlow, Unavailable
from flowstate.sink.kafka_client import PATIENCE, Outages, Target, fenced
from flowstate.sink.kafka_records import Headers

Sequence = tuple[int, int, int, int]
TURNS = 8


class Overtaken(Exception):
    """A newer producer has our transactional id. Never leaves this file."""


class Publisher:
    """Publishes the staged objects of one (generation, partition) of one sink. `name` is ``g0001-p0003``, `identity` the sink's.
    `reached` is told what comes next: ``init``, ``begin``, ``produced``, ``commit``, ``committed``."""

    def __init__(
        self,
        target: Target,
        identity: str,
        name: str,
        clock: Clock,
        chance: random.Random,
        reached: Callable[[str], None] = lambda step: None,
    ) -> None:
        self._target, self._clock, self._chance, self._reached = target, clock, chance, reached
        self._id = f"{target.topic}-{identity}-{name}"
        self._key = json.dumps([target.topic, identity, name], separators=(",", ":")).encode()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._outages = Outages()
        self._producer: Producer | None = None
        #: What could not be delivered: why, the key, the size of the value.
        self._failed: list[tuple[KafkaError, bytes | None, int]] = []
        #: The newest sequence known to be committed. It never falls, so it stays true without a producer.
        self.last: Sequence | None = None

    def publish(
        self, sequence: Sequence, messages: Callable[[], Iterable[tuple[bytes | None, bytes, Headers | None]]]
    ) -> None:
        """Returns when the object with this sequence is published, by whomever. Nothing is visible when it raises, unless the answer to
        the commit was lost; calling again finds out."""
        with self._lock:
            for turn in range(TURNS):
                try:
                    if self._done(sequence) or (self._producer is None and self._open(sequence)):
                        return
                    self._transact(sequence, messages)
                    return
                except Overtaken:
                    self._drop()
                    self._wake.wait(self._chance.uniform(0, min(0.8, 0.05 * 2**turn)))
                except BaseException:
                    self._drop()
                    raise
        message = "another publisher of this partition takes turns with this one; try again"
        raise Unavailable(message, topic=self._target.topic, transactional_id=self._id)

    def refresh(self, sequence: Sequence) -> bool:
        """Whether the object has been published, by a look at the topic without fencing anybody."""
        with self._lock:
            if not self._done(sequence):
                reading = _Reading(self._target, self._key, self._outages, self._clock)
                try:
                    self._learn(reading.read(reading.end()))
                finally:
                    reading.close()
            return self._done(sequence)

    def close(self) -> None:
        with self._lock:
            self._drop()

    def _done(self, sequence: Sequence) -> bool:
        return self.last is not None and sequence <= self.last

    def _learn(self, found: Sequence | None) -> None:
        if found is not None and (self.last is None or found > self.last):
            self.last = found

    def _open(self, sequence: Sequence) -> bool:
        """Become the one producer of this id, and read the sequence. True if there is nothing to publish, then without a producer."""
        self._outages.errors.clear()
        reading = _Reading(self._target, self._key, self._outages, self._clock)
        try:
            self._learn(reading.read(reading.end()))
            if self._done(sequence):
                return True
            self._reached("init")
            self._failed.clear()
            self._producer = self._target.producer(self._id, self._outages, self._on_failed)
            self._ask(lambda producer: producer.init_transactions(PATIENCE))
            self._learn(reading.read(reading.end(committed=False)))
            return self._done(sequence)
        finally:
            reading.close()

    def _transact(
        self, sequence: Sequence, messages: Callable[[], Iterable[tuple[bytes | None, bytes, Headers | None]]]
    ) -> None:
        prepared = messages()
        self._reached("begin")
        self._ask(lambda producer: producer.begin_transaction())
        count = 0
        for key, value, headers in prepared:
            self._send(self._target.topic, -1, key, value, headers)
            count += 1
        self._reached("produced")
        self._drain(0)
        # Last, so that the topic of commits has no open transactions for longer than a round trip.
        record = json.dumps({"sequence": sequence, "rows": count}).encode()
        self._send(self._target.commits, 0, self._key, record, None)
        self._reached("commit")
        self._ask(lambda producer: producer.commit_transaction(PATIENCE))
        self._reached("committed")
        self.last = sequence

    def _send(self, topic: str, partition: int, key: bytes | None, value: bytes, headers: Headers | None) -> None:
        assert self._producer is not None
        while True:
            try:
                # As a literal None, headers would be refused.
                if headers is None:
                    self._producer.produce(topic, value, key, partition)
                else:
                    self._producer.produce(topic, value, key, partition, headers=headers)
                return
            except BufferError:
                self._drain(len(self._producer) // 2)
            except KafkaException as error:
                raise self._meaning(error.args[0], key) from error

    def _drain(self, left: int) -> None:
        """Wait until at most `left` messages are unacknowledged, as long as some are acknowledged every `PATIENCE` seconds."""
        assert self._producer is not None
        seen, since = len(self._producer), self._clock.monotonic()
        while seen > left:
            self._serve(0.02)
            if self._failed:
                raise self._meaning(self._failed[0][0])
            now, waiting = self._clock.monotonic(), len(self._producer)
            if waiting < seen:
                seen, since = waiting, now
            elif now - since > PATIENCE:
                raise self._meaning(KafkaError(KafkaError._TIMED_OUT))

    def _ask(self, request: Callable[[Producer], Any]) -> None:
        assert self._producer is not None
        try:
            request(self._producer)
        except KafkaException as error:
            if not fenced(error.args[0]):
                self._serve(0)
            raise self._meaning(error.args[0]) from error

    def _serve(self, seconds: float) -> None:
        assert self._producer is not None
        try:
            self._producer.poll(seconds)
        except KafkaException as error:  # a fatal one
            raise self._meaning(error.args[0]) from error

    def _meaning(self, error: KafkaError, key: bytes | None = None) -> Exception:
        found = (error, *(each for each, _, _ in self._failed))
        if any(fenced(each) for each in found):
            return Overtaken(error.str())
        if self._failed and key is None:
            # A whole batch is refused because of one: that would be the largest.
            error, key, _ = max(self._failed, key=lambda each: each[2])
        return self._target.error(error, self._outages, key)

    def _on_failed(self, error: KafkaError | None, message: Message) -> None:
        if error is not None and error.name() not in ("_PURGE_QUEUE", "_PURGE_INFLIGHT"):
            key = message.key()
            self._failed.append((error, key.encode() if isinstance(key, str) else key, len(message.value() or b"")))

    def _drop(self) -> None:
        """Give the producer up. Readers need not wait for what it has open, if the broker can be told."""
        producer, self._producer = self._producer, None
        if producer is None:
            return
        try:
            producer.purge()
            # Refused where there is nothing to abort, where a commit is under way, and to one that is fenced.
            producer.abort_transaction(1.0)
            producer.poll(0)
        except KafkaException:
            pass
        self._failed.clear()


class _Reading:
    """Reads the sequence from the topic of commits, on from where it was."""

    def __init__(self, target: Target, key: bytes, outages: Outages, clock: Clock) -> None:
        self._target, self._key, self._outages, self._clock = target, key, outages, clock
        self._place = TopicPartition(target.commits, 0)
        self._deadline = clock.monotonic() + PATIENCE
        self._next: int | None = None
        self._last: Sequence | None = None
        self._consumer = target.consumer(outages, committed=True)

    def close(self) -> None:
        self._consumer.close()

    def end(self, *, committed: bool = True) -> int:
        """The end of the topic; with `committed`, as far as it can be read now."""
        if committed:
            low, high = self._watermarks(self._consumer)
            if self._next is None:
                self._next = low
                self._consumer.assign([TopicPartition(self._place.topic, 0, low)])
            return high
        consumer = self._target.consumer(self._outages, committed=False)
        try:
            return self._watermarks(consumer)[1]
        finally:
            consumer.close()

    def read(self, end: int) -> Sequence | None:
        """The newest sequence before the offset `end`."""
        assert self._next is not None
        while self._next < end:
            for each in self._consumer.consume(1000, 0.05):
                self._take(each)
            if self._clock.monotonic() > self._deadline:
                message = (
                    "the newest commits cannot be read yet: a transaction of another publisher is still open; try again"
                )
                raise Unavailable(message, commits_topic=self._place.topic, offset=self._next, end=end)
        return self._last

    def _take(self, message: Message) -> None:
        error, offset = message.error(), message.offset()
        assert offset is not None
        if error is None:
            self._next = offset + 1
            if message.key() == self._key:
                self._last = _sequence(message.value(), self._place.topic, offset)
        elif error.name() == "_PARTITION_EOF":
            self._next = max(offset, self._next or 0)
        elif error.name() == "_AUTO_OFFSET_RESET":
            raise Unavailable("the topic of commits was compacted just now; try again", commits_topic=self._place.topic)
        else:
            raise self._target.error(error, self._outages)

    def _watermarks(self, consumer: Consumer) -> tuple[int, int]:
        while True:
            left = max(0.1, min(2.0, self._deadline - self._clock.monotonic()))
            try:
                answer = consumer.get_watermark_offsets(TopicPartition(self._place.topic, 0), timeout=left)
                if answer is not None:
                    return int(answer[0]), int(answer[1])
                error = KafkaError(KafkaError._TIMED_OUT)
            except KafkaException as failure:
                error = failure.args[0]
            consumer.poll(0)
            meaning: FlowstateError = self._target.error(error, self._outages)
            if isinstance(meaning, InvalidFlow) or self._clock.monotonic() > self._deadline:
                raise meaning


def _sequence(value: object, topic: str, offset: int) -> Sequence:
    try:
        assert isinstance(value, bytes)
        epoch, number, part, attempt = json.loads(value)["sequence"]
        return int(epoch), int(number), int(part), int(attempt)
    except (AssertionError, ValueError, KeyError, TypeError) as error:
        message = "a record of our own in the topic of commits cannot be read; who else writes there?"
        raise CorruptData(message, commits_topic=topic, offset=offset) from error

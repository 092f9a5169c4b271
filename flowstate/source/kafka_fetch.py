"""How messages come out of the Kafka client: the contract, and the way that does it message by message.

A *fetcher* takes what one consumer has, and gives it in the order in which the client had it: `Messages`, a block of consecutive messages
of one partition with all payloads in one buffer, and `Told`, what the client says instead of a message (an error, the end of a partition).

* What is given is what `confluent_kafka.Consumer.consume` would give: the same messages in the same order, of the same assignment. A
  message is given once; what the client drops (of an assignment that is over, behind a pause) is not given.
* Offsets within a block grow. Blocks follow one another as the client fetched them; where two blocks are cut means nothing.
* A message without a payload (a tombstone) has its offset in the block and is no record. An empty payload is a record of no bytes.
* Keys and headers are not read.
* The time of a message is the log's own (written by whom it may be), NEVER where it has none, or one that microseconds cannot hold.
* At most `most` messages at once; `timeout` is waited for the first of them alone. Nothing is held back in the fetcher: what it took it
  gives, so what the client may hold (``queued.max.messages.kbytes``) and what the caller has not used yet is all the memory there is.
* `begin` and `end` say which partitions are assigned; `begin` comes before the consumer is told to.
* Callbacks of the consumer (errors, statistics, tokens) are served by every `fetch`.
* Used by one thread. After `close` nothing of the client is touched any more; it is closed before the consumer.

There are two: `MessageFetcher` here asks for an object per message, and works with every version of the client. `kafka_batches` takes
thousands of messages in one call; it is used where it has proved itself at start, and raises `Surprise` where it meets anything that it
does not know. The caller then goes on with this one, from the last message that it was given.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from confluent_kafka import Consumer, KafkaError, Message

from flowstate.plan.position import NEVER
from flowstate.source.records import Records

Numbers = np.ndarray[Any, np.dtype[np.int64]]

#: Larger times, in milliseconds, do not fit into microseconds.
_LATEST = (2**63 - 1) // 1000


class Surprise(Exception):
    """The fetcher cannot go on; nothing that it took since it last answered was given."""


@dataclass(frozen=True)
class Messages:
    """Consecutive messages of one partition, at least one. `offsets` and `recorded` (microseconds) are of all; the payload of message i is
    ``buffer[starts[i]:ends[i]]``, a newline behind it, if ``present[i]``. `present` is None when all are."""

    partition: int
    offsets: Numbers
    recorded: Numbers
    starts: Numbers
    ends: Numbers
    present: np.ndarray[Any, np.dtype[np.bool_]] | None
    buffer: bytes

    def __len__(self) -> int:
        return len(self.offsets)

    def part(self, begin: int, end: int) -> Messages:
        """Messages `begin` to before `end`, in the same buffer."""
        cut = slice(begin, end)
        present = None if self.present is None else self.present[cut]
        ranges = self.offsets[cut], self.recorded[cut], self.starts[cut], self.ends[cut]
        return Messages(self.partition, *ranges, present, self.buffer)

    def records(self) -> Records:
        if self.present is None:
            return Records(self.buffer, self.starts, self.ends, self.offsets, self.recorded)
        kept = self.present
        return Records(self.buffer, self.starts[kept], self.ends[kept], self.offsets[kept], self.recorded[kept])


class Told(NamedTuple):
    """What the client says of a partition (None: of none in particular); `offset` is the end of a partition."""

    partition: int | None
    offset: int | None
    error: KafkaError


class Fetcher(ABC):
    """See above."""

    @abstractmethod
    def begin(self, partition: int) -> None: ...

    @abstractmethod
    def end(self, partition: int) -> None: ...

    @abstractmethod
    def fetch(self, most: int, timeout: float) -> Sequence[Messages | Told]:
        """Raises `Surprise`."""

    @abstractmethod
    def close(self) -> None: ...


class MessageFetcher(Fetcher):
    """An object per message."""

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer

    def begin(self, partition: int) -> None: ...

    def end(self, partition: int) -> None: ...

    def fetch(self, most: int, timeout: float) -> Sequence[Messages | Told]:
        # `consume` would wait for its full number.
        messages = self._consumer.consume(most, 0)
        if not messages and timeout > 0:
            first = self._consumer.poll(timeout)
            if first is not None:
                messages = [first]
                if most > 1:
                    messages += self._consumer.consume(most - 1, 0)
        return arrived(messages)

    def close(self) -> None: ...


def arrived(messages: Sequence[Message]) -> list[Messages | Told]:
    given: list[Messages | Told] = []
    run: list[Message] = []
    of: int | None = None  # the run's partition
    for message in messages:
        error, partition = message.error(), message.partition()
        if run and (error is not None or partition != of):
            given.append(_block(run, of))
            run = []
        if error is None:
            run.append(message)
            of = partition
        else:
            given.append(Told(partition, message.offset(), error))
    if run:
        given.append(_block(run, of))
    return given


def _block(messages: Sequence[Message], partition: int | None) -> Messages:
    assert partition is not None  # Of a fetched message.
    values = [each.value() for each in messages]
    present = np.array([each is not None for each in values], np.bool_)
    starts, ends = places(np.array([0 if each is None else len(each) for each in values], np.int64), present)
    kinds, times = zip(*(each.timestamp() for each in messages), strict=True)
    return Messages(
        partition,
        np.array([each.offset() for each in messages], np.int64),
        recorded(np.array(kinds, np.int64), np.array(times, np.int64)),
        starts,
        ends,
        None if present.all() else present,
        b"".join([part for value in values if value is not None for part in (value, b"\n")]),
    )


def places(lengths: Numbers, present: np.ndarray[Any, np.dtype[np.bool_]]) -> tuple[Numbers, Numbers]:
    """Where payloads of these lengths begin and end, with a newline behind each that is there."""
    after = np.cumsum(lengths + present)
    ends = after - present
    return ends - lengths, ends


def recorded(kinds: Numbers, times: Numbers) -> Numbers:
    """Milliseconds, and of which kind (0: there is none), as microseconds."""
    known = (kinds != 0) & (times <= _LATEST) & (times >= -_LATEST)
    return np.where(known, np.where(known, times, 0) * 1000, NEVER)


class Waiting:
    """Messages of one partition that were fetched and not used yet, in offset order."""

    def __init__(self) -> None:
        self._blocks: deque[Messages] = deque()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def first(self) -> int:
        """The first offset; there must be one."""
        return int(self._blocks[0].offsets[0])

    @property
    def last(self) -> int:
        return int(self._blocks[-1].offsets[-1])

    def add(self, block: Messages, since: int) -> None:
        """Those from offset `since` on."""
        begin = int(np.searchsorted(block.offsets, since))
        if begin < len(block):
            self._blocks.append(block.part(begin, len(block)) if begin else block)
            self._count += len(block) - begin

    def take(self, most: int, stop: int | None) -> list[Messages]:
        """Up to `most` messages before offset `stop`, which are gone then."""
        taken: list[Messages] = []
        while most > 0 and self._blocks:
            block = self._blocks[0]
            end = len(block) if stop is None else int(np.searchsorted(block.offsets, stop))
            end = min(end, most)
            if end == 0:
                break
            taken.append(block.part(0, end) if end < len(block) else block)
            self._count -= end
            most -= end
            if end < len(block):
                self._blocks[0] = block.part(end, len(block))
                break
            self._blocks.popleft()
        return taken


def joined(blocks: Sequence[Messages]) -> Records:
    """The payloads of blocks that follow one another, in one buffer."""
    parts = [each.records() for each in blocks]
    if len(parts) == 1:
        return parts[0]
    parts = [each for each in parts if len(each)] or parts[:1]
    pieces: list[bytes] = []
    starts, ends = [], []
    at = 0
    for each in parts:
        begin, end = (int(each.starts[0]), int(each.ends[-1]) + 1) if len(each) else (0, 0)
        pieces.append(each.buffer[begin:end])
        starts.append(each.starts - begin + at)
        ends.append(each.ends - begin + at)
        at += end - begin
    return Records(
        b"".join(pieces),
        np.concatenate(starts),
        np.concatenate(ends),
        np.concatenate([each.offsets for each in parts]),
        np.concatenate([each.recorded for each in parts if each.recorded is not None]),
    )

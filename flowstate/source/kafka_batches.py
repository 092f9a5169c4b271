"""Thousands of messages in one call: the fast fetcher (`kafka_fetch` is the contract and the complete slow twin).

librdkafka hands out the addresses of many messages at once. A kernel reads partitions, offsets and times there, another copies the
payloads of each partition's run into one buffer, and the messages are given back; no object is made of any of them.

The consumer is the same as before: it connects, assigns, pauses and tells errors. Only the queue is another: before a partition is
assigned, its queue is forwarded to one of ours. So our queue has nothing in it but messages and what is told of their partitions; and
the consumer's own queue, which `fetch` asks as the slow twin does, has all the rest, with every callback. What the client fetches ahead
is limited by what is in our queue, of all partitions together, as it is with the consumer's own queue.

A partition that is assigned again: the end of the assignment before is carried out some time later, and cuts the queue off as it does so.
What is fetched then waits in the partition's queue. So a partition is forwarded once more by every `fetch` until its first message is
here; forwarding moves what waits there to ours, in its order. Should that message have been of the old assignment after all, all
partitions are forwarded every `AGAIN` times.

Lifetimes: addresses of messages never leave `_take`. They are given back before it returns, whatever happens. Queues are released before
the consumer is closed, also when nobody closes this (`weakref.finalize`, which keeps the consumer until then). A process that ends, or
was forked, leaves them alone, as it leaves the client's threads.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from confluent_kafka import Consumer, KafkaError

from flowstate.source.kafka_fetch import Fetcher, Messages, Surprise, Told, arrived, places, recorded
from flowstate.source.kafka_library import LAYOUT, Library, handle, library
from flowstate.source.kernels import messages as kernel

#: Longer payloads are none that a broker would take.
MAX_PAYLOAD = 1 << 31
#: About so many bytes are taken at once: larger buffers are given to the system and had from it again, which takes more than to fill them.
AT_ONCE = 1 << 21
AGAIN = 64
#: More of them at once are brought in the order of partitions first.
FEW_RUNS = 4


class BatchFetcher(Fetcher):
    """For one topic. Raises `Unfit` where the client is not as it must be."""

    def __init__(self, consumer: Consumer, topic: str, client: str) -> None:
        self._library = library()
        self._consumer = consumer
        self._topic = topic.encode()
        self._handle = handle(self._library, consumer, client)
        self._queues = _Queues(self._library, self._handle)
        self._release = weakref.finalize(self, _release, self._queues, consumer, os.getpid())
        self._release.atexit = False
        self._fetches = 0
        self._room = AT_ONCE >> 10  # messages that make `AT_ONCE` bytes, by those that came last
        self._addresses = np.zeros(0, np.uint64)
        self._kind = np.zeros(1, np.int32)  # where the client tells what kind of time it gives

    def begin(self, partition: int) -> None:
        self._queues.begin(self._topic, partition)

    def end(self, partition: int) -> None:
        self._queues.end(partition)

    def fetch(self, most: int, timeout: float) -> Sequence[Messages | Told]:
        given = self._others()
        self._queues.forward(every=self._fetches % AGAIN == 0)
        self._fetches += 1
        taken = self._take(most, 0.0)
        if not taken and not given and timeout > 0:
            taken = self._take(1, timeout)
            if taken and most > 1:
                taken += self._take(most - 1, 0.0)
        return [*given, *taken]

    def _others(self) -> list[Messages | Told]:
        """What is not of a partition; serves callbacks."""
        told = arrived(self._consumer.consume(1000, 0))
        if any(isinstance(each, Messages) and each.partition in self._queues for each in told):
            raise Surprise("messages come by another way than expected")
        return told

    def _take(self, most: int, timeout: float) -> list[Messages | Told]:
        most = min(most, self._room)
        if len(self._addresses) < most:
            self._addresses = np.zeros(most, np.uint64)
        count = self._library.consume_batch_queue(
            self._queues.own, int(timeout * 1000), self._addresses.ctypes.data, most
        )
        if count <= 0:
            return []
        messages = self._addresses[:count]
        try:
            taken = list(self._read(messages))
            size = sum(len(each.buffer) for each in taken if isinstance(each, Messages))
            self._room = AT_ONCE * count // (size + 1) + 1
            return taken
        finally:
            kernel.give_back(messages, np.uint64(self._library.destroy_message))

    def _read(self, messages: np.ndarray[Any, np.dtype[np.uint64]]) -> Iterator[Messages | Told]:
        found = np.empty((kernel.FIELDS, len(messages)), np.int64)
        place = np.uint64(self._kind.ctypes.data)
        kernel.look(messages, LAYOUT, np.uint64(self._library.message_time), place, found)
        cut = _runs(found)
        if np.count_nonzero(cut) > FEW_RUNS:
            order = by_partition(found)
            found, messages = found[:, order], messages[order]
            cut = _runs(found)
        failed = found[kernel.ERROR] != 0
        begins = np.flatnonzero(cut).tolist()
        for begin, end in zip(begins, [*begins[1:], len(messages)], strict=True):
            if failed[begin]:
                yield self._told(found[:, begin], int(messages[begin]))
            else:
                self._queues.heard(int(found[kernel.PARTITION, begin]))
                yield _block(found[:, begin:end])

    def _told(self, found: np.ndarray[Any, np.dtype[np.int64]], message: int) -> Told:
        reason = self._library.message_errstr(message) or b""
        error = KafkaError(int(found[kernel.ERROR]), reason.decode(errors="replace"))
        partition, offset = int(found[kernel.PARTITION]), int(found[kernel.OFFSET])
        return Told(None if partition < 0 else partition, None if offset < 0 else offset, error)

    def close(self) -> None:
        self._release()


def by_partition(found: np.ndarray[Any, np.dtype[np.int64]]) -> np.ndarray[Any, np.dtype[np.intp]]:
    """The columns of ``found[FIELDS, n]``, each partition's together and in their order, without the ends that something came after."""
    order = np.argsort(found[kernel.PARTITION], kind="stable")
    followed = np.append(np.diff(found[kernel.PARTITION, order]) == 0, False)
    return order[~(followed & (found[kernel.ERROR, order] == KafkaError._PARTITION_EOF))]


def _runs(found: np.ndarray[Any, np.dtype[np.int64]]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Where a run begins: one ends where the partition changes, and before and behind whatever is no message."""
    failed = found[kernel.ERROR] != 0
    cut = failed.copy()
    cut[0] = True
    cut[1:] |= failed[:-1] | (np.diff(found[kernel.PARTITION]) != 0)
    return cut


def _block(found: np.ndarray[Any, np.dtype[np.int64]]) -> Messages:
    offsets, lengths, payloads = found[kernel.OFFSET].copy(), found[kernel.LENGTH], found[kernel.PAYLOAD]
    present = payloads != 0
    if lengths.min() < 0 or lengths.max() > MAX_PAYLOAD or lengths[~present].any() or (np.diff(offsets) <= 0).any():
        raise Surprise("offsets or lengths of messages are not as expected")
    starts, ends = places(lengths, present)
    buffer, address = _new_bytes(int(lengths.sum()) + int(np.count_nonzero(present)))
    kernel.gather(np.ascontiguousarray(payloads).view(np.uint64), starts, ends, np.uint64(address))
    times = recorded(found[kernel.KIND], found[kernel.TIME])
    partition = int(found[kernel.PARTITION, 0])
    return Messages(partition, offsets, times, starts, ends, None if present.all() else present, buffer)


def _new_bytes(size: int) -> tuple[bytes, int]:
    """Bytes that were not written yet, and where to: nobody else may have seen them. (``b""`` is everybody's, and has no room.)"""
    made: bytes = _make_bytes(None, size)
    return made, _address_of(made)


_make_bytes = ctypes.pythonapi.PyBytes_FromStringAndSize
_make_bytes.restype, _make_bytes.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_ssize_t)
_address_of = ctypes.pythonapi.PyBytes_AsString
_address_of.restype, _address_of.argtypes = ctypes.c_void_p, (ctypes.py_object,)


class _Queues:
    """Our queue, and those of the partitions that are forwarded to it."""

    def __init__(self, found: Library, client: int) -> None:
        self._library = found
        self._client = client
        self._partitions: dict[int, int] = {}
        self._unsure: set[int] = set()  # whether they are forwarded
        self._own: int | None = found.queue_new(client)

    def __contains__(self, partition: int) -> bool:
        return partition in self._partitions

    @property
    def own(self) -> int:
        if self._own is None:
            raise RuntimeError("the fetcher is closed")
        return self._own

    def begin(self, topic: bytes, partition: int) -> None:
        self.end(partition)
        queue = self._library.queue_get_partition(self._client, topic, partition) if self.own else None
        if not queue:
            raise Surprise("a partition has no queue of its own")
        self._partitions[partition] = queue
        self._unsure.add(partition)
        self.forward()

    def forward(self, *, every: bool = False) -> None:
        for partition in self._partitions if every else self._unsure:
            self._library.queue_forward(self._partitions[partition], self.own)

    def heard(self, partition: int) -> None:
        self._unsure.discard(partition)

    def end(self, partition: int) -> None:
        self._unsure.discard(partition)
        queue = self._partitions.pop(partition, None)
        if queue is not None:
            self._library.queue_forward(queue, None)
            self._library.queue_destroy(queue)

    def release(self) -> None:
        for partition in list(self._partitions):
            self.end(partition)
        own, self._own = self._own, None
        if own is not None:
            self._library.queue_destroy(own)


def _release(queues: _Queues, consumer: Consumer, process: int) -> None:
    if process == os.getpid():
        queues.release()

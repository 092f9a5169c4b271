"""The C library inside the Kafka client: what of it is called directly, and how it is made certain that this is right.

The library is reached by way of the client's own extension module, so it is the one that the client uses, wherever that is. Of what is
used here all but one thing is librdkafka's public interface. The exception: where the Python object of a consumer keeps the address of
its handle. Nothing is taken on trust:

* `library` tries the layout of a message, once per process: a producer without brokers is given a message, drops it, and hands it back.
  What lies at that address is read in a way that cannot fault (`_peek`), and every field has to be what was given.
* `handle` reads the word behind the object's head, and asks what name a handle at this address would have: it has to be a consumer's of
  this ``client.id``. The name lies within the handle, so another address gives another text, or none.

Whatever does not fit raises `Unfit`, with the reason.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import confluent_kafka
import numpy as np
from confluent_kafka import Consumer, cimpl

from flowstate.source.kernels import messages as kernel

Pointer = ctypes.c_void_p

_FIRST_VERSION = 0x01_06_00_00  # incremental assignments
_PRODUCER, _CONSUMER = 0, 1
_COPY = 2
_PURGE_QUEUE, _PURGED = 1, -152
_DELIVERY = 1
_NO_OFFSET = -1001
_WAIT = 5000  # milliseconds
_HANDLE = 3072  # bytes

_TOPIC, _PARTITION = b"flowstate-layout", 11
_VALUE, _KEY, _OPAQUE = b"a value of 23 bytes ...", b"a key", 0x5EED_0F_F10E_57A7E


class Unfit(Exception):
    """The library is not as it must be to be called directly."""


class Message(ctypes.Structure):
    """rd_kafka_message_t"""

    _fields_ = (
        ("err", ctypes.c_int32),
        ("topic", Pointer),
        ("partition", ctypes.c_int32),
        ("payload", Pointer),
        ("length", ctypes.c_size_t),
        ("key", Pointer),
        ("key_length", ctypes.c_size_t),
        ("offset", ctypes.c_int64),
        ("opaque", Pointer),
    )


#: Places of the fields that `kernel.look` reads, in its order.
LAYOUT = np.array(
    [getattr(Message, each).offset for each in ("err", "partition", "offset", "payload", "length")], np.uint64
)

_SIZE, _INT, _BYTES = ctypes.c_size_t, ctypes.c_int32, ctypes.c_char_p
_USED: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "version": (_INT, ()),
    "name": (Pointer, (Pointer,)),
    "type": (_INT, (Pointer,)),
    "queue_new": (Pointer, (Pointer,)),
    "queue_get_partition": (Pointer, (Pointer, _BYTES, _INT)),
    "queue_forward": (None, (Pointer, Pointer)),
    "queue_destroy": (None, (Pointer,)),
    "consume_batch_queue": (ctypes.c_ssize_t, (Pointer, _INT, Pointer, _SIZE)),
    "message_destroy": (None, (Pointer,)),
    "message_timestamp": (ctypes.c_int64, (Pointer, Pointer)),
    "message_errstr": (_BYTES, (Pointer,)),
    # for the trial
    "conf_new": (Pointer, ()),
    "conf_set": (_INT, (Pointer, _BYTES, _BYTES, _BYTES, _SIZE)),
    "conf_set_events": (None, (Pointer, _INT)),
    "conf_destroy": (None, (Pointer,)),
    "new": (Pointer, (_INT, Pointer, _BYTES, _SIZE)),
    "destroy": (None, (Pointer,)),
    "topic_new": (Pointer, (Pointer, _BYTES, Pointer)),
    "topic_destroy": (None, (Pointer,)),
    "produce": (_INT, (Pointer, _INT, _INT, _BYTES, _SIZE, _BYTES, _SIZE, Pointer)),
    "purge": (_INT, (Pointer, _INT)),
    "queue_get_main": (Pointer, (Pointer,)),
    "queue_poll": (Pointer, (Pointer, _INT)),
    "event_type": (_INT, (Pointer,)),
    "event_message_array": (_SIZE, (Pointer, Pointer, _SIZE)),
    "event_destroy": (None, (Pointer,)),
}


class Library:
    """librdkafka's functions by their names without ``rd_kafka_``. Calls release the GIL."""

    def __init__(self, path: str) -> None:
        loaded = ctypes.CDLL(path)
        self._functions: dict[str, Any] = {}
        for name, (result, arguments) in _USED.items():
            try:
                function = loaded[f"rd_kafka_{name}"]
            except AttributeError:
                raise Unfit(f"its library has no rd_kafka_{name}") from None
            function.restype, function.argtypes = result, arguments
            self._functions[name] = function
        self.destroy_message = self.address("message_destroy")
        self.message_time = self.address("message_timestamp")

    def __getattr__(self, name: str) -> Callable[..., Any]:
        try:
            found: Callable[..., Any] = self.__dict__["_functions"][name]
        except KeyError:
            raise AttributeError(name) from None
        return found

    def address(self, name: str) -> int:
        found = ctypes.cast(self._functions[name], Pointer).value
        assert found is not None
        return found


def library() -> Library:
    """The library after its trial. Raises `Unfit`."""
    found = _tried()
    if isinstance(found, str):
        raise Unfit(found)
    return found


@lru_cache(maxsize=1)
def _tried() -> Library | str:
    try:
        return _trial()
    except Unfit as reason:
        return str(reason)
    except (OSError, ValueError, ctypes.ArgumentError) as error:
        return f"its library cannot be called ({error})"


def _trial() -> Library:
    if ctypes.sizeof(Pointer) != 8 or sys.byteorder != "little" or sys.implementation.name != "cpython":
        raise Unfit("it is known for CPython on 64 bits with the low byte first alone")
    kernel.warm_up()
    found = Library(cimpl.__file__)
    version = int(found.version())
    if version != confluent_kafka.libversion()[1] or version < _FIRST_VERSION:
        raise Unfit(f"its library is of another version (0x{version:08x})")
    error = ctypes.create_string_buffer(256)
    settings = found.conf_new()
    found.conf_set(settings, b"log_level", b"0", error, len(error))
    found.conf_set_events(settings, _DELIVERY)
    producer = found.new(_PRODUCER, settings, error, len(error))
    if not producer:
        found.conf_destroy(settings)
        raise Unfit(f"its library gives no producer ({error.value.decode(errors='replace')})")
    try:
        _drop_a_message(found, producer)
    finally:
        found.destroy(producer)
    return found


def _drop_a_message(found: Library, producer: int) -> None:
    topic = found.topic_new(producer, _TOPIC, None)
    queue = found.queue_get_main(producer)
    event = None
    try:
        sent = found.produce(topic, _PARTITION, _COPY, _VALUE, len(_VALUE), _KEY, len(_KEY), _OPAQUE)
        if sent == 0 and found.purge(producer, _PURGE_QUEUE) == 0:
            event = found.queue_poll(queue, _WAIT)
        messages = np.zeros(2, np.uint64)
        if not event or found.event_type(event) != _DELIVERY:
            raise Unfit("its library does not give back what it was given")
        if found.event_message_array(event, messages.ctypes.data, len(messages)) != 1:
            raise Unfit("its library gives back more than it was given")
        _compare(found, topic, messages[:1])
    finally:
        if event:
            found.event_destroy(event)
        found.queue_destroy(queue)
        found.topic_destroy(topic)


def _compare(found: Library, topic: int, messages: np.ndarray[Any, np.dtype[np.uint64]]) -> None:
    """Whether the one message is what was given: first without touching anything that may not be there, then as it is read later."""
    raw = _peek(int(messages[0]), ctypes.sizeof(Message))
    message = Message.from_buffer_copy(raw) if raw is not None else Message()
    seen = (
        message.err,
        message.topic,
        message.partition,
        message.length,
        message.key_length,
        message.offset,
        message.opaque,
    )
    given = _PURGED, topic, _PARTITION, len(_VALUE), len(_KEY), _NO_OFFSET, _OPAQUE
    texts = _peek(message.payload or 0, len(_VALUE)), _peek(message.key or 0, len(_KEY))
    if seen != given or texts != (_VALUE, _KEY):
        raise Unfit("messages of its library are laid out otherwise")
    place = np.zeros(1, np.int32)
    fields = np.zeros((kernel.FIELDS, 1), np.int64)
    kernel.look(messages, LAYOUT, np.uint64(found.message_time), np.uint64(place.ctypes.data), fields)
    read = fields[:, 0].tolist()
    expected = [_PURGED, _PARTITION, _NO_OFFSET, message.payload, len(_VALUE)]
    if read[: kernel.KIND] != expected or read[kernel.KIND] not in (0, 1, 2):
        raise Unfit("messages of its library are read otherwise")
    copy = np.zeros(len(_VALUE) + 1, np.uint8)
    begin, end = np.zeros(1, np.int64), np.full(1, len(_VALUE), np.int64)
    kernel.gather(fields[kernel.PAYLOAD].view(np.uint64), begin, end, np.uint64(copy.ctypes.data))
    if copy.tobytes() != _VALUE + b"\n":
        raise Unfit("payloads of its library are read otherwise")


def handle(found: Library, consumer: Consumer, client: str) -> int:
    """The address of the consumer's handle. `client` is its ``client.id``. Raises `Unfit`."""
    head = object.__basicsize__
    if Consumer.__basicsize__ < head + ctypes.sizeof(Pointer):
        raise Unfit("its consumer object is laid out otherwise")
    address = ctypes.c_uint64.from_address(id(consumer) + head).value
    # A handle is larger than that, and its name lies within.
    if address == 0 or address % 8 or _peek(address, _HANDLE) is None:
        raise Unfit("its consumer object has no handle where it is expected")
    name = _peek(int(found.name(address) or 0), len(client) + 24)
    if name is None or not name.startswith(f"{client}#consumer-".encode()) or found.type(address) != _CONSUMER:
        raise Unfit("its consumer object has another handle than expected")
    return address


def _peek(address: int, length: int) -> bytes | None:
    """What lies at an address; None if nothing does. The kernel copies it into a pipe, and refuses an address that is none."""
    reader, writer = os.pipe()
    try:
        write = ctypes.CDLL(None, use_errno=True).write
        write.restype, write.argtypes = ctypes.c_ssize_t, (ctypes.c_int, Pointer, ctypes.c_size_t)
        return os.read(reader, length) if write(writer, address, length) == length else None
    finally:
        os.close(reader)
        os.close(writer)

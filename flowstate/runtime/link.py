"""How streams cross a process boundary: one Flight exchange per owner and worker, many streams in it.

The owner opens it. Towards the reader go small JSON controls (attach, acknowledge, close), towards the owner encoded messages. What may
be under way is bounded by the streams' windows, so nothing here blocks: both ends put into queues, which threads empty into the socket.
A link that breaks closes all its streams, at both ends; owners then ask again from their own places.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.flight as flight

from flowstate.errors import CorruptData
from flowstate.exchange.message import Attach, Closed, Message, StreamId, decode, encode
from flowstate.plan.position import Place
from flowstate_flight.credentials import Credentials

KIND = "partition-exchange"
#: So many messages of a stream are acknowledged together while more of them wait; that is half of what may be under way.
TOGETHER = 4
#: A message comes in a frame or a few, not in pieces of 16 KiB.
FRAMES = [("grpc.http2.max_frame_size", 4 << 20)]


class Port(Protocol):
    """One end's handle of the other. Never blocks; what cannot be delivered closes the stream."""

    def put(self, stream: StreamId, message: Message) -> None:
        """Reader to owner."""

    def attach(self, reader: int, attach: Attach) -> None:
        """Owner to reader."""

    def acknowledge(self, stream: StreamId, count: int) -> None:
        """Owner to reader."""

    def close(self, stream: StreamId) -> None:
        """Either way."""


class Mailbox(Protocol):
    """A pump, as links see it: events may be posted from any thread."""

    def post_attach(self, attach: Attach, port: Port) -> None: ...

    def post_message(self, stream: StreamId, message: Message) -> None: ...

    def post_acknowledged(self, stream: StreamId, count: int) -> None: ...

    def post_closed(self, stream: StreamId) -> None: ...


FindReader = Callable[[int], Mailbox | None]


class LocalPort:
    """Both ends in one process: messages are handed over as they are."""

    def __init__(self, owner: Mailbox, find: FindReader) -> None:
        self.owner, self.find = owner, find
        self.readers: dict[StreamId, Mailbox] = {}

    def attach(self, reader: int, attach: Attach) -> None:
        mailbox = self.find(reader)
        if mailbox is None:
            self.owner.post_closed(attach.stream)
        else:
            self.readers[attach.stream] = mailbox
            mailbox.post_attach(attach, _ToOwner(self.owner))

    def put(self, stream: StreamId, message: Message) -> None:
        self.owner.post_message(stream, message)

    def acknowledge(self, stream: StreamId, count: int) -> None:
        if (mailbox := self.readers.get(stream)) is not None:
            mailbox.post_acknowledged(stream, count)

    def close(self, stream: StreamId) -> None:
        if (mailbox := self.readers.pop(stream, None)) is not None:
            mailbox.post_closed(stream)


class _ToOwner:
    """The reader's side of a local port."""

    def __init__(self, owner: Mailbox) -> None:
        self.owner = owner

    def put(self, stream: StreamId, message: Message) -> None:
        self.owner.post_message(stream, message)

    def close(self, stream: StreamId) -> None:
        self.owner.post_closed(stream)

    def attach(self, reader: int, attach: Attach) -> None:
        raise AssertionError("a reader does not attach")

    def acknowledge(self, stream: StreamId, count: int) -> None:
        raise AssertionError("a reader does not acknowledge")


class ClientLink:
    """The owner's side of a Flight exchange. Two threads, both daemons, both ended by `stop` or by the connection."""

    def __init__(
        self, location: str, job: str, owner: Mailbox, name: str, credentials: Credentials | None = None
    ) -> None:
        self.location, self.owner, self.broken = location, owner, False
        self._credentials = credentials or Credentials()
        self.streams: set[StreamId] = set()
        self._waiting: dict[StreamId, int] = {}  # messages of it that came and are not taken in
        self._taken: dict[StreamId, int] = {}  # messages of it that were taken in and are not acknowledged
        self._lock = threading.Lock()
        self._controls: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
        self._command = json.dumps({"v": 1, "kind": KIND, "job": job}).encode()
        threading.Thread(target=self._run, name=f"{name}-link", daemon=True).start()

    def attach(self, reader: int, attach: Attach) -> None:
        with self._lock:
            if not self.broken:
                self.streams.add(attach.stream)
                self._controls.put({"attach": attach.stream, "reader": reader, "place": attach.place})
                return
        self.owner.post_closed(attach.stream)

    def acknowledge(self, stream: StreamId, count: int) -> None:
        """The reader hears of it at once if nothing more waits here: it may have no room. Else of a few messages together."""
        with self._lock:
            if stream not in self.streams:
                return  # it is closed
            waiting = self._waiting[stream] = self._waiting.get(stream, 0) - count
            taken = self._taken.pop(stream, 0) + count
            if waiting > 0 and taken < TOGETHER:
                self._taken[stream] = taken
                return
        self._controls.put({"acknowledge": stream, "count": taken})

    def close(self, stream: StreamId) -> None:
        self._forget(stream)
        self._controls.put({"close": stream})

    def _forget(self, stream: StreamId) -> None:
        with self._lock:
            self.streams.discard(stream)
            self._waiting.pop(stream, None)
            self._taken.pop(stream, None)

    def put(self, stream: StreamId, message: Message) -> None:
        raise AssertionError("an owner sends no rows")

    def stop(self) -> None:
        self._controls.put(None)

    def _run(self) -> None:
        writer: Any = None
        reader: Any = None
        sender: threading.Thread | None = None
        try:
            client = self._credentials.connect(self.location, generic_options=FRAMES)
            options = self._credentials.options(client)
            writer, reader = client.do_exchange(flight.FlightDescriptor.for_command(self._command), options)
            sender = threading.Thread(target=self._send, args=(writer,), daemon=True)
            sender.start()
            while True:
                metadata = reader.read_chunk().app_metadata
                stream, message = decode(metadata)
                if isinstance(message, Closed):
                    self._forget(stream)
                    self.owner.post_closed(stream)
                else:
                    with self._lock:
                        if stream in self.streams:
                            self._waiting[stream] = self._waiting.get(stream, 0) + 1
                    self.owner.post_message(stream, message)
        except (StopIteration, flight.FlightError, pa.ArrowException, OSError, CorruptData):
            pass  # broken is broken: every stream is closed, and asked for again
        finally:
            with self._lock:
                self.broken = True
                streams = list(self.streams)
            for each in streams:
                self.owner.post_closed(each)
            self._controls.put(None)
            if sender is not None:
                reader.cancel()  # a sender that waits for room on a stream that nobody reads goes on
                sender.join()
                with contextlib.suppress(flight.FlightError, pa.ArrowException, OSError):
                    writer.close()  # Arrow complains on stderr of a writer that is dropped unclosed

    def _send(self, writer: Any) -> None:
        try:
            while (control := self._controls.get()) is not None:
                writer.write_metadata(pa.py_buffer(json.dumps(control).encode()))
            writer.done_writing()  # the reader's side then ends the exchange, and `_run` sees its end
        except (flight.FlightError, pa.ArrowException, OSError):
            pass


class ServerLink:
    """The reader's side: `serve` runs on Flight's thread until the owner goes, or `stopping` says so."""

    def __init__(self, find: FindReader, stopping: Callable[[], bool]) -> None:
        self.find, self.stopping = find, stopping
        self._out: SimpleQueue[tuple[StreamId, Message | Closed] | None] = SimpleQueue()
        self._mailboxes: dict[StreamId, Mailbox] = {}
        self._over = False

    def put(self, stream: StreamId, message: Message) -> None:
        if self._over:
            self._gone(stream)
        else:
            self._out.put((stream, message))

    def close(self, stream: StreamId) -> None:
        self._mailboxes.pop(stream, None)
        self._out.put((stream, Closed()))

    def attach(self, reader: int, attach: Attach) -> None:
        raise AssertionError("a reader does not attach")

    def acknowledge(self, stream: StreamId, count: int) -> None:
        raise AssertionError("a reader does not acknowledge")

    def _gone(self, stream: StreamId) -> None:
        if (mailbox := self._mailboxes.pop(stream, None)) is not None:
            mailbox.post_closed(stream)

    def serve(self, reader: Any, writer: Any, context: Any) -> None:
        listener = threading.Thread(target=self._listen, args=(reader,), name="flowstate-link-server", daemon=True)
        listener.start()
        try:
            while not self.stopping():
                try:
                    out = self._out.get(timeout=0.5)
                except Empty:
                    if context.is_cancelled():
                        break
                    continue
                if out is None:
                    break
                writer.write_metadata(encode(*out))
        except (flight.FlightError, pa.ArrowException, OSError):
            pass
        finally:
            self._over = True
            for stream in list(self._mailboxes):
                self._gone(stream)
            listener.join()  # it reads what this handler owns: it must not outlive it; the owner's end, or `sever`, ends it

    def _listen(self, reader: Any) -> None:
        try:
            while True:
                control = json.loads(reader.read_chunk().app_metadata.to_pybytes())
                if "attach" in control:
                    attach = Attach(_stream_of(control["attach"]), Place(*_whole(control["place"], 2)))
                    mailbox = self.find(control["reader"])
                    if mailbox is None:
                        self._out.put((attach.stream, Closed()))
                    else:
                        self._mailboxes[attach.stream] = mailbox
                        mailbox.post_attach(attach, self)
                elif "acknowledge" in control:
                    stream = _stream_of(control["acknowledge"])
                    if (mailbox := self._mailboxes.get(stream)) is not None:
                        mailbox.post_acknowledged(stream, int(control["count"]))
                elif "close" in control:
                    self._gone(_stream_of(control["close"]))
        except (
            StopIteration,
            flight.FlightError,
            pa.ArrowException,
            OSError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
        ):
            pass  # the owner went, or speaks another version: it asks again
        finally:
            self._out.put(None)


def _stream_of(given: Any) -> StreamId:
    """What came over the wire is looked at here: in the pump, a wrong type would end the partition."""
    split, *numbers = given
    if not isinstance(split, str):
        raise ValueError("a split is a text")
    return StreamId(split, *_whole(numbers, 4))


def _whole(given: Any, count: int) -> list[int]:
    numbers = [each for each in given if isinstance(each, int) and not isinstance(each, bool)]
    if len(numbers) != count or len(given) != count:
        raise ValueError(f"{count} whole numbers are wanted")
    return numbers

"""What readers and owners say to each other, and how it looks on the wire.

A *stream* carries one split, from one reader epoch, to one incarnation of an owner: in order and bounded. Its first message is
`Start`, then `Batch` and `Marker`. Either end may close it at any time: the owner then asks again, from its own place.

On the wire a message is a 4-byte little-endian length, a JSON header, and then, for each table of a `Batch`, an Arrow IPC stream
that begins at a multiple of 64 bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import pyarrow as pa

from flowstate.errors import CorruptData
from flowstate.plan.position import Floor, Place

ALIGNMENT = 64


class StreamId(NamedTuple):
    """Names one stream for ever: an owner's incarnation never uses an attempt twice."""

    split: str
    reader_epoch: int
    owner: int
    owner_epoch: int
    attempt: int


@dataclass(frozen=True)
class Attach:
    """Owner to reader: send me this split, I stand at `place`."""

    stream: StreamId
    place: Place


@dataclass(frozen=True)
class Start:
    """First on every stream: where it begins, the newest event time before that, and the split's floors so far."""

    at: Place
    newest: int
    floors: tuple[Floor, ...]


@dataclass(frozen=True)
class Batch:
    """An owner's rows in ``[since, to)``, by table; without rows it only moves the position. `newest` and `floor` hold at `to`."""

    since: Place
    to: Place
    newest: int
    floor: int
    rows: Mapping[str, pa.RecordBatch] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return sum(each.num_rows for each in self.rows.values())


@dataclass(frozen=True)
class Marker:
    """Everything before this belongs to the cut, nothing after it does."""

    cut: int


@dataclass(frozen=True)
class Closed:
    """On the wire only: this stream is over."""


Message = Start | Batch | Marker


def encode(stream: StreamId, message: Message | Closed) -> pa.Buffer:
    """The bytes of a message."""
    header: dict[str, object] = {"stream": stream}
    bodies: list[pa.RecordBatch] = []
    match message:
        case Start():
            header |= {"kind": "start", "at": message.at, "newest": message.newest, "floors": message.floors}
        case Marker():
            header |= {"kind": "marker", "cut": message.cut}
        case Closed():
            header["kind"] = "closed"
        case Batch():
            bodies = list(message.rows.values())
            header |= {
                "kind": "batch",
                "since": message.since,
                "to": message.to,
                "newest": message.newest,
                "floor": message.floor,
                "tables": list(message.rows),
            }
    text = json.dumps(header).encode()
    out = pa.BufferOutputStream()
    out.write(len(text).to_bytes(4, "little") + text)
    for rows in bodies:
        out.write(b"\0" * (-out.tell() % ALIGNMENT))
        with pa.ipc.new_stream(out, rows.schema) as writer:
            writer.write_batch(rows)
    return out.getvalue()


def decode(buffer: pa.Buffer) -> tuple[StreamId, Message | Closed]:
    """A message from its bytes; columns are aligned copies where the buffer is not. `CorruptData` if it is not a message."""
    try:
        view = memoryview(buffer)
        size = int.from_bytes(view[:4], "little")
        header = json.loads(bytes(view[4 : 4 + size]))
        stream = StreamId(*header["stream"])
        match header["kind"]:
            case "start":
                floors = tuple(Floor(*each) for each in header["floors"])
                return stream, Start(Place(*header["at"]), header["newest"], floors)
            case "marker":
                return stream, Marker(header["cut"])
            case "closed":
                return stream, Closed()
            case "batch":
                rows, body = {}, pa.BufferReader(buffer)
                body.seek(4 + size)
                for name in header["tables"]:
                    body.seek(-body.tell() % ALIGNMENT, 1)
                    rows[name] = _read_batch(body)
                since, to = Place(*header["since"]), Place(*header["to"])
                return stream, Batch(since, to, header["newest"], header["floor"], rows)
            case kind:
                raise CorruptData("an exchange message of an unknown kind; run the same version everywhere", kind=kind)
    except (KeyError, TypeError, ValueError, OSError, StopIteration, pa.ArrowException) as error:
        raise CorruptData("bytes that are no exchange message; close the stream and attach again") from error


def _read_batch(body: pa.BufferReader) -> pa.RecordBatch:
    """The only batch of the stream that begins here; `body` is then at its end."""
    options = pa.ipc.IpcReadOptions(ensure_alignment=pa.ipc.Alignment.At64Byte)
    with pa.ipc.open_stream(body, options=options) as reader:
        rows = reader.read_next_batch()
        if next(reader, None) is not None:
            raise CorruptData("a table of an exchange message has two batches; run the same version everywhere")
    return rows

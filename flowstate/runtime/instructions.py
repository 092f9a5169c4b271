"""What the partition machine tells its shell to do. Plain data; nothing here is done by itself."""

from __future__ import annotations

from dataclasses import dataclass

from flowstate.exchange.message import Attach, Message, StreamId
from flowstate.plan.position import Floor
from flowstate.runtime.contents import Frozen


@dataclass(frozen=True)
class SendAttach:
    """Ask the reader at `reader` (a partition) for a split; what it sends comes back by `attach.stream`."""

    reader: int
    attach: Attach


@dataclass(frozen=True)
class Put:
    """Reader: send `message` on `stream`."""

    stream: StreamId
    message: Message


@dataclass(frozen=True)
class Acknowledge:
    """Owner: the oldest `count` messages of `stream` are taken in."""

    stream: StreamId
    count: int


@dataclass(frozen=True)
class Close:
    """Either end: this stream is over."""

    stream: StreamId


@dataclass(frozen=True)
class LoadRecord:
    """Read the split record of a split that this partition is to read; answer with `record_loaded`."""

    split: str
    epoch: int


@dataclass(frozen=True)
class RecordFloor:
    """Append a floor to the split record under the reader's epoch; answer with `floor_recorded`, or nothing if fenced."""

    split: str
    epoch: int
    floor: Floor


@dataclass(frozen=True)
class ResolveEnd:
    """Find the present end of a split, record it, answer with `end_recorded`."""

    split: str
    epoch: int


@dataclass(frozen=True)
class CutTaken:
    """A view at a cut; keep it and tell the supervisor."""

    cut: int
    frozen: Frozen


Instruction = SendAttach | Put | Acknowledge | Close | LoadRecord | RecordFloor | ResolveEnd | CutTaken

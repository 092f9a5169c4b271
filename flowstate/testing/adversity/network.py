"""The network of a simulation: streams with delays, that break."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flowstate.exchange.message import Attach, Message, StreamId
from flowstate.testing.adversity.fault import Fault

if TYPE_CHECKING:
    from flowstate.testing.adversity.incarnation import Incarnation
    from flowstate.testing.adversity.world import World


@dataclass
class Channel:
    """What a stream runs over. Messages keep their order in each direction; a closing is heard after what was sent before it, unless
    the connection broke, and then nothing is heard any more but the closing."""

    owner: Incarnation
    reader: Incarnation | None = None
    down: float = 0.0
    up: float = 0.0
    under_way: int = 0
    closed: bool = False
    broken: bool = False


class Network:
    """All channels of a world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.channels: dict[StreamId, Channel] = {}

    def attach(self, owner: Incarnation, reader: int, attach: Attach) -> None:
        self.channels[attach.stream] = Channel(owner)
        location = owner.machine.table.locations.get(reader) if owner.machine else None
        self.world.later(self.deliver_attach, location, reader, attach, delays=(1, 2, 5, 30, 90))

    def deliver_attach(self, location: str | None, reader: int, attach: Attach) -> None:
        channel = self.channels[attach.stream]
        worker = self.world.workers.get(location or "")
        incarnation = worker.pumps.get(reader) if worker else None
        if incarnation is None or not incarnation.running or incarnation.machine is None:
            self.world.later(channel.owner.stream_closed, attach.stream)
            channel.closed = True
            return
        channel.reader = incarnation
        incarnation.accept(attach)

    def send_down(self, stream: StreamId, reader: Incarnation, message: Message) -> None:
        channel = self.channels[stream]
        if channel.closed:
            return
        channel.under_way += 1
        if channel.under_way > self.world.window.messages:
            raise Fault("a stream holds more than its bound")
        channel.down = max(channel.down, self.world.now + self.world.delay((0, 0, 1, 3, 20)))
        self.world.at(channel.down, self.deliver, channel, stream, message)

    def deliver(self, channel: Channel, stream: StreamId, message: Message) -> None:
        if not channel.broken:
            channel.owner.receive(stream, message)

    def send_up(self, stream: StreamId, owner: Incarnation, count: int) -> None:
        channel = self.channels[stream]
        if not channel.closed:
            channel.up = max(channel.up, self.world.now + self.world.delay((0, 0, 1, 3, 20)))
            self.world.at(channel.up, self.acknowledged, channel, stream, count)

    def acknowledged(self, channel: Channel, stream: StreamId, count: int) -> None:
        channel.under_way -= count
        reader = channel.reader
        if reader is not None and reader.running and reader.machine is not None and not channel.broken:
            reader.machine.acknowledged(stream, count)

    def hang_up(self, stream: StreamId, by: Incarnation) -> None:
        """One end closes. What is under way may still come, or is lost."""
        channel = self.channels.get(stream)
        by.channels.pop(stream, None)
        if channel is None or channel.closed:
            return
        channel.closed, channel.broken = True, self.world.happens(0.5)
        for end in (channel.owner, channel.reader):
            if end is not None and (end is not by or channel.owner is channel.reader):
                time = max(channel.down, channel.up, self.world.now + self.world.delay())
                self.world.at(time, end.stream_closed, stream)

    def cut_line(self, incarnation: Incarnation) -> None:
        """The connection breaks between two that live; each hears of it in its own time."""
        lines = sorted(incarnation.channels)
        if lines:
            stream = self.world.random.choice(lines)
            channel = self.channels[stream]
            if not channel.closed:
                channel.closed = channel.broken = True
                for end in (channel.owner, channel.reader):
                    if end is not None:
                        self.world.later(end.stream_closed, stream)

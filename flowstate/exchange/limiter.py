"""The one back-pressure mechanism: how much of a stream may be under way before its reader pauses."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field


@dataclass
class Window:
    """At most `messages` messages and about `volume` bytes unacknowledged; one message always fits, however large."""

    messages: int = 8
    volume: int = 8 << 20
    sizes: deque[int] = field(default_factory=deque)
    bytes: int = 0

    @property
    def room(self) -> bool:
        return not self.sizes or (len(self.sizes) < self.messages and self.bytes < self.volume)

    def sent(self, size: int) -> None:
        self.sizes.append(size)
        self.bytes += size

    def acknowledged(self, count: int) -> None:
        """The oldest `count` messages were taken in by the owner."""
        for _ in range(min(count, len(self.sizes))):
            self.bytes -= self.sizes.popleft()

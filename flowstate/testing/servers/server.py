"""What servers for tests have in common: a process that is killed, and comes back on the same data."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from flowstate.clock import Clock, SystemClock
from flowstate.errors import Unavailable
from flowstate.testing.tormentor.processes import ProcessTree


class Server:
    """Subclasses have a `start`, which sets `_process` and may be called again after `kill`. `log` is what the server says of itself."""

    def __init__(self, log: Path, clock: Clock | None = None) -> None:
        self.log, self._clock = log, clock or SystemClock()
        self._process: ProcessTree | None = None

    def _wait(self, name: str, ask: Callable[[], object], seconds: float, pause: float) -> None:
        """Until `ask` raises no more. `Unavailable`, with the end of the log, if it ends, or does not answer within `seconds`."""
        deadline = self._clock.monotonic() + seconds
        while True:
            if self._process is not None and self._process.ended:
                raise Unavailable(f"{name} ended: {self.log.read_text()[-3000:]}")
            try:
                ask()
                return
            except Exception:
                if self._clock.monotonic() > deadline:
                    raise Unavailable(f"{name} does not answer: {self.log.read_text()[-3000:]}") from None
                threading.Event().wait(pause)

    def kill(self) -> None:
        """SIGKILL: nothing is flushed, nothing is told to anybody."""
        if self._process is not None:
            self._process.close()
            self._process = None

    @property
    def tree(self) -> ProcessTree | None:
        """Its process, while it runs: to be frozen, or watched."""
        return self._process

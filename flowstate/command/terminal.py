"""A whole terminal for a while: the alternate screen, single keys, and everything as it was afterwards, however it ends."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import tty
from types import FrameType
from typing import Any

_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"


class Interrupted(Exception):
    """The process is to end by this signal."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def is_terminal() -> bool:
    """Whether what is written is seen by somebody who can press keys."""
    return sys.stdin is not None and sys.stdin.isatty() and os.isatty(1) and os.environ.get("TERM", "dumb") != "dumb"


class Terminal:
    """Within ``with``; for the main thread. A signal that asks the process to end raises `Interrupted` in `key`, so that the terminal is
    given back first; one that stops it (Ctrl-Z) gives it back, and takes it again when it goes on."""

    def __enter__(self) -> Terminal:
        self._before: list[Any] = termios.tcgetattr(0)
        self._asked: int | None = None
        self.changed = True  # its size, or whose it is: all of it must be written anew
        self._wakes, self._wake = os.pipe()
        for end in (self._wakes, self._wake):
            os.set_blocking(end, False)
        self._woken = signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        handlers: dict[int, Any] = dict.fromkeys((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), self._end)
        handlers |= {signal.SIGWINCH: self._resized, signal.SIGTSTP: self._stopped}
        self._handlers = {number: signal.signal(number, each) for number, each in handlers.items()}
        self._take()
        return self

    def __exit__(self, *exception: object) -> None:
        for number, each in self._handlers.items():
            signal.signal(number, each)
        signal.set_wakeup_fd(self._woken)
        for end in (self._wakes, self._wake):
            os.close(end)
        self._give_back()

    def key(self, seconds: float) -> str | None:
        """The key that is pressed within so many seconds, if one is; also None when something else is to be seen to. Raises
        `Interrupted`."""
        ready, _, _ = select.select([0, self._wakes], [], [], max(0.0, seconds))
        if self._wakes in ready:
            os.read(self._wakes, 1024)
        if self._asked is not None:
            raise Interrupted(self._asked)
        if 0 not in ready:
            return None
        pressed = os.read(0, 64)
        if not pressed:  # the terminal is gone
            raise Interrupted(signal.SIGHUP)
        return pressed.decode(errors="replace")

    def write(self, text: str) -> None:
        """At once, also where the terminal is slow."""
        data = memoryview(text.encode(errors="replace"))
        while data:
            data = data[os.write(1, data) :]

    def size(self) -> tuple[int, int]:
        """Columns and lines."""
        try:
            found = os.get_terminal_size(1)
        except OSError:
            return 80, 24
        return max(1, found.columns or 80), max(1, found.lines or 24)

    def _take(self) -> None:
        tty.setcbreak(0, termios.TCSANOW)
        self.write(_ENTER)

    def _give_back(self) -> None:
        try:
            self.write(_LEAVE)
            termios.tcsetattr(0, termios.TCSANOW, self._before)
        except (OSError, termios.error):
            pass  # it is gone

    def _end(self, number: int, frame: FrameType | None) -> None:
        self._asked = number

    def _resized(self, number: int, frame: FrameType | None) -> None:
        self.changed = True

    def _stopped(self, number: int, frame: FrameType | None) -> None:
        self._give_back()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._take()  # somebody has let it go on
        self.changed = True


def die_of(number: int) -> None:
    """End as the signal ends a process, so that a shell knows."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)

"""A command that a person has at a terminal: she sees what it shows, and presses keys."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import termios
import time
from typing import Any

from asking import command, environment

#: What moves the cursor or colours, and shows nothing by itself.
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(\x07|\x1b\\)|\x1b[=>()][0AB]?|\r")


class AtTerminal:
    """`arguments` are those of the command."""

    def __init__(self, *arguments: str, columns: int = 110, lines: int = 30, **more: str) -> None:
        self.shown = b""
        environ = {**environment(), "TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1", **more}
        for name in ("COLUMNS", "LINES"):
            environ.pop(name, None)
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.before = termios.tcgetattr(theirs)
        self.child = os.fork()
        if self.child == 0:
            os.close(ours)
            os.login_tty(theirs)
            words = command(*arguments)
            os.execve(words[0], words, environ)
        self._theirs, self._ours = theirs, ours  # kept open, so that its settings can be asked afterwards
        os.set_blocking(ours, False)

    def sees(self, *texts: str, after: int = 0, seconds: float = 60) -> int:
        """Wait until all `texts` are shown after so many bytes; how many bytes were shown by then."""
        deadline = time.monotonic() + seconds
        while True:
            self._read()
            shown = self.text(after)
            if all(each in shown for each in texts):
                return len(self.shown)
            assert time.monotonic() < deadline, (texts, shown[-3000:])
            time.sleep(0.02)

    def text(self, after: int = 0) -> str:
        shown = self.shown[after:].decode(errors="replace")
        return ESCAPES.sub("", shown.replace("\x1b[H", "\n"))  # from the top of the screen

    def presses(self, keys: str) -> int:
        """How many bytes were shown before."""
        self._read()
        os.write(self._ours, keys.encode())
        return len(self.shown)

    def ends(self, seconds: float = 60) -> int:
        """Its exit code, negative for a signal."""
        deadline = time.monotonic() + seconds
        while True:
            self._read()
            pid, status = os.waitpid(self.child, os.WNOHANG)
            if pid:
                self.child = 0
                self._read()
                return os.waitstatus_to_exitcode(status)
            assert time.monotonic() < deadline, self.text()[-3000:]
            time.sleep(0.02)

    def in_order(self) -> bool:
        """Whether the terminal is as it was."""
        left = self.shown.count(b"\x1b[?1049h") == self.shown.count(b"\x1b[?1049l")
        return left and self.is_plain()

    def is_plain(self) -> bool:
        """Whether nobody has the terminal for single keys, so that Ctrl-C is a signal."""
        return bool(termios.tcgetattr(self._theirs) == self.before)

    def close(self) -> None:
        if self.child:
            os.kill(self.child, 9)
            os.waitpid(self.child, 0)
        os.close(self._ours)
        os.close(self._theirs)

    def __enter__(self) -> AtTerminal:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def _read(self) -> None:
        try:
            while data := os.read(self._ours, 65536):
                self.shown += data
        except (BlockingIOError, OSError):
            pass

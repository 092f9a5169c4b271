"""What a tormentor leaves on the machine bears its mark, and goes, also when the tormentor itself was killed.

Processes carry the mark in their environment, network namespaces and mounts in their name. Everything is undone when its context ends,
else when the interpreter does; what a killed run left is swept by the next one.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from itertools import count
from pathlib import Path

VARIABLE = "FLOWSTATE_TORMENT"
PREFIX = "flowt-"
_numbers = count(1)
_open: dict[int, Callable[[], None]] = {}
_lock = threading.Lock()


def _started(pid: int) -> str | None:
    """When a process was started, in clock ticks; with its number it names a process for good."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()[19]
    except OSError:
        return None


def mark() -> str:
    """A new name that tells whose it is: ``flowt-<pid>-<started>-<number>``."""
    return f"{PREFIX}{os.getpid()}-{_started(os.getpid())}-{next(_numbers)}"


def orphaned(name: str) -> bool:
    """Whether `name` is a mark whose process is gone."""
    parts = name.split("-")
    return name.startswith(PREFIX) and len(parts) >= 4 and _started(int(parts[1])) != parts[2]


class Undone:
    """Base of what must be undone: a context manager whose `close` is called once, at the latest when the interpreter ends."""

    def __init__(self) -> None:
        with _lock:
            self._ticket = next(_numbers)
            _open[self._ticket] = self.close

    def undo(self) -> None:
        """Take it off the machine. Must not raise because part of it is gone already."""
        raise NotImplementedError

    def close(self) -> None:
        with _lock:
            mine = _open.pop(self._ticket, None)
        if mine is not None:
            self.undo()

    def __enter__(self) -> Undone:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@atexit.register
def _undo_all() -> None:
    for ticket in sorted(_open, reverse=True):
        with contextlib.suppress(Exception):
            _open[ticket]()


def marked_processes(name: str) -> list[int]:
    """Every living process whose environment carries `name` (zombies have none any more)."""
    return [pid for pid, found in _marks() if found == name]


def _marks() -> list[tuple[int, str]]:
    wanted, found = f"{VARIABLE}=".encode(), []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environment = (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue  # gone meanwhile, or somebody else's
            found += [
                (int(entry.name), each[len(wanted) :].decode()) for each in environment if each.startswith(wanted)
            ]
    return found


def run(*command: str, check: bool = True) -> str:
    """A short system command; its output. `OSError` says what it said."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    if check and done.returncode:
        raise OSError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def sweep() -> list[str]:
    """Remove what tormentors that are gone have left; what that was."""
    swept = []
    for pid, name in _marks():
        if orphaned(name):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
                swept.append(f"process {pid} of {name}")
    for line in Path("/proc/mounts").read_text().splitlines():
        source, place, *_ = line.split(" ")
        if orphaned(source):
            run("umount", "--lazy", place.encode().decode("unicode_escape"), check=False)
            swept.append(f"mount {place}")
    spaces = Path("/run/netns")
    for each in sorted(spaces.iterdir()) if spaces.exists() else []:
        if orphaned(each.name):
            run("ip", "netns", "delete", each.name, check=False)
            swept.append(f"network namespace {each.name}")
    return swept

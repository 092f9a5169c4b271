"""The command as a shell starts it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple


class Said(NamedTuple):
    code: int
    out: str
    errors: str


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "flowstate.command", *arguments]


def environment(**more: str) -> dict[str, str]:
    """Wide enough that no line of help is broken."""
    kept = {name: each for name, each in os.environ.items() if name != "FLOWSTATE_TOKEN"}
    paths = os.pathsep.join(each for each in sys.path if each)
    return {**kept, "PYTHONPATH": paths, "COLUMNS": "300", "TERM": "dumb", **more}


class Asked:
    """A command that has been started."""

    def __init__(self, *arguments: str, env: Mapping[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            command(*arguments),
            env=environment(**(env or {})),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def said(self, timeout: float = 60) -> Said:
        try:
            out, errors = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise
        assert "Traceback" not in errors, errors
        return Said(self.process.returncode, out, errors)


def ask(*arguments: str, env: Mapping[str, str] | None = None) -> Said:
    return Asked(*arguments, env=env).said()


def ask_all(*commands: Sequence[str]) -> list[Said]:
    """Two at a time, since each has a core to itself for a second before it asks."""
    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(lambda words: ask(*words), commands))

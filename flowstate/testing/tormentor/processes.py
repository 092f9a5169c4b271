"""Real processes and what can be done to them: killed, stopped, let run on, watched."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from flowstate.clock import Clock, SystemClock
from flowstate.errors import Unavailable
from flowstate.testing.tormentor import marks


class Victim:
    """One process, by its number. Linux: everything about it is read from /proc."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._place = Path("/proc") / str(pid)

    def kill(self) -> None:
        """SIGKILL: nothing is flushed, closed or told to anybody. Not an error if it is gone."""
        self._send(signal.SIGKILL)

    def freeze(self) -> None:
        """SIGSTOP: it lives, its connections stay, and it does nothing."""
        self._send(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT: it goes on as if no time had passed."""
        self._send(signal.SIGCONT)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        self.freeze()
        try:
            yield
        finally:
            self.thaw()

    def _send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    @property
    def alive(self) -> bool:
        return self.state not in ("", "Z", "X")

    @property
    def state(self) -> str:
        """One letter as in `ps`: R, S, D, T (stopped), Z; empty if it is gone."""
        try:
            return (self._place / "stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            return ""

    @property
    def command(self) -> str:
        try:
            return (self._place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            return ""

    @property
    def memory(self) -> int:
        """Resident bytes; 0 if it is gone."""
        try:
            return int((self._place / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except OSError:
            return 0

    @property
    def descriptors(self) -> list[str]:
        """What its open file descriptors point to."""
        found = []
        with contextlib.suppress(OSError):
            for each in (self._place / "fd").iterdir():
                with contextlib.suppress(OSError):
                    found.append(os.readlink(each))
        return found

    @property
    def threads(self) -> int:
        try:
            return len(list((self._place / "task").iterdir()))
        except OSError:
            return 0

    def __repr__(self) -> str:
        return f"<process {self.pid} {self.state or 'gone'}>"


class ProcessTree(marks.Undone):
    """A program with every process that it starts, whatever session or parent they have: they inherit a mark in their environment.

    Its standard streams: `log` takes the output and errors; with `talks`, standard input and output are pipes for `ask`.
    """

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        *,
        environment: Mapping[str, str] | None = None,
        talks: bool = False,
        clock: Clock | None = None,
    ) -> None:
        self.name, self.log, self._clock = marks.mark(), log, clock or SystemClock()
        super().__init__()
        with log.open("ab") as said:
            pipe = subprocess.PIPE
            self.process: subprocess.Popen[str] = subprocess.Popen(
                list(command),
                stdin=pipe if talks else subprocess.DEVNULL,
                stdout=pipe if talks else said,
                stderr=said,
                text=True,
                env={**os.environ, **(environment or {}), marks.VARIABLE: self.name},
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )

    def members(self) -> list[Victim]:
        """Every living process of it."""
        return [each for each in map(Victim, marks.marked_processes(self.name)) if each.alive]

    @property
    def root(self) -> Victim:
        return Victim(self.process.pid)

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def kill(self) -> None:
        """All of its processes, at once as far as that is possible: what they start meanwhile is killed too."""
        self.root.kill()
        while members := self.members():
            for each in members:
                each.kill()
            threading.Event().wait(0.005)
        self.process.wait(10)
        for stream in (self.process.stdin, self.process.stdout):
            _close(stream)

    def end(self, timeout: float = 20.0) -> int:
        """SIGTERM to the program, and wait for it and everything it started; its exit code. Kills what is left after `timeout`."""
        self.root._send(signal.SIGTERM)
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            code = -signal.SIGKILL
        left = self._clock.monotonic() + timeout
        while self.members() and self._clock.monotonic() < left:
            threading.Event().wait(0.02)
        self.close()
        return code

    def hear(self) -> str:
        """The next line that it says; empty at its end."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self, line: str) -> str:
        """Say a line, hear one."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.hear()

    def undo(self) -> None:
        self.kill()


class Service(marks.Undone):
    """A program that is started again when it ends, as systemd or Kubernetes would do it, `pause` seconds later."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        *,
        environment: Mapping[str, str] | None = None,
        pause: float = 0.2,
        clock: Clock | None = None,
    ) -> None:
        self.name, self.command, self.log, self.restarts = name, list(command), log, 0
        self._environment, self._pause, self._clock = environment, pause, clock or SystemClock()
        self._lock = threading.Lock()
        self._stopping, self._wanted = threading.Event(), threading.Event()
        self._wanted.set()
        self._tree: ProcessTree | None = None
        self._began = threading.Event()
        super().__init__()
        # Children end with the thread that made them (prctl is per thread), so one thread makes them all.
        self._thread = threading.Thread(target=self._watch, name=f"service-{name}", daemon=True)
        self._thread.start()
        self._began.wait(10)

    @property
    def tree(self) -> ProcessTree:
        """Of now; a restart makes another."""
        with self._lock:
            if self._tree is None:
                raise Unavailable("this service is not running", service=self.name, retry_after=self._pause)
            return self._tree

    def members(self) -> list[Victim]:
        with self._lock:
            return self._tree.members() if self._tree is not None else []

    def kill(self, *, for_good: bool = False) -> None:
        """SIGKILL to all of it. It comes back, unless `for_good`."""
        if for_good:
            self._wanted.clear()
        with self._lock:
            tree = self._tree
        if tree is not None:
            tree.kill()

    def bring_back(self) -> None:
        """After `kill(for_good=True)`."""
        self._wanted.set()

    def _watch(self) -> None:
        while not self._stopping.is_set():
            if not self._wanted.wait(0.1):
                continue
            tree = ProcessTree(self.command, self.log, environment=self._environment, clock=self._clock)
            with self._lock:
                self._tree = tree
            self._began.set()
            while not tree.ended and not self._stopping.wait(0.02):
                pass
            tree.close()
            with self._lock:
                self._tree = None
            if not self._stopping.wait(self._pause):
                self.restarts += 1

    def undo(self) -> None:
        self._stopping.set()
        self._thread.join(20)


def _die_with_parent() -> None:
    # A run that is itself killed leaves nothing behind (Linux). What these start in turn is swept by its mark.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _close(stream: IO[str] | None) -> None:
    if stream is not None:
        with contextlib.suppress(OSError):
            stream.close()

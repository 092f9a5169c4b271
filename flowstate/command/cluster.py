"""Where ``flowstate run`` runs a job: on a cluster of its own, whose processes it starts again when they die, or on one that it joins."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from distributed import Client

from flowstate.api.own_cluster import DASK_SETTINGS
from flowstate.errors import Unavailable

Say = Callable[[str], None]
START = 30.0  # seconds that a process may take to come up


class Cluster(Protocol):
    """A place for jobs."""

    def connect(self, wait: Callable[[float], None], say: Say) -> Client:
        """A client of the cluster, which is up or is brought up. `wait` waits some seconds, and raises when the command is to end.
        Unavailable when it does not come up: try again later."""

    def trouble(self, say: Say) -> str | None:
        """Why the cluster as it is cannot go on; None while it can. Mends what can be mended without losing the scheduler."""

    def close(self) -> None:
        """Leave it; an own one ends."""


class JoinedCluster:
    """A cluster that somebody else keeps up."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._client: Client | None = None
        self._identity = ""

    def connect(self, wait: Callable[[float], None], say: Say) -> Client:
        try:
            self._client = Client(self.address, timeout=5, set_as_default=False)
        except (OSError, TimeoutError) as error:
            raise Unavailable(
                "there is no Dask scheduler at this address", address=self.address, retry_after=1.0
            ) from error
        self._identity = _identity(self._client)
        return self._client

    def trouble(self, say: Say) -> str | None:
        if self._client is None or self._client.status != "running":
            return "the connection to the scheduler is lost"
        try:
            if _identity(self._client) != self._identity:
                return "another scheduler has come up at its address"
        except (OSError, TimeoutError):
            return "the scheduler does not answer"
        return None

    def close(self) -> None:
        self._client = None


def _identity(client: Client) -> str:
    found: Any = client.sync(client.scheduler.identity, callback_timeout=10)
    return str(found["id"])


class OwnCluster:
    """A scheduler and workers on this machine, on loopback, as child processes. Jobs' modules lie in `folder`."""

    def __init__(self, workers: int | None, folder: str) -> None:
        self.workers = workers or min(2, os.cpu_count() or 1)
        self.folder = folder
        self._scheduler: subprocess.Popen[bytes] | None = None
        self._worker: subprocess.Popen[bytes] | None = None
        self._place: tempfile.TemporaryDirectory[str] | None = None

    def connect(self, wait: Callable[[float], None], say: Say) -> Client:
        self.close()
        self._place = tempfile.TemporaryDirectory(prefix="flowstate-run-")
        record = self._record
        self._scheduler = self._start(
            "scheduler", "--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0",
            "--scheduler-file", str(record),
        )  # fmt: skip
        self._start_workers()  # they wait for the record
        waited = 0.0
        while not _complete(record):
            if self._scheduler.poll() is not None or waited > START:
                self.close()
                raise Unavailable("the scheduler process did not come up; its messages are above", retry_after=1.0)
            wait(0.05)
            waited += 0.05
        client = Client(json.loads(record.read_text())["address"], timeout=START, set_as_default=False)
        waited = 0.0
        while len(client.scheduler_info(n_workers=-1)["workers"]) < self.workers and waited < START:
            wait(0.05)
            waited += 0.05
        return client

    def _start_workers(self) -> None:
        self._worker = self._start(
            "worker", "--scheduler-file", str(self._record), "--host", "127.0.0.1", "--nworkers", str(self.workers), "--nthreads", "1",
            "--memory-limit", "0", "--no-dashboard", "--death-timeout", "60", "--local-directory", str(self._record.parent),
        )  # fmt: skip

    @property
    def _record(self) -> Path:
        """Where the scheduler writes its address."""
        assert self._place is not None
        return Path(self._place.name) / "scheduler.json"

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "flowstate.command.child", str(os.getpid()), *arguments]
        paths = [self.folder, *(each for each in sys.path if each)]
        settings = {f"DASK_{name.upper().replace('.', '__')}": str(value) for name, value in DASK_SETTINGS.items()}
        # Semaphores of workers that were killed are cleaned up by multiprocessing's tracker, which says so at length.
        quiet = {
            "PYTHONWARNINGS": "ignore::UserWarning:multiprocessing.resource_tracker",
            "DASK_LOGGING__DISTRIBUTED": "error",
        }
        environment = {**os.environ, **settings, **quiet, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
        # A session of its own: Ctrl-C in the terminal is for the command, which then stops the job in order.
        return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)

    def trouble(self, say: Say) -> str | None:
        assert self._scheduler is not None
        assert self._worker is not None
        if (code := self._scheduler.poll()) is not None:
            return f"the scheduler process died ({_died(code)})"
        if (code := self._worker.poll()) is not None:
            say(f"the process that keeps the workers died ({_died(code)}); another one is started")
            self._start_workers()
        return None

    def close(self) -> None:
        """SIGTERM first: workers say goodbye. What is left after 5 s is killed."""
        processes = [each for each in (self._worker, self._scheduler) if each is not None]
        for each in processes:
            if each.poll() is None:
                each.send_signal(signal.SIGTERM)
            try:
                each.wait(5)
            except subprocess.TimeoutExpired:
                each.kill()
                each.wait()
        self._worker = self._scheduler = None
        if self._place is not None:
            self._place.cleanup()
            self._place = None

    def kill(self) -> None:
        """At once, after a scheduler was lost: what is left of its workers is of no use to anybody."""
        for each in (self._worker, self._scheduler):
            if each is not None and each.poll() is None:
                each.kill()
                each.wait()


def _complete(record: Path) -> bool:
    try:
        return "address" in json.loads(record.read_text())
    except (FileNotFoundError, ValueError):
        return False


def _died(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def be_quiet() -> None:
    """Dask tells of lost connections at length; the command says what matters."""
    for name in ("distributed", "distributed.client"):
        logging.getLogger(name).setLevel(logging.CRITICAL)

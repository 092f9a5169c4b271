"""A Dask cluster of processes, as an operator runs it: `dask scheduler` and `dask worker`, to be stopped and killed one by one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
from distributed import Client
from waiting import until


class DaskProcesses:
    """`scheduler` and `workers` are processes; `address` is the scheduler's."""

    def __init__(self, folder: Path, workers: int, nanny: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.log = folder, (folder / "dask.log").open("ab")
        self.file = folder / "scheduler.json"
        common = ["--host", "127.0.0.1", "--no-dashboard", "--scheduler-file", str(self.file)]
        self.scheduler = self._begin(["scheduler", "--port", "0", *common])
        self.workers: list[subprocess.Popen[bytes]] = []
        try:
            until(lambda: self.file.exists() and self.file.read_text().rstrip().endswith("}"))
        except BaseException:
            self.close()
            raise
        self.address = json.loads(self.file.read_text())["address"]
        kind = ["--nanny" if nanny else "--no-nanny", "--nthreads", "1", "--memory-limit", "0"]
        self.workers = [
            self._begin(["worker", "--host", "127.0.0.1", "--no-dashboard", "--scheduler-file", str(self.file), *kind])
            for _ in range(workers)
        ]

    def _begin(self, arguments: list[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "dask", *arguments], stdout=self.log, stderr=self.log, cwd=self.folder
        )

    def close(self) -> None:
        for each in (*self.workers, self.scheduler):
            with contextlib.suppress(psutil.NoSuchProcess):
                family = [psutil.Process(each.pid), *psutil.Process(each.pid).children(recursive=True)]
                for member in family:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        member.send_signal(signal.SIGKILL)
            each.wait(10)
        self.log.close()


@contextlib.contextmanager
def dask_processes(folder: Path, workers: int = 2, *, nanny: bool = False) -> Iterator[tuple[DaskProcesses, Client]]:
    """The cluster, and a client of it, when all workers are there."""
    cluster = DaskProcesses(folder, workers, nanny)
    try:
        with Client(cluster.address, timeout=20) as client:
            client.wait_for_workers(workers, timeout=30)
            yield cluster, client
    finally:
        cluster.close()


def answering(client: Client) -> int:
    """How many workers there are, all of which answer."""
    try:
        return len(pids(client))
    except Exception:  # one of them is just going
        return 0


def pids(client: Client) -> dict[str, int]:
    """Worker -> pid of its process."""
    return dict(client.run(os.getpid))

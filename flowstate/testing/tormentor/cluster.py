"""A Dask cluster of real processes: a scheduler and workers, each a program that is started again when it ends."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from flowstate.clock import Clock, SystemClock
from flowstate.errors import Unavailable
from flowstate.testing.tormentor import marks
from flowstate.testing.tormentor.network import NetworkHost
from flowstate.testing.tormentor.processes import Service, Victim

#: What Dask should not do to a process that holds state, and how soon it should see that a machine is gone.
SETTINGS = {
    "DASK_DISTRIBUTED__SCHEDULER__WORK_STEALING": "False",
    "DASK_DISTRIBUTED__SCHEDULER__ACTIVE_MEMORY_MANAGER__START": "False",
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
}


def free_port(host: str = "127.0.0.1") -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


class DaskCluster(marks.Undone):
    """`workers` of them on loopback; or one on each of `hosts`, the scheduler on `hub`. Logs and local files go to `folder`."""

    def __init__(
        self,
        folder: Path,
        workers: int = 2,
        *,
        hub: NetworkHost | None = None,
        hosts: Sequence[NetworkHost] = (),
        settings: Mapping[str, str] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.folder, self._clock = folder, clock or SystemClock()
        folder.mkdir(parents=True, exist_ok=True)
        at, port = hub.address if hub else "127.0.0.1", free_port()
        self.address = f"tcp://{at}:{port}"
        environment = {**SETTINGS, "DASK_TEMPORARY_DIRECTORY": str(folder / "dask"), **(settings or {})}
        super().__init__()
        self.workers: list[Service] = []
        command = ["scheduler", "--host", at, "--port", str(port), "--dashboard-address", f"{at}:0"]
        self.scheduler = self._service("scheduler", command, hub, environment)
        for number in range(len(hosts) or workers):
            host = hosts[number] if hosts else None
            where = ["--host", host.address if host else "127.0.0.1"]
            command = ["worker", self.address, *where, "--name", f"worker-{number}", "--nthreads", "1"]
            command += ["--memory-limit", "0", "--no-dashboard", "--death-timeout", "60"]
            self.workers.append(self._service(f"worker-{number}", command, host, environment))

    def _service(
        self, name: str, command: Sequence[str], host: NetworkHost | None, environment: Mapping[str, str]
    ) -> Service:
        whole = [sys.executable, "-m", "dask", *command]
        log = self.folder / f"{name}.log"
        return Service(name, host.command(*whole) if host else whole, log, environment=environment, clock=self._clock)

    def wait_until_up(self, count: Callable[[], int], timeout: float = 60.0) -> None:
        """Until `count` (for example ``lambda: len(client.nthreads())``) says that every worker is there."""
        deadline = self._clock.monotonic() + timeout
        while (there := count()) < len(self.workers):
            if self._clock.monotonic() > deadline:
                raise Unavailable(
                    "the cluster does not come up", there=there, wanted=len(self.workers), logs=str(self.folder)
                )
            threading.Event().wait(0.05)

    def worker_process(self, number: int) -> Victim:
        """The process that does the work; its nanny, which starts another when it dies, is not it."""
        found = [each for each in self.workers[number].members() if "spawn_main" in each.command]
        if not found:
            raise Unavailable("this worker has no process just now", worker=number, retry_after=0.5)
        return found[0]

    def processes(self) -> dict[str, list[Victim]]:
        """All living processes by their role: scheduler, nannies, workers."""
        roles: dict[str, list[Victim]] = {"scheduler": self.scheduler.members(), "nanny": [], "worker": []}
        for service in self.workers:
            for each in service.members():
                if "resource_tracker" not in each.command:
                    roles["worker" if "spawn_main" in each.command else "nanny"].append(each)
        return roles

    def undo(self) -> None:
        for each in [*self.workers, self.scheduler]:
            each._stopping.set()
        for each in [*self.workers, self.scheduler]:
            each.close()

"""The cluster that `start` makes when it is given none: worker processes on this machine, on loopback, that hold still."""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distributed import Client

#: What each of our workers runs first. A terminal and a notebook send their interrupt to all processes at once; a worker leaves it to the
#: process that stops the job, or there would be no last snapshot. A heartbeat that was under way when the cluster was closed is no news.
WORKER_PRELOAD = """
import logging
import signal

signal.signal(signal.SIGINT, signal.SIG_IGN)
logging.getLogger("distributed.worker").addFilter(lambda record: "during heartbeat" not in str(record.msg))
"""

#: Environment of a worker, all of it that Dask sets. Dask has the C library give back every piece of over 128 KiB at once, and whatever is
#: over 64 KiB at the end of its heap: a message of 10,000 keys then costs 70 page faults, a third of what its answer takes, and 1 MiB of
#: a log that is read 700. State does not lie there (`state.block` maps its own memory).
WORKER_ENVIRONMENT = {
    "MALLOC_TRIM_THRESHOLD_": 32 << 20,
    "MALLOC_MMAP_THRESHOLD_": 8 << 20,
    "OMP_NUM_THREADS": 1,
    "MKL_NUM_THREADS": 1,
    "OPENBLAS_NUM_THREADS": 1,
}

#: What Dask's own machinery should not do to a process that holds state (it would move, sample, pause or kill it; it would look 50 times
#: a second whether its event loop stands still; and a worker that is not there 15 s after it was lost, because its nanny takes longer to
#: start it again or because it was lost a second time, would be given up for good, nanny and all).
DASK_SETTINGS: dict[str, Any] = {
    "distributed.admin.tick.interval": "500ms",
    "distributed.deploy.lost-worker-timeout": "365 days",
    "distributed.scheduler.work-stealing": False,
    "distributed.scheduler.active-memory-manager.start": False,
    "distributed.worker.profile.enabled": False,
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": False,
    "distributed.worker.preload": [WORKER_PRELOAD],
    "distributed.nanny.pre-spawn-environ": WORKER_ENVIRONMENT,
}


def own_cluster(stack: ExitStack) -> Client:
    """A client of a new LocalCluster; both are closed by `stack`."""
    import dask
    from distributed import Client, LocalCluster

    _leave_main_alone()
    stack.enter_context(dask.config.set(DASK_SETTINGS))
    cluster = stack.enter_context(
        LocalCluster(
            n_workers=min(2, os.cpu_count() or 1),
            threads_per_worker=1,
            memory_limit=0,
            dashboard_address="127.0.0.1:0",
            silence_logs=logging.ERROR,
        )
    )
    return stack.enter_context(Client(cluster))


def _leave_main_alone() -> None:
    """Dask's workers are spawned, and a spawned process first runs the user's script again, unless that is guarded by
    ``if __name__ == "__main__"``. A flow is sent to them by value, so they need nothing of the script: a program without the guard
    works as it stands. Other processes that the script spawns are not touched."""
    from multiprocessing import spawn

    prepare = spawn.get_preparation_data
    if getattr(prepare, "leaves_main_alone", False):
        return

    def prepared(name: str) -> dict[str, Any]:
        data = prepare(name)
        if name.startswith("Dask Worker process"):
            for key in ("init_main_from_path", "init_main_from_name"):
                data.pop(key, None)
        return data

    prepared.leaves_main_alone = True  # type: ignore[attr-defined]
    spawn.get_preparation_data = prepared

"""A process of an own cluster: ``python -m flowstate.command.child PARENT scheduler|worker ...`` is ``dask scheduler|worker ...`` and ends
with the process PARENT, however that ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Linux kills this process when its parent dies. Elsewhere workers end by themselves when the scheduler is gone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before that
        os._exit(1)


def main() -> None:
    die_with_parent(int(sys.argv[1]))
    import dask

    # Before distributed is imported, which sets its loggers up by this. What matters is told by the command and by flowstate's own log.
    dask.config.config.setdefault("logging", {}).update(
        {"distributed": "error", "distributed.nanny": "critical", "tornado.application": "critical"}
    )
    from dask.cli import cli
    from distributed.cli import dask_scheduler, dask_worker

    sys.argv = ["dask", *sys.argv[2:]]
    cli.add_command(dask_scheduler.main, "scheduler")
    cli.add_command(dask_worker.main, "worker")
    cli()


if __name__ == "__main__":
    main()

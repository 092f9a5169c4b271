"""How a job is doing, beside Dask's own dashboard: a page "Flowstate" in its navigation bar, ``/flowstate.json``, and metrics for
Prometheus under ``/metrics`` of the scheduler and of every worker.

Above `runtime`, which it looks at from outside, and below `api`, which installs it with a job. A worker sends figures with its
heartbeats (`worker`, `figures`); the scheduler looks at its jobs once a second (`looking`), keeps the last quarter of an hour (`history`)
and shows it (`scheduler`, `page`). bokeh and prometheus_client are extras: without the first there is no page, without the other no
metrics.

Installed by ``fs.start``; or from the beginning, by ``dask scheduler --preload flowstate.dashboard`` (and ``dask worker`` alike).
"""

from __future__ import annotations

from typing import Any


async def dask_setup(server: Any) -> None:
    """What Dask calls of a module that it preloads."""
    from distributed import Scheduler

    from flowstate.dashboard import scheduler, worker

    if isinstance(server, Scheduler):
        server.add_plugin(scheduler.Dashboard(), name=scheduler.NAME, idempotent=True)
    else:
        await server.plugin_add(worker.WorkerMetrics(), name=worker.NAME)

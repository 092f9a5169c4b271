"""The worker's side: figures of its partitions with every heartbeat of Dask, and for Prometheus when it asks."""

from __future__ import annotations

from typing import Any

from distributed import Worker, WorkerPlugin

from flowstate.dashboard.figures import Figures
from flowstate.dashboard.metrics import forget_worker, watch_worker
from flowstate.runtime.host import NAME as HOST
from flowstate.runtime.host import Host

NAME = "flowstate-metrics"
#: Under this name heartbeats carry them.
FIGURES = "flowstate"


class WorkerMetrics(WorkerPlugin):
    """Beside a `Host`, which may come before or after it, or not at all."""

    name = NAME

    def setup(self, worker: Worker) -> None:
        self.figures: Figures | None = None
        worker.metrics[FIGURES] = self.look

    def teardown(self, worker: Worker) -> None:
        worker.metrics.pop(FIGURES, None)
        if self.figures is not None:
            forget_worker(self.figures)

    def look(self, worker: Worker) -> dict[str, Any]:
        host = worker.plugins.get(HOST)
        if not isinstance(host, Host) or not hasattr(host, "served"):
            return {}
        if self.figures is None or self.figures.host is not host:
            if self.figures is not None:
                forget_worker(self.figures)
            self.figures = Figures(host)
            watch_worker(self.figures)
        return self.figures.look()

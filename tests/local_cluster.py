"""A Dask cluster on this machine, for jobs whose cluster is not what is tested (`dask_processes` is for those)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import dask
from distributed import Client, LocalCluster

from flowstate.api.own_cluster import DASK_SETTINGS

LOST = "distributed.deploy.lost-worker-timeout"


@contextlib.contextmanager
def two_workers() -> Iterator[Client]:
    """A client of two worker processes of one thread; one that is killed is replaced by its nanny, however long that takes and however
    often it is killed."""
    with (
        dask.config.set({LOST: DASK_SETTINGS[LOST]}),
        LocalCluster(n_workers=2, threads_per_worker=1, memory_limit=0, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        yield client

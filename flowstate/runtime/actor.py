"""The Dask actor of a partition: a thin handle, so that Dask places it, shows it and ends it.

Methods are coroutines that return plain data and never raise: an actor call that raises what cannot be unpickled hangs for ever.
"""

from __future__ import annotations

from typing import Any

from distributed import get_worker

from flowstate.runtime.host import host_of
from flowstate.runtime.status import describe


class PartitionActor:
    """`PartitionActor(job, run, partition, epoch)` begins the incarnation on the worker where it is created, which was given the job's
    spec before (`Host.prepare`)."""

    def __init__(self, job: str, run: int, partition: int, epoch: int) -> None:
        self._pump = host_of(get_worker()).open(job, run, partition, epoch)

    async def status(self) -> dict[str, Any]:
        return describe(self._pump)

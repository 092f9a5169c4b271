"""The scheduler's side of flowstate: a Dask `SchedulerPlugin` that holds the running jobs.

It lives in the scheduler, so the notebook that started a job may go away. Its client (also in the scheduler's process) keeps the actors
alive. Requests and reports come as plain Dask messages; errors go back as data.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import cloudpickle
from distributed import Client, Scheduler, SchedulerPlugin

from flowstate.clock import SystemClock
from flowstate.errors import FlowstateError, InternalError, InvalidFlow, Unavailable, did_you_mean
from flowstate.runtime.beginning import begin
from flowstate.runtime.job_spec import JobSpec
from flowstate.runtime.running import RunningJob

NAME = "flowstate"
logger = logging.getLogger("flowstate")


class Supervisor(SchedulerPlugin):
    """Installed once per scheduler by `start`; idempotent."""

    name = NAME
    idempotent = True

    async def start(self, scheduler: Scheduler) -> None:
        self.scheduler, self.clock = scheduler, SystemClock()
        self.jobs: dict[str, RunningJob] = {}
        self.locations: dict[str, str] = {}
        self.client: Client | None = None
        self._starting = asyncio.Lock()
        scheduler.handlers["flowstate_report"] = self.report
        scheduler.handlers["flowstate_start"] = self.start_job
        scheduler.handlers["flowstate_request"] = self.request

    async def before_close(self) -> None:
        for job in list(self.jobs.values()):
            await job.stop(snapshot=False)

    async def close(self) -> None:
        if self.client is not None:
            await self.client.close(timeout=1)

    def remove_worker(self, scheduler: Scheduler, worker: str, **kwargs: Any) -> None:
        self.locations.pop(worker, None)
        for job in self.jobs.values():
            job.worker_lost(worker)

    def _found(self, worker: str, location: str) -> None:
        if self.locations.get(worker) != location:
            self.locations[worker] = location
            for job in self.jobs.values():
                job.worker_joined(worker, location)

    # handlers

    async def report(self, worker: str, location: str, pid: int, reports: list[dict[str, Any]]) -> bool:
        """False if the scheduler does not know the worker yet: it announces itself again."""
        if worker not in self.scheduler.workers:
            return False
        self._found(worker, location)
        for report in reports:
            if (job := self.jobs.get(report["job"])) is not None:
                try:
                    job.reported(worker, report)
                except Exception as error:  # the reports of other jobs come after it
                    job.problems["supervisor"] = f"{type(error).__name__}: {error}"
                    logger.exception("job %s", job.spec.name)
        return True

    async def start_job(self, spec: bytes) -> dict[str, Any]:
        """Claims the run and begins. The answer comes as soon as the run is claimed; partitions come up afterwards."""
        try:
            asked: JobSpec = cloudpickle.loads(spec)
            async with self._starting:
                running = self.jobs.get(asked.name)
                if running is not None and running.state not in ("stopped", "fenced"):
                    raise InvalidFlow(
                        "a job of this name is running on this cluster; use fs.attach, stop it first, or choose another name=",
                        job=asked.name,
                    )
                await self._hosts_are_known()
                beginning = await asyncio.to_thread(begin, asked, self.clock)
                if self.client is None:
                    self.client = await Client(self.scheduler.address, asynchronous=True, set_as_default=False)
                job = self.jobs[asked.name] = RunningJob(beginning, self.scheduler, self.client, self.clock)
            for worker, location in self.locations.items():
                job.worker_joined(worker, location)
            return {"ok": {"name": asked.name, "run": beginning.spec.run, "generation": beginning.spec.generation}}
        except Exception as error:
            return failure(error)

    async def _hosts_are_known(self) -> None:
        """Partitions are spread over the workers that have announced themselves, so all of them should have, or nearly."""
        deadline = self.clock.monotonic() + 5.0
        while self.scheduler.workers.keys() - self.locations.keys() and self.clock.monotonic() < deadline:
            await asyncio.sleep(0.01)

    async def request(self, operation: str, job: str | None = None, **arguments: Any) -> dict[str, Any]:
        """What a `Job` asks: jobs, status, directory, cut, drain, stop."""
        try:
            if operation == "jobs":
                return {"ok": {name: each.state for name, each in self.jobs.items()}}
            running = self.jobs.get(str(job))
            if running is None:
                raise InvalidFlow(f"no job {job!r} on this cluster{did_you_mean(str(job), self.jobs)}")
            return {"ok": await self._answer(running, operation, arguments)}
        except Exception as error:
            return failure(error)

    async def _answer(self, job: RunningJob, operation: str, arguments: dict[str, Any]) -> Any:
        match operation:
            case "status":
                return job.status()
            case "directory":
                return job.directory().to_json()
            case "cut":
                if not job.ready or job.state not in ("running", "finished"):
                    raise Unavailable("the job is not up", job=job.spec.name, state=job.state, retry_after=0.5)
                done = await job.cut(float(arguments.get("timeout", 5.0)))
                return {"cut": done.cut, "position": {split: list(place) for split, place in done.position.items()}}
            case "drain":
                job.drain()
                return None
            case "stop":
                await job.stop(snapshot=bool(arguments.get("snapshot", True)))
                return job.status()
        raise InternalError("an unknown request; driver and cluster run different versions", operation=operation)


def failure(error: Exception) -> dict[str, Any]:
    """An error as data: an exception that cannot be unpickled would hang its caller."""
    if isinstance(error, FlowstateError):
        facts = {
            name: value if isinstance(value, int | float | str) else repr(value) for name, value in error.facts.items()
        }
        return {"error": {"kind": type(error).__name__, "message": error.message, "facts": facts}}
    return {"error": {"kind": "InternalError", "message": f"{type(error).__name__}: {error}", "facts": {}}}

"""The scheduler's side of flowstate: a Dask `SchedulerPlugin` that holds the running jobs.

It lives in the scheduler, so the notebook that started a job may go away. Its client (also in the scheduler's process) keeps the actors
alive. Requests and reports come as plain Dask messages; errors go back as data.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import cloudpickle
from distributed import Client, Scheduler, SchedulerPlugin, Status

from flowstate.clock import SystemClock
from flowstate.errors import Fenced, InternalError, InvalidFlow, Unavailable, did_you_mean
from flowstate.runtime.beginning import begin
from flowstate.runtime.job_spec import JobSpec
from flowstate.runtime.overview import replaced
from flowstate.runtime.pinging import ping
from flowstate.runtime.reply import failure
from flowstate.runtime.running import RunningJob
from flowstate.runtime.security import Security
from flowstate.runtime.watchdog import TICK, Condemn, Ping, Watchdog

NAME = "flowstate"
logger = logging.getLogger("flowstate")


class Supervisor(SchedulerPlugin):
    """Installed once per scheduler by `start`; idempotent."""

    name = NAME
    idempotent = True

    def __init__(self, security: Security | None = None) -> None:
        self.security = security or Security()

    async def start(self, scheduler: Scheduler) -> None:
        self.scheduler, self.clock = scheduler, SystemClock()
        self.jobs: dict[str, RunningJob] = {}
        self.locations: dict[str, str] = {}
        self.credentials = self.security.credentials()
        self.hosts: dict[str, str] = {}  # worker -> the secret of its process
        self.dead: set[str] = set()  # secrets of processes that were given up: whatever they still say
        self.watchdog = Watchdog()
        self._heard: dict[str, int] = {}  # worker -> the last ping that it answered
        self._pingers = ThreadPoolExecutor(16, thread_name_prefix="flowstate-ping")
        self._watching = asyncio.ensure_future(self._watch_always())
        self._tasks: set[asyncio.Task[Any]] = set()
        self.client: Client | None = None
        self._starting = asyncio.Lock()
        scheduler.handlers["flowstate_report"] = self.report
        scheduler.handlers["flowstate_start"] = self.start_job
        scheduler.handlers["flowstate_request"] = self.request

    async def before_close(self) -> None:
        for job in list(self.jobs.values()):
            await job.stop(snapshot=False)

    async def close(self) -> None:
        self._watching.cancel()
        self._pingers.shutdown(wait=False, cancel_futures=True)
        if self.client is not None:
            await self.client.close(timeout=1)

    def remove_worker(self, scheduler: Scheduler, worker: str, **kwargs: Any) -> None:
        self._lose(worker, f"its worker was lost: {worker} ended, or is reached no more; its log says why")

    def _lose(self, worker: str, reason: str) -> None:
        self.watchdog.left(worker)
        tables: list[dict[str, Any]] = [self.locations, self.hosts, self._heard]
        for known in tables:
            known.pop(worker, None)
        for job in self.jobs.values():
            job.worker_lost(worker, reason)

    def _found(self, worker: str, location: str, host: str) -> None:
        if self.hosts.get(worker) == host:
            return
        if worker in self.hosts:
            self._lose(worker, "its process was replaced by another at the same address")
        self.hosts[worker], self.locations[worker] = host, location
        for job in self.jobs.values():
            job.worker_joined(worker, location)

    # workers that hang

    async def _watch_always(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            for each in self.watchdog.tick(self.clock.monotonic()):
                match each:
                    case Ping():
                        self._spawn(self._ping(each))
                    case Condemn():
                        self._condemn(each)

    async def _ping(self, each: Ping) -> None:
        asked = {"to": self.hosts[each.worker], "number": each.number, "heard": self._heard.get(each.worker, 0)}
        ask = partial(ping, self.locations[each.worker], self.credentials, **asked)
        answer = await asyncio.get_running_loop().run_in_executor(self._pingers, ask)
        ok = answer is not None and answer.get("known") is True and answer.get("number") == each.number
        if ok and self.hosts.get(each.worker) == asked["to"]:
            self._heard[each.worker] = each.number
        self.watchdog.pinged(each.worker, each.number, ok, self.clock.monotonic())

    def _condemn(self, each: Condemn) -> None:
        """First nobody counts on it any more, then its process is ended. What it still does when it wakes before that is fenced, and its
        first report is answered by what it is: dead."""
        reason = f"its worker {each.worker} hangs: it said nothing for {each.silent:.1f} s and answered no ping; it was ended"
        logger.warning("%s: %s", each.worker, reason)
        self.dead.add(self.hosts[each.worker])
        self._lose(each.worker, reason)
        self._spawn(self._end_process(each.worker))

    async def _end_process(self, worker: str) -> None:
        """By its nanny, which then starts another; without one, or when that hangs too, Dask at least forgets the worker."""
        state = self.scheduler.workers.get(worker)
        if state is None:
            return
        try:
            if state.nanny is not None:
                await asyncio.wait_for(self.scheduler.rpc(state.nanny).kill(timeout=0.1), 5.0)
        except Exception as error:  # whatever the nanny says: the worker must go
            logger.warning("%s: its nanny did not end it: %r", worker, error)
        if self.scheduler.workers.get(worker) is state:
            await self.scheduler.remove_worker(worker, stimulus_id=f"flowstate-hangs-{self.clock.monotonic()}")

    def _spawn(self, work: Any) -> None:
        async def run() -> None:
            try:
                await work
            except Exception:
                if self.scheduler.status == Status.running:
                    logger.exception("the supervisor")

        task = asyncio.ensure_future(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # handlers

    async def report(
        self, worker: str, location: str, host: str, pid: int, warm: bool, reports: list[dict[str, Any]]
    ) -> dict[str, bool]:
        """Not `known`: the scheduler does not know the worker yet, it announces itself again. `dead`: it was given up, and goes."""
        if host in self.dead:
            return {"known": False, "dead": True}
        if worker not in self.scheduler.workers:
            return {"known": False, "dead": False}
        self._found(worker, location, host)
        self.watchdog.reported(worker, self.clock.monotonic())
        if warm:
            for each in self.jobs.values():
                each.worker_warm(worker)
        for report in reports:
            job = self.jobs.get(report["job"])
            if job is not None and report["run"] == job.spec.run:
                try:
                    job.reported(worker, report)
                except Exception as error:  # the reports of other jobs come after it
                    job.problems["supervisor"] = f"{type(error).__name__}: {error}"
                    logger.exception("job %s", job.spec.name)
        return {"known": True, "dead": False}

    async def start_job(self, spec: bytes) -> dict[str, Any]:
        """Claims the run and begins. The answer comes as soon as the run is claimed; partitions come up afterwards."""
        try:
            asked: JobSpec = cloudpickle.loads(spec)
            async with self._starting:
                running = self.jobs.get(asked.name)
                if running is not None and running.state in ("stopped", "fenced"):
                    running = None
                if running is not None and not asked.takeover:
                    raise InvalidFlow(
                        "a job of this name is running on this cluster; use fs.attach, stop it first, choose another name=, "
                        "or replace it with takeover=True",
                        job=asked.name,
                        run=running.spec.run,
                    )
                await self._hosts_are_known()
                beginning = await asyncio.to_thread(begin, asked, self.clock, self.credentials)
                if running is not None:
                    await running.fenced_by(beginning.spec.run)
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
        """What a `Job` asks: jobs, security, status, directory, cut, drain, stop. With `run` it is for that run alone; Fenced if another is
        here."""
        try:
            if operation == "jobs":
                return {"ok": {name: each.state for name, each in self.jobs.items()}}
            if operation == "security":  # to who comes through Dask, and may run any code here
                return {"ok": {"fingerprint": self.security.fingerprint, "connecting": self.security.connecting()}}
            running = self.jobs.get(str(job))
            if running is None:
                raise InvalidFlow(f"no job {job!r} on this cluster{did_you_mean(str(job), self.jobs)}")
            run = arguments.pop("run", None)
            if run is not None and run != running.spec.run:
                fenced = Fenced("a newer run of this job has taken over", run=run, newest=running.spec.run)
                if operation == "status":
                    return {"ok": replaced(running.spec.name, run, str(fenced))}
                raise fenced
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
                done = await job.cuts.make(float(arguments.get("timeout", 5.0)))
                epochs = {each.partition: each.epoch for each in job.directory().partitions}
                position = {split: list(place) for split, place in done.position.items()}
                return {"cut": done.cut, "position": position, "epochs": [*epochs.items()]}
            case "drain":
                job.drain()
                return None
            case "stop":
                await job.stop(snapshot=bool(arguments.get("snapshot", True)))
                return job.status()
        raise InternalError("an unknown request; driver and cluster run different versions", operation=operation)

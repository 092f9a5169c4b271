"""What a worker process has of flowstate: one Flight service, the pumps of its partitions, and the way to the supervisor.

A Dask `WorkerPlugin`. Its registry holds the pumps strongly; the actors that Dask sees are handles. Reports go to the scheduler on the
worker's event loop: at once when something happened, and regularly. What is acknowledged keeps the lease (`runtime.lease`) by which this
process calls its answers live; while the event loop is busy, the supervisor's pings keep it, which come in on Flight's threads.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
import threading
from typing import Any

import cloudpickle
from distributed import Status, Worker, WorkerPlugin

from flowstate.clock import SystemClock
from flowstate.errors import Fenced, Unavailable
from flowstate.runtime.aside import aside_pool
from flowstate.runtime.contents import Frozen
from flowstate.runtime.counted import CountedPartition
from flowstate.runtime.job_spec import JobSpec
from flowstate.runtime.kept import BUDGET
from flowstate.runtime.lease import Lease
from flowstate.runtime.link import ClientLink, LocalPort, Mailbox, Port, ServerLink
from flowstate.runtime.provide import provide_memory
from flowstate.runtime.pump import Pump
from flowstate.runtime.reply import unwrap
from flowstate.runtime.saving import Saver
from flowstate.runtime.security import Security
from flowstate.runtime.serving import RECKON_LATEST, RECKON_SHARE
from flowstate.runtime.status import describe, sinks_of
from flowstate.runtime.table import Table
from flowstate.snapshot.record import SplitRecords
from flowstate.source import warm_up as warm_up_readers
from flowstate.state.kernels import warm_up
from flowstate.store import Store
from flowstate.view.directory import Directory
from flowstate_flight.controlling import TIMES
from flowstate_flight.partial import PartialHandler
from flowstate_flight.server import FlightService

NAME = "flowstate-host"
REPORT_EVERY = 0.25
EXPIRE_EVERY = 0.1


class Host(WorkerPlugin):
    """Installed on every worker by `start`; `worker.plugins["flowstate-host"]` finds it."""

    name = NAME

    def __init__(
        self,
        host: str | None = None,
        port: int = 0,
        security: Security | None = None,
        answer_partial: PartialHandler | None = None,
    ) -> None:
        """`answer_partial` computes parts of queries (`flowstate_flight.partial`); it is a function of a module, which workers import."""
        self.bind = (host, port)
        self.answer_partial = answer_partial
        self.security = security or Security()

    async def setup(self, worker: Worker) -> None:
        sys.setswitchinterval(0.0005)  # Flight handlers wait for the GIL twice per call; 5 ms would be their latency
        self.worker, self.clock = worker, SystemClock()
        self.lock = threading.Lock()
        self.specs: dict[tuple[str, int], JobSpec] = {}
        self.pumps: dict[tuple[str, int], Pump] = {}
        self.served: dict[tuple[str, int], CountedPartition] = {}
        self.links: dict[tuple[Pump, str], ClientLink] = {}
        self.locals: dict[Pump, LocalPort] = {}
        self.stopping = False
        self.lease = Lease()
        self.secret = secrets.token_hex(12)  # names this process, and tells the supervisor's pings from those of others
        self._pings: dict[int, float] = {}
        self._next_expiry = 0.0
        self._closing: asyncio.Task[Any] | None = None
        self.pool = aside_pool()
        host, port = self.bind
        self.credentials = self.security.credentials()
        self.service = FlightService(
            host or reached_at(worker.address),
            port,
            access=self.security.access,
            tls=self.security.tls,
            internal=self.security.internal,
        )
        self.service.set_exchange_handler(self._exchange)
        self.service.set_ping_handler(self.pinged)
        self.service.set_pressed_handler(self.pressed)
        self.service.set_cut_handler(self.make_cut)
        self.service.set_sinks_handler(self.sinks)
        self.service.set_control_handler(self.control)
        self.service.set_partial_handler(self.answer_partial)
        self._urgent = asyncio.Event()
        provide_memory()
        self._warming = threading.Thread(target=_warm_up, name="flowstate-warm-up", daemon=True)
        self._warming.start()  # before anybody needs it: a partition that comes here from a dead worker should not wait for it
        worker.handlers["flowstate_prepare"] = self.prepare
        worker.handlers["flowstate_hear"] = self.hear
        worker.handlers["flowstate_discard"] = self.discard
        worker.handlers["flowstate_drop_job"] = self.drop_job
        self._reporter = asyncio.create_task(self._report_always())

    async def teardown(self, worker: Worker) -> None:
        self.stopping = True
        self._reporter.cancel()
        for pump in self.pumps.values():
            pump.stop()
        for pump in list(self.pumps.values()):
            await asyncio.to_thread(pump.join, 2.0)
        for link in self.links.values():
            link.stop()
        await asyncio.to_thread(self.service.close)
        self.pool.shutdown(wait=False, cancel_futures=True)

    # partitions

    async def prepare(self, job: str, run: int, spec: bytes) -> None:
        """Take in what a job is, before its first actor here. It may hold data (`from_arrow`), so it comes once and in no task graph."""
        if (job, run) not in self.specs:
            self.specs[job, run] = await asyncio.to_thread(cloudpickle.loads, spec)

    def open(self, job: str, run: int, partition: int, epoch: int) -> Pump:
        """Begin an incarnation; an older one of the same partition here is stopped. Fenced if a newer one is here: a request that was
        under way for long."""
        if self.stopping:
            raise Unavailable("this worker is going", retry_after=0.5, location=self.service.location)
        spec = self.specs[job, run]
        store = Store.open(spec.snapshots, **spec.storage_options)
        saver = Saver(spec, partition, epoch, store, self.clock)
        pump = Pump(spec, partition, epoch, saver, SplitRecords(store), self, self.pool, self.clock)
        served = CountedPartition(pump, self.clock, self.check_lease)
        with self.lock:
            before = self.pumps.get((spec.name, partition))
            if before is not None and (before.spec.run, before.epoch) >= (run, epoch):
                message = "a newer incarnation of this partition is here already"
                raise Fenced(message, partition=partition, run=run, epoch=epoch, newest=(before.spec.run, before.epoch))
            self.pumps[spec.name, partition], self.served[spec.name, partition] = pump, served
        if before is not None:
            before.stop()
        self.service.register(served)
        pump.start()
        return pump

    async def discard(self, job: str, run: int, partition: int, epoch: int) -> None:
        """This incarnation was replaced, or is not wanted any more. Runs are compared first: epochs begin again in a new division."""
        await asyncio.to_thread(self._discard, job, run, partition, epoch)

    def _discard(self, job: str, run: int, partition: int, epoch: int) -> None:
        with self.lock:
            pump = self.pumps.get((job, partition))
            if pump is None or (pump.spec.run, pump.epoch) > (run, epoch):
                return
            del self.pumps[job, partition]
            served = self.served.pop((job, partition))
            links = [self.links.pop(key) for key in list(self.links) if key[0] is pump]
            self.locals.pop(pump, None)
        self.service.unregister(job, partition)
        pump.stop()
        pump.join(5.0)
        served.release()
        for link in links:
            link.stop()

    async def drop_job(self, job: str, run: int) -> None:
        """The run is over here: every pump of it, and its directory. A newer run of the job may be here already; it stays."""
        for (name, partition), pump in list(self.pumps.items()):
            if name == job and pump.spec.run <= run:
                await self.discard(job, pump.spec.run, partition, pump.epoch)
        self.specs = {key: spec for key, spec in self.specs.items() if key[0] != job or key[1] > run}
        if not any(name == job for name, _ in self.specs):
            self.service.drop_job(job)

    async def hear(self, job: str, run: int, table: dict[str, Any], directory: str) -> None:
        """The supervisor's newest truth, for all partitions of its run here. Those of another run would take its version, or its epochs,
        for theirs."""
        self.service.set_directory(Directory.from_json(directory))
        loaded = Table.load(table)
        for (name, _), pump in list(self.pumps.items()):
            if name == job and pump.spec.run == run:
                pump.hear(loaded)

    # what pumps need (`pump.Surroundings`)

    def port(self, pump: Pump, location: str | None) -> Port:
        with self.lock:
            if location is None or location == self.service.location:
                if pump not in self.locals:
                    job = pump.spec.name
                    self.locals[pump] = LocalPort(pump, lambda reader: self._mailbox(job, reader))
                return self.locals[pump]
            link = self.links.get((pump, location))
            if link is None or link.broken:
                name = f"flowstate-{pump.spec.name}-p{pump.number}"
                link = self.links[pump, location] = ClientLink(location, pump.spec.name, pump, name, self.credentials)
            return link

    def _mailbox(self, job: str, reader: int) -> Mailbox | None:
        pump = self.pumps.get((job, reader))
        return pump if pump is not None and pump.machine is not None else None

    def _exchange(self, command: dict[str, Any], reader: Any, writer: Any, context: Any) -> None:
        job = str(command.get("job"))
        ServerLink(lambda number: self._mailbox(job, number), lambda: self.stopping).serve(reader, writer, context)

    def keep_cut(self, pump: Pump, cut: int, frozen: Frozen) -> None:
        served = self.served.get((pump.spec.name, pump.number))
        if served is not None and served.pump is pump:
            served.keep_cut(cut, frozen)
        else:
            frozen.release()

    def report(self, pump: Pump, *, urgent: bool = False) -> None:
        if urgent and not self.stopping:
            self.worker.loop.add_callback(self._urgent.set)

    # reports

    async def _report_always(self) -> None:
        """One call for all partitions of this process, also when there is none: it says that the process is there. A scheduler that does
        not answer is none of the pumps' business."""
        announced = False
        while not self.stopping:
            try:
                await asyncio.wait_for(self._urgent.wait(), REPORT_EVERY if announced else 0.02)
            except TimeoutError:
                pass
            self._urgent.clear()
            reports = [describe(pump) for pump in list(self.pumps.values())]
            sent = self.clock.monotonic()
            try:
                answer = await asyncio.wait_for(
                    self.worker.scheduler.flowstate_report(
                        worker=self.worker.address,
                        location=self.service.location,
                        host=self.secret,
                        pid=os.getpid(),
                        warm=not self._warming.is_alive(),
                        reports=reports,
                    ),
                    10.0,
                )
            except Exception:  # closing, or a scheduler that went away: Dask ends this process in that case
                await asyncio.sleep(REPORT_EVERY)
                continue
            announced = bool(answer["known"])
            if announced:
                self.lease.acknowledged(sent)
            if answer["dead"]:
                self._go()
                return
            self._expire()

    def _expire(self) -> None:
        """Let go of what is held for readers for too long; now and then, and while nobody waits for a report."""
        now = self.clock.monotonic()
        if now < self._next_expiry:
            return
        here = list(self.served.values())
        for served in here:
            served.budget = BUDGET // len(here)
            served.expire()
        taken = self.clock.monotonic() - now
        self._next_expiry = now + min(max(EXPIRE_EVERY, taken / RECKON_SHARE), RECKON_LATEST)

    def _go(self) -> None:
        """The supervisor has given this process up, and its partitions to others: it was stopped for long, or held. What it still does is
        fenced, but nobody needs it. With a nanny a new process comes in its place."""
        self.lease.end()
        self.stopping = True
        for pump in list(self.pumps.values()):
            pump.stop()
        # A task of its own: closing the worker ends the reporter, which is who calls.
        closing = self.worker.close(nanny=False, executor_wait=False, timeout=5, reason="flowstate-replaced")
        self._closing = asyncio.ensure_future(closing)

    # who is asked whether it is still there, on Flight's threads

    def check_lease(self) -> None:
        """Raises Unavailable when this process may have been replaced: what it would answer may not be the newest."""
        connected = self.worker.status in (Status.running, Status.paused, Status.closing_gracefully)
        if not connected or self.lease.left(self.clock.monotonic()) <= 0:
            message = (
                "this worker is cut off from the supervisor, and another may have taken over; ask the directory again"
            )
            raise Unavailable(message, retry_after=0.5, location=self.service.location)

    def make_cut(self, job: str, timeout: float) -> dict[str, Any]:
        """A reader's wish for a consistent cut, passed on to the supervisor."""
        return self._of_supervisor(job, timeout + 1.0, operation="cut", timeout=timeout)

    def control(self, kind: str, job: str) -> dict[str, Any]:
        """What the supervisor says of a job, or does with it, for somebody who may control it."""
        return self._of_supervisor(job, TIMES[kind], operation={"overview": "status"}.get(kind, kind))

    def _of_supervisor(self, job: str, seconds: float, **asked: Any) -> dict[str, Any]:
        asking = self.worker.scheduler.flowstate_request(job=job, **asked)
        future = asyncio.run_coroutine_threadsafe(asking, self.worker.loop.asyncio_loop)
        try:
            answer = future.result(seconds)
        except (TimeoutError, OSError) as error:
            future.cancel()
            raise Unavailable(f"the supervisor does not answer to {asked['operation']}", job=job) from error
        return dict(unwrap(answer))

    def pressed(self) -> bool:
        """Whether rows wait to be taken in here: then lookups have no more than their share of the processor."""
        return any(each.backlog.pressed() for each in list(self.served.values()))

    def sinks(self) -> dict[tuple[str, int], list[dict[str, Any]]]:
        """How the sinks of the partitions here are doing, by (job, partition)."""
        told = {(each.spec.name, each.number): sinks_of(each) for each in list(self.pumps.values())}
        return {place: sinks for place, sinks in told.items() if sinks is not None}

    def pinged(self, asked: dict[str, Any]) -> dict[str, Any]:
        """``{"number", "known", "lease", "jobs"}``: the number that was asked, whether it was meant for this process, for how many seconds
        its lease holds, and the jobs it takes part in, by name, with their run and seed.

        The supervisor's own pings renew the lease like reports, in two steps: its next ping says which answer it has received (`heard`),
        and the lease counts from when that ping was here.
        """
        now = self.clock.monotonic()
        known, number = asked.get("to") == self.secret, asked.get("number")
        if known and isinstance(number, int):
            heard = self._pings.get(asked.get("heard", 0))
            if heard is not None:
                self.lease.acknowledged(heard)
            self._pings = {number: now}
        try:
            self.check_lease()
            left = self.lease.left(now)
        except Unavailable:
            left = 0.0
        jobs = {each.spec.name: {"run": each.spec.run, "seed": each.spec.seed} for each in list(self.pumps.values())}
        return {"number": number, "known": known, "lease": left, "jobs": jobs}


def reached_at(address: str) -> str:
    """Where Dask reaches a worker, its partitions are reached too: loopback stays loopback. Workers within one process are on loopback."""
    scheme, _, rest = address.partition("://")
    return "127.0.0.1" if scheme == "inproc" else rest.rsplit(":", 1)[0]


def host_of(worker: Worker) -> Host:
    """The host of a worker; installed before any actor is created."""
    plugin = worker.plugins[NAME]
    assert isinstance(plugin, Host)
    return plugin


def _warm_up() -> None:
    warm_up()
    warm_up_readers()

"""What a worker process has of flowstate: one Flight service, the pumps of its partitions, and the way to the supervisor.

A Dask `WorkerPlugin`. Its registry holds the pumps strongly; the actors that Dask sees are handles. Reports go to the scheduler on the
worker's event loop: at once when something happened, and regularly.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from typing import Any

import cloudpickle
from distributed import Worker, WorkerPlugin

from flowstate.clock import SystemClock
from flowstate.runtime.aside import aside_pool
from flowstate.runtime.contents import Frozen
from flowstate.runtime.job_spec import JobSpec
from flowstate.runtime.link import ClientLink, LocalPort, Mailbox, Port, ServerLink
from flowstate.runtime.pump import Pump
from flowstate.runtime.saving import Saver
from flowstate.runtime.serving import ServedPartition
from flowstate.runtime.status import describe
from flowstate.runtime.table import Table
from flowstate.snapshot.record import SplitRecords
from flowstate.store import Store
from flowstate.view.directory import Directory
from flowstate_flight.server import FlightService

NAME = "flowstate-host"
REPORT_EVERY = 0.25


class Host(WorkerPlugin):
    """Installed on every worker by `start`; `worker.plugins["flowstate-host"]` finds it."""

    name = NAME

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self.bind = (host, port)

    async def setup(self, worker: Worker) -> None:
        sys.setswitchinterval(0.0005)  # Flight handlers wait for the GIL twice per call; 5 ms would be their latency
        self.worker, self.clock = worker, SystemClock()
        self.lock = threading.Lock()
        self.specs: dict[tuple[str, int], JobSpec] = {}
        self.pumps: dict[tuple[str, int], Pump] = {}
        self.served: dict[tuple[str, int], ServedPartition] = {}
        self.links: dict[tuple[Pump, str], ClientLink] = {}
        self.locals: dict[Pump, LocalPort] = {}
        self.stopping = False
        self.pool = aside_pool()
        self.service = FlightService(*self.bind)
        self.service.set_exchange_handler(self._exchange)
        self._urgent = asyncio.Event()
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
        """Begin an incarnation; an older one of the same partition here is stopped."""
        spec = self.specs[job, run]
        store = Store.open(spec.snapshots, **spec.storage_options)
        saver = Saver(spec, partition, epoch, store, self.clock)
        pump = Pump(spec, partition, epoch, saver, SplitRecords(store), self, self.pool, self.clock)
        served = ServedPartition(pump, self.clock)
        with self.lock:
            before = self.pumps.get((spec.name, partition))
            self.pumps[spec.name, partition], self.served[spec.name, partition] = pump, served
        if before is not None:
            before.stop()
        self.service.register(served)
        pump.start()
        return pump

    async def discard(self, job: str, partition: int, epoch: int) -> None:
        """This incarnation was replaced, or is not wanted any more."""
        await asyncio.to_thread(self._discard, job, partition, epoch)

    def _discard(self, job: str, partition: int, epoch: int) -> None:
        with self.lock:
            pump = self.pumps.get((job, partition))
            if pump is None or pump.epoch > epoch:
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

    async def drop_job(self, job: str) -> None:
        """The job is over here: every pump of it, and its directory."""
        for name, partition in list(self.pumps):
            if name == job:
                await self.discard(job, partition, self.pumps[name, partition].epoch)
        self.service.drop_job(job)
        self.specs = {key: spec for key, spec in self.specs.items() if key[0] != job}

    async def hear(self, job: str, table: dict[str, Any], directory: str) -> None:
        """The supervisor's newest truth, for all partitions of the job here."""
        self.service.set_directory(Directory.from_json(directory))
        loaded = Table.load(table)
        for (name, _), pump in list(self.pumps.items()):
            if name == job:
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
                link = self.links[pump, location] = ClientLink(location, pump.spec.name, pump, name)
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
        """One call for all partitions of this process, and one to announce the process. A scheduler that does not answer is none of the
        pumps' business."""
        announced = False
        while not self.stopping:
            try:
                await asyncio.wait_for(self._urgent.wait(), REPORT_EVERY if announced else 0.02)
            except TimeoutError:
                pass
            self._urgent.clear()
            for served in list(self.served.values()):
                served.expire()
            reports = [describe(pump) for pump in list(self.pumps.values())]
            if announced and not reports:
                continue
            try:
                announced = await asyncio.wait_for(
                    self.worker.scheduler.flowstate_report(
                        worker=self.worker.address, location=self.service.location, pid=os.getpid(), reports=reports
                    ),
                    10.0,
                )
            except Exception:  # closing, or a scheduler that went away: Dask ends this process in that case
                await asyncio.sleep(REPORT_EVERY)


def host_of(worker: Worker) -> Host:
    """The host of a worker; installed before any actor is created."""
    plugin = worker.plugins[NAME]
    assert isinstance(plugin, Host)
    return plugin

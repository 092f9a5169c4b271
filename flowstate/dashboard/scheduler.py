"""The scheduler's side: looks at the jobs once a second, keeps their last minutes, and shows them beside Dask's own pages.

A Dask `SchedulerPlugin`, installed by `start` or by ``dask scheduler --preload flowstate.dashboard``; jobs may come before or after it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from distributed import Scheduler, SchedulerPlugin
from distributed.http.utils import RequestHandler

from flowstate.clock import SystemClock
from flowstate.dashboard.history import EVERY, MEASURES, History
from flowstate.dashboard.judging import Causes
from flowstate.dashboard.looking import Looks, look
from flowstate.dashboard.metrics import forget_scheduler, watch_scheduler
from flowstate.dashboard.worker import FIGURES
from flowstate.runtime.running import RunningJob
from flowstate.runtime.supervisor import NAME as SUPERVISOR

NAME = "flowstate-dashboard"
#: Jobs that are kept, the latest; names are few, but nobody says how many.
JOBS = 32
#: Happenings that the status of a job has.
TOLD = 20
logger = logging.getLogger("flowstate")


class Watched:
    """One job name: what was seen of it last, and its history."""

    def __init__(self) -> None:
        self.looks, self.history = Looks(), History()
        self.now: dict[str, Any] = {}
        self.troubles: list[str] = []
        self._run, self._heard, self._causes = -1, 0, Causes()

    def add(self, job: RunningJob, figures: Mapping[str, Any], at: float) -> None:
        self.now = look(job.status(), figures, at)
        self.looks.add(self.now)
        judged = self.looks.judged()
        self.troubles = [each.words for each in judged]
        if job.spec.run != self._run:
            self._run, self._heard, self._causes = job.spec.run, 0, Causes()
        self.history.happenings.extend(self._causes.add(at, judged))
        for each in list(job.journal.happenings):
            if each.number > self._heard:
                self._heard = each.number
                self.history.happenings.append(each)
        if job.state in ("running", "finished", "stopping"):
            self.history.add(at, self.looks.figures())

    def told(self) -> dict[str, Any]:
        """What ``job.status()`` has of it, under ``figures``."""
        parts = {
            number: {name: each[name] for name in ("epoch", "bytes", "queries")}
            for number, each in self.now["partitions"].items()
        }
        happenings = [asdict(each) for each in self.history.happened()[-TOLD:]]
        lags = {split: each["lag"] for split, each in self.now["splits"].items()}
        return {"partitions": parts, "lag": lags, "troubles": list(self.troubles), "events": happenings}


class Dashboard(SchedulerPlugin):
    """`jobs` by name, in the order in which they were first seen."""

    name = NAME
    idempotent = True

    async def start(self, scheduler: Scheduler) -> None:
        self.scheduler, self.clock = scheduler, SystemClock()
        self.jobs: dict[str, Watched] = {}
        self._watching = asyncio.ensure_future(self._watch_always())
        try:
            prefix = mount(self)
        except Exception:  # a Bokeh or a Dask that it does not fit: no job fails for that
            logger.exception("there is no page in the dashboard; /flowstate.json is there")
            prefix = ""
        scheduler.http_application.add_handlers(
            ".*$", [(rf"{prefix}/flowstate\.json", AsJson, {"dask_server": scheduler})]
        )
        watch_scheduler(self)

    async def close(self) -> None:
        self._watching.cancel()
        forget_scheduler(self)

    def running(self) -> dict[str, RunningJob]:
        supervisor = self.scheduler.plugins.get(SUPERVISOR)
        return {} if supervisor is None else dict(supervisor.jobs)

    async def _watch_always(self) -> None:
        while True:
            try:
                self.look()
            except Exception:  # the page must not be the reason why nothing is seen any more
                logger.exception("the dashboard")
            await asyncio.sleep(EVERY)

    def look(self) -> None:
        """Of a job that was stopped the last is kept, and looked at no more."""
        at = self.clock.wall()
        for name, job in self.running().items():
            watched = self.jobs.get(name)
            if watched is None:
                watched = self.jobs[name] = Watched()
                while len(self.jobs) > JOBS:
                    del self.jobs[next(iter(self.jobs))]
            over = job.state in ("stopped", "fenced")
            if not over or (watched.now.get("run"), watched.now.get("state")) != (job.spec.run, job.state):
                watched.add(job, self.figures(name), at)
                job.figures = watched.told()

    def figures(self, job: str) -> dict[str, Any]:
        """What the workers tell of the partitions of a job with their heartbeats; of two that tell of one, the newest incarnation."""
        found: dict[str, Any] = {}
        for worker in self.scheduler.workers.values():
            for number, each in worker.metrics.get(FIGURES, {}).get(job, {}).items():
                if number not in found or each["epoch"] > found[number]["epoch"]:
                    found[number] = each
        return found

    def plain(self, seconds: float) -> dict[str, Any]:
        """All jobs: as they are now, and their last `seconds`."""
        since = self.clock.wall() - seconds
        return {"jobs": {name: _plain(each, since) for name, each in self.jobs.items()}}


def _plain(watched: Watched, since: float) -> dict[str, Any]:
    moments = watched.history.since(since)
    history: dict[str, Any] = {"at": [each.at for each in moments]}
    for measure in MEASURES:
        names = {name: None for each in moments for name in each.rows[measure].names}
        rows = [dict(zip(*each.rows[measure], strict=True)) for each in moments]
        history[measure] = {name: [_finite(row.get(name)) for row in rows] for name in names}
    happenings = [asdict(each) for each in watched.history.happened()]
    return {"now": watched.now, "troubles": watched.troubles, "events": happenings, "history": history}


def _finite(number: float | None) -> float | None:
    return None if number is None or math.isnan(number) else number


class AsJson(RequestHandler):
    """``/flowstate.json``; with ``?seconds=60`` also the last minute of every figure."""

    def get(self) -> None:
        dashboard = self.server.plugins.get(NAME)
        try:
            seconds = float(self.get_argument("seconds", "0"))
        except ValueError:
            self.set_status(400)
            self.finish({"error": "seconds is a number, such as ?seconds=60"})
            return
        self.set_header("Content-Type", "application/json")
        self.set_header("Cache-Control", "no-store")
        self.write(json.dumps(dashboard.plain(seconds) if dashboard else {"jobs": {}}))


def mount(dashboard: Dashboard) -> str:
    """Put the page beside those of Dask, into their navigation bar. Returns the prefix of all of them. Without bokeh, or where the
    scheduler shows no pages, there is none, and the JSON stands alone."""
    scheduler = dashboard.scheduler
    shown = [each for each in scheduler.http_application.applications if hasattr(each, "app_paths")]
    if not shown:
        return ""
    from distributed.dashboard.core import BokehApplication
    from distributed.dashboard.scheduler import template_variables
    from tornado.ioloop import IOLoop

    from flowstate.dashboard.page import page

    prefix = str(shown[0].prefix)
    variables = template_variables(scheduler)  # the same lists for all pages of Dask
    if "flowstate" not in variables["pages"]:
        variables["pages"].insert(3, "flowstate")
    application = BokehApplication({"/flowstate": page}, scheduler, prefix=prefix, template_variables=variables)
    scheduler.http_application.add_application(application)
    application.initialize(IOLoop.current())
    application.start()  # it forgets the pages that nobody looks at any more
    return prefix.rstrip("/")

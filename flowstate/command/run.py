"""``flowstate run``: one job, for as long as it takes. Whatever dies is started again; the job resumes from its last snapshot."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from types import FrameType
from typing import Any, Literal

from flowstate.api.job import Job, attach
from flowstate.api.remote import request
from flowstate.api.start import asked, start
from flowstate.api.stream import Flow
from flowstate.clock import Clock, SystemClock
from flowstate.command.cluster import Cluster, OwnCluster, be_quiet
from flowstate.command.progress import Progress
from flowstate.errors import Fenced, FlowstateError, InvalidFlow, Unavailable
from flowstate.view.rights import Access
from flowstate.view.tls import Tls

LOOK = 0.2  # seconds between two looks at the job
START, ANSWER, STOP = 180.0, 30.0, 60.0  # seconds that calls through Dask may take
HEALTHY = 60.0  # seconds after which trouble is news again, and not the same one
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0


class Stopped(Exception):
    """Somebody asked the command to end."""


class Run:
    """`options` are those of `asked`. `takeover` counts for the first time only: whoever takes over from this run afterwards keeps it."""

    def __init__(
        self,
        cluster: Cluster,
        outputs: Sequence[Flow],
        takeover: bool,
        *,
        clock: Clock | None = None,
        access: Access | Literal["none"] | None = None,
        tls: Tls | None = None,
        **options: Any,
    ) -> None:
        self.cluster, self.outputs, self.takeover, self.options = cluster, outputs, takeover, options
        self.access, self.tls = access, tls
        self.clock = clock or SystemClock()
        self.progress = Progress(self.clock)
        self._stop = threading.Event()
        self._signals = 0
        self._up: tuple[str, int] | None = None  # name and number of the run, once it was up

    def serve(self) -> None:
        """Until the input has ended and everything is written, or SIGTERM or SIGINT come (a second one ends at once). Raises InvalidFlow
        for what must be changed first, Fenced when another run has taken over."""
        be_quiet()
        asked(self.outputs, takeover=self.takeover, **self.options)  # mistakes are told before anything is started
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, self._asked_to_stop)
        pause = FIRST_PAUSE
        try:
            while True:
                began = self.clock.monotonic()
                try:
                    self._live()
                    return
                except (Unavailable, OSError, TimeoutError) as error:
                    if self.clock.monotonic() - began > HEALTHY:
                        pause = FIRST_PAUSE
                    reason = error.message if isinstance(error, Unavailable) else f"{type(error).__name__}: {error}"
                    self._say(f"{reason}; starting again in {pause:g} s")
                if isinstance(self.cluster, OwnCluster):
                    self.cluster.kill()
                self._wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
        except Stopped:
            self._say("stopped")
        finally:
            self.progress.clear()
            self.cluster.close()

    def _live(self) -> None:
        """One life of the job, on one scheduler. Returns when it is at its end."""
        self.progress.begin("starting the cluster")
        client = self.cluster.connect(self._wait, self._say)
        try:
            self.progress.begin("starting the job")
            with self._watching(client):
                job = self._bounded(START, "the cluster", lambda: self._start(client))
            run = self._bounded(ANSWER, "the scheduler", job.status)["run"]
            self._up, self.takeover = (job.name, run), False
            self._say(f"job {job.name!r} is up: views {', '.join(job)}; ask {job.address}")
            try:
                self._watch(job)
            except Stopped:
                with contextlib.suppress(Unavailable):
                    self._bounded(STOP, "the cluster", job.stop, stoppable=False)
                raise
        finally:
            with contextlib.suppress(Exception):
                self._bounded(5.0, "the client", lambda: client.close(timeout=1), stoppable=False)

    @contextlib.contextmanager
    def _watching(self, client: Any) -> Iterator[None]:
        """Show how the partitions come up, while nobody has a job yet that could be asked."""
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(LOOK):
                with contextlib.suppress(FlowstateError, OSError, TimeoutError):
                    for name, state in request(client, "jobs", within=ANSWER).items():
                        if state == "running" and not ended.is_set():
                            self.progress.look(request(client, "status", name, within=ANSWER))

        thread = threading.Thread(target=watch, name="progress", daemon=True)
        if self.progress.seen:
            thread.start()
        try:
            yield
        finally:
            ended.set()
            self.progress.clear()

    def _start(self, client: Any) -> Job:
        if self._up is not None:
            with contextlib.suppress(Unavailable, InvalidFlow):
                job = attach(self._up[0], client)
                if job.status()["run"] == self._up[1]:  # only the connection was lost
                    return job
        try:
            return start(
                *self.outputs,
                client=client,
                takeover=self.takeover,
                access=self.access,
                tls=self.tls,
                **self.options,
            )
        except InvalidFlow as error:
            if self._up is None:
                raise
            if "run" in error.facts:  # somebody else has it now
                raise Fenced(f"the job cannot be resumed here: {error}") from error
            # It ran before, so what is wrong may pass: a broker that has just come up does not know its topics yet.
            raise Unavailable(f"the job cannot be resumed yet: {error}", retry_after=1.0) from error

    def _watch(self, job: Job) -> None:
        told: dict[str, str] = {}
        while True:
            self._wait(LOOK)
            if (trouble := self.cluster.trouble(self._say)) is not None:
                raise Unavailable(trouble)
            try:
                status = self._bounded(ANSWER, "the scheduler", job.status)
            except Unavailable as error:
                self._wait(LOOK)  # connections of a process that dies are closed a little before its end can be seen
                raise Unavailable(self.cluster.trouble(self._say) or error.message) from error
            match status["state"]:
                case "finished":
                    self._say("the input has ended, and everything is written")
                    self._bounded(STOP, "the cluster", job.stop)
                    return
                case "fenced":
                    raise Fenced(status["problems"].get("job", "a newer run of this job has taken over"), job=job.name)
                case "stopped":
                    self._say("the job was stopped from elsewhere")
                    return
            self._tell(_problems(status), told)
            self.progress.look(status)

    def _tell(self, problems: dict[str, str], told: dict[str, str]) -> None:
        """What is new, and what is over."""
        for name, text in problems.items():
            if told.get(name) != text:
                self._say(f"{name}: {text}")
        for name in told.keys() - problems.keys():
            self._say(f"{name}: over")
        told.clear()
        told.update(problems)

    def _bounded(self, seconds: float, who: str, work: Callable[[], Any], *, stoppable: bool = True) -> Any:
        """What `work` gives, or raises. Calls through Dask may hang for ever when a scheduler dies at the wrong moment: after `seconds`
        they are left to themselves, and this life is over."""
        done: Future[Any] = Future()

        def run() -> None:
            try:
                done.set_result(work())
            except BaseException as error:
                done.set_exception(error)

        threading.Thread(target=run, name="flowstate-run", daemon=True).start()
        deadline = self.clock.monotonic() + seconds
        while True:
            try:
                return done.result(0.05)
            except TimeoutError:
                if done.done():
                    raise  # of the work itself
                if stoppable:
                    self._wait(0.0)
                if self.clock.monotonic() > deadline:
                    raise Unavailable(f"{who} does not answer for {seconds:g} s") from None

    def _wait(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise Stopped

    def _asked_to_stop(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1
        if self._signals > 1:
            raise SystemExit(128 + number)
        self._stop.set()

    def _say(self, text: str) -> None:
        self.progress.clear()
        print(f"flowstate: {text}", file=sys.stderr, flush=True)


def _problems(status: dict[str, Any]) -> dict[str, str]:
    found = dict(status["problems"])
    if status.get("paused"):
        found["paused"] = str(status["paused"])
    for number, each in status["partitions"].items():
        if each["state"] == "failed":
            found[f"partition {number}"] = f"failed for good: {each['reason']}"
        for name, text in each["report"].get("problems", {}).items():
            found[f"partition {number}, {name}"] = text
    return found

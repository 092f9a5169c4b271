"""Who may call itself live: the real watchdog and the real lease, between a supervisor, workers that stop and are cut off, and readers.

A worker reports, the supervisor acknowledges, and condemns who is silent; then, and when a connection breaks, another worker takes the
partition over and applies what the first has not. What must hold:

A1. An answer that says that it is live shows the newest state that there was at its `as_of`: nobody had taken over by then. The one
    exception is a worker that was stopped while its connection broke, for the rest of its lease.
A2. A worker that has been answering for `HEARD` seconds is never condemned, also when the supervisor itself stood still.
A3. A worker that is silent for good is condemned within `FOUND` seconds of the supervisor's running time: two to three, unless it was
    silent before and came back by itself, for then it is given twice as long.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

from flowstate.runtime.lease import SECONDS, Lease
from flowstate.runtime.watchdog import TICK, Condemn, Ping, Watchdog
from flowstate.testing.adversity.fault import Fault

STEP = 0.05  # seconds
REPORT = 0.25
FOUND = 12.0
HEARD = 1.0


@dataclass
class Worker:
    """A process. `stopped` and `cut_off` until these times; `lost_at`: when its connection to the supervisor broke."""

    name: str
    epoch: int
    stopped: float = 0.0
    cut_off: float = 0.0
    next_report: float = 0.0
    silent_at: float = 0.0  # the last moment at which nothing came from it
    known: bool = False  # to the supervisor
    lost_at: float | None = None
    stopped_when_lost: bool = False

    def __post_init__(self) -> None:
        self.lease = Lease()


class Answers:
    """One partition, and the workers that hold it one after the other."""

    def __init__(self, seed: int) -> None:
        self.seed, self.random = seed, random.Random(seed)
        self.now, self.counts = 0.0, Counter[str]()
        self.watchdog = Watchdog()
        self.workers = [Worker("worker-1", 1)]
        self.taken_over = [0.0]  # when each epoch but the first began to be another's
        self.supervisor_stopped, self.next_tick = 0.0, 0.0
        self.posts: list[tuple[float, str, Worker, float]] = []  # arrives, what, of whom, when it was sent
        self.ran = 0.0  # seconds that the supervisor has run since the present worker fell silent
        self.delays = self.random.choice(((0.0,), (0.0, 0.05, 0.3), (0.0, 0.1, 1.0)))

    @property
    def current(self) -> Worker:
        return self.workers[-1]

    def post(self, what: str, worker: Worker, sent: float) -> None:
        self.posts.append((self.now + self.random.choice(self.delays), what, worker, sent))

    def run(self, seconds: float = 60.0) -> Counter[str]:
        while self.now < seconds:
            self.now += STEP
            self.disturb()
            for happens in self.random.sample((self.deliver, self.supervise), 2):
                happens()
            for worker in self.workers:
                self.work(worker)
                self.ask(worker)
        self.counts["seeds"] += 1
        return self.counts

    def disturb(self) -> None:
        dice, worker = self.random.random(), self.current
        if dice < 0.004:
            worker.stopped = max(worker.stopped, self.now + self.random.choice((0.3, 1.0, 3.0, 20.0)))
        elif dice < 0.007:
            worker.cut_off = max(worker.cut_off, self.now + self.random.choice((0.5, 1.9, 5.0, 100.0)))
        elif dice < 0.009:
            self.supervisor_stopped = self.now + self.random.choice((0.3, 2.0, 8.0))
        elif dice < 0.010:
            self.lose(worker)

    def lose(self, worker: Worker) -> None:
        """The connection breaks: the supervisor hears of it at once, and so does the worker, if it runs."""
        worker.lost_at, worker.stopped_when_lost = self.now, worker.stopped > self.now
        self.watchdog.left(worker.name)
        self.replace("lost")

    def replace(self, why: str) -> None:
        self.counts[why] += 1
        self.taken_over.append(self.now)
        self.workers.append(Worker(f"worker-{len(self.workers) + 1}", len(self.workers) + 1))
        self.ran = 0.0

    def deliver(self) -> None:
        due = [each for each in self.posts if each[0] <= self.now]
        self.posts = [each for each in self.posts if each[0] > self.now]
        for _, what, worker, sent in due:
            if worker.cut_off > self.now or worker.lost_at is not None:
                continue
            if what == "report" and self.supervisor_stopped > self.now:
                self.posts.append((self.now + STEP, what, worker, sent))
            elif what == "report":
                if worker is self.current:
                    self.watchdog.reported(worker.name, self.now)
                    worker.known, self.ran = True, 0.0
                    self.post("acknowledged", worker, sent)
                else:
                    self.post("replaced", worker, sent)
            elif worker.stopped > self.now:
                self.posts.append((self.now + STEP, what, worker, sent))
            elif what == "acknowledged":
                worker.lease.acknowledged(sent)
            else:
                worker.lease.end()

    def supervise(self) -> None:
        if self.supervisor_stopped > self.now or self.now < self.next_tick:
            return
        late = self.now - self.next_tick > TICK
        self.next_tick = self.now + TICK
        worker = self.current
        self.ran = 0.0 if late else self.ran + TICK
        for each in self.watchdog.tick(self.now):
            match each:
                case Ping():
                    answers = worker.stopped <= self.now and worker.cut_off <= self.now
                    self.watchdog.pinged(each.worker, each.number, answers, self.now)
                case Condemn():
                    if self.now - worker.silent_at > HEARD + 2 * max(self.delays):
                        raise Fault("a worker was condemned that would have answered")
                    self.replace("condemned")
        silent = worker.stopped > self.now or worker.cut_off > self.now
        if silent and worker is self.current and self.ran > FOUND + max(self.delays) and worker.known:
            raise Fault("a silent worker was not found")
        if not silent:
            self.ran = 0.0

    def work(self, worker: Worker) -> None:
        if worker.stopped > self.now or worker.cut_off > self.now:
            worker.silent_at = self.now
        if worker.stopped > self.now or worker.lost_at is not None or self.now < worker.next_report:
            return
        worker.next_report = self.now + REPORT
        if worker.cut_off <= self.now:
            self.post("report", worker, self.now)

    def ask(self, worker: Worker) -> None:
        """A reader that knows the worker's address asks it, also from its own side of a cut."""
        if worker.stopped > self.now:
            return
        closing = worker.lost_at is not None and (not worker.stopped_when_lost or self.now > worker.lost_at + SECONDS)
        if closing or worker.lease.left(self.now) <= 0:
            self.counts["refused"] += 1
            return
        self.counts["live"] += 1
        if worker.epoch < len(self.workers) and self.taken_over[worker.epoch] < self.now and worker.lost_at is None:
            raise Fault(f"{worker.name} calls itself live after another has taken over")


def simulate_answers(seed: int) -> Counter[str]:
    """One history of a minute. `Fault` names the seed."""
    world = Answers(seed)
    try:
        return world.run()
    except Fault as error:
        raise Fault(f"seed={seed} second={world.now:.2f}: {error}") from error

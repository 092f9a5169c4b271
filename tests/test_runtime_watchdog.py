"""Who is declared dead and who keeps the word, as functions of time: the watchdog and the lease."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from flowstate.runtime import lease as lease_module
from flowstate.runtime.lease import Lease
from flowstate.runtime.watchdog import LATE, TICK, Condemn, Ping, Watchdog


class Scene:
    """Workers that report, and answer pings, or do not."""

    def __init__(self, *workers: str) -> None:
        self.now, self.watchdog = 100.0, Watchdog()
        self.reports, self.answers = set(workers), set(workers)
        self.condemned: dict[str, float] = {}
        self.pings: list[Ping] = []
        self.waiting: list[tuple[float, Ping]] = []
        for worker in workers:
            self.watchdog.reported(worker, self.now)

    def run(self, seconds: float) -> None:
        """Ticks on time; a report of everybody who does at each of them; pings fail after half a second."""
        until = self.now + seconds
        while self.now < until - 1e-9:
            self.now += TICK
            for worker in self.reports - self.condemned.keys():
                self.watchdog.reported(worker, self.now)
            for at, ping in [each for each in self.waiting if each[0] <= self.now]:
                self.waiting.remove((at, ping))
                self.watchdog.pinged(ping.worker, ping.number, ping.worker in self.answers, self.now)
            for each in self.watchdog.tick(self.now):
                if isinstance(each, Condemn):
                    self.condemned[each.worker] = each.silent
                else:
                    self.pings.append(each)
                    self.waiting.append((self.now + (0.001 if each.worker in self.answers else 0.5), each))


def test_a_worker_that_neither_reports_nor_answers_is_condemned_after_about_two_seconds() -> None:
    scene = Scene("stopped", "well")
    scene.reports.discard("stopped")
    scene.answers.discard("stopped")
    scene.run(1.8)
    assert not scene.condemned
    scene.run(0.8)
    assert scene.condemned.keys() == {"stopped"}
    assert 2.0 <= scene.condemned["stopped"] <= 2.5
    assert {each.worker for each in scene.pings} == {"stopped"}
    scene.run(10.0)
    assert scene.condemned.keys() == {"stopped"}


def test_a_worker_that_only_answers_lives_on() -> None:
    """Its event loop is busy for long; its Flight port answers."""
    scene = Scene("busy")
    scene.reports.clear()
    scene.run(60.0)
    assert not scene.condemned and len(scene.pings) > 50
    scene.answers.clear()
    scene.run(1.8)
    assert not scene.condemned  # its answers have renewed its lease
    scene.run(0.8)
    assert scene.condemned.keys() == {"busy"}


def test_a_worker_that_only_reports_is_not_asked() -> None:
    scene = Scene("deaf")
    scene.answers.clear()
    scene.run(30.0)
    assert not scene.condemned and not scene.pings


def test_a_supervisor_that_stood_still_condemns_nobody() -> None:
    """Reports wait in its sockets, and pings under way have run out of time on its side alone."""
    scene = Scene("one", "two")
    scene.reports.clear()
    scene.run(1.6)
    asked = [each for each in scene.pings if each.worker == "one"][-1]
    scene.now += 5.0
    scene.waiting.clear()
    scene.watchdog.pinged("one", asked.number, False, scene.now)
    assert scene.watchdog.tick(scene.now) == []
    scene.answers.clear()
    scene.run(1.8)
    assert not scene.condemned
    scene.reports |= {"one", "two"}
    scene.run(10.0)
    assert not scene.condemned


def test_a_slow_supervisor_condemns_nobody() -> None:
    watchdog, now = Watchdog(), 0.0
    watchdog.reported("silent", now)
    for _ in range(100):
        now += LATE * 1.1
        assert watchdog.tick(now) == []


def test_a_starved_machine_is_given_time() -> None:
    """Workers that come to nothing for 1.6 s now and then are not ended after 2, but well after 3.2."""
    scene = Scene("one", "two")
    scene.answers.clear()
    for _ in range(3):
        scene.reports.clear()
        scene.run(1.6)
        scene.reports |= {"one", "two"}
        scene.run(0.4)
    scene.reports = {"two"}
    scene.run(2.8)
    assert not scene.condemned
    scene.run(1.4)
    assert scene.condemned.keys() == {"one"}
    scene.run(70.0)
    assert scene.watchdog.patience == 2.0  # it is forgotten
    scene.reports.clear()
    scene.run(2.8)
    assert scene.condemned.keys() == {"one", "two"}


def test_an_answer_to_an_older_ping_does_not_count() -> None:
    watchdog, now = Watchdog(), 0.0
    watchdog.reported("w", now)
    pings = []
    while not pings:
        now += TICK
        pings = watchdog.tick(now)
    (ping,) = pings
    assert isinstance(ping, Ping)
    watchdog.reported("w", now)  # heard of after all
    for _ in range(20):
        now += TICK
        watchdog.pinged("w", ping.number, False, now)
        assert not [each for each in watchdog.tick(now) if isinstance(each, Condemn)]
    watchdog.left("w")
    watchdog.pinged("w", ping.number, False, now)
    assert watchdog.tick(now + TICK) == []


def test_a_lease_counts_from_what_was_sent() -> None:
    lease = Lease()
    assert lease.left(0.0) == 0.0
    lease.acknowledged(10.0)
    assert lease.left(11.5) == 0.5
    lease.acknowledged(9.0)  # an answer that was overtaken
    assert lease.left(11.5) == 0.5
    assert lease.left(12.0) == 0.0
    lease.acknowledged(20.0)
    lease.end()
    assert lease.left(20.0) == 0.0
    lease.acknowledged(21.0)
    assert lease.left(21.0) == 0.0


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_nobody_is_condemned_while_its_lease_holds(data: st.DataObject) -> None:
    """Reports and acknowledgements take any time, ticks come late, pings fail at will, and the worker's clock has another zero."""
    watchdog, lease, offset = Watchdog(), Lease(), data.draw(st.floats(-1e6, 1e6), "offset")
    now, condemned = 0.0, math.inf
    pings: list[tuple[Ping, float]] = []  # and when they arrived there
    answered: list[float] = []
    under_way: list[tuple[float, float]] = []  # reports: (sent, arrives)
    back: list[tuple[float, float]] = []  # acknowledgements: (sent, arrives)
    watchdog.reported("w", now)
    lease.acknowledged(now + offset)
    for _ in range(data.draw(st.integers(20, 60), "steps")):
        now += data.draw(st.sampled_from([0.05, TICK, TICK, TICK, TICK, 0.4, LATE + 0.1, 3.0]), "pause")
        if data.draw(st.integers(0, 5), "sends") == 0:
            under_way.append((now, now + data.draw(st.floats(0, 3), "takes")))
        for sent, arrives in [each for each in under_way if each[1] <= now]:
            under_way.remove((sent, arrives))
            if condemned == math.inf:
                watchdog.reported("w", now)
                back.append((sent, now + data.draw(st.floats(0, 3), "comes back")))
        for sent, arrives in [each for each in back if each[1] <= now]:
            back.remove((sent, arrives))
            lease.acknowledged(sent + offset)
        for ping, arrived in pings:
            ok = data.draw(st.integers(0, 9)) == 0
            watchdog.pinged("w", ping.number, ok, now)
            if ok:
                answered.append(arrived)
        pings = []
        for each in watchdog.tick(now):
            if isinstance(each, Condemn):
                condemned = now
            else:
                pings.append((each, now))
                if answered:  # this ping says that the one before was heard
                    lease.acknowledged(answered[-1] + offset)
        if condemned < math.inf:
            assert lease.left(now + offset) <= 1e-6
    assert lease_module.SECONDS == 2.0

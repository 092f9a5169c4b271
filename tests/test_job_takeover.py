"""A job that is started although it runs: refused, or taken over; and two that begin at the same moment. Only one ever writes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, LocalCluster
from test_job_recovery import Log, counted
from waiting import until

import flowstate as fs


@pytest.fixture(scope="module")
def clients() -> Iterator[tuple[Client, Client]]:
    """Of two clusters that know nothing of each other."""
    with ExitStack() as stack:
        made = []
        for _ in range(2):
            cluster = stack.enter_context(
                LocalCluster(n_workers=1, threads_per_worker=1, memory_limit=0, dashboard_address="127.0.0.1:0")
            )
            made.append(stack.enter_context(Client(cluster, set_as_default=False)))
        yield made[0], made[1]


def begin(log: Log, folder: Path, client: Client, **arguments: Any) -> fs.Job:
    return fs.start(log.flow(), snapshots=folder / "snapshots", every="200ms", client=client, **arguments)


def saved_rows(folder: Path) -> int:
    with fs.open_snapshot(folder / "snapshots") as saved:
        return sum(saved.to_table("totals")["rows"].to_pylist())


def test_a_job_that_runs_elsewhere_is_refused_until_it_stops(clients: tuple[Client, Client], tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.append(50)
    here, there = clients
    with begin(log, tmp_path, here) as job:
        until(lambda: counted(job) == log.expected)
        with pytest.raises(fs.InvalidFlow, match="takeover=True") as refused:
            begin(log, tmp_path, there)
        assert refused.value.facts["running_at"] in job._addresses() and refused.value.facts["run"] == 1
        with pytest.raises(fs.InvalidFlow, match=r"running on this cluster.*run=1"):
            begin(log, tmp_path, here)
        assert job.status()["state"] == "running" and job.status()["run"] == 1
    with begin(log, tmp_path, there) as job:  # it was stopped, so nobody is asked twice
        assert job.status()["run"] == 2


@pytest.mark.parametrize("same", [False, True], ids=["from another cluster", "on the same cluster"])
def test_takeover(clients: tuple[Client, Client], tmp_path: Path, same: bool) -> None:
    log = Log(tmp_path)
    log.append(50)
    older = begin(log, tmp_path, clients[0])
    until(lambda: counted(older) == log.expected)
    newer = begin(log, tmp_path, clients[0] if same else clients[1], takeover=True)
    try:
        with pytest.raises(fs.Fenced, match=r"run=1 newest=2"):
            older.wait(timeout=20)
        status = older.status()
        assert status["state"] == "fenced" and "run=1 newest=2" in status["problems"]["job"]
        with pytest.raises(fs.Fenced, match=r"run=1 newest=2"):
            older.drain(timeout=5) if same else older.wait()
        log.append(100)
        until(lambda: counted(newer) == log.expected)
        if same:
            with pytest.raises(fs.Fenced):
                older.stop()
            assert newer.status()["state"] == "running"
        else:
            older.stop()
    finally:
        newer.stop()
    assert saved_rows(tmp_path) == log.expected


def test_two_starts_at_the_same_moment(clients: tuple[Client, Client], tmp_path: Path) -> None:
    """Neither knows of the other. In the end one runs, and the other says that it does not."""
    log = Log(tmp_path)
    log.append(50)
    outcomes: dict[int, fs.Job | fs.FlowstateError] = {}
    together = threading.Barrier(2)

    def start(number: int) -> None:
        together.wait(10)
        try:
            outcomes[number] = begin(log, tmp_path, clients[number], name="totals", takeover=True)
        except fs.FlowstateError as error:
            outcomes[number] = error

    threads = [threading.Thread(target=start, args=(number,)) for number in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
    jobs = [each for each in outcomes.values() if isinstance(each, fs.Job)]
    lost = [each for each in outcomes.values() if not isinstance(each, fs.Job)]
    assert all(isinstance(each, fs.Fenced | fs.InvalidFlow) for each in lost), lost
    until(lambda: [each.status()["state"] for each in jobs].count("running") == 1)
    (winner,) = [each for each in jobs if each.status()["state"] == "running"]
    log.append(100)
    until(lambda: counted(winner) == log.expected)
    for each in jobs:
        each.stop()
    assert saved_rows(tmp_path) == log.expected


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"takeover": 1}, "takeover is True or False"),
        ({"spill": 10}, "spill is a size such as"),
        ({"spill": "10"}, "spill is a size such as"),
        ({"spill": "0GB"}, "spill is a size such as"),
        ({"spill": "many GB"}, "spill is a size such as"),
    ],
)
def test_what_is_refused(clients: tuple[Client, Client], tmp_path: Path, arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(fs.InvalidFlow, match=match):
        begin(Log(tmp_path), tmp_path, clients[0], **arguments)

"""Whether a run of a job is alive anywhere, also on a cluster that we know nothing of: the beacon says where it was last.

Only a kindness. Two runs that begin at once may both find nobody; then the later claim fences the earlier run, as it does when a run is
taken over on purpose, and only one of them ever writes.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Event
from typing import NamedTuple

from flowstate.clock import Clock
from flowstate.errors import CorruptData, InvalidFlow
from flowstate.runtime.pinging import ping
from flowstate.snapshot.beacon import Beacon
from flowstate.snapshot.job_record import JobRecord
from flowstate.store import Store
from flowstate.view.directory import Directory
from flowstate_flight.credentials import Credentials

PATIENCE = 3.0  # seconds: a lease, and the time that a process takes to end when its supervisor is gone
AGAIN = 0.25


class Living(NamedTuple):
    """A run that answers with a lease that holds."""

    run: int
    location: str


def refuse_if_alive(store: Store, record: JobRecord, clock: Clock, credentials: Credentials) -> None:
    """Raises InvalidFlow, with where it is, when a run of this job goes on. A run whose supervisor died answers for as long as its
    last lease; so it is asked for up to `PATIENCE` seconds before it counts as alive."""
    deadline = clock.monotonic() + PATIENCE
    while (living := living_run(store, record, credentials)) is not None:
        if clock.monotonic() > deadline:
            raise InvalidFlow(
                "this job is running already; use fs.attach on its cluster, or fs.connect, stop it there, "
                "or replace it with takeover=True (flowstate run --takeover)",
                job=record.name,
                run=living.run,
                running_at=living.location,
            )
        Event().wait(AGAIN)


def living_run(store: Store, record: JobRecord, credentials: Credentials) -> Living | None:
    """Asks every address that the newest directory names, all at once."""
    try:
        announced = Beacon(store).find()
        directory = None if announced is None else Directory.from_json(announced)
    except (CorruptData, ValueError, KeyError, TypeError):
        return None  # it is a hint, and this one says nothing
    if directory is None:
        return None
    locations = sorted({each.location for each in directory.partitions if each.location})
    if not locations:
        return None
    with ThreadPoolExecutor(min(16, len(locations))) as threads:
        answers = list(threads.map(partial(ping, credentials=credentials), locations))
    for location, answer in zip(locations, answers, strict=True):
        job = (answer or {}).get("jobs", {}).get(record.name)
        if job and job["seed"] == record.seed and answer and answer["lease"] > 0:
            return Living(int(job["run"]), location)
    return None

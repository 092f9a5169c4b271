"""What is asked about a job as a whole, or of it: its supervisor answers, by way of any worker, or of a gateway."""

from __future__ import annotations

import json
from typing import Any

from flowstate.errors import FlowstateError, InvalidFlow, Unavailable
from flowstate_flight.client import FlightReader

#: Seconds for an answer of the supervisor. To stop, a job saves itself once more.
TIMES = {"overview": 3.0, "stop": 60.0}


def controlled(reader: FlightReader, kind: str) -> dict[str, Any]:
    """`kind`: overview (see `Job.status`) or stop. Raises InvalidFlow where there is no right to it, Unavailable where nobody answers."""
    directory = reader.directory()
    workers = [each.location for each in directory.partitions if each.location]
    gateway = reader._routing.gateway
    body = json.dumps({"job": directory.job}).encode()
    failure: FlowstateError | None = None
    for each in dict.fromkeys([*([] if gateway is None else [gateway]), *workers]):
        try:
            told = dict(json.loads(reader._pool.act(each, "overview", body, TIMES["overview"])))
        except InvalidFlow:
            raise
        except FlowstateError as error:
            failure = error
            continue
        # whoever is asked to stop a job is asked once: an answer that does not come may be under way
        return told if kind == "overview" else dict(json.loads(reader._pool.act(each, kind, body, TIMES[kind])))
    raise failure or Unavailable("the job is down: it has no worker that could be asked", job=directory.job)

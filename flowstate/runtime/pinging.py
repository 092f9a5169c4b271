"""Asking a worker process by its Flight port whether it answers, and what it is in. Blocking, bounded; runs on a thread."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
from pyarrow import flight

from flowstate_flight.credentials import Credentials

PATIENCE = 0.5  # seconds for an answer


def ping(location: str, credentials: Credentials, **asked: Any) -> dict[str, Any] | None:
    """What the process at `location` says (see `Host.pinged`); None if nobody answers in time.

    A connection of its own each time, since one that stands may be to a process that was replaced: a stopped process still
    accepts connections, in its kernel, but answers none of them.
    """
    try:
        with credentials.connect(location) as client:
            options = credentials.options(client, PATIENCE)
            answer = list(client.do_action(flight.Action("ping", json.dumps(asked).encode()), options))
        said = json.loads(answer[0].body.to_pybytes())
    except (pa.ArrowException, flight.FlightError, OSError, ValueError, IndexError, KeyError):
        return None
    return said if isinstance(said, dict) else None

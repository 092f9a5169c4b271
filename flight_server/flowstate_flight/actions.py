"""The actions of a service: what each is for, and the bodies that it takes."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

from flowstate.errors import InvalidFlow
from flowstate.view.freshness import wait_of
from flowstate_flight.keys import hash_probe
from flowstate_flight.ticket import read_json

#: Seconds for a cut of which nobody said how long it may take.
CUT_TIMEOUT = 5.0
#: The field of a directory that tells of a gateway that it is one: it answers for all partitions, also for those that are away.
GATEWAY = "gateway"

ACTIONS = [
    ("directory", 'the routing table of a job as JSON; the body is {} or {"job": name}'),
    ("lookup", "the rows of some keys as an Arrow IPC stream; the body is a ticket with 'keys'"),
    ("status", "what this service hosts, as JSON"),
    (
        "cut",
        'one consistent cut of a job, made now: {"cut", "position", "epochs"}; the body is {"job"?: name, "timeout"?: seconds}',
    ),
    ("ping", "whether this process answers, and whether it is still in its job, as JSON; the body is {}"),
    (
        "overview",
        'what a job is doing, all of it, as JSON; the body is {} or {"job": name}; for those who may control it',
    ),
    ("stop", 'end a job, with a last snapshot; the body is {} or {"job": name}; for those who may control it'),
]
#: Those that are there for nobody else than who may control a job.
CONTROL = ("overview", "stop")


def directory_asked(body: bytes) -> str | None:
    """The job whose directory is asked for, if the body names one. Raises InvalidFlow, also for a reader that hashes differently."""
    asked = read_json(body or b"{}", "body of the action")
    job = asked.get("job")
    if set(asked) - {"job", "hash"} or not isinstance(job, str | None):
        raise InvalidFlow('the body of the action directory is {} or {"job": name}')
    if "hash" in asked and asked["hash"] != hash_probe():
        message = "this client hashes keys in another way than the workers; install the same version of flowstate"
        raise InvalidFlow(message)
    return job


def job_asked(kind: str, body: bytes) -> str | None:
    """The job that is meant, if the body names one. Raises InvalidFlow."""
    asked = read_json(body or b"{}", "body of the action")
    job = asked.get("job")
    if set(asked) - {"job"} or not isinstance(job, str | None):
        raise InvalidFlow(f'the body of the action {kind} is {{}} or {{"job": name}}')
    return job


def cut_asked(body: bytes) -> tuple[str | None, float]:
    """The job, if the body names one, and the seconds that its cut may take. Raises InvalidFlow."""
    asked = read_json(body or b"{}", "body of the action")
    job = asked.get("job")
    if set(asked) - {"job", "timeout"} or not isinstance(job, str | None):
        raise InvalidFlow('the body of the action cut is {"job"?: name, "timeout"?: seconds}')
    return job, wait_of(asked.get("timeout")) or CUT_TIMEOUT


def ipc_stream(schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> bytes:
    """Rows as the result of an action."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return bytes(sink.getvalue().to_pybytes())

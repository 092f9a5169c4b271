"""Requests to the supervisor in the scheduler, with its errors raised here as what they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flowstate.errors import Unavailable
from flowstate.runtime.reply import unwrap

if TYPE_CHECKING:
    from distributed import Client


#: What to do when there is no scheduler any more, which ends the job.
GONE = (
    "the scheduler does not answer; views are still read from what was saved last. If the cluster is gone, start the job again with "
    "fs.start: it resumes from its snapshots, and fs.connect(snapshots=) finds it"
)


def request(
    client: Client, operation: str, job: str | None = None, *, within: float | None = None, **arguments: Any
) -> Any:
    """One request to the supervisor of `client`'s cluster; `within` seconds, if given."""
    if client.status not in ("running", "connecting"):
        raise Unavailable(GONE, retry_after=5.0, client=client.status)
    try:
        answer = client.sync(
            client.scheduler.flowstate_request, operation=operation, job=job, callback_timeout=within, **arguments
        )
    except (OSError, TimeoutError) as error:
        raise Unavailable(GONE, retry_after=1.0) from error
    if answer is None:  # what Dask gives for an operation that its scheduler does not have
        raise Unavailable("no flowstate job has been started on this cluster; use fs.start", retry_after=5.0)
    return unwrap(answer)

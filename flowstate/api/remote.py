"""Requests to the supervisor in the scheduler, with its errors raised here as what they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import flowstate.errors as errors
from flowstate.errors import FlowstateError, InternalError, Unavailable

if TYPE_CHECKING:
    from distributed import Client


def unwrap(answer: dict[str, Any]) -> Any:
    """The value of an answer, or its error."""
    if "ok" in answer:
        return answer["ok"]
    data = answer["error"]
    kind = getattr(errors, data["kind"], InternalError)
    facts = dict(data["facts"])
    if kind is Unavailable:
        raise Unavailable(data["message"], retry_after=float(facts.pop("retry_after", 1.0)), **facts)
    assert issubclass(kind, FlowstateError)
    raise kind(data["message"], **facts)


def request(client: Client, operation: str, job: str | None = None, **arguments: Any) -> Any:
    """One request to the supervisor of `client`'s cluster."""
    try:
        answer = client.sync(client.scheduler.flowstate_request, operation=operation, job=job, **arguments)
    except AttributeError as error:
        raise Unavailable("no flowstate job has been started on this cluster; use fs.start", retry_after=5.0) from error
    except (OSError, TimeoutError) as error:
        raise Unavailable("the scheduler does not answer; is the cluster still up?", retry_after=1.0) from error
    return unwrap(answer)

"""Answers of the supervisor as plain data, also when they are errors."""

from __future__ import annotations

from typing import Any

import flowstate.errors as errors
from flowstate.errors import FlowstateError, InternalError, Unavailable


def failure(error: Exception) -> dict[str, Any]:
    """An error as data: an exception that cannot be unpickled would hang its caller."""
    if isinstance(error, FlowstateError):
        facts = {
            name: value if isinstance(value, int | float | str) else repr(value) for name, value in error.facts.items()
        }
        return {"error": {"kind": type(error).__name__, "message": error.message, "facts": facts}}
    return {"error": {"kind": "InternalError", "message": f"{type(error).__name__}: {error}", "facts": {}}}


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

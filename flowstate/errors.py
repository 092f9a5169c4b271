"""The errors of flowstate: six kinds, and each says what to do next.

Messages are lowercase, chain their cause, and end in facts as ``name=value``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FlowstateError(Exception):
    """Base of everything that flowstate raises on purpose. Facts are appended to the message as ``name=value``."""

    def __init__(self, message: str, **facts: object) -> None:
        self.message = message
        self.facts = facts
        super().__init__(" ".join([message, *(f"{name}={value!r}" for name, value in facts.items())]))

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.message, self.facts)


def _rebuild(kind: type[FlowstateError], message: str, facts: dict[str, object]) -> FlowstateError:
    return kind(message, **facts)


class InvalidFlow(FlowstateError):
    """Fix your code: the flow, an argument or a query is wrong. Carries a hint where one can be given."""


class Unavailable(FlowstateError):
    """Try again after `retry_after` seconds: something is away or not ready now."""

    def __init__(self, message: str, *, retry_after: float = 1.0, **facts: object) -> None:
        self.retry_after = retry_after
        super().__init__(message, retry_after=retry_after, **facts)

    def __reduce__(self) -> tuple[object, ...]:
        facts = {name: value for name, value in self.facts.items() if name != "retry_after"}
        return _rebuild_unavailable, (type(self), self.message, self.retry_after, facts)


def _rebuild_unavailable(
    kind: type[Unavailable], message: str, retry_after: float, facts: dict[str, object]
) -> Unavailable:
    return kind(message, retry_after=retry_after, **facts)


class Behind(Unavailable):
    """Try again after `retry_after` seconds: the state is there, but has not come as far as was asked for. Says how far it missed."""


class Moved(FlowstateError):
    """Ask the directory again: this partition lives elsewhere, or in a newer epoch."""


class Fenced(FlowstateError):
    """Stop: a newer run owns this. Carries both numbers."""


class CorruptData(FlowstateError):
    """Fix the data or restore from an older snapshot: what was read is not what was written."""


class InternalError(FlowstateError):
    """Report it: flowstate broke a promise that it makes to itself."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint for a misspelt name: ``; did you mean 'x'?``, or the known names when none is close."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there is {', '.join(map(repr, names))}" if names else "; there is none"

"""Who may read what: the rights of whoever asks, the same on every way of reading.

A *principal* is somebody who has shown a credential. It has grants: for some views (or all), some actions, and perhaps a filter of rows, so
that a customer sees only her own. What a principal may not see does not exist for it: a view is unknown, a key has no row, and both
answers are the same as for what is really not there.

Where nobody has to show anything (`ANYBODY`, on loopback by default), everything is allowed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Literal, Protocol

import pyarrow.compute as pc

#: ``read``: lookups, scans and changes. ``sql``: queries. ``control``: stop, drain, and what else changes a job.
Action = Literal["read", "sql", "control"]
ACTIONS: tuple[Action, ...] = ("read", "sql", "control")


@dataclass(frozen=True)
class Grant:
    """`views` None: all. `rows`: those for which it is true; it may only name columns that each of the views has. None: all."""

    actions: frozenset[Action] = frozenset(ACTIONS)
    views: frozenset[str] | None = None
    rows: pc.Expression | None = None

    def covers(self, action: Action, view: str | None) -> bool:
        return action in self.actions and (view is None or self.views is None or view in self.views)


@dataclass(frozen=True)
class Principal:
    """Somebody, by the name that goes into logs, and what is granted. Several grants add up."""

    name: str
    grants: tuple[Grant, ...] = field(default=(Grant(),))

    def may(self, action: Action, view: str | None = None) -> bool:
        """Whether the action is allowed at all, or on a view."""
        return any(each.covers(action, view) for each in self.grants)

    def views(self, names: Iterable[str], action: Action = "read") -> list[str]:
        """Those of `names` that exist for this principal."""
        return [each for each in names if self.may(action, each)]

    def rows(self, view: str, action: Action = "read") -> pc.Expression | None:
        """The filter that must be applied to whatever is read of `view`; None if every row may be seen."""
        filters: Collection[pc.Expression | None] = [each.rows for each in self.grants if each.covers(action, view)]
        if not filters:
            return pc.scalar(False)
        whole: pc.Expression | None = None
        for each in filters:
            if each is None:
                return None
            whole = each if whole is None else whole | each
        return whole


ANYBODY = Principal("anybody")


class Access(Protocol):
    """Who is there, by credential. Thread safe; compares in constant time; nothing of a credential is ever logged."""

    def of_token(self, token: str) -> Principal | None:
        """Whose bearer token this is, also one that `login` gave."""

    def login(self, user: str, password: str) -> str | None:
        """A bearer token for a user with a password, good for some time; None if there is no such pair."""

    def of_certificate(self, identity: str) -> Principal | None:
        """Who shows a client certificate with this name (mutual TLS)."""

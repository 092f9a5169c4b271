"""SQL for others: the contract of whoever runs queries for a gateway, which does not import it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from flowstate.view.answer import Answer
from flowstate.view.freshness import LATEST, Freshness
from flowstate.view.rights import ANYBODY, Principal


@dataclass(frozen=True)
class Described:
    """What a query gives and takes: the schema of its rows, and of its parameters in their order (fields ``$1``, ``$2``, ... or their
    names)."""

    schema: pa.Schema
    parameters: pa.Schema


class Statement(Protocol):
    """One query that runs. Used by one thread, but for `cancel`."""

    schema: pa.Schema

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows, once, in batches of at most about 4 MB. The first is computed before the first is asked for, so that most errors
        come from `RunSql.run`. Raises InvalidFlow (the query is wrong), Unavailable (a limit of time, memory or rows was met, or a
        partition is away)."""

    def cancel(self) -> None:
        """End it, from any thread: what it computes stops within about 0.1 s, and `batches` raises Unavailable. Safe to repeat, and
        afterwards."""

    @property
    def answers(self) -> Mapping[str, Answer]:
        """How fresh what it has read so far is, by view."""


class RunSql(Protocol):
    """Runs single SELECTs over the views of one job. Thread safe. What a principal may not see is not there for its queries."""

    def describe(self, query: str, params: Sequence[Any] | None = None, *, who: Principal = ANYBODY) -> Described:
        """What a query gives, without reading a row. With `params` their types decide. Raises InvalidFlow."""

    def run(
        self,
        query: str,
        params: Sequence[Any] | Mapping[str, Any] | None = None,
        *,
        fresh: Freshness = LATEST,
        who: Principal = ANYBODY,
        timeout: float | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Statement:
        """Begin a query; `timeout` seconds for all of it. `cancelled` is asked about 20 times a second for as long as the query runs, here
        and in `Statement.batches`, from any thread; once it is true, the query is cancelled: whoever asked has gone. Raises InvalidFlow,
        Unavailable (too many run at once: with `retry_after`)."""

    def close(self) -> None:
        """Cancel what runs."""

"""What changes in a view, as a subscriber is told: the contract between a partition, the Flight service and its clients.

A subscription goes in *rounds*. A round brings what changed since the round before, each key once, however often it changed, and ends
with the position that this adds up to. The first round brings everything. So a subscriber who is slow gets fewer rounds, not a queue.

A round is a series of `Change`, of one partition each:

* ``reset``: forget every row of this partition (of all, where it names none: the job was divided anew); what is there now follows.
* ``removed``: the rows of these keys are gone, since their window was dropped, or they are no longer what the condition asks for. Only
  the key columns hold anything.
* ``rows``: of a keyed view, the rows that these keys have now, instead of those before; of an append view, further rows.
* ``position``: all that was told so far is the state at the position of `answer`, exactly. `resume` is what to come back with: what is
  told then continues from here, without a gap. Also told, about twice a second, when nothing has changed, so that a subscriber knows
  how far the state has come, and a service that its subscriber is still there.

A partition that moved has another epoch. What it serves may be older than what was told before (it takes up what was saved last, and
applies the rest again), so a keyed view is told anew, from a ``reset``. Rows of an append view are a function of their place in the log,
so they are told once, whoever serves them. A partition keeps the newest of them alone: `missed` counts those that were dropped before a
slow subscriber could be told.

Between a round's first change and its position nothing is promised. Where a stream breaks there, ask again without `resume`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from flowstate.view.answer import Answer


@dataclass(frozen=True)
class Change:
    """One step of a round. `rows` is empty but for ``rows`` and ``removed``; `partition` None: all of them. `resume` is plain JSON data;
    rows of an append view have one too, since they need not be told again."""

    kind: Literal["reset", "removed", "rows", "position"]
    partition: int | None
    rows: pa.RecordBatch
    answer: Answer | None = None
    resume: Any = None
    missed: int = 0


@dataclass(frozen=True)
class Condition:
    """Which rows are told: `holds` gives one truth value per row of a batch with (at least) `columns`."""

    columns: tuple[str, ...]
    holds: Callable[[pa.RecordBatch], npt.NDArray[np.bool_]]


class Subscription(Protocol):
    """One subscriber of one partition. Used by one thread."""

    def round(self, wait: float) -> Iterator[Change]:
        """The next round, to be read to its end before the next. It waits up to `wait` seconds for something to change. Raises
        Unavailable when this partition is no longer here, InvalidFlow for a row whose result does not fit its type."""

"""What a partition holds for readers, and what has to go when that is too much: kept cuts, and streams that are under way.

Whatever is held costs what the table has copied, or dropped, since (`state.pieces`). There are three kinds: cuts that sessions read, cuts
that were made for one read, and streams. Of each a partition holds at most its share of `BUDGET`, or, if its state is larger, as much
again as its state, so that one can always be held. Beyond that goes first

* of cuts: what was last read longest ago (of those for one read: what has had it). So any number of single reads pushes out no cut that
  a session reads;
* of streams: what was last read from longest ago. Its reader gets an error instead of an end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import numpy as np
import pyarrow as pa

from flowstate.clock import Clock
from flowstate.errors import Unavailable
from flowstate.runtime.contents import Frozen
from flowstate.state.pieces import Pieces

#: Bytes of each kind that a worker holds at most for readers; or as much as its state, if that is more.
BUDGET = 128 << 20
#: Seconds for which a cut that nobody reads is kept, and a stream that nobody reads from stays open.
LEASE = 300.0
#: Cuts of a kind that a partition keeps at most, whatever they cost.
MOST_CUTS = 1000
_OVERHEAD = 4096  # bytes of a cut or stream of which the table has copied nothing


class Costing(Protocol):
    """What costs memory as long as it is held."""

    @property
    def pieces(self) -> Pieces: ...


Held = TypeVar("Held", bound=Costing)


@dataclass
class Kept:
    """A cut. `read` says who has read it here: nobody, single reads for which it was made, or a session."""

    frozen: Frozen
    as_of: float
    touched: float
    read: Literal["never", "once", "again"] = "never"
    _pieces: Pieces | None = None

    @property
    def pieces(self) -> Pieces:
        if self._pieces is None:
            self._pieces = Pieces.union(each.pieces() for each in self.frozen.views.values())
        return self._pieces

    @property
    def worth(self) -> tuple[int, float]:
        """What goes last has the most."""
        return {"once": 0, "never": 1, "again": 2}[self.read], self.touched


class Stream(Iterator[pa.RecordBatch]):
    """The batches of one scan, until it is given up in another thread: then there is an error instead of an end."""

    def __init__(self, batches: Iterator[pa.RecordBatch], pieces: Pieces, clock: Clock) -> None:
        self._batches, self.pieces, self._clock = batches, pieces, clock
        self.touched = clock.monotonic()
        self._given_up = False

    def __next__(self) -> pa.RecordBatch:
        self.touched = self._clock.monotonic()
        try:
            batch = next(self._batches, None)
        finally:
            if self._given_up:  # perhaps while this batch was made, so that what is left could not be closed
                self.close()
                message = "this was read so slowly that its state could not be held for it any longer; read it again, in smaller parts"
                raise Unavailable(message, retry_after=1.0)
        if batch is None:
            raise StopIteration
        return batch

    def give_up(self) -> None:
        """Hold nothing any more; from any thread."""
        self._given_up = True
        self.close()

    def close(self) -> None:
        try:
            self._batches.close()  # type: ignore[attr-defined]
        except ValueError:  # its reader is just in it
            pass


def cost(held: Sequence[Held], own: Pieces) -> list[int]:
    """The bytes that each holds beside the table's `own`, and beside those before it."""
    if not held:
        return []
    pieces = [each.pieces for each in held]
    identities, first = np.unique(np.concatenate([each.identities for each in pieces]), return_index=True)
    counted = first[~np.isin(identities, own.identities, assume_unique=True)]
    ends = np.cumsum([len(each.identities) for each in pieces])
    nbytes = np.zeros(int(ends[-1]), np.int64)
    nbytes[counted] = np.concatenate([each.nbytes for each in pieces])[counted]
    upto = np.concatenate([[0], np.cumsum(nbytes)])
    return [int(upto[end] - upto[begin]) + _OVERHEAD for begin, end in zip([0, *ends[:-1]], ends, strict=True)]


def beyond(held: Sequence[Held], own: Pieces, limit: int) -> tuple[list[Held], int]:
    """What of `held`, the most valuable first, must go so that the rest costs at most `limit` bytes; and what the rest costs."""
    spent = 0
    for number, each in enumerate(cost(held, own)):
        if spent + each > limit:
            return list(held[number:]), spent
        spent += each
    return [], spent

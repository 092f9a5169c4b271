"""What is left to read of a partition that is away: the contract of whoever keeps the last saved states at hand for a reader.

How a read chooses, partition by partition (`max_age` in seconds, or None):

* A live answer is taken whenever it comes. Live state has no age.
* A partition that is away (nobody serves it, it moved, its worker refuses, hangs or is gone) is looked for again until `grace` seconds
  are over since it was last there. Then its newest saved state is read, if its age, now less the moment when that state was current, is
  at most `max_age`; None accepts any age. The answer says of every part whether it is live or saved, and as of when.
* With ``max_age=0`` only a live answer will do.
* What fits neither is waited for until the reader's patience ends, and then refused with `Unavailable`, which says how old the saved
  state is, by how much it misses, and when to try again. Nothing is ever quietly older than was asked for.
* A partition that is known to be away is looked for by one request at a time, for all reads of the process, so that no read but the
  first pays for finding that out.
* A cut is never mixed: its parts are what the partitions kept of it. When one of them is gone, so is the cut, and the read says so.

Ages compare the clock of the machine that saved with that of the one that reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from flowstate.errors import FlowstateError
from flowstate.view.directory import Directory, LivePartition


@dataclass(frozen=True)
class Saved:
    """What is known now of the last saved state of a partition. `part` reads it; it is None while it is being loaded, and when it is
    older than was asked for. `as_of` is Unix time. `trouble` is why nothing newer, or nothing at all, could be read. `partitions` is
    the number that the saved state is divided into; with another one, its parts belong to other keys."""

    part: LivePartition | None = None
    as_of: float | None = None
    trouble: FlowstateError | None = None
    partitions: int | None = None


class SavedStates(Protocol):
    """The saved side of one job. Thread safe; nothing here waits for a load, so that no live answer waits for it either."""

    def announced(self) -> Directory | None:
        """Where the job was last said to live; None if nobody said, or it cannot be read now."""

    def directory(self) -> Directory:
        """The job as it was saved: views and partitions without a location. Raises InvalidFlow where no job ever was, Unavailable when
        it has not saved anything yet or the store is away."""

    def find(self, partition: int, view: str, oldest: float) -> Saved:
        """The newest saved state of a partition, with `view` loaded in the background if the state is not older than `oldest` (Unix
        time; infinity loads nothing). To be asked again while `part`, `as_of` and `trouble` are all None, or `part` alone is."""

    def snapshot(self, number: int) -> tuple[Directory, Mapping[int, LivePartition]]:
        """A saved cut: the job as it was then, and its partitions, whose tables are loaded as they are asked for. InvalidFlow if it is not
        there (any more), Unavailable if the store is away."""

    def close(self) -> None:
        """Let go of everything that is loaded."""

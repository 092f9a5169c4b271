"""The contract of a source.

A *source* is a log, or several: it knows its splits, and opens *readers*. A split is named by a string that means the same log
for ever: ``<scan name>/<topic>/<kafka partition>``, or ``<scan name>/<digest of the first bytes of the file>``. Offsets are int64,
grow along the split, and may have gaps; the same offset always stands for the same row (a byte in a text file, a row number in a
Parquet file).

Everything that a source gives is a pure function of (split, offsets): reading a stretch again, in other pieces, gives the same rows
and the same dead letters, in the same order. That is what makes a restart exact, so it is what the conformance suite checks.

A record that cannot be read never stops the flow and is never dropped: it is in `Rows.dead` with its offset, a reason that a
person understands, and its bytes. Trouble with the log itself is an error that says what to do: `Unavailable` when it may pass by
itself (the broker is away), `InvalidFlow` when the code must change (no such topic), `CorruptData` when the log is not what it was
(a file replaced or shortened, offsets deleted by retention).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

TOPIC_ID = "topic_id"  # in the hint of a split whose topic has one


@dataclass(frozen=True)
class SplitInfo:
    """A split as discovered. `start` is its first offset by the user's choice; `end` is where it ends (exclusive), or None while
    it may grow. `label` is for people: a file's path, ``topic[3]``. `hint` is for the source itself, plain JSON data that helps
    to open the split (a path); it may change while the name stays."""

    name: str
    label: str
    start: int = 0
    end: int | None = None
    hint: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Rows:
    """A stretch ``[since, to)`` of one split.

    `batch` has the scan's schema plus `__offset` (int64) and, if the scan has an event time, `__time` (int64 microseconds), in
    offset order. `dead` has `DEAD_LETTER_SCHEMA`. Both may be empty: the stretch then only moves the position. `newest` is not
    here: whoever reads keeps it. Dead rows move no watermark.
    """

    split: str
    since: int
    to: int
    batch: pa.RecordBatch
    dead: pa.RecordBatch


class SourceReader(ABC):
    """Reads some splits. Used by one thread. Everything is bounded: `poll` returns within about `timeout` seconds.

    `hears_rows`: while it waits in `poll`, rows that come end that. One that only looks again after a while is better asked without a
    timeout, by a caller who waits where he can be woken by other things, too.
    """

    hears_rows: ClassVar[bool] = False

    @abstractmethod
    def assign(self, split: SplitInfo, offset: int) -> None:
        """Begin (or begin again) to read `split` at `offset`."""

    @abstractmethod
    def unassign(self, split: str) -> None:
        """Forget `split`. Forgetting what is not assigned is no error."""

    @abstractmethod
    def poll(self, wanted: Mapping[str, int | None], *, max_rows: int, timeout: float) -> Sequence[Rows]:
        """What is ready in the splits of `wanted`, at most about `max_rows` rows over all; other assigned splits are left alone.

        The value is the offset to stop before (exclusive), or None. When everything before a stop is read, a stretch that
        ends exactly at the stop is given, even if it has no rows (gaps). Stretches of a split follow one another without a hole.
        Empty when nothing came within `timeout`.
        """

    def trouble(self, split: str) -> str | None:
        """What keeps an assigned split from being read just now and passes by itself: the log is away, and is waited for. For people."""
        return None

    @abstractmethod
    def end_offset(self, split: str) -> int:
        """The present end of an assigned split: every row before it can be read now (used by `drain` and for lag)."""

    def known_end(self, split: str) -> int | None:
        """As `end_offset`, if it can be told at a look, without asking a log that is elsewhere; else, or if it is not assigned, None. For
        lag, so from any thread, and of any moment of the last seconds."""
        return None

    @abstractmethod
    def close(self) -> None: ...


class Source(ABC):
    """Made from a `ScanSpec`; picklable; touches no network until it is asked."""

    @abstractmethod
    def splits(self) -> Sequence[SplitInfo]:
        """All splits that there are now. A clear error within 10 s if the log cannot be reached. May be called again and
        again to discover new ones."""

    @property
    @abstractmethod
    def follows(self) -> bool:
        """Whether splits may still grow, and new ones appear."""

    @abstractmethod
    def open(self) -> SourceReader: ...

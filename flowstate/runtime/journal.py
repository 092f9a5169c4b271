"""What happened to a job and its partitions, in words and with its time: who was lost, why, and when it was back."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass

from flowstate.clock import Clock
from flowstate.runtime.coordinator import Member

MOST = 500  # happenings that are kept


@dataclass(frozen=True)
class Happening:
    """`at`: Unix time. `kind`: began, lost, failed (again, while away), back, given up, finished, ended. `away`: of one that is back, the
    seconds for which it was not there."""

    number: int
    at: float
    kind: str
    words: str
    partition: int | None = None
    away: float | None = None


@dataclass
class _Absence:
    since: float
    failed_at: float
    reason: str
    given_up: bool = False


class Journal:
    """Of one run. Looks at the coordinator's members whenever something was decided about them. Counts are by partition."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.happenings: deque[Happening] = deque(maxlen=MOST)
        self.failures: Counter[int] = Counter()
        self.recoveries: Counter[int] = Counter()
        self.away: dict[int, float] = {}  # seconds, of those who were back
        self._lived: set[int] = set()
        self._absent: dict[int, _Absence] = {}

    def note(self, kind: str, words: str, partition: int | None = None, away: float | None = None) -> None:
        number = self.happenings[-1].number + 1 if self.happenings else 1
        self.happenings.append(Happening(number, self.clock.wall(), kind, words, partition, away))

    def look(self, members: Iterable[Member]) -> None:
        for each in members:
            if each.state in ("live", "ended"):
                self._there(each.number)
            elif each.reason is not None:  # else it comes up for the first time
                self._not_there(each, each.reason)

    def _there(self, number: int) -> None:
        self._lived.add(number)
        if (absence := self._absent.pop(number, None)) is None:
            return
        away = self.clock.monotonic() - absence.since
        self.recoveries[number] += 1
        self.away[number] = self.away.get(number, 0.0) + away
        self.note("back", f"partition {number} is back after {away:.1f} s: {absence.reason}", number, away)

    def _not_there(self, member: Member, reason: str) -> None:
        number, absence = member.number, self._absent.get(member.number)
        if absence is None:
            absence = self._absent[number] = _Absence(self.clock.monotonic(), member.failed_at, reason)
            self.failures[number] += 1
            lost = number in self._lived
            said = "was lost" if lost else "did not come up"
            self.note("lost" if lost else "failed", f"partition {number} {said}: {reason}", number)
        elif absence.failed_at != member.failed_at:
            absence.failed_at = member.failed_at
            self.failures[number] += 1
            if reason != absence.reason:  # a store that is away would be told every second
                absence.reason = reason
                self.note("failed", f"partition {number} did not come up: {reason}", number)
        if member.state == "failed" and not absence.given_up:
            absence.given_up = True
            self.note("given up", f"partition {number} is given up: {reason}", number)

"""How a job is at one moment, in plain data: what ``flowstate top`` shows, whoever told it.

Times are Unix seconds, watermarks microseconds. What is not known is None: only the supervisor knows rows, keys and queries, and only those
who may control a job are told by it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from flowstate.dashboard.looking import Looks, look
from flowstate.view import troubles

#: Seconds over which rates are taken. Workers report four times a second, so less would jump.
SPAN = 4.0
#: Seconds within which a partition that is not late comes to where another one was.
LATE = 1.0
#: Watermarks beyond this are no times: of splits that have not begun, or have ended.
NO_TIME = 1 << 55


@dataclass(frozen=True)
class PartitionSight:
    """`rows` were applied by this incarnation, `queries` answered; `waiting` are messages of others that are not applied yet."""

    number: int
    state: str
    epoch: int = 0
    place: str = ""
    rows: int | None = None
    keys: int | None = None
    bytes: int | None = None
    queries: int | None = None
    waiting: int | None = None
    watermark: int | None = None
    saved_at: float | None = None
    position: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class SplitSight:
    """`offset`: up to where every partition has applied it; `behind`: how far that is before the farthest one; `lag`: before its end."""

    split: str
    label: str
    reader: int | None
    offset: int
    behind: int
    lag: int | None = None


@dataclass(frozen=True)
class Sight:
    """`troubles` are sentences; `judged` if they already say who is late. `events` are what happened (`runtime.journal.Happening`)."""

    at: float
    job: str
    state: str
    run: int | None = None
    workers: int | None = None
    snapshot: int | None = None
    saved_at: float | None = None
    partitions: tuple[PartitionSight, ...] = ()
    splits: tuple[SplitSight, ...] = ()
    sinks: tuple[Mapping[str, Any], ...] = ()
    troubles: tuple[str, ...] = ()
    events: tuple[Mapping[str, Any], ...] = ()
    judged: bool = False

    def total(self, name: str) -> int | None:
        """Of all partitions; None if nobody knows."""
        known = [each for each in (getattr(part, name) for part in self.partitions) if each is not None]
        return sum(known) if known else None

    @property
    def watermark(self) -> int | None:
        """The least; None before the first event time, and at the end."""
        known = [each.watermark for each in self.partitions if each.watermark is not None]
        return min(known) if known and len(known) == len(self.partitions) else None


def of_overview(told: Mapping[str, Any], now: float) -> Sight:
    """What the supervisor says (`Job.status`)."""
    saved = told.get("saved_cut") or {}
    parts = tuple(
        _partition(int(number), member, told)
        for number, member in sorted(told["partitions"].items(), key=lambda each: int(each[0]))
    )
    sinks = [
        {
            "sink": sink,
            "partition": int(number),
            "view": each.get("table"),
            "waiting_seconds": each.get("oldest"),
            **each,
        }
        for number, member in told["partitions"].items()
        for sink, each in enumerate((member.get("report") or {}).get("sinks", ()))
    ]
    figures = told.get("figures") or {}
    splits = tuple(splits_of(parts, told.get("splits", {}), figures.get("lag", {})))
    wrong = figures["troubles"] if figures else _judged(told, now)
    return Sight(
        now,
        told["name"],
        told["state"],
        told.get("run"),
        len(told.get("workers", {})),
        saved.get("number"),
        saved.get("at"),
        parts,
        splits,
        tuple(sinks),
        tuple(wrong),
        tuple(figures.get("events", ())),
        judged=bool(figures),
    )


def _judged(told: Mapping[str, Any], now: float) -> list[str]:
    """By this one look: in the first second of a job the scheduler has not looked at it yet."""
    looks = Looks()
    looks.add(look(told, {}, now))
    return looks.troubles()


def _partition(number: int, member: Mapping[str, Any], told: Mapping[str, Any]) -> PartitionSight:
    report = member.get("report") or {}
    state = member["state"]
    if state == "starting" and report.get("epoch") == member["epoch"]:
        state = str(report["state"])
    if state in ("live", "ended") and report.get("filling"):
        state = "catching up"
    found = PartitionSight(number, state, member["epoch"], told.get("workers", {}).get(str(member["worker"]), ""))
    if "position" not in report or report.get("epoch") != member["epoch"]:
        return found
    watermark = report["watermark"]
    more = (told.get("figures") or {}).get("partitions", {}).get(str(number), {})
    if more.get("epoch") != member["epoch"]:
        more = {}
    return replace(
        found,
        rows=report["rows"],
        keys=sum(report["keys"].values()),
        bytes=more.get("bytes"),
        queries=more.get("queries"),
        waiting=report["waiting"],
        watermark=watermark if abs(watermark) < NO_TIME else None,
        saved_at=report["snapshot"]["at"] or None,
        position={split: place[0] for split, place in report["position"].items()},
    )


def splits_of(
    parts: Sequence[PartitionSight], known: Mapping[str, Any], ends: Mapping[str, int]
) -> Iterator[SplitSight]:
    """One for each split that somebody has a place in."""
    places: dict[str, list[int]] = {}
    for part in parts:
        for split, offset in part.position.items():
            places.setdefault(split, []).append(offset)
    for split, offsets in sorted(places.items(), key=lambda each: str(known.get(each[0], {}).get("label") or each[0])):
        entry = known.get(split, {})
        least = min(offsets)
        yield SplitSight(
            split,
            entry.get("label") or split,
            entry.get("reader"),
            least,
            max(offsets) - least,
            ends.get(split),
        )


class Course:
    """What follows from several moments: rates, and who is late."""

    def __init__(self) -> None:
        self._seen: deque[Sight] = deque()

    def add(self, sight: Sight) -> Sight:
        """`sight` with what it says beside those before it."""
        if self._seen and (self._seen[-1].job, self._seen[-1].run) != (sight.job, sight.run):
            self._seen.clear()
        self._seen.append(sight)
        while len(self._seen) > 2 and sight.at - self._seen[1].at >= SPAN:
            self._seen.popleft()
        late = [] if sight.judged else list(self._late(sight))
        splits = {split for split, _ in late}  # in others they only reported at different moments
        return replace(
            sight,
            troubles=(*sight.troubles, *(text for _, text in late)),
            splits=tuple(each if each.split in splits else replace(each, behind=0) for each in sight.splits),
        )

    def rate(self, name: str, number: int | None = None) -> float | None:
        """Of a count of a partition, or of all, in a second. An incarnation that has just come begins to count anew."""
        if len(self._seen) < 2:
            return None
        first, last = self._seen[0], self._seen[-1]
        if (seconds := last.at - first.at) <= 0:
            return None
        before = {(each.number, each.epoch): getattr(each, name) for each in first.partitions}
        found = [
            max(0, now - (before.get((each.number, each.epoch)) or 0)) / seconds
            for each in last.partitions
            if (now := getattr(each, name)) is not None and (number is None or each.number == number)
        ]
        return sum(found) if found else None

    def advance(self, split: str) -> float | None:
        """Offsets of a split in a second."""
        if len(self._seen) < 2:
            return None
        first, last = self._seen[0], self._seen[-1]
        before = {each.split: each.offset for each in first.splits}
        now = {each.split: each.offset for each in last.splits}
        if split not in before or split not in now or last.at <= first.at:
            return None
        return max(0.0, (now[split] - before[split]) / (last.at - first.at))

    def _late(self, sight: Sight) -> Iterator[tuple[str, str]]:
        """A split and a sentence for each partition that does not come in time to where another one was."""
        before = next((each for each in reversed(self._seen) if sight.at - each.at >= LATE), None)
        if before is None:
            return
        farthest: dict[str, int] = {}
        for part in before.partitions:
            for split, offset in part.position.items():
                farthest[split] = max(offset, farthest.get(split, offset))
        labels = {each.split: each.label for each in sight.splits}
        for part in sight.partitions:
            for split, offset in sorted(part.position.items()):
                missing = farthest.get(split, offset) - offset
                if missing > 0:
                    yield split, troubles.late(part.number, labels.get(split, split), missing, sight.at - before.at)

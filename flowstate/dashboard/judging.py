"""What is wrong with a job, by the last looks at it (`looking.look`): the causes, and since when. `view.troubles` has the words.

What follows from a cause that is told is not told beside it: a log that cannot be read is behind, and holds the watermark back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flowstate.dashboard.history import Mark
from flowstate.plan.position import NEVER
from flowstate.plan.spec import DEAD_LETTERS
from flowstate.view import troubles

#: Seconds between the looks that rates and lateness are taken over: reports come four times a second, so one second would say little.
WINDOW = 3
#: Seconds that a split may need for what is not read of it before that is told.
BEHIND = 10.0
#: Seconds for which that is told after it was found last.
LINGERS = 5.0
#: Seconds by which a split may be before all others, and silent, before it is told that it holds the watermark back.
HELD = 10.0
#: Seconds without a cut of all partitions before that is told: a partition that was away keeps the next one from coming about.
CUT = 10.0
#: Seconds for which dead letters and late rows are told after the last of them.
RECENT = 300.0
#: Seconds for which a cause stands, or is gone, before it is marked on the time axis.
STANDS = 2.0
LIVE = ("live", "ended")
#: Marks of what was told, and is never over.
LETTERS = ("dead letters", "late rows")

#: What is said of the job's own problems, by topic, and of those of a partition; of others, the topic itself.
_OF_JOB = {
    "cut": "no snapshot of all partitions at one position just now, each saves by itself",
    "retention": "old snapshots could not be cleaned up",
    "discovery": "new splits could not be looked for",
    "fence": "it could not be seen whether a newer run has begun",
    "beacon": "where the job is could not be written to its snapshots",
    "supervisor": "an error in the supervisor",
}
_OF_PARTITION = {"snapshot": "what is applied cannot be saved", "store": "the snapshot store does not answer"}

Look = Mapping[str, Any]


@dataclass(frozen=True)
class Trouble:
    """A sentence, by which `key` the same cause is known at the next look, and its `mark` on the time axis. Without a key it is no cause of
    its own: nobody is told when it is over."""

    words: str
    key: str = ""
    mark: str = ""


@dataclass
class _Letters:
    """Of one table and split: how many there were before those that are told, how many there are, and when the first and last came."""

    before: int
    count: int
    first: float = 0.0
    last: float = float("-inf")


class Judge:
    """Of one run. `add` every look; `troubles` of the last ones."""

    def __init__(self) -> None:
        self._since: dict[tuple[str, ...], float] = {}  # of each problem of the last look
        self._letters: dict[tuple[str, str], _Letters] = {}
        self._moved: dict[str, tuple[int | None, float]] = {}  # where a split was applied to, and when that was new
        self._comes: set[str] = set()  # splits of which rows came since the first look
        self._behind: dict[str, tuple[float, str]] = {}  # by split: when it was last found, and the sentence
        self._begun = False

    def add(self, look: Look) -> None:
        at = float(look["at"])
        there = {
            (number, topic) for number, each in [("", look), *look["partitions"].items()] for topic in each["problems"]
        }
        self._since = {each: self._since.get(each, at) for each in there}
        for split, each in look["splits"].items():
            if self._moved.get(split, (-1, 0.0))[0] != each["applied"]:
                if split in self._moved:
                    self._comes.add(split)
                self._moved[split] = each["applied"], at
        counts: dict[tuple[str, str], int] = {}
        for each in look["partitions"].values():
            for table, splits in each["letters"].items():
                for split, count in splits.items():
                    counts[table, split] = counts.get((table, split), 0) + count
        for place, count in counts.items():
            known = self._letters.get(place)
            if known is None:  # those that were there when the first look was taken may be old
                known = self._letters[place] = _Letters(0 if self._begun else count, 0 if self._begun else count)
            if count > known.count:
                if at - known.last > RECENT:
                    known.before, known.first = known.count, at
                known.count, known.last = count, at
        self._begun = self._begun or all(each["state"] in LIVE for each in look["partitions"].values())

    def troubles(self, looks: Sequence[Look]) -> list[Trouble]:
        """The most important first."""
        last = looks[-1]
        away = [Trouble(each) for each in (*_job(last), *_away(last))]
        found = [*away, *self._problems(last), *_sinks(last), *self._told_letters(last)]
        if last["state"] == "running" and not last["paused"]:
            held, behind = list(self._held(last)), self._slow(looks)
            slow = [Trouble(each, f"behind {split}", "behind") for split, each in behind.items()]
            found += [*held, *(Trouble(each) for split, each in _late(looks) if split not in behind), *slow]
        return found

    def _slow(self, looks: Sequence[Look]) -> dict[str, str]:
        """Sentences by split. One that is behind is told for a while: rows are applied in lumps."""
        last = looks[-1]
        self._behind |= {split: (last["at"], words) for split, words in _behind(looks)}
        self._behind = {
            split: (at, words)
            for split, (at, words) in self._behind.items()
            if last["at"] - at <= LINGERS and last["splits"].get(split, {}).get("lag") and not _broken(last, split)
        }
        return {split: words for split, (_, words) in self._behind.items()}

    def _problems(self, last: Look) -> Iterator[Trouble]:
        unsaved = any(
            "snapshot" in each["problems"] for each in last["partitions"].values()
        )  # which says why there is no cut
        for topic, text in last["problems"].items():
            seconds = self._for(last, "", topic)
            if topic in ("job", "drained", "stop") or topic.startswith("partition "):
                yield Trouble(troubles.plain(text))
            elif topic != "cut" or (seconds >= CUT and not unsaved):
                what = _OF_JOB.get(topic) or self._named(last, topic)
                yield Trouble(troubles.problem(what, [], text, seconds), f"job {topic}", topic)
        if last["state"] not in ("running", "finished"):
            return
        together: dict[tuple[str, str], list[tuple[str, str]]] = {}
        for number, each in last["partitions"].items():
            for topic, text in each["problems"].items():
                elsewhere = "split='" in text and topic in last["splits"] and f"split='{topic}'" not in text
                if each["state"] in LIVE and not elsewhere and not topic.startswith(("sink ", "publishing sink ")):
                    of = "split" if topic in last["splits"] else topic
                    together.setdefault((of, troubles.kind_of(text)), []).append((number, topic))
            for text in each["damaged"]:
                yield Trouble(f"partition {number} went back to an older snapshot: {troubles.plain(text)}")
        for (of, kind), places in together.items():
            number, topic = places[0]
            what = _OF_PARTITION.get(of, of)
            if of == "split":
                labels = sorted({last["splits"][each]["label"] or each for _, each in places})
                what = f"{troubles.some('split', labels)} cannot be read"
            text, seconds = (
                last["partitions"][number]["problems"][topic],
                max(self._for(last, *each) for each in places),
            )
            words = troubles.problem(what, [int(each) for each, _ in places], text, seconds)
            yield Trouble(words, f"{of} {kind}", {"split": "not read", "snapshot": "not saved"}.get(of, of))

    def _for(self, last: Look, number: str, topic: str) -> float:
        return float(last["at"] - self._since.get((number, topic), last["at"]))

    @staticmethod
    def _named(last: Look, topic: str) -> str:
        split = last["splits"].get(topic)
        return f"split {split['label'] or topic} cannot be read" if split else _OF_PARTITION.get(topic, topic)

    def _told_letters(self, last: Look) -> Iterator[Trouble]:
        tables: dict[str, dict[str, int]] = {}
        first: dict[str, float] = {}
        for (table, split), each in self._letters.items():
            if last["at"] - each.last <= RECENT and each.count > each.before:
                label = last["splits"].get(split, {}).get("label") or split
                counts = tables.setdefault(table, {})
                counts[label] = counts.get(label, 0) + each.count - each.before
                first[table] = min(each.first, first.get(table, each.first))
        for table, counts in tables.items():
            seconds = last["at"] - first[table]
            if table == DEAD_LETTERS:
                yield Trouble(troubles.unread(counts, seconds), table, LETTERS[0])
            else:
                yield Trouble(troubles.too_late(table.removesuffix("_late"), counts, seconds), table, LETTERS[1])

    def _held(self, last: Look) -> Iterator[Trouble]:
        """The split of the least watermark, if it is long before all others, at its end and not declared idle."""
        timed = {split: each for split, each in last["splits"].items() if each["watermark"] is not None}
        if len(timed) < 2 or not last["ready"]:
            return
        split, each = min(timed.items(), key=lambda item: item[1]["watermark"])
        others = min(other["watermark"] for name, other in timed.items() if name != split)
        silent = last["at"] - self._moved[split][1]
        if each["idle"] or others == NEVER or each["lag"] or _broken(last, split):
            return
        by = None if each["watermark"] == NEVER else (others - each["watermark"]) / 1e6
        if by is not None and by <= HELD:
            return
        comes = split in self._comes and silent < HELD / 2
        if silent > HELD or (comes and by is not None and by > 6 * HELD):
            words = troubles.held(each["label"] or split, by, silent if silent > HELD else None, last["idle_after"])
            yield Trouble(words, f"held {split}", "watermark held")


@dataclass
class _Cause:
    """`first`: as it was told first; `last`: when it was seen last."""

    first: Trouble
    since: float
    last: float = 0.0
    told: bool = False


class Causes:
    """When the causes of one run began and ended: of each that stood for `STANDS` seconds, both are told, once. Letters have no end."""

    def __init__(self) -> None:
        self._open: dict[str, _Cause] = {}

    def add(self, at: float, found: Sequence[Trouble]) -> Iterator[Mark]:
        """What is to be told since the last look."""
        for each in found:
            if each.key:
                cause = self._open.setdefault(each.key, _Cause(each, at))
                cause.last = at
                if at - cause.since >= STANDS and not cause.told:
                    cause.told = True
                    yield Mark(0, cause.since, "trouble", troubles.timeless(cause.first.words), mark=each.mark)
        for key, cause in list(self._open.items()):
            if at - cause.last >= STANDS:
                del self._open[key]
                if cause.told and cause.first.mark not in LETTERS:
                    away = cause.last - cause.since
                    words = f"over after {troubles.span(away)}: {troubles.timeless(cause.first.words)}"
                    yield Mark(0, cause.last, "mended", words, away=away, mark=cause.first.mark)


def _broken(last: Look, split: str) -> bool:
    """Whether somebody says why it is not read."""
    return any(split in each["problems"] for each in (last, *last["partitions"].values()))


def _job(last: Look) -> Iterator[str]:
    if last["state"] in ("stopped", "stopping", "fenced"):
        yield f"the job was {last['state']}" if last["state"] != "stopping" else "the job is stopping"
    if last["paused"]:
        yield last["paused"]


def _away(last: Look) -> Iterator[str]:
    """Nothing of it when the job was ended: then all are away, and that is known."""
    if last["state"] not in ("running", "finished"):
        return
    rows = last["partitions"]
    away = {number: each for number, each in rows.items() if each["state"] not in LIVE}
    if away and len(away) == len(rows):
        yield troubles.DOWN
    for number, each in away.items():
        if f"partition {number}" not in last["problems"]:  # else it was given up, and is told with the reason
            yield troubles.away(int(number), each["reason"] or f"it is {each['state']}", each["age"])
    for split, each in last["splits"].items():
        if each["reader"] is None and not away:
            yield f"split {each['label'] or split} is read by nobody just now; a reader is being appointed"


def _late(looks: Sequence[Look]) -> Iterator[tuple[str, str]]:
    """A split and a sentence for each partition that is late in it."""
    last, before = looks[-1], looks[max(0, len(looks) - 3)]
    if before is last:
        return
    for split, each in last["splits"].items():
        farthest = before["splits"].get(split, {}).get("farthest")
        if farthest is None or each["applied"] is None or each["applied"] >= farthest or _broken(last, split):
            continue
        for number, partition in last["partitions"].items():
            at = partition["position"].get(split)
            if partition["state"] in LIVE and at is not None and at < farthest:
                seconds = last["at"] - before["at"]
                yield split, troubles.late(int(number), each["label"] or split, farthest - at, seconds)


def _behind(looks: Sequence[Look]) -> Iterator[tuple[str, str]]:
    """A split and a sentence for each that needs long for what it lacks."""
    first, last = looks[0], looks[-1]
    seconds = last["at"] - first["at"]
    if seconds < WINDOW - 1:
        return
    for split, each in last["splits"].items():
        before = first["splits"].get(split, {})
        if not each["lag"] or before.get("applied") is None or each["reader"] is None or _broken(last, split):
            continue
        rate = max(0.0, (each["applied"] - before["applied"]) / seconds)
        grows = 0.0 if before.get("lag") is None else (each["lag"] - before["lag"]) / seconds
        if rate <= 0 or each["lag"] / rate > BEHIND:
            why = _reader(last, each)
            yield split, troubles.behind(each["label"] or split, each["lag"], rate, grows, why)


def _reader(last: Look, split: Mapping[str, Any]) -> str:
    """Who reads a split, and whom he waits for."""
    worker = (last["partitions"].get(str(split["reader"])) or {}).get("worker")
    said = f"partition {split['reader']}{f' on {worker}' if worker else ''} reads it"
    if split["waits"]:
        return f"{said}, and waits until {troubles.partitions(split['waits'])} has taken its rows"
    return said


def _sinks(last: Look) -> Iterator[Trouble]:
    if last["state"] in ("running", "finished"):
        found = troubles.sinks(
            {**each, "sink": place, "partition": int(number), "view": each["table"], "waiting_seconds": each["oldest"]}
            for number, partition in last["partitions"].items()
            for place, each in enumerate(partition["sinks"])
        )
        yield from (Trouble(words, key, " ".join(key.split()[:2])) for key, words in found)

"""A job as it is now, in plain data, and what is wrong with it, in sentences. Looked at on the scheduler, once a second."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from flowstate.dashboard.history import EVERY
from flowstate.plan.position import FOREVER, NEVER
from flowstate.runtime.running import RunningJob
from flowstate.view import troubles

#: Looks over which rates are taken: reports come four times a second, so one second alone would say little.
WINDOW = 3
#: Seconds that a split may need for what is not read of it before that is told.
BEHIND = 10.0

#: What is said of the job's own problems, by topic; of others, the topic itself.
_TOPICS = {
    "cut": "no snapshot of all partitions just now",
    "retention": "old snapshots could not be cleaned up",
    "discovery": "new splits could not be looked for",
    "fence": "it could not be seen whether a newer run has begun",
    "beacon": "where the job is could not be written to its snapshots",
    "supervisor": "an error in the supervisor",
}

Figures = Mapping[str, Mapping[str, Any]]


def look(job: RunningJob, figures: Figures, at: float) -> dict[str, Any]:
    """``{"job", "run", "state", "ready", "paused", "problems", "at", "saved_cut", "partitions", "splits"}``. `figures`: what workers
    know beyond the reports (`figures.Figures.look`), by partition."""
    coordinator, table = job.coordinator, job.coordinator.table
    partitions = {
        str(number): _partition(member, figures.get(str(number), {}), at)
        for number, member in coordinator.members.items()
    }
    ends: dict[str, list[int]] = {}
    least: dict[str, int] = {}
    most: dict[str, int] = {}
    filling: dict[str, list[int]] = {}  # where those are who catch up
    for each in partitions.values():
        ends.update(each.pop("ends"))
        for split, offset in each["position"].items():
            if offset < least.get(split, FOREVER):
                least[split] = offset
            if offset > most.get(split, -1):
                most[split] = offset
        for split in each["filling"]:
            filling.setdefault(split, []).append(each["position"].get(split, 0))
    splits = {}
    for split, entry in table.splits.items():
        end, applied = ends.get(split, (entry.end, least.get(split)))
        behind = [] if applied is None else [applied, *filling.get(split, ())]
        splits[split] = {
            "label": entry.label,
            "reader": table.readers[split].partition if split in table.readers else None,
            "applied": least.get(split),
            "farthest": most.get(split),
            "end": end,
            # That of its reader, both of one moment, or of who catches up with the reader: reports of two partitions that keep pace are
            # of different moments, and their difference means nothing.
            "lag": max(0, end - min(behind)) if end is not None and behind else None,
        }
    status = job.status()
    return {
        "job": job.spec.name,
        "run": job.spec.run,
        "state": job.state,
        "ready": job.ready,
        "paused": status["paused"],
        "problems": dict(status["problems"]),
        "saved_cut": dict(job.saved_cut),
        "at": at,
        "partitions": partitions,
        "splits": splits,
    }


def _partition(member: Any, figures: Mapping[str, Any], at: float) -> dict[str, Any]:
    report: Mapping[str, Any] = member.report
    if figures.get("epoch") != member.epoch:
        figures = {}
    watermark, saved = report.get("watermark"), report.get("snapshot", {})
    return {
        "state": member.state,
        "reason": member.reason,
        "epoch": member.epoch,
        "reported": report.get("epoch"),  # whose the report is: of one that is away, the last
        "worker": member.worker,
        "position": {split: place[0] for split, place in report.get("position", {}).items()},
        "applied": report.get("rows"),
        "appended": sum(figures.get("appended", {}).values()),
        "keys": dict(report.get("keys", {})),
        "bytes": figures.get("bytes"),
        "delay": None if watermark in (None, NEVER, FOREVER) else at - watermark / 1e6,
        "age": None if "at" not in saved else max(0.0, at - saved["at"]),
        "queries": sum(figures.get("queries", {}).values()) if "queries" in figures else None,
        "filling": list(report.get("filling", ())),
        "problems": dict(report.get("problems", {})),
        "sinks": [dict(each) for each in report.get("sinks", ())],
        "ends": dict(figures.get("ends", {})),
    }


class Looks:
    """The last looks at one run, from which rates and lateness are told."""

    def __init__(self) -> None:
        self._looks: deque[Mapping[str, Any]] = deque(maxlen=WINDOW + 1)

    def add(self, found: Mapping[str, Any]) -> None:
        if self._looks and self._looks[-1]["run"] != found["run"]:
            self._looks.clear()
        self._looks.append(found)

    def figures(self) -> dict[str, dict[str, float | None]]:
        """By measure (`history.MEASURES`) and name, as of the last look. Of partitions that are away only the snapshot's age is known."""
        last = self._looks[-1]
        live = {number: each for number, each in last["partitions"].items() if each["state"] in ("live", "ended")}
        rates = {number: self.rate(number) for number in live}
        named = last["partitions"]
        return {
            "rows": {number: rates[number][0] if number in live else None for number in named},
            "queries": {number: rates[number][1] if number in live else None for number in named},
            "bytes": {number: live[number]["bytes"] if number in live else None for number in named},
            "delay": {number: live[number]["delay"] if number in live else None for number in named},
            "age": {number: each["age"] for number, each in named.items()},
            "lag": {split: each["lag"] for split, each in last["splits"].items()},
        }

    def rate(self, number: str) -> tuple[float | None, float | None]:
        """Rows and queries per second. What a new incarnation has counted, it has counted since it began."""
        rows = queries = 0.0
        looks = list(self._looks)
        if len(looks) < 2:
            return None, None
        for before, after in pairwise(looks):
            one, two = before["partitions"].get(number), after["partitions"].get(number)
            if one is None or two is None:
                return None, None
            same = one["reported"] == two["reported"]
            rows += max(0, (two["applied"] or 0) - ((one["applied"] or 0) if same else 0))
            rows += max(0, two["appended"] - one["appended"]) if one["appended"] and two["appended"] else 0
            queries += max(0, (two["queries"] or 0) - ((one["queries"] or 0) if same else 0))
        seconds = max(EVERY / 2, looks[-1]["at"] - looks[0]["at"])
        return rows / seconds, queries / seconds

    def troubles(self) -> list[str]:
        """What is wrong as of the last look; the most important first."""
        if not self._looks:
            return []
        last = self._looks[-1]
        return [*_job(last), *_away(last), *_problems(last), *self._late(), *self._behind(), *_sinks(last)]

    def _late(self) -> Iterator[str]:
        last, before = self._looks[-1], self._looks[max(0, len(self._looks) - 3)]
        for split, each in last["splits"].items():
            farthest = before["splits"].get(split, {}).get("farthest")
            if farthest is None or each["applied"] is None or each["applied"] >= farthest:
                continue
            for number, partition in last["partitions"].items():
                at = partition["position"].get(split)
                if partition["state"] in ("live", "ended") and at is not None and at < farthest:
                    yield troubles.late(int(number), split, farthest - at, last["at"] - before["at"])

    def _behind(self) -> Iterator[str]:
        first, last = self._looks[0], self._looks[-1]
        seconds = last["at"] - first["at"]
        if last["state"] != "running" or last["paused"] or seconds < EVERY * (WINDOW - 1):
            return
        for split, each in last["splits"].items():
            before = first["splits"].get(split, {}).get("applied")
            if not each["lag"] or before is None or each["reader"] is None:
                continue
            rate = (each["applied"] - before) / seconds
            if rate <= 0 or each["lag"] / rate > BEHIND:
                yield troubles.behind(each["label"] or split, each["lag"], max(0.0, rate))


def _job(last: Mapping[str, Any]) -> Iterator[str]:
    if last["state"] in ("stopped", "stopping", "fenced"):
        yield f"the job was {last['state']}" if last["state"] != "stopping" else "the job is stopping"
    if last["paused"]:
        yield last["paused"]


def _problems(last: Mapping[str, Any]) -> Iterator[str]:
    for topic, text in last["problems"].items():
        plain = topic in ("job", "drained", "stop") or topic.startswith("partition ")
        yield text if plain else f"{_TOPICS.get(topic, topic)}: {text}"


def _away(last: Mapping[str, Any]) -> Iterator[str]:
    """Nothing of it when the job was ended: then all are away, and that is known."""
    if last["state"] not in ("running", "finished"):
        return
    rows = last["partitions"]
    away = {number: each for number, each in rows.items() if each["state"] not in ("live", "ended")}
    if away and len(away) == len(rows):
        yield troubles.DOWN
    for number, each in away.items():
        yield troubles.away(int(number), each["reason"] or f"it is {each['state']}", each["age"])
    for split, each in last["splits"].items():
        if each["reader"] is None and not away:
            yield f"split {each['label'] or split} is read by nobody just now"
    for number, each in rows.items():
        for topic, text in each["problems"].items():
            if number not in away and not topic.startswith(("sink ", "publishing sink ")):
                yield f"partition {number}, {topic}: {text}"


def _sinks(last: Mapping[str, Any]) -> Iterator[str]:
    for number, partition in last["partitions"].items():
        for place, each in enumerate(partition["sinks"]):
            name = f"{place} ({each['kind']} of {each['table']} to {each['url']})"
            waits = {"waiting": each["oldest"], "rejected": each["rejected"]}
            yield from troubles.sink(name, int(number), problem=each["problem"], **waits)

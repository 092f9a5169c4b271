"""A job as it is now, in plain data. Looked at on the scheduler, once a second; `judging` says what is wrong with it."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from flowstate.dashboard.history import EVERY
from flowstate.dashboard.judging import WINDOW, Judge, Trouble
from flowstate.plan.position import FOREVER, NEVER

Figures = Mapping[str, Mapping[str, Any]]


def look(told: Mapping[str, Any], figures: Figures, at: float) -> dict[str, Any]:
    """``{"job", "run", "state", "ready", "paused", "problems", "at", "saved_cut", "idle_after", "partitions", "splits"}``. `told`: the job
    as `runtime.overview` has it; `figures`: what workers know beyond the reports (`figures.Figures.look`), by partition."""
    partitions = {
        number: _partition(member, figures.get(number, {}), at) for number, member in told["partitions"].items()
    }
    ends: dict[str, list[int]] = {}
    marks: dict[str, list[int]] = {}
    waits: dict[str, list[int]] = {}
    least: dict[str, int] = {}
    most: dict[str, int] = {}
    filling: dict[str, list[int]] = {}  # where those are who catch up
    for each in partitions.values():
        ends.update(each.pop("ends"))
        marks.update(each.pop("marks"))
        waits.update(each.pop("waits"))
        for split, offset in each["position"].items():
            if offset < least.get(split, FOREVER):
                least[split] = offset
            if offset > most.get(split, -1):
                most[split] = offset
        for split in each["filling"]:
            filling.setdefault(split, []).append(each["position"].get(split, 0))
    splits = {}
    for split, entry in told["splits"].items():
        end, applied = ends.get(split, (entry.get("end"), least.get(split)))
        behind = [] if applied is None else [applied, *filling.get(split, ())]
        watermark, floor = marks.get(split, (None, 0))
        splits[split] = {
            "label": entry["label"],
            "reader": entry["reader"],
            "applied": least.get(split),
            "farthest": most.get(split),
            "end": end,
            # That of its reader, both of one moment, or of who catches up with the reader: reports of two partitions that keep pace are
            # of different moments, and their difference means nothing.
            "lag": max(0, end - min(behind)) if end is not None and behind else None,
            "watermark": watermark,
            "idle": bool(floor),
            "waits": waits.get(split, []),
        }
    return {
        "job": told["name"],
        "run": told["run"],
        "state": told["state"],
        "ready": told["ready"],
        "paused": told["paused"],
        "problems": dict(told["problems"]),
        "saved_cut": dict(told.get("saved_cut", {})),  # not there of a run that was replaced
        "idle_after": told.get("idle_after"),
        "at": at,
        "partitions": partitions,
        "splits": splits,
    }


def _partition(member: Mapping[str, Any], figures: Mapping[str, Any], at: float) -> dict[str, Any]:
    report: Mapping[str, Any] = member.get("report") or {}
    if figures.get("epoch") != member["epoch"]:
        figures = {}
    watermark, saved = report.get("watermark"), report.get("snapshot", {})
    return {
        "state": member["state"],
        "reason": member["reason"],
        "epoch": member["epoch"],
        "reported": report.get("epoch"),  # whose the report is: of one that is away, the last
        "worker": member["worker"],
        "position": {split: place[0] for split, place in report.get("position", {}).items()},
        "applied": report.get("rows"),
        "appended": sum(figures.get("appended", {}).values()),
        "letters": {name: dict(counts) for name, counts in figures.get("letters", {}).items()},
        "keys": dict(report.get("keys", {})),
        "bytes": figures.get("bytes"),
        "delay": None if watermark in (None, NEVER, FOREVER) else at - watermark / 1e6,
        "age": None if "at" not in saved else max(0.0, at - saved["at"]),
        "queries": sum(figures.get("queries", {}).values()) if "queries" in figures else None,
        "filling": list(report.get("filling", ())),
        "problems": dict(report.get("problems", {})),
        "damaged": list(report.get("damaged", ())),
        "sinks": [dict(each) for each in report.get("sinks", ())],
        "ends": dict(figures.get("ends", {})),
        "marks": dict(figures.get("marks", {})),
        "waits": dict(figures.get("waits", {})),
    }


class Looks:
    """The last looks at one run, from which rates and troubles are told."""

    def __init__(self) -> None:
        self._looks: deque[Mapping[str, Any]] = deque(maxlen=WINDOW + 1)
        self._judge = Judge()

    def add(self, found: Mapping[str, Any]) -> None:
        if self._looks and self._looks[-1]["run"] != found["run"]:
            self._looks.clear()
            self._judge = Judge()
        self._looks.append(found)
        self._judge.add(found)

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
        """What is wrong as of the last look, in sentences; the most important first."""
        return [each.words for each in self.judged()]

    def judged(self) -> list[Trouble]:
        return self._judge.troubles(self._looks) if self._looks else []

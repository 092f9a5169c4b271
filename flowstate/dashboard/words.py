"""What the page says, as HTML. Everything that comes from outside (names, reasons, addresses) is escaped here."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from flowstate.dashboard.history import Mark
from flowstate.dashboard.looking import Looks
from flowstate.runtime.journal import Happening
from flowstate.view import troubles

#: Of events, as marks and in words.
COLORS = {
    "began": "#4a6fa5",
    "finished": "#4a6fa5",
    "ended": "#6b6b6b",
    "lost": "#c62828",
    "failed": "#c62828",
    "given up": "#7b1fa2",
    "back": "#2e7d32",
    "trouble": "#b26a00",
    "mended": "#2e7d32",
}
GOOD, BAD, PLAIN = "#2e7d32", "#c62828", "#6b6b6b"
#: Partitions of the table, and sentences, that are shown at most.
ROWS, SENTENCES = 64, 12
#: Seconds within which events are told by one mark's word.
TOGETHER, NEVER = 2.0, float("-inf")


def no_job() -> str:
    return "<h3 style='margin:8px 0'>No job of flowstate has run on this cluster yet.</h3>"


def head(now: Mapping[str, Any], looks: Looks) -> str:
    """The job in one line."""
    partitions = now["partitions"]
    live = sum(each["state"] in ("live", "ended") for each in partitions.values())
    figures = looks.figures()
    rows = sum(each or 0.0 for each in figures["rows"].values())
    queries = sum(each or 0.0 for each in figures["queries"].values())
    keys = sum(sum(each["keys"].values()) for each in partitions.values())
    lag = sum(each or 0 for each in figures["lag"].values())
    size = sum(each["bytes"] or 0 for each in partitions.values())
    state = "running" if now["state"] == "running" and now["ready"] else now["state"]
    if now["state"] == "running" and not now["ready"]:
        state = "not all there"
    facts = [
        f"run {now['run']}, {state}",
        f"{live} of {len(partitions)} partitions live",
        f"{rows:,.0f} rows/s",
        f"lag {lag:,}",
        f"{keys:,} keys in {_bytes(size)}",
        f"{queries:,.0f} queries/s",
        f"cut {now['saved_cut']['number']} saved {_seconds(now['at'] - now['saved_cut']['at'])} ago"
        if "number" in now["saved_cut"]
        else "no cut saved yet",
    ]
    said = " &middot; ".join(escape(each) for each in facts)
    return f"<div style='margin:8px 0;font-size:15px'><b style='font-size:19px'>{escape(now['job'])}</b> &nbsp; {said}</div>"


def wrong(now: Mapping[str, Any], troubles: Sequence[str]) -> str:
    """What is wrong; or that nothing is."""
    if troubles:
        more = [f"and {len(troubles) - SENTENCES} more"] if len(troubles) > SENTENCES else []
        lines = [*troubles[:SENTENCES], *more]
        return _bar(BAD if now["state"] in ("running", "finished") else PLAIN, lines)
    if now["state"] == "finished":
        return _bar(GOOD, ["everything is read to its end, and every partition answers"])
    return _bar(GOOD, ["every partition is live, and none is late"])


def _bar(color: str, lines: Sequence[str]) -> str:
    said = "".join(f"<div>{escape(each)}</div>" for each in lines)
    style = f"border-left:5px solid {color};padding:4px 10px;margin:2px 0 8px;font-size:15px;overflow-wrap:anywhere"
    return f"<div style='{style}'>{said}</div>"


def events(happenings: Sequence[Happening]) -> str:
    """The newest first."""
    if not happenings:
        return ""
    lines = [
        f"<div><span style='color:{COLORS[each.kind]}'>&#9679;</span> {clock(each.at)} {escape(each.words)}</div>"
        for each in reversed(happenings[-20:])
    ]
    return f"<div style='margin:8px 0;overflow-wrap:anywhere'><b>What happened (UTC)</b>{''.join(lines)}</div>"


def partitions(now: Mapping[str, Any], looks: Looks) -> str:
    """A table: those that are not live first."""
    figures = looks.figures()
    names = sorted(
        now["partitions"], key=lambda each: (now["partitions"][each]["state"] in ("live", "ended"), int(each))
    )
    heads = (
        "partition",
        "state",
        "epoch",
        "worker",
        "rows/s",
        "keys",
        "state size",
        "watermark delay",
        "saved",
        "queries/s",
    )
    lines = []
    for name in names[:ROWS]:
        each = now["partitions"][name]
        said = (
            each["state"]
            if each["state"] in ("live", "ended") or not each["reason"]
            else f"{each['state']}: {each['reason']}"
        )
        lines.append(
            (
                name,
                said + (", catching up" if each["filling"] else ""),
                str(each["epoch"]),
                each["worker"] or "",
                _number(figures["rows"][name]),
                f"{sum(each['keys'].values()):,}",
                "" if each["bytes"] is None else _bytes(each["bytes"]),
                "" if each["delay"] is None else _seconds(each["delay"]),
                "" if each["age"] is None else f"{_seconds(each['age'])} ago",
                _number(figures["queries"][name]),
            )
        )
    cell = "padding:1px 12px 1px 0;text-align:left;overflow-wrap:anywhere"
    table = "".join(f"<th style='{cell}'>{escape(each)}</th>" for each in heads)
    for line in lines:
        table += "<tr>" + "".join(f"<td style='{cell}'>{escape(each)}</td>" for each in line) + "</tr>"
    more = f"<div>and {len(names) - ROWS} more</div>" if len(names) > ROWS else ""
    return f"<table style='border-collapse:collapse;margin:8px 0'><tr>{table}</table>{more}"


def short(happenings: Sequence[Happening]) -> list[str]:
    """A word for each mark; of several of one kind at about one time, only the first has one, for all."""
    found: list[str] = []
    firsts: dict[str, tuple[int, float, int]] = {}  # by kind: the place of the first, its time, how many there are
    for place, each in enumerate(happenings):
        first, at, count = firsts.get(each.kind, (0, NEVER, 0))
        if each.partition is not None and each.at - at <= TOGETHER:
            firsts[each.kind] = first, at, count + 1
            found[first] = f"{count + 1} partitions {each.kind}"
            found.append("")
            continue
        firsts[each.kind] = place, each.at, 1
        who = f"p{each.partition} " if each.partition is not None else ""
        if isinstance(each, Mark):
            found.append(each.mark + (f" over, {_seconds(each.away)}" if each.away is not None else ""))
            continue
        found.append(f"{who}{each.kind}" + (f" {each.away:.1f} s" if each.away is not None else ""))
    return found


def clock(at: float) -> str:
    """Time of day, UTC."""
    return f"{dt.datetime.fromtimestamp(at, dt.UTC):%H:%M:%S}"


def shortened(text: str, most: int) -> str:
    """Of a long name, the end says more than the beginning."""
    return text if len(text) <= most else "…" + text[1 - most :]


def _number(number: float | None) -> str:
    return "" if number is None else f"{number:,.0f}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else troubles.span(seconds)


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"

"""A job as a notebook shows it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from flowstate.clock import SystemClock
from flowstate.plan.position import NEVER
from flowstate.view.html import cut, moment, table


def job_html(name: str, status: Mapping[str, Any]) -> str:
    """`status` is that of `Job.status`. What is wrong, in words; then its partitions, and how far the splits of its logs are behind."""
    now = SystemClock().wall()
    state = str(status["state"])
    saved = (status.get("saved_cut") or {}).get("at")
    snapshot = "" if saved is None else f", saved {max(0.0, now - saved):,.1f} s ago"
    figures = status.get("figures") or {}
    wrong = [str(each) for each in figures.get("troubles", ())]
    wrong += [f"{what}: {text}" for what, text in status.get("problems", {}).items() if text not in " ".join(wrong)]
    lines = [f"<div><b>job {escape(name)}</b> {escape(state)}{snapshot}</div>"]
    if wrong:
        lines.append("<ul>" + "".join(f"<li>{escape(each)}</li>" for each in wrong) + "</ul>")
    parts = status.get("partitions", {})
    if parts:
        names = ("partition", "state", "epoch", "rows", "keys", "watermark", "saved")
        lines.append(
            table(names, (_partition(number, each, now) for number, each in sorted(parts.items(), key=_number)))
        )
    lag = figures.get("lag") or {}
    if lag:
        lines.append(table(("split", "behind"), _splits(status.get("splits", {}), lag)))
    return "".join(lines)


def _number(part: tuple[str, Any]) -> int:
    return int(part[0])


def _partition(number: str, part: Mapping[str, Any], now: float) -> tuple[Any, ...]:
    report = part.get("report") or {}
    snapshot = report.get("snapshot") or {}
    when = moment(report.get("watermark", NEVER))
    saved = f"{max(0.0, now - snapshot['at']):,.1f} s ago" if snapshot.get("at") else ""
    keys = sum((report.get("keys") or {}).values())
    return int(number), part["state"], part.get("epoch", ""), f"{report.get('rows', 0):,}", f"{keys:,}", when, saved


def _splits(splits: Mapping[str, Any], lag: Mapping[str, int | None]) -> Iterator[tuple[Any, ...]]:
    """Those that are farthest behind come first; where it is not known yet, nothing is said."""
    for split, behind in sorted(lag.items(), key=lambda each: (-(each[1] or 0), each[0])):
        said = "" if behind is None else f"{behind:,}" if behind else "nothing"
        yield cut(str(splits.get(split, {}).get("label", split))), said

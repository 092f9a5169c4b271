"""How far a job is that comes up or catches up: one line at the terminal of ``flowstate run``, written over again and again, then gone."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections.abc import Mapping
from typing import Any

from flowstate.clock import Clock

#: Seconds of work from which a catching up is shown, and until which it goes on being shown.
WORTH, DONE = 3.0, 1.0
#: Signs of a bar: what comes behind it is still to be read in a narrow terminal.
BAR = 16


class Progress:
    """Thread safe. Where nobody sees it, it says nothing."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        seen = sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self.seen = bool(seen)
        self._shown = False
        self._course = CatchingUp()

    def show(self, text: str) -> None:
        if not self.seen:
            return
        with self._lock:
            width = shutil.get_terminal_size().columns
            self._write(f"\r{text[: width - 1]}\x1b[K")
            self._shown = True

    def clear(self) -> None:
        """Before anything else is written there."""
        with self._lock:
            if self._shown:
                self._write("\r\x1b[K")
                self._shown = False

    def begin(self, what: str) -> None:
        """Of something that takes a while, and does not tell how far it is."""
        self._course = CatchingUp()
        self.show(f"{what} ...")

    def look(self, status: Mapping[str, Any]) -> None:
        """At what ``job.status()`` gives."""
        if not self.seen:
            return
        text = restoring(status) or self._course.told(status, self._clock.monotonic())
        if text is None:
            self.clear()
        else:
            self.show(text)

    def _write(self, text: str) -> None:
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except (OSError, ValueError):
            self.seen = False


def restoring(status: Mapping[str, Any]) -> str | None:
    """While partitions come up."""
    parts = status.get("partitions", {})
    there = sum(each["state"] in ("live", "ended") for each in parts.values())
    if status.get("state") != "running" or there == len(parts):
        return None
    alike: dict[str, list[str]] = {}
    for number, each in parts.items():
        if each["state"] not in ("live", "ended"):
            alike.setdefault(_doing(each), []).append(str(number))
    missing = [
        f"{', '.join(numbers[:4])} {'is' if len(numbers) == 1 else 'are'} {doing}" for doing, numbers in alike.items()
    ]
    return f"coming up {bar(there / len(parts))} {there} of {len(parts)} partitions; {'; '.join(missing)}"


def _doing(member: Mapping[str, Any]) -> str:
    if member["state"] != "starting" or (member.get("report") or {}).get("state") != "loading":
        return str(member["state"])
    return "loading what it saved" if member.get("epoch", 0) > 1 else "compiling kernels, if this machine has none yet"


class CatchingUp:
    """With a log that was there before, or went on while the job was down."""

    def __init__(self) -> None:
        self._most = 0
        self._before: tuple[float, int] | None = None
        self._rate: float | None = None
        self._told = False

    def told(self, status: Mapping[str, Any], now: float) -> str | None:
        """How far it is; None while it keeps up. `now` is monotonic."""
        lags = [each for each in status.get("figures", {}).get("lag", {}).values() if each is not None]
        if not lags:
            return None
        lag = sum(lags)
        if self._before is None or now - self._before[0] >= 1.0:
            if self._before is not None:
                rate = max(0.0, (self._before[1] - lag) / (now - self._before[0]))
                self._rate = rate if self._rate is None else 0.7 * self._rate + 0.3 * rate
            self._before = now, lag
        self._most = max(self._most, lag)
        left = lag / self._rate if self._rate else None
        self._told = lag > 0 and (left is None or left > (DONE if self._told else WORTH))
        if not self._told or self._rate is None:
            if lag == 0:
                self._most = 0
            return None
        rest = "" if left is None else f", {left:.0f} s left" if left < 120 else f", {left / 60:.0f} min left"
        rows = sum((each.get("report") or {}).get("rows", 0) for each in status["partitions"].values())
        return f"catching up {bar(1 - lag / self._most)} lag {lag:,}{rest}; {rows:,} rows applied"


def bar(part: float) -> str:
    """`part` of one, in signs that the terminal has."""
    part = min(1.0, max(0.0, part))
    full = int(part * BAR)
    encoding = (getattr(sys.stderr, "encoding", "") or "").lower().replace("-", "")
    done, rest = ("█", "░") if encoding == "utf8" else ("#", "-")
    return f"{done * full}{rest * (BAR - full)} {100 * part:3.0f} %"

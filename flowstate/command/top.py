"""``flowstate top``: a job as it is, again and again, until somebody has seen enough."""

from __future__ import annotations

import shutil
import threading
from dataclasses import dataclass

from flowstate.clock import SystemClock
from flowstate.command.observer import Observer
from flowstate.command.place import Place
from flowstate.command.rows import abandoned, write
from flowstate.command.sight import Course, Sight
from flowstate.command.terminal import Interrupted, Terminal, die_of, is_terminal
from flowstate.command.top_screen import as_json, line, painted, plain, screen
from flowstate.errors import FlowstateError

#: Seconds between the first two looks: rates need both. Where these are all, it must be longer than the workers' reports are apart.
FIRST, ONCE = 1.0, 2.0
#: Seconds without a look after which it is told how old what is shown is.
SILENT = 3.0


def top(place: Place, every: float, once: bool, kind: str) -> int:
    """`kind`: text or json. Raises Unavailable if nothing is known of the job, InvalidFlow."""
    with place.opened() as (reader, saved):
        observer = Observer(place, reader, saved)
        if once:
            course = Course()
            course.add(observer.look())
            threading.Event().wait(ONCE)
            sight = course.add(observer.look())
            now = SystemClock().wall()
            if kind == "json":
                write(as_json(sight, course).encode() + b"\n")
            else:
                lines = screen(sight, course, shutil.get_terminal_size((120, 24)).columns, 1000, now)[:-1]
                write(plain(lines).encode(errors="replace"))
        elif kind == "json" or not is_terminal():
            _lines(observer, every, kind)
        else:
            return _live(observer, every)
    return 0


def _lines(observer: Observer, every: float, kind: str) -> None:
    """One for each look, until nobody reads them any more."""
    clock, pause, course = SystemClock(), threading.Event(), Course()
    due = clock.monotonic()
    while not abandoned():
        sight = course.add(observer.look())
        text = as_json(sight, course) if kind == "json" else line(sight, course, clock.wall())
        write(text.encode(errors="replace") + b"\n")
        due = max(due + every, clock.monotonic())
        while (left := due - clock.monotonic()) > 0 and not abandoned():
            pause.wait(min(left, 0.25))


@dataclass
class _Seen:
    """What the looking thread has found, for the one that shows it."""

    sight: Sight | None = None
    error: FlowstateError | None = None
    number: int = 0


def _live(observer: Observer, every: float) -> int:
    """On the whole terminal. Looks are taken on a thread of their own: a job that does not answer keeps no key waiting."""
    clock, course, seen = SystemClock(), Course(), _Seen()
    ended = threading.Event()

    def watch() -> None:
        while not ended.is_set():
            try:
                seen.sight = course.add(observer.look())
                seen.error = None
            except FlowstateError as error:
                seen.error = error
            seen.number += 1
            ended.wait(every if seen.number > 1 else min(every, FIRST))

    threading.Thread(target=watch, name="top", daemon=True).start()
    signal = None
    try:
        with Terminal() as terminal:
            shown = -1
            while True:
                width, height = terminal.size()
                if seen.error is not None and seen.sight is None:
                    break
                if terminal.changed or seen.number != shown or _silent(seen, clock.wall(), every):
                    terminal.changed, shown = False, seen.number
                    terminal.write(_painted(seen, course, width, height, clock.wall(), every))
                if (terminal.key(0.1) or "").lower() in ("q", "\x03", "\x1b"):
                    break
    except Interrupted as interrupted:
        signal = interrupted.number
    finally:
        ended.set()
    if signal is not None:
        die_of(signal)
    if seen.error is not None and seen.sight is None:
        raise seen.error
    return 0


def _silent(seen: _Seen, now: float, every: float) -> bool:
    return seen.sight is not None and now - seen.sight.at > SILENT + every


def _painted(seen: _Seen, course: Course, width: int, height: int, now: float, every: float) -> str:
    if seen.sight is None:
        return "\x1b[H\x1b[Jlooking for the job ..."
    lines = screen(seen.sight, course, width, height, now)
    if _silent(seen, now, every):
        lines[-1].append(f"   no answer for {now - seen.sight.at:.0f} s", "bold red")
    return painted(lines, width)

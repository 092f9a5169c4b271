"""Asks every key of a view without end, as a service would that knows nothing of the cluster, and writes down what came.

    python -m benchmarks.prober SNAPSHOTS OUT VIEW SECONDS_BETWEEN KEY [KEY ...]

One thread per key, all on one reader; one more asks the whole view by SQL. A line per answer in OUT: when it was asked and answered
(Unix time), what was asked (a key, or ``sql``), the error or nothing, whether all of it was live, the state's own time (Unix), the epoch
of the partition, the number of events that the answer contains, and of months, and how far the logs were applied (the sum of offsets). It
ends when its standard input does.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TextIO

import pyarrow.compute as pc

import flowstate as fs
from flowstate.view.answer import Answer

Found = tuple[bool, float, int, int, int, int]


def main() -> None:
    snapshots, out, view, pause, *keys = sys.argv[1:]
    stopping, lock = threading.Event(), threading.Lock()
    with open(out, "a", buffering=1) as log, fs.connect(snapshots=snapshots) as reads:
        loops = [(key, lambda key=key: of_key(reads, view, key), float(pause)) for key in keys]
        loops.append(("sql", lambda: of_sql(reads, view), 5 * float(pause)))
        threads = [threading.Thread(target=probe, args=(*loop, log, lock, stopping), daemon=True) for loop in loops]
        for each in threads:
            each.start()
        sys.stdin.read()
        stopping.set()
        for each in threads:
            each.join(15)


def of_key(reads: fs.api.job.Reads, view: str, key: str) -> Found:
    table = reads[view].lookup(key)
    answer = Answer.of(table.schema)
    assert answer is not None
    live = all(part.origin == "live" for part in answer.parts)
    events = pc.sum(table["events"]).as_py() or 0
    reached = sum(place.offset for part in answer.parts for place in part.position.values())
    return live, answer.as_of, max(part.epoch for part in answer.parts), events, table.num_rows, reached


def of_sql(reads: fs.api.job.Reads, view: str) -> Found:
    rows: Any = reads.sql(f"select coalesce(sum(events), 0)::bigint, count(*) from {view}").fetchall()
    return True, time.time(), 0, rows[0][0], rows[0][1], 0


def probe(
    name: str, ask: Callable[[], Found], pause: float, log: TextIO, lock: threading.Lock, stopping: threading.Event
) -> None:
    while not stopping.is_set():
        began, error, found = time.time(), "", (False, 0.0, 0, 0, 0, 0)
        try:
            found = ask()
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"[:300]
        with lock, contextlib.suppress(ValueError):
            log.write(json.dumps([began, time.time(), name, error, *found]) + "\n")
        stopping.wait(pause)


if __name__ == "__main__":
    main()

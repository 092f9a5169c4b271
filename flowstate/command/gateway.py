"""``flowstate gateway``: one stable address for a job, for as long as it takes."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from typing import Any

from flowstate.api.gateway import gateway
from flowstate.command.memory import bound_memory
from flowstate.errors import FlowstateError


def serve(snapshots: str, job: str | None, *, memory: int | None = None, **options: Any) -> None:
    """Until SIGTERM or SIGINT. The first line on standard output is the address, and the second that of HTTP if that is served, too.
    `options` are those of `fs.gateway`. With more than `memory` bytes it ends at once, with exit code 1. Raises InvalidFlow,
    Unavailable."""
    if memory is not None:
        bound_memory(memory, lambda held: _too_much(held, memory))
    _serve(snapshots, job, **options)
    gc.collect()  # DuckDB complains at the end of a process of what still waits for that
    _say("stopped")


def _serve(snapshots: str, job: str | None, **options: Any) -> None:
    asked: list[int] = []
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda number, frame: asked.append(number))
    with gateway(snapshots=snapshots, job=job, **options) as served:
        print(*filter(None, (served.address, served.http_address)), sep="\n", flush=True)
        try:
            directory = served.reader.directory()
            _say(f"serves job {directory.job!r}: views {', '.join(directory.views)}")
        except FlowstateError as error:
            _say(f"nothing to serve yet from {snapshots}: {error.message}")
        pause = threading.Event()  # never set: its lock may be held just when the signal comes
        while not asked:
            pause.wait(0.1)


def _too_much(held: int, memory: int) -> None:
    _say(f"has {held >> 20} MiB of memory, and may have {memory >> 20}; start it again, and perhaps give it more")
    os._exit(1)


def _say(text: str) -> None:
    print(f"flowstate gateway: {text}", file=sys.stderr, flush=True)

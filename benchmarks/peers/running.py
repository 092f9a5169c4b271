"""A peer, or our own job, as a program that is asked for one run at a time, so that runs of all of them can take turns.

Each is pinned to one core with everything that it starts. A line on its standard input asks for a run, a line of JSON on its standard
output tells of it: seconds by the clock and of the processor (all threads and processes of it, from the first event until the last is in
its state), and how many groups and events and how much money it found in its state afterwards.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flowstate.errors import Unavailable
from flowstate.testing.tormentor.processes import ProcessTree

PATIENCE = 400.0


@dataclass(frozen=True)
class Run:
    """`beside` is the part of `cpu` that is not the worker's: Dask's scheduler, and the client that asks. `asked` is how many
    lookups were answered meanwhile, `memory` the bytes of its state."""

    seconds: float
    cpu: float
    groups: int
    events: int
    cents: int
    beside: float = 0.0
    asked: float = 0.0
    memory: int = 0

    @property
    def found(self) -> tuple[int, int, int]:
        """What every system must agree on."""
        return self.groups, self.events, self.cents


@dataclass
class System:
    """A program that takes turns. Its first run is not counted: programs compile, and grow their memory."""

    name: str
    command: Sequence[str]
    core: int = 0
    runs: list[Run] = field(default_factory=list)
    _tree: ProcessTree | None = None

    def run(self) -> Run:
        """One more run; `Unavailable` with what the program said if it gives none."""
        if self._tree is None:
            log = Path(tempfile.mkdtemp()) / "log"
            self._tree = ProcessTree(["taskset", "-c", str(self.core), *self.command], log, talks=True)
            self._once(self._tree)
        self.runs.append(self._once(self._tree))
        return self.runs[-1]

    def _once(self, tree: ProcessTree) -> Run:
        watch = threading.Timer(PATIENCE, tree.kill)
        watch.start()
        try:
            line = tree.ask("run")
        except OSError:
            line = ""
        finally:
            watch.cancel()
        if not line:
            raise Unavailable("a system gave no result", system=self.name, said=tree.log.read_text()[-2000:])
        return Run(**json.loads(line))

    def close(self) -> None:
        if self._tree is not None:
            self._tree.close()
            self._tree = None

    @property
    def rate(self) -> float:
        """Median, in millions of events a second."""
        return statistics.median(each.events / each.seconds for each in self.runs) / 1e6

    @property
    def cpu(self) -> float:
        """Median, in CPU seconds for a million events."""
        return statistics.median(each.cpu / each.events for each in self.runs) * 1e6

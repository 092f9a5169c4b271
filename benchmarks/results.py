"""Where benchmarks leave their figures: one JSON line each in the file that `FLOWSTATE_BENCH_RESULTS` names, else nowhere.

A benchmark calls `record` once for each figure that it has printed; `benchmarks.report` makes the common table of them, and
`benchmarks.check` compares them with those that the repository keeps. Lines are appended whole, so that processes may share a file.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import re
import subprocess
import time
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
VARIABLE = "FLOWSTATE_BENCH_RESULTS"
PACKAGES = ("confluent-kafka", "distributed", "duckdb", "flowstate", "numba", "numpy", "polars", "pyarrow")
_GOAL = re.compile(r"at (least|most) ([0-9.e+-]+)")


@dataclass(frozen=True)
class Result:
    """One figure. `goal` is "at least 5" or "at most 10", in the unit of the value; `settings` are what the figure depends on."""

    benchmark: str
    measure: str
    value: float
    unit: str
    system: str = "flowstate"
    goal: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    at: str = ""
    commit: str = ""
    load: float = 0.0
    machine: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None if there is none."""
        if self.goal is None:
            return None
        direction, bound = parse_goal(self.goal)
        return self.value >= bound if direction == "least" else self.value <= bound

    @property
    def name(self) -> tuple[str, str, str, str]:
        """What makes two results the same measurement: benchmark, measure, system and settings."""
        return self.benchmark, self.measure, self.system, json.dumps(self.settings, sort_keys=True)


def parse_goal(goal: str) -> tuple[str, float]:
    """("least" or "most", bound); `ValueError` says how a goal is written."""
    found = _GOAL.fullmatch(goal)
    if found is None:
        raise ValueError(f"a goal is written 'at least 5' or 'at most 10', in the unit of the value, goal={goal!r}")
    return found[1], float(found[2])


def record(
    benchmark: str,
    measure: str,
    value: float,
    unit: str,
    *,
    system: str = "flowstate",
    goal: str | None = None,
    **settings: Any,
) -> None:
    """Append one figure to the file named by `FLOWSTATE_BENCH_RESULTS`, with machine, versions, commit and load; without it, do nothing.

    `unit` is written as in a table ("M events/s", "CPU s/M events", "ms", "x" for a ratio of ours to the peer's: more is better for us).
    """
    if goal is not None:
        parse_goal(goal)
    path = os.environ.get(VARIABLE)
    if not path:
        return
    result = Result(
        benchmark,
        measure,
        float(value),
        unit,
        system,
        goal,
        settings,
        at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        commit=commit(),
        load=round(os.getloadavg()[0], 2),
        machine=machine(),
        versions=versions(),
    )
    line = json.dumps(asdict(result), sort_keys=True, allow_nan=False) + "\n"
    with open(path, "ab", buffering=0) as file:
        file.write(line.encode())


def read(path: str | Path) -> list[Result]:
    """All figures of a file, the latest last. `ValueError` names a line that is none."""
    found = []
    for number, line in enumerate(Path(path).read_text().splitlines(), 1):
        try:
            found.append(Result(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise ValueError(f"not a result: delete the line or the file, file={path}, line={number}") from error
    return found


@functools.cache
def commit() -> str:
    """The commit that is measured, with a + when files differ from it; empty outside a repository."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=9", "--exclude=*"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


@functools.cache
def machine() -> dict[str, Any]:
    """Processor, cores and memory (GiB)."""
    processor = platform.machine()
    try:
        models = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        processor = models[0] if models else processor
    except OSError:
        pass
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"processor": processor, "cores": os.cpu_count(), "memory": round(memory, 1), "system": platform.system()}


@functools.cache
def versions() -> dict[str, str]:
    """Of Python and of the packages that the figures depend on, as far as they are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            pass
    return found

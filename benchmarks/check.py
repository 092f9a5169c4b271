"""Whether a ratio to a peer has become worse than the one that the repository keeps: ``make bench-check``.

    python -m benchmarks.check [RESULTS.jsonl ...]         # figures that were recorded before
    python -m benchmarks.check                             # a short run, a minute or two
    python -m benchmarks.check --record [RESULTS.jsonl]    # keep these ratios from now on

Only ratios to a peer are compared (how many times ours is as good as the peer in the same run), since they carry from one machine to
another as rates do not; of those by the clock and by CPU the latter, which other work changes less; only those measured with the same
settings; the median where there are several. A ratio that is less than 0.8 of what is kept is a drop, and the exit code is 1. It is 2 when
nothing could be compared. What was kept and not measured is told.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.results import ROOT, VARIABLE, Result, read

KEPT = ROOT / "docs" / "benchmarks" / "recorded.json"
ALLOWED = 0.8
SHORT = (
    ("memory_peers", "--rows", "6000000", "--repeat", "5", "--systems", "flowstate", "duckdb"),
    ("nexmark", "--bids", "2000000", "--repeat", "5"),
)

Name = tuple[str, str, str, str]


class Compared(NamedTuple):
    name: Name
    kept: float
    now: float

    @property
    def dropped(self) -> bool:
        return self.now < ALLOWED * self.kept


def ratios(results: Iterable[Result]) -> dict[Name, float]:
    """By name; the median of those that were measured more than once."""
    found: dict[Name, list[float]] = {}
    for each in results:
        to_a_peer = (each.unit == "x" and each.system != "flowstate") or each.unit == "times ours"
        if to_a_peer and not each.measure.endswith("by the clock"):
            found.setdefault(each.name, []).append(each.value)
    return {name: statistics.median(values) for name, values in found.items()}


def load(path: Path) -> dict[Name, float]:
    kept = json.loads(path.read_text())["ratios"] if path.exists() else []
    return {
        (each["benchmark"], each["measure"], each["system"], json.dumps(each["settings"], sort_keys=True)): each[
            "value"
        ]
        for each in kept
    }


def keep(path: Path, found: Mapping[Name, float], measured: Mapping[str, Any]) -> None:
    """Put `found` in place of the same measurements, and leave the others."""
    merged = {**load(path), **found}
    lines = [
        {
            "benchmark": name[0],
            "measure": name[1],
            "system": name[2],
            "settings": json.loads(name[3]),
            "value": round(value, 3),
        }
        for name, value in sorted(merged.items())
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = ",\n".join(f"  {json.dumps(each, sort_keys=True)}" for each in lines)
    path.write_text(f'{{"measured": {json.dumps(measured, sort_keys=True)},\n "ratios": [\n{rows}\n]}}\n')


def compare(kept: Mapping[Name, float], now: Mapping[Name, float]) -> list[Compared]:
    return [Compared(name, kept[name], now[name]) for name in sorted(kept.keys() & now.keys())]


def short_run() -> list[Result]:
    """A part of the benchmarks, with settings of their own."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "results.jsonl"
        for name, *arguments in SHORT:
            command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
            subprocess.run(command, cwd=ROOT, check=True, env={**os.environ, VARIABLE: str(file)})
        return read(file)


def told(each: Compared) -> str:
    benchmark, measure, system, settings = each.name
    about = " ".join(f"{key}={value}" for key, value in json.loads(settings).items())
    word = "DROPPED" if each.dropped else "ok"
    return f"{word:8}{each.now:8.2f}x, kept {each.kept:.2f}x  {benchmark}: {measure}, {system} ({about})"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="*", type=Path)
    parser.add_argument("--kept", type=Path, default=KEPT)
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args(arguments)
    results = [result for each in options.results for result in read(each)] if options.results else short_run()
    now = ratios(results)
    if options.record:
        last = results[-1] if results else Result("", "", 0.0, "")
        keep(options.kept, now, {"commit": last.commit, "at": last.at, **last.machine})
        print(f"{len(now)} ratios are kept in {options.kept}")
        return 0
    kept = load(options.kept)
    compared = compare(kept, now)
    for each in compared:
        print(told(each))
    missed = len(kept.keys() - now.keys())
    dropped = sum(each.dropped for each in compared)
    if not compared:
        print(
            f"nothing to compare: none of the {len(now)} ratios is among the {len(kept)} of {options.kept}; keep them with --record"
        )
        return 2
    print(
        f"{len(compared)} ratios compared, {dropped} dropped to less than {ALLOWED:.0%} of what is kept, {missed} not measured"
    )
    return 1 if dropped else 0


if __name__ == "__main__":
    sys.exit(main())

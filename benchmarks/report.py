"""The page of figures, docs/benchmarks.md, and its drawings, from results that benchmarks recorded.

    FLOWSTATE_BENCH_RESULTS=results.jsonl python -m benchmarks kafka_peers memory_peers nexmark
    python -m benchmarks.report results.jsonl [more.jsonl ...]
    python -m benchmarks.report --run                       # measures everything that the page has first, about 30 minutes

Of a figure that was recorded more than once, the last counts. Drawn are those that the files have, at two places at least: rows for a CPU
second over groups and bytes over keys from `memory_peers` and `state_scale`, milliseconds over load from `latency`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.drawing import Series, lines
from benchmarks.results import ROOT, VARIABLE, Result, read

PAGE = ROOT / "docs" / "benchmarks.md"
DRAWINGS = ROOT / "docs" / "benchmarks"
NOTES = Path(__file__).resolve().parent / "report_notes.md"
ALTERNATIVES = {
    "throughput.svg": "Rows taken in for a CPU second, over keys",
    "memory.svg": "Memory of keyed state, over keys",
    "latency.svg": "From produced to visible, over load",
}
RUN = (
    ("kafka_peers",),
    ("kafka_lookups",),
    ("memory_peers", "--groups", "20000", "200000", "2000000"),
    ("nexmark",),
    ("kafka_state",),
    ("latency",),
    ("state_scale",),
)


def latest(results: Iterable[Result]) -> list[Result]:
    """Each measurement once, as it was found last, in the order in which they first came."""
    found: dict[Any, Result] = {}
    for each in results:
        found[each.name] = each
    return list(found.values())


def number(value: float) -> str:
    """Three digits that say something."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    digits = 2 if abs(value) >= 1 else 3
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.{digits}f}"


def told(settings: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:,}" if isinstance(value, int) else f"{name} {value}" for name, value in settings.items()
    )


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[int]) -> str:
    """Columns of numbers, named by `right`, stand at the right."""
    numbers = set(right)
    rule = "|".join("--:" if each in numbers else "---" for each in range(len(heads)))
    return "\n".join([f"| {' | '.join(heads)} |", f"|{rule}|", *(f"| {' | '.join(each)} |" for each in rows)])


def goals(results: list[Result]) -> str:
    """What was to be reached, with what was: those that were missed first."""
    wanted = sorted((each for each in results if each.goal), key=lambda each: bool(each.met))
    rows = [
        (
            f"{each.benchmark}: {each.measure}" + ("" if each.system == "flowstate" else f", {each.system}"),
            told(each.settings),
            f"{number(each.value)} {each.unit}",
            str(each.goal),
            "reached" if each.met else "**missed**",
        )
        for each in wanted
    ]
    return table(("measure", "settings", "measured", "goal", ""), rows, (2,))


def losses(results: list[Result]) -> str:
    """Peers that did better than ours in a run, in words that are hard to overlook."""
    worse = [each for each in results if each.unit == "x" and each.system != "flowstate" and each.value < 1]
    rows = [
        (each.benchmark, each.system, each.measure, told(each.settings), f"{number(each.value)} x") for each in worse
    ]
    return (
        table(("benchmark", "peer", "measure", "settings", "measured"), rows, (4,)) if rows else "None in these runs."
    )


def unmeasured(results: list[Result]) -> str:
    """What the page would have and these files do not."""
    measured = {each.benchmark for each in results}
    peers = {each.system for each in results if each.benchmark == "kafka_peers"}
    lacking = [f"`{name}`" for name, *_ in RUN if name not in measured]
    lacking += [f"{peer} from Kafka" for peer in ("Flink", "Kafka Streams") if not any(peer in each for each in peers)]
    return f"**Not measured in these runs**: {', '.join(lacking)}." if lacking else ""


def section(benchmark: str, results: list[Result]) -> str:
    """One table for each group of settings that its systems share."""
    mine = [each for each in results if each.benchmark == benchmark]
    measures = list(dict.fromkeys(f"{each.measure} ({each.unit})" for each in mine))
    rows = []
    for settings, system in dict.fromkeys((told(each.settings), each.system) for each in mine):
        here = {
            f"{each.measure} ({each.unit})": each.value
            for each in mine
            if told(each.settings) == settings and each.system == system
        }
        rows.append((settings, system, *(number(here[each]) if each in here else "" for each in measures)))
    return table(("settings", "system", *measures), rows, range(2, 2 + len(measures)))


def drawings(results: list[Result]) -> dict[str, str]:
    """SVG by name of the file; nothing is drawn that has one point alone."""
    found: dict[str, str] = {}
    memory = [each for each in results if each.benchmark == "memory_peers"]
    taken = {name: [(x, 1e6 / y) for x, y in each] for name, each in series(memory, "processor", "groups").items()}
    if drawable(taken):
        found["throughput.svg"] = lines("Rows taken in for a CPU second, over keys", "groups", "rows", taken)
    size = {"state in all": points(memory, "bytes per group", "groups")}
    size["beyond key and columns"] = points(
        [each for each in results if each.benchmark == "state_scale"], "memory beyond key and columns", "keys"
    )
    size = {name: each for name, each in size.items() if each}
    if drawable(size):
        found["memory.svg"] = lines("Memory of keyed state, over keys", "groups", "bytes per group", size)
    latency = [each for each in results if each.benchmark == "latency" and each.measure.startswith("until")]
    waited = {measure: points(latency, measure, "rate") for measure in dict.fromkeys(each.measure for each in latency)}
    waited = {name: each for name, each in waited.items() if each}
    if drawable(waited):
        limit = ("goal of p99", 10.0)
        found["latency.svg"] = lines(
            "From produced to visible, over load", "events a second", "milliseconds", waited, limit=limit
        )
    return found


def drawable(series: Series) -> bool:
    return any(len(each) > 1 for each in series.values())


def series(results: list[Result], measure: str, across: str) -> Series:
    systems = dict.fromkeys(each.system for each in results)
    found = {name: points([e for e in results if e.system == name], measure, across) for name in systems}
    return {name: each for name, each in found.items() if each}


def points(results: list[Result], measure: str, across: str) -> list[tuple[float, float]]:
    """The last value at each place."""
    found = {
        float(each.settings[across]): each.value
        for each in results
        if each.measure == measure and across in each.settings and each.value > 0
    }
    return sorted(found.items())


def page(results: list[Result], drawn: Iterable[str], notes: str) -> str:
    """`notes` are the words about how it was measured; drawings stand before the tables."""
    last = results[-1]
    machine = last.machine
    packages = ", ".join(f"{name} {version}" for name, version in sorted(last.versions.items()))
    loads = [each.load for each in results]
    parts = [
        "# Benchmarks",
        "Written by `python -m benchmarks.report` from figures that the benchmarks recorded; `make bench` measures them anew.",
        f"**Machine**: {machine.get('processor')}, {machine.get('cores')} cores, {machine.get('memory')} GiB, "
        f"{machine.get('system')}. Load while measuring: {min(loads):.1f} to {max(loads):.1f} (other work ran beside it where that is "
        "more than about 2: ratios and CPU seconds say more than rates by the clock). "
        f"**Versions**: {packages}. **Measured** {results[0].at[:10]} to {last.at[:10]} at commits "
        f"{', '.join(dict.fromkeys(each.commit for each in results if each.commit))} (+: with changes that were not committed).",
        notes.strip(),
        "## Goals",
        goals(results),
        "## Where others did better",
        losses(results),
    ]
    parts += [said for said in (unmeasured(results),) if said]
    parts += [f"![{ALTERNATIVES[each]}](benchmarks/{each})" for each in drawn]
    for benchmark in dict.fromkeys(each.benchmark for each in results):
        parts += [f"## {benchmark}", f"`python -m benchmarks.{benchmark}`", section(benchmark, results)]
    return "\n\n".join(parts) + "\n"


def write(results: list[Result], page_at: Path, drawings_at: Path, notes: str) -> None:
    drawn = drawings(results)
    drawings_at.mkdir(parents=True, exist_ok=True)
    for name, text in drawn.items():
        (drawings_at / name).write_text(text)
    page_at.write_text(page(results, drawn, notes))


def measure(file: Path) -> None:
    for name, *arguments in RUN:
        command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
        subprocess.run(command, cwd=ROOT, check=True, env={**os.environ, VARIABLE: str(file)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="*", type=Path)
    parser.add_argument("--run", action="store_true")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--drawings", type=Path, default=DRAWINGS)
    options = parser.parse_args()
    if not options.results and not options.run:
        parser.error("name a file of results, or say --run")
    found = [result for each in options.results for result in read(each)]
    if options.run:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "results.jsonl"
            measure(file)
            found += read(file)
    results = latest(found)
    if not results:
        parser.error("these files have no figures: run a benchmark with FLOWSTATE_BENCH_RESULTS set to a file")
    write(results, options.page, options.drawings, NOTES.read_text())
    print(f"{options.page}: {len(results)} figures, {sum(each.goal is not None for each in results)} with a goal")


if __name__ == "__main__":
    main()

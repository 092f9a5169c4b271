"""What snapshots of a partition of a million keys cost: pauses of applying, bytes, objects, processor time.

    python -m benchmarks.snapshot_pause [--keys 1000000] [--saves 50] [--every 1] [--patterns recent random flood]

One pump holds a sum of money and a count per customer and month (twelve months) and saves every `every` seconds to a local folder;
retention runs after each save, as in a job. Rows come from a followed file of JSON lines that another process on another core appends to,
50,000 a second: of *recent* keys (the last thousand, which lie in one chunk), or of keys at *random*, which change every chunk between
two saves. *flood* is rows of random keys without a break, from memory. A pause is the time that one block took to apply: by the clock,
with all that interrupted it, and of the pump's own thread, which does not count what other processes of a busy machine took.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

import flowstate as fs
from benchmarks.one_pump import OnePump
from benchmarks.results import record
from flowstate.runtime.committing import Saved, SaveWork
from flowstate.runtime.provide import provide_memory
from flowstate.snapshot.retention import retain_partition

MONTH = 30 * 86_400_000
RATE, STEP = 50_000, 0.002  # rows a second, and seconds between two appends
RECENT = 1000
FIRST = 2.0  # seconds before the first save, in which pauses without any are measured
SCHEMA = pa.schema({"customer": pa.string(), "amount": pa.decimal128(12, 2), "at": pa.timestamp("ms", "UTC")})


@dataclass(frozen=True)
class Save:
    """One save: when (monotonic seconds), what it cost, what it wrote, and what had changed since the one before."""

    begun: float
    ended: float
    processor: float
    bytes: int
    rows: int
    changed_rows: int
    manifest_bytes: int


def numbered(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Customer and month of a key: the keys of a month follow one another."""
    return keys // 12, keys % 12


def lines(keys: np.ndarray) -> bytes:
    customers, months = numbered(keys)
    return b"".join(
        b'{"customer": "customer-%08d", "amount": "%d.%02d", "at": %d}\n' % (customer, key % 997, key % 100, month * MONTH)
        for customer, month, key in zip(customers.tolist(), months.tolist(), keys.tolist(), strict=True)
    )  # fmt: skip


def append(path: str, keys: int, pattern: str, until: Any) -> None:
    """The other process: appends `RATE` rows a second, in steps, until it is told to end."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    random = np.random.default_rng(2)
    rows = int(RATE * STEP)
    blocks = []
    for _ in range(1000):
        chosen = random.integers(0, keys, rows)
        if pattern == "recent":
            chosen = keys - 1 - 12 * random.integers(0, RECENT, rows)
        blocks.append(lines(chosen))
    with open(path, "ab", buffering=0) as log:
        until.wait()
        began, number = time.monotonic(), 0
        while until.is_set():
            log.write(blocks[number % len(blocks)])
            number += 1
            time.sleep(max(0.0, began + number * STEP - time.monotonic()))


class Watched:
    """The saves of a pump, with retention after each."""

    def __init__(self, one: OnePump) -> None:
        self.one, self.saves = one, list[Save]()
        self.objects: list[int] = []
        self.stored: list[int] = []
        self._save, self._pool = one.pump.saver.save, ThreadPoolExecutor(1)
        one.pump.saver.save = self.save  # type: ignore[method-assign]

    def save(self, work: SaveWork) -> Saved:
        begun, spent = time.monotonic(), time.thread_time()
        changed = _changed(work)
        result = self._save(work)
        ended, processor = time.monotonic(), time.thread_time() - spent
        assert result.manifest is not None
        assert result.manifest.state is not None
        new = {
            ref.segment: 0
            for refs in result.manifest.state.tables.values()
            for ref in refs
            if work.previous.state is None or ref.segment not in work.previous.state.segments
        }
        rows = sum(ref.rows for refs in result.manifest.state.tables.values() for ref in refs if ref.segment in new)
        written = sum((self.one.folder / path).stat().st_size for path in new)
        manifest = len(json.dumps(result.manifest.dump()))
        self.saves.append(Save(begun, ended, processor, written, rows, changed, manifest))
        self._pool.submit(self._retain)
        return result

    def _retain(self) -> None:
        saver = self.one.pump.saver
        retain_partition(saver.store, saver.spec.generation, 0, 3, ())
        found = list(self.one.folder.rglob("*.arrows"))
        self.objects.append(len(found))
        self.stored.append(sum(each.stat().st_size for each in found))


def _changed(work: SaveWork) -> int:
    """Rows of the chunks that have changed since the last save."""
    state = work.previous.state if work.shares else None
    known = (
        {} if state is None else {(table, ref.id): ref.version for table, refs in state.tables.items() for ref in refs}
    )
    chunks = [(name, chunk) for name, view in work.frozen.views.items() for chunk in view.chunks]
    return sum(chunk.rows for name, chunk in chunks if known.get((name, chunk.id)) != chunk.version)


def flow_of(events: Any) -> list[Any]:
    month = fs.window("at", every="30d")
    totals = events.group_by("customer", month=month).agg(total=fs.col("amount").sum(), events=fs.len())
    return [totals.view("subtotals")]


def flood(keys: int) -> pa.Table:
    """Every key once, then random ones, for about a minute."""
    random = np.random.default_rng(1)
    customers, months = numbered(np.arange(keys))
    amounts = pa.array(random.integers(0, 10**6, keys)).cast(pa.decimal128(19, 0))
    names = pc.binary_join_element_wise("customer-", pc.utf8_lpad(pa.array(customers).cast(pa.string()), 8, "0"), "")
    every = pa.table(
        [names, pc.multiply(amounts, pa.scalar("0.01").cast(pa.decimal128(3, 2))).cast(pa.decimal128(12, 2), safe=False),
         pa.array(months * MONTH).cast(pa.timestamp("ms", "UTC"))],
        schema=SCHEMA,
    )  # fmt: skip
    order = np.argsort(months, kind="stable")
    mixed = every.take(pa.array(random.integers(0, keys, 2_000_000)))
    return pa.concat_tables([every.take(pa.array(order)), *[mixed] * 60])


def measure(pattern: str, keys: int, saves: int, every: float) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if pattern == "flood":
            events = fs.from_arrow(flood(keys), event_time="at", lateness="1000d")
        else:
            log = folder / "log.jsonl"
            order = np.argsort(np.arange(keys) % 12, kind="stable")
            log.write_bytes(lines(order))
            events = fs.scan_files(
                str(folder / "*.jsonl"), schema=SCHEMA, event_time="at", lateness="1000d", follow=True
            )
        context = multiprocessing.get_context("spawn")
        until = context.Event()
        other = context.Process(target=append, args=(str(folder / "log.jsonl"), keys, pattern, until), daemon=True)
        if pattern != "flood":
            other.start()
        (folder / "snapshots").mkdir()
        try:
            with OnePump(flow_of(events), folder / "snapshots", every=1e12) as one:
                _measured(one, pattern, keys, saves, every, until)
        finally:
            until.clear()
            if other.pid is not None:
                other.terminate()
                other.join(10)


def _measured(one: OnePump, pattern: str, keys: int, saves: int, every: float, until: Any) -> None:
    watched = Watched(one)
    contents, machine = one.pump._contents, one.pump._commits.machine
    freezes: list[tuple[float, float, int]] = []
    freeze = contents.freeze

    def frozen() -> Any:
        begun = time.monotonic()
        result = freeze()
        freezes.append((begun, time.monotonic(), 0))
        return result

    contents.freeze = frozen  # type: ignore[method-assign]
    apply, own = contents.apply, list[tuple[float, float]]()

    def timed(split: str, batch: Any) -> bool:
        begun = time.thread_time()
        done = apply(split, batch)
        own.append((one.blocks[-1][0], time.thread_time() - begun))
        return done

    contents.apply = timed  # type: ignore[method-assign]
    while contents.tables["subtotals"].rows < keys:
        assert not one.ended.wait(0.01), one.pump.reason
    machine._wanted = -1e12  # the first save writes everything: it is none of those that are measured
    while not watched.saves or machine.saving:
        time.sleep(0.01)
    whole = watched.saves.pop()
    until.set()
    time.sleep(0.5)
    start = time.monotonic()
    time.sleep(FIRST)
    spent = time.process_time()
    for _ in range(saves):
        done, due = len(watched.saves), time.monotonic() + every
        machine._wanted = -1e12
        while len(watched.saves) == done or machine.saving:
            assert not one.ended.is_set(), "the rows came to their end before the snapshots: give more"
            time.sleep(0.005)
        time.sleep(max(0.0, due - time.monotonic()))
    finish, spent = time.monotonic(), time.process_time() - spent
    watched._pool.shutdown()
    _tell(one, pattern, watched, whole, freezes[1:], own, start, finish, spent)


def _tell(
    one: OnePump, pattern: str, watched: Watched, whole: Save, freezes: list[Any], own: list[tuple[float, float]],
    start: float, finish: float, spent: float,
) -> None:  # fmt: skip
    of_thread = dict(own)
    blocks = np.array(
        [
            (*each, of_thread[each[0]])
            for each in one.blocks
            if start < each[0] and each[1] < finish and each[0] in of_thread
        ]
    )
    begins, ends, rows, processor = blocks.T
    saving = np.zeros(len(blocks), bool)
    for each, frozen in zip(watched.saves, freezes, strict=False):
        saving |= (ends > frozen[0]) & (begins < each.ended + 0.05)
    number, seconds = len(watched.saves), finish - start - FIRST
    print(
        f"{pattern}: {len(blocks):,} blocks, {rows.sum() / (finish - start):,.0f} rows/s, {number} saves in {seconds:.0f} s, "
        f"{100 * spent / seconds:.0f} % of a core"
    )
    for during, what in ((~saving, "no snapshot"), (saving, "snapshot")):
        _pauses(f"  {what}, by the clock", (ends - begins)[during])
        _pauses(f"  {what}, of the thread", processor[during])
    print(f"  freezing: longest {max((each[1] - each[0]) * 1e3 for each in freezes):.2f} ms")
    each_row = whole.bytes / whole.rows
    written = sum(each.bytes for each in watched.saves)
    changed = sum(each.changed_rows for each in watched.saves) * each_row
    print(
        f"  a save: {np.median([each.ended - each.begun for each in watched.saves]) * 1e3:.0f} ms, "
        f"{np.median([each.processor for each in watched.saves]) * 1e3:.0f} ms of the processor, {written / number / 1e6:.2f} MB written "
        f"({changed / number / 1e6:.2f} MB of chunks had changed: {written / changed:.2f} times), manifest "
        f"{np.median([each.manifest_bytes for each in watched.saves]) / 1e3:.1f} kB; the first {whole.bytes / 1e6:.0f} MB in "
        f"{whole.processor * 1e3:.0f} ms of the processor"
    )
    print(
        f"  segments in the store after all: {watched.objects[-1]} (most {max(watched.objects)}), {watched.stored[-1] / 1e6:.0f} MB; "
        f"load {os.getloadavg()[0]:.1f}"
    )
    _recorded(pattern, (ends - begins)[saving], processor[saving], written / changed, watched.objects[-1])


def _recorded(pattern: str, by_clock: np.ndarray, of_thread: np.ndarray, bytes_ratio: float, segments: int) -> None:
    name, goal, where = "snapshot_pause", "at most 2", {"rows": pattern}
    if len(by_clock):
        record(name, "p99 block during snapshots", np.percentile(by_clock, 99) * 1e3, "ms", goal=goal, **where)
        record(name, "longest block during snapshots", by_clock.max() * 1e3, "ms", goal=goal, **where)
        record(name, "longest block during snapshots, CPU", of_thread.max() * 1e3, "ms", goal=goal, **where)
    record(name, "bytes written to bytes changed", bytes_ratio, "times", **where)
    record(name, "segments in the store", segments, "objects", **where)


def _pauses(what: str, took: np.ndarray) -> None:
    if len(took):
        middle, most, longest = (each * 1e3 for each in (np.percentile(took, 50), np.percentile(took, 99), took.max()))
        over = int((took > 0.002).sum())
        print(
            f"{what}: p50 {middle:.2f} ms, p99 {most:.2f} ms, longest {longest:.2f} ms (over 2 ms: {over} of {len(took):,})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--saves", type=int, default=50)
    parser.add_argument("--every", type=float, default=1.0)
    parser.add_argument("--patterns", nargs="*", default=["recent", "random", "flood"])
    options = parser.parse_args()
    os.sched_setaffinity(0, {0})
    sys.setswitchinterval(0.0005)  # as a worker has it, and so the next
    provide_memory()
    for pattern in options.patterns:
        measure(pattern, options.keys, options.saves, options.every)


if __name__ == "__main__":
    main()

"""How long a key is away when its worker dies, and how little the others notice: 50,000 rows a second, 100,000 keys, real processes.

    python -m benchmarks.recovery [--rounds 20] [--hung 5] [--rate 50000] [--keys 100000] [--rest 65]

A process of its own appends JSON lines to three files at a steady rate, a piece every 10 ms, which is what the shortest gap can be. Three
workers with a partition each follow them. Lookups of one key per partition, every few milliseconds, say by their position how far each
split is applied there. Each round kills one worker (later rounds: stops one) and tells, in milliseconds:

* surviving, reader lives: the longest time in which a surviving partition applied nothing of a split whose reader lives (before the fault,
  and after it)
* surviving, reader died: until a surviving partition applied more of the dead worker's splits
* affected, live: until the dead worker's keys were answered live again; replay: from then until they were where they had been, and the
  bytes of the log that were read again

A partition that dies again within a minute is made to wait longer, on purpose; rounds take the workers in turn and leave a partition alive
for ``--rest`` seconds before it is its turn again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from distributed import Client

import flowstate as fs
from flowstate.errors import FlowstateError
from flowstate.testing.tormentor import DaskCluster, ProcessTree, sweep
from flowstate.view.answer import Answer
from flowstate_flight.keys import key_batch, owners

SCHEMA = pa.schema({"customer": pa.string(), "amount": pa.int64()})
SPLITS, PIECE, POLL = 3, 0.01, 0.004
ROOT = Path(__file__).resolve().parent.parent


def generate(folder: Path, rate: int, keys: int) -> None:
    """Append for ever; the first `keys` rows have all keys."""
    chance = np.random.default_rng(1)
    count = max(1, int(rate * PIECE) // SPLITS)
    names = chance.permutation(keys)
    lines = [b'{"customer":"customer-%08d","amount":%d}\n' % (int(name), 1 + int(name) % 100) for name in names]
    pieces = [b"".join(lines[at : at + count]) for at in range(0, len(lines), count)]
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context((folder / f"{split}.jsonl").open("ab", buffering=0)) for split in range(SPLITS)]
        began, sent = time.monotonic(), 0
        while True:
            due = int((time.monotonic() - began) / PIECE)
            while sent < due:
                for split, file in enumerate(files):
                    file.write(pieces[(sent * SPLITS + split) % len(pieces)])
                sent += 1
            time.sleep(max(0.0, began + (sent + 1) * PIECE - time.monotonic()))


@dataclass
class Watched:
    """What the lookups of one partition's key saw, in order: when, epoch, live or not, and per split the next offset."""

    partition: int
    key: str
    seen: list[tuple[float, int, bool, dict[str, int]]] = field(default_factory=list)


class Watcher:
    """One thread per partition."""

    def __init__(self, reads: fs.Job, keys: dict[int, str]) -> None:
        self.watched = [Watched(number, key) for number, key in keys.items()]
        self._reads, self._stopping = reads, threading.Event()
        self._threads = [threading.Thread(target=self._watch, args=(each,), daemon=True) for each in self.watched]
        for each in self._threads:
            each.start()

    def _watch(self, watched: Watched) -> None:
        while not self._stopping.is_set():
            with contextlib.suppress(FlowstateError, KeyError):
                answer = Answer.of(self._reads["totals"].lookup(watched.key).schema)
                assert answer is not None
                part = answer.parts[0]
                offsets = {split: place.offset for split, place in part.position.items()}
                watched.seen.append((time.monotonic(), part.epoch, part.origin == "live", offsets))
            self._stopping.wait(POLL)

    def last(self, number: int) -> tuple[float, int, bool, dict[str, int]]:
        return self.watched[number].seen[-1]

    def close(self) -> None:
        self._stopping.set()
        for each in self._threads:
            each.join(15)


def longest(seen: Sequence[tuple[float, int, bool, dict[str, int]]], split: str, since: float, upto: float) -> float:
    """Seconds between two moments at which more of `split` was seen to be applied; the end of the time counts as one."""
    gap, moved, offset = 0.0, since, -1
    for when, _, _, offsets in seen:
        if since <= when <= upto and offsets.get(split, -1) > offset:
            gap, moved, offset = max(gap, when - moved if offset >= 0 else 0.0), when, offsets[split]
    return max(gap, upto - moved)


@dataclass
class Round:
    """Milliseconds; `again` bytes of the log were read again."""

    before: float
    after: float
    taken_over: float | None
    live: float
    replay: float
    again: int


class Bench:
    def __init__(self, job: fs.Job, client: Client, cluster: DaskCluster, watcher: Watcher, rest: float) -> None:
        self.job, self.client, self.cluster, self.watcher, self.rest = job, client, cluster, watcher, rest
        self.hit = dict.fromkeys((each.partition for each in watcher.watched), float("-inf"))

    def settled(self) -> bool:
        """All workers are there, everything is live, and nobody is behind."""
        with contextlib.suppress(FlowstateError, OSError):
            status = self.job.status()
            return (
                bool(status["ready"])
                and len(status["workers"]) == len(self.cluster.workers)
                and max(self._behind(number) for number in range(len(self.watcher.watched))) < 0.1
            )
        return False

    def _await_settled(self) -> None:
        deadline = time.monotonic() + 120
        while not self.settled():
            assert time.monotonic() < deadline, json.dumps(self.job.status(), indent=1, default=str)
            time.sleep(0.1)

    def _behind(self, number: int) -> float:
        """Seconds by which a partition is behind the furthest, by what was seen of positions; a large number if it is away."""
        when, _, live, mine = self.watcher.last(number)
        if not live or time.monotonic() - when > 0.5:
            return 99.0
        furthest = [max(each.seen[-1][3].get(split, 0) for each in self.watcher.watched) for split in mine]
        speed = max(1.0, sum(mine.values()) / max(1.0, when - self.watcher.watched[number].seen[0][0]))
        return (sum(furthest) - sum(mine.values())) / speed

    def round(self, chance: random.Random, *, hung: bool) -> Round:
        self._await_settled()
        time.sleep(max(0.0, min(self.hit.values()) + self.rest - time.monotonic()))
        time.sleep(1.5 + 0.5 * chance.random())  # anywhere between two snapshots
        self._await_settled()
        status = self.job.status()
        names = {address: each["name"] for address, each in self.client.scheduler_info(n_workers=-1)["workers"].items()}
        owned: dict[str, list[int]] = {}
        for number, each in status["partitions"].items():
            owned.setdefault(each["worker"], []).append(int(number))
        address = min(owned, key=lambda each: max(self.hit[number] for number in owned[each]))
        affected = owned[address]
        time.sleep(max(0.0, max(self.hit[number] for number in affected) + self.rest - time.monotonic()))
        readers = {split: each["reader"] for split, each in status["splits"].items()}
        orphaned = [split for split, reader in readers.items() if reader in affected]
        epochs = {number: self.watcher.last(number)[1] for number in affected}
        victim = self.cluster.worker_process(int(str(names[address]).removeprefix("worker-")))
        there = {number: dict(self.watcher.last(number)[3]) for number in affected}
        at = time.monotonic()
        self.hit |= dict.fromkeys(affected, at)
        victim.freeze() if hung else victim.kill()
        live: dict[int, tuple[float, int]] = {}
        whole: dict[int, float] = {}
        while len(whole) < len(affected):
            assert time.monotonic() < at + 120, json.dumps(self.job.status(), indent=1, default=str)
            time.sleep(0.002)
            for number in affected:
                for when, epoch, is_live, offsets in self.watcher.watched[number].seen[-50:]:
                    if when > at and is_live and epoch > epochs[number]:
                        back = sum(max(0, offset - offsets.get(split, 0)) for split, offset in there[number].items())
                        live.setdefault(number, (when - at, back))
                        if not back:
                            whole.setdefault(number, when - at)
        time.sleep(1.0)
        upto = time.monotonic()
        surviving = [each for each in self.watcher.watched if each.partition not in affected]
        steady = [split for split in readers if split not in orphaned]
        befores = [longest(each.seen, split, at - 1.5, at) for each in surviving for split in steady]
        afters = [longest(each.seen, split, at, upto) for each in surviving for split in steady]
        orphans = [longest(each.seen, split, at - 0.1, upto) for each in surviving for split in orphaned]
        for each in self.watcher.watched:
            del each.seen[:-1]
        slowest = max(live, key=lambda number: live[number][0])
        return Round(
            max(befores, default=0) * 1e3,
            max(afters, default=0) * 1e3,
            max(orphans) * 1e3 if orphans else None,
            live[slowest][0] * 1e3,
            max(whole[number] - live[number][0] for number in affected) * 1e3,
            sum(rows for _, rows in live.values()),
        )


def tell(name: str, values: Sequence[float]) -> None:
    if values:
        found = f"min {min(values):7,.0f}   median {statistics.median(values):7,.0f}   max {max(values):7,.0f}"
        print(f"  {name:58} {found}   ({len(values)} rounds)", flush=True)


def summary(title: str, rounds: Sequence[Round]) -> None:
    print(title, flush=True)
    tell("surviving, reader lives: longest gap before, ms", [each.before for each in rounds])
    tell("surviving, reader lives: longest gap after, ms", [each.after for each in rounds])
    tell(
        "surviving, reader died: read on within, ms",
        [each.taken_over for each in rounds if each.taken_over is not None],
    )
    tell("affected: live again within, ms", [each.live for each in rounds])
    tell("affected: replay after that, ms", [each.replay for each in rounds])
    tell("affected: read again, bytes of the log", [float(each.again) for each in rounds])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--hung", type=int, default=5)
    parser.add_argument("--rate", type=int, default=50_000)
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--rest", type=float, default=65)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--generate", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.generate:
        generate(options.generate, options.rate, options.keys)
    sweep()
    with tempfile.TemporaryDirectory(prefix="flowstate-recovery-") as place, contextlib.ExitStack() as stack:
        folder = Path(place)
        (folder / "log").mkdir()
        paths = {"PYTHONPATH": os.pathsep.join(dict.fromkeys([str(ROOT), *(each for each in sys.path if each)]))}
        cluster = DaskCluster(folder / "dask", 3, settings=paths)
        stack.callback(cluster.close)
        generating = [sys.executable, "-m", "benchmarks.recovery", "--generate", str(folder / "log")]
        generating += ["--rate", str(options.rate), "--keys", str(options.keys)]
        stack.enter_context(ProcessTree(generating, folder / "generator.log", environment=paths))
        client = stack.enter_context(Client(cluster.address, timeout=60, set_as_default=False))
        cluster.wait_until_up(lambda: len(client.scheduler_info(n_workers=-1)["workers"]))
        while len(list((folder / "log").iterdir())) < SPLITS:
            time.sleep(0.05)
        source = fs.scan_files(f"{folder}/log/*.jsonl", schema=SCHEMA, format="json", follow=True)
        view = source.group_by("customer").agg(total=fs.col("amount").sum(), rows=fs.len()).view("totals")
        job = fs.start(view, client=client, snapshots=folder / "snapshots", every="1s", partitions=3)
        stack.callback(job.stop)
        deadline = time.monotonic() + 120
        while job.sql("select count(*) from totals").fetchall()[0][0] < options.keys:
            assert time.monotonic() < deadline, job.status()
            time.sleep(0.1)
        info: Any = job._reader.directory().views["totals"]
        keys: dict[int, str] = {}
        for number in range(options.keys):
            key = f"customer-{number:08d}"
            keys.setdefault(next(iter(owners(job._reader.directory(), info, key_batch(info, key)))), key)
            if len(keys) == 3:
                break
        watcher = Watcher(job, dict(sorted(keys.items())))
        stack.callback(watcher.close)
        time.sleep(1)
        print(
            f"{options.rate:,} rows/s from {SPLITS} files, {options.keys:,} keys, 3 workers, 3 partitions, a snapshot every second"
        )
        bench, chance = Bench(job, client, cluster, watcher, options.rest), random.Random(options.seed)
        killed, hung = [], []
        for number in range(options.rounds + options.hung):
            stopped = number >= options.rounds
            found = bench.round(chance, hung=stopped)
            (hung if stopped else killed).append(found)
            print(f"  {'stopped' if stopped else 'killed'} {number}: {found}", flush=True)
        if killed:
            summary("worker killed (SIGKILL)", killed)
        if hung:
            summary("worker hung (SIGSTOP)", hung)


if __name__ == "__main__":
    main()

"""The billing job for half an hour, with a fault every 20 seconds: totals exact, memory flat, nothing left.

    python -m benchmarks.torment_soak [--minutes 30] [--seed 1] [--rate 1000] [--every 20]

Real processes, as in `scenarios`: scheduler, three workers, ``flowstate run``, a Kafka broker, a producer, and a prober that asks every
customer. Which fault comes when is drawn from the seed. At the end the job is drained, and each invoice is compared with what was sent;
then it is told how memory, open files and stored objects went, and whether a process, port or file is left. Exit code 0: all was well.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.billing_run import CUSTOMERS, BillingRun, replaced_by_a_file, seen, until
from flowstate.errors import FlowstateError
from flowstate.snapshot.partition_chain import PartitionChain
from flowstate.snapshot.retention import retain
from flowstate.store import Store
from flowstate.testing.servers.kafka import KafkaBroker
from flowstate.testing.tormentor import SmallDisk, Victim, marks, sweep

PARTITIONS = 4
Fault = Callable[[random.Random], str]


def say(text: str) -> None:
    print(f"{datetime.now(UTC):%H:%M:%S}  {text}", flush=True)


class Soak:
    """The faults, and what is measured while they happen."""

    def __init__(self, run: BillingRun, broker: KafkaBroker, disk: SmallDisk | None) -> None:
        self.run, self.broker, self.disk = run, broker, disk
        self.archives: list[Path] = []
        self.samples: dict[str, list[tuple[float, float, float]]] = defaultdict(
            list
        )  # role -> (seconds, MiB, descriptors)
        self.faults: dict[str, Fault] = {
            "worker killed": self.worker_killed,
            "worker stopped for 5 s": self.worker_stopped,
            "scheduler killed": self.scheduler_killed,
            "invoices moved away for 10 s": self.invoices_away,
            "broker killed for 2 s": self.broker_killed,
        }
        if disk is not None:
            self.faults["store full for 10 s"] = self.store_full

    def _victim(self, chance: random.Random) -> Victim:
        return self.run.cluster.worker_process(chance.randrange(len(self.run.cluster.workers)))

    def worker_killed(self, chance: random.Random) -> str:
        victim = self._victim(chance)
        victim.kill()
        return str(victim.pid)

    def worker_stopped(self, chance: random.Random) -> str:
        victim = self._victim(chance)
        with victim.frozen():
            time.sleep(5)
            return f"{victim.pid}, {'killed meanwhile' if not victim.alive else 'lived on'}"

    def scheduler_killed(self, chance: random.Random) -> str:
        self.run.cluster.scheduler.kill()
        return ""

    def invoices_away(self, chance: random.Random) -> str:
        folder = self.run.folder / "invoices"
        if not folder.is_dir():
            return "there are none yet"
        self.archives.append(self.run.folder / f"invoices-archive-{len(self.archives)}")
        with replaced_by_a_file(folder, self.archives[-1]):
            time.sleep(10)
        return ""

    def broker_killed(self, chance: random.Random) -> str:
        self.broker.kill()
        time.sleep(2)
        self.broker.start()
        return ""

    def store_full(self, chance: random.Random) -> str:
        assert self.disk is not None
        self.disk.fill()
        time.sleep(10)
        self.disk.clear()
        return ""

    def measure(self, passed: float) -> None:
        roles = self.run.cluster.processes() | {"run": self.run.command.members(), "prober": self.run.prober.members()}
        for role, processes in roles.items():
            living = [each for each in processes if each.memory]
            if living:
                memory = max(each.memory for each in living) / 2**20
                self.samples[role].append((passed, memory, max(len(each.descriptors) for each in living)))

    def flat(self, role: str) -> tuple[str, bool]:
        """Medians of the largest process of a role in the second and the last quarter, and whether they are about the same."""
        found = self.samples[role]
        upto = found[-1][0]
        quarters = [
            [each for each in found if upto * low <= each[0] <= upto * high] for low, high in ((0.25, 0.5), (0.75, 1))
        ]
        (before, files), (after, files_after) = (
            tuple(statistics.median(each[number] for each in quarter) for number in (1, 2)) for quarter in quarters
        )
        text = f"{role:10} {before:5.0f} -> {after:5.0f} MiB, {files:.0f} -> {files_after:.0f} open files"
        return text, after < before * 1.3 + 30 and files_after < files * 1.3 + 20


def soak(minutes: float, seed: int, rate: float, every: float, folder: Path, stack: ExitStack) -> bool:
    broker = KafkaBroker(folder / "kafka")
    stack.callback(broker.kill)
    broker.format()
    broker.start()
    disk = None
    if reason := SmallDisk.missing():
        say(f"no full disk: {reason}")
    else:
        disk = SmallDisk(folder / "small", 512 << 20)
        stack.callback(disk.close)
    snapshots = (disk.folder if disk else folder) / "snapshots"
    run = stack.enter_context(
        BillingRun(
            folder / "run",
            broker.bootstrap,
            rate=rate,
            seed=seed,
            snapshots=snapshots,
            keep="360d",
            partitions=PARTITIONS,
            pause=0.1,
            every="1s",
        )
    )
    torments, chance = Soak(run, broker, disk), random.Random(seed)
    began, done = time.monotonic(), 0
    stopping = threading.Event()

    def watch() -> None:
        while not stopping.wait(2):
            torments.measure(time.monotonic() - began)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    while (passed := time.monotonic() - began) < minutes * 60:
        name = chance.choice(list(torments.faults))
        try:
            told = torments.faults[name](chance)
        except FlowstateError as error:  # what it is to be done to is away just now
            told = f"not done: {error.message[:80]}"
        done += 1
        memory = {role: f"{each[-1][1]:.0f}" for role, each in torments.samples.items()}
        say(f"{passed:5.0f} s  {len(run.producer.sent):,} events sent  {name}  {told}  MiB {memory}")
        while time.monotonic() - began < passed + every:
            time.sleep(0.1)
    say(f"{done} faults; draining")
    settled = time.time()
    until(lambda: run.live_since(settled), "every key is live again", 180)
    found = run.finish(folders={"invoices": [*torments.archives, run.folder / "invoices"]}, timeout=300)
    stopping.set()
    watcher.join()
    good = all(each.exact for each in found.values())
    for sink, each in found.items():
        say(f"{sink}: {each.rows} rows, {each.duplicates} twice, {each.lost} lost, {each.wrong} wrong")
    asked = run.asked()
    answers = seen(asked, CUSTOMERS, asked[0].began, settled)
    say(
        f"readers: {answers.answers:,} answers, {len(answers.failures)} failed, longest gap {answers.gap:.1f} s, longest without a live"
        f" answer {answers.gap_live:.1f} s, oldest answer {answers.oldest:.1f} s"
    )
    for failure in sorted(set(answers.failures))[:3]:
        say(f"  failed: {failure}")
    for back in answers.went_back[:3]:
        say(f"  {back}")
    good &= not answers.went_back
    for role in torments.samples:
        text, flat = torments.flat(role)
        say(text + ("" if flat else "  GREW"))
        good &= flat or minutes < 8  # a young process grows
    stored = [path for path in snapshots.glob("**/*") if path.is_file()]
    store = Store.open(snapshots)
    retain(store, 1, range(PARTITIONS), keep=1)
    named = {
        each.path
        for number in range(PARTITIONS)
        if (last := PartitionChain(store, 1, number).load())
        for each in last.staged
    }
    staged = {str(path.relative_to(snapshots)) for path in snapshots.glob("g*/p*/stage/*")}
    size = sum(each.stat().st_size for each in stored if each.exists()) / 2**20
    say(
        f"snapshots: {len(stored)} objects; with the newest alone {size:.1f} MiB, {len(named)} outputs unpublished, {len(staged)} staged"
    )
    sinks = [run.folder / sink for sink in ("invoices", "type_totals")]
    hidden = [path for sink in sinks for path in sink.glob("**/.*.tmp")]
    # A killed writer leaves one, and a living one sweeps those that are an hour old. Nobody writes here any more.
    for path in hidden:
        Store.open(path.parent).sweep("", older_than=0)
    partial = [path for sink in sinks for path in sink.glob("**/*") if _unfinished(path)]
    say(
        f"files that are not finished: {len(partial)} {[each.name for each in partial[:3]]}; {len(hidden)} of killed writers swept"
    )
    return good and not partial and not named


def _unfinished(path: Path) -> bool:
    return path.is_file() and (path.suffix != ".parquet" or path.name.startswith((".", "_")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=1000)
    parser.add_argument("--every", type=float, default=20, help="seconds between faults")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # in order: nothing that was started stays
    sweep()
    with tempfile.TemporaryDirectory(prefix="flowstate-soak-") as place:
        temporary = Path(place) / "temporary"
        temporary.mkdir()
        os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)  # of everything that is started here
        with ExitStack() as stack:
            good = soak(options.minutes, options.seed, options.rate, options.every, Path(place), stack)
        mine = [pid for pid, name in marks._marks() if f"-{os.getpid()}-" in name]
        left = [each.name for each in temporary.iterdir()]
        say(f"left: processes {mine}, temporary files {left}, and of dead tormentors {sweep()}")
        good &= not mine and not left
        tempfile.tempdir = None
    say("all is well" if good else "NOT all is well")
    sys.exit(not good)


if __name__ == "__main__":
    main()

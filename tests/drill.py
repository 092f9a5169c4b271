"""The operator's drill: failures are caused for real, and ``flowstate status``, ``top`` and the dashboard must name the cause.

``python tests/drill.py`` runs it all, and prints what was shown and the table of ``docs/operations.md``; names of failures choose some.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
from asking import ask
from distributed import Client
from kafka_broker import KafkaBroker
from local_cluster import two_workers
from waiting import until

import flowstate as fs
from flowstate.testing.tormentor import SmallDisk

SCHEMA = pa.schema({"customer": pa.string(), "amount": pa.decimal128(12, 2), "at": pa.timestamp("ms", "UTC")})
#: Seconds within which a cause must be named.
WITHIN = 40.0


def rows(count: int = 4) -> list[str]:
    """Of this moment."""
    now = datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds")
    return [json.dumps({"customer": f"c{n}", "amount": "0.10", "at": now}) for n in range(count)]


class Site:
    """A job on the two workers of `client` that adds up what some logs bring, and writes closed windows to a folder; and who watches it."""

    def __init__(self, client: Client, folder: Path, *, disk: bool = True) -> None:
        self.client, self.folder, self.name = client, folder, folder.name
        self.log, self.out, self.slow = folder / "log", folder / "out", folder / "slow"
        self.disk = None if not disk or SmallDisk.missing() else SmallDisk(folder / "disk", 64 << 20)
        self.snapshots = (folder / "disk" if self.disk else folder) / "saved"
        self.fed = self.logs()
        for name in sorted(self.fed):
            self.feed(name, rows(1 + len(name + self.name)))
            time.sleep(0.01)  # a file is known by its first record
        self.job = self.start()
        self._ended = threading.Event()
        self._feeder = threading.Thread(target=self._feed_always, daemon=True)
        self._feeder.start()

    def logs(self) -> set[str]:
        self.log.mkdir()
        return {"a", "b"}

    def events(self) -> fs.Stream:  # type: ignore[name-defined]
        pattern = f"{self.log}/*.jsonl"
        return fs.scan_files(
            pattern, name="log", format="json", schema=SCHEMA, event_time="at", lateness="1s", follow=True
        )

    def start(self, **options: Any) -> fs.Job:
        slow = str(self.slow)

        def looked_up(rows: pa.RecordBatch) -> pa.RecordBatch:
            if os.path.exists(slow):
                time.sleep(0.05 * rows.num_rows)
            return rows

        span = fs.window("at", every="1s", grace="0s")
        events = self.events().map_batches(looked_up, schema=SCHEMA)
        view = events.group_by("customer", span=span).agg(total=fs.col("amount").sum()).view("totals")
        given = {"partitions": 2, "every": "500ms", "idle_after": "60s", "client": self.client, "name": self.name}
        return fs.start(view, view.final().sink_parquet(self.out), snapshots=str(self.snapshots), **(given | options))

    def feed(self, name: str, lines: Sequence[str] | None = None) -> None:
        with (self.log / f"{name}.jsonl").open("a") as file:
            file.writelines(each + "\n" for each in lines or rows())

    def _feed_always(self) -> None:
        while not self._ended.wait(0.1):
            for name in sorted(self.fed):
                with suppress(fs.FlowstateError):
                    self.feed(name)

    def close(self) -> None:
        self._ended.set()
        self._feeder.join()
        with suppress(fs.FlowstateError, OSError):
            self.job.stop(snapshot=False)
        if self.disk is not None:
            self.disk.undo()

    # who watches

    def told(self) -> dict[str, Any]:
        """What the page shows, as data."""
        address = str(self.client.dashboard_link).removesuffix("/status")
        with suppress(OSError), urllib.request.urlopen(f"{address}/flowstate.json", timeout=10) as answer:
            jobs: dict[str, dict[str, Any]] = json.load(answer)["jobs"]
            return jobs.get(self.name, {"troubles": [], "events": []})
        return {"troubles": ["(there is no dashboard)"], "events": []}

    def page(self) -> list[str]:
        """Its sentences: what is wrong, and what happened."""
        told = self.told()
        return [*told["troubles"], *(each["words"] for each in told["events"] if each["kind"] != "trouble")]

    def marks(self) -> list[str]:
        """Troubles that are marked on the time axis."""
        return [each["words"] for each in self.told()["events"] if each["kind"] == "trouble"]

    def worker_of(self, partition: int) -> int:
        """The process of the worker that has it."""
        worker = until(lambda: self.job.status()["partitions"][str(partition)]["worker"])
        return int(self.client.run(os.getpid)[worker])


class KafkaSite(Site):
    """The same over a topic of two partitions."""

    def __init__(self, client: Client, folder: Path) -> None:
        self.lost = "refuse"
        self.kafka = KafkaBroker(folder / "broker")
        self.kafka.format()
        self.kafka.start()
        super().__init__(client, folder)

    def logs(self) -> set[str]:
        self.kafka.create_topic("orders", 2, config={"flush.messages": "1"})
        return {"0", "1"}

    def events(self) -> Any:
        where = self.kafka.bootstrap
        given: dict[str, Any] = {"event_time": "at", "lateness": "1s", "max_ahead": None, "lost": self.lost}
        return fs.scan_kafka("orders", bootstrap=where, schema=SCHEMA, **given)

    def feed(self, name: str, lines: Sequence[str] | None = None) -> None:
        self.kafka.produce("orders", [each.encode() for each in lines or rows()], int(name))

    def close(self) -> None:
        super().close()
        self.kafka.kill()


@contextmanager
def killed(site: Site) -> Iterator[None]:
    """SIGKILL of a worker"""
    os.kill(site.worker_of(1), signal.SIGKILL)
    yield


@contextmanager
def hung(site: Site) -> Iterator[None]:
    """SIGSTOP of a worker"""
    os.kill(site.worker_of(1), signal.SIGSTOP)
    yield


@contextmanager
def unreadable(site: Site) -> Iterator[None]:
    """records come that do not fit the schema"""
    site.feed("a", ['{"customer": "c1", "amount": "many"}'] * 3)
    yield


@contextmanager
def late(site: Site) -> Iterator[None]:
    """rows come whose window was closed long ago"""
    site.feed("a", ['{"customer": "c1", "amount": "0.10", "at": "2020-01-01T00:00:00Z"}'] * 5)
    yield


@contextmanager
def in_the_way(folder: Path) -> Iterator[None]:
    """A file stands where a folder was."""
    aside = folder.with_name(folder.name + ".aside")
    folder.rename(aside)
    folder.write_text("")
    try:
        yield
    finally:
        folder.unlink()
        aside.rename(folder)


@contextmanager
def sink_away(site: Site) -> Iterator[None]:
    """the folder of the invoices is gone, a file stands in its place"""
    until(site.out.exists)
    with in_the_way(site.out):
        yield


@contextmanager
def store_away(site: Site) -> Iterator[None]:
    """the disk of the snapshots is full"""
    if site.disk is None:
        with in_the_way(site.snapshots / "g0001"):
            yield
        return
    site.disk.fill()
    try:
        yield
    finally:
        site.disk.clear()


@contextmanager
def silent(site: Site) -> Iterator[None]:
    """one of two logs brings nothing any more"""
    site.fed.discard("b")
    yield
    site.fed.add("b")


@contextmanager
def slow(site: Site) -> Iterator[None]:
    """a function of the flow takes 50 ms a row"""
    site.slow.write_text("")
    site.feed("a")
    yield
    site.slow.unlink()


@contextmanager
def shortened(site: Site) -> Iterator[None]:
    """a log file is cut to its half"""
    file = site.log / "a.jsonl"
    site.fed.discard("a")
    time.sleep(0.3)  # the feeder may be at it
    whole = file.read_bytes()
    os.truncate(file, len(whole) // 2)
    yield
    file.write_bytes(whole)
    site.fed.add("a")


@contextmanager
def broker_away(site: KafkaSite) -> Iterator[None]:
    """SIGKILL of the Kafka broker"""
    site.kafka.kill()
    yield
    site.kafka.start()


@contextmanager
def deleted(site: KafkaSite) -> Iterator[None]:
    """retention deletes records while the job is stopped"""
    site.job.stop()
    site.feed("0", rows(50))
    site.kafka.delete_records("orders", 0, -1)  # up to its end
    site.job = site.start()
    yield
    site.job.stop()
    site.lost = "skip"
    site.job = site.start()


@contextmanager
def made_anew(site: KafkaSite) -> Iterator[None]:
    """the topic is deleted and made anew"""
    site.fed.clear()
    time.sleep(0.5)
    site.kafka.delete_topic("orders")
    site.kafka.create_topic("orders", 2)
    site.fed |= {"0", "1"}
    yield


@contextmanager
def down(site: Site) -> Iterator[None]:
    """the whole cluster ends"""
    site.client.cluster.close()
    yield


@dataclass(frozen=True)
class Case:
    """`names`: what stands in the sentence that names the cause. `mended`: what stands in the one that says that it is over, if any."""

    cause: Callable[[Any], AbstractContextManager[None]]
    names: tuple[str, ...]
    mended: str | None = "over after"

    @property
    def name(self) -> str:
        return self.cause.__name__

    def of(self, lines: Sequence[str]) -> str | None:
        """The sentence."""
        return next((each for each in lines if all(name in each for name in self.names)), None)

    def over(self, lines: Sequence[str]) -> str | None:
        if self.mended is None:
            return None
        return next((each for each in reversed(lines) if self.mended in each and self.of([each])), None)


SINK = Case(sink_away, ("sink 0", "/out", "Not a directory"))
STORE = Case(store_away, ("cannot be saved", "saved"))
KILLED = Case(killed, ("its worker was lost", "tcp://"), "is back after")
UNREADABLE = Case(unreadable, ("dead letters: 3 of", "a.jsonl"), None)
LATE = Case(late, ("too late", "5 of", "a.jsonl"), None)
SILENT = Case(silent, ("b.jsonl", "holds the watermark back", "idle_after"))
SHORTENED = Case(shortened, ("split", "a.jsonl", "the file is shorter"))
HUNG = Case(hung, ("hangs", "tcp://"), "is back after")
SLOW = Case(slow, ("a.jsonl", "behind its log", "partition"))
FILES = [KILLED, HUNG, UNREADABLE, LATE, SINK, STORE, SILENT, SLOW, SHORTENED]
KAFKA = [
    Case(broker_away, ("orders[", "no answer from the kafka broker", "bootstrap='127.0.0.1:")),
    Case(deleted, ("orders[0]", "deleted before they were read")),
    Case(made_anew, ("orders[", "made anew"), None),
    Case(down, ("the job is down",), None),
]


@dataclass
class Shown:
    case: Case
    seconds: float
    said: dict[str, str | None] = field(default_factory=dict)
    after: str | None = None

    def row(self, folder: Path) -> str:
        told = [each for each in self.said.values() if each]
        words = told[0] if told else "not named"
        after = (self.after or "").partition(":")[0]
        cells = [
            str(self.case.cause.__doc__),
            words,
            "-" if self.case.cause is down else f"{self.seconds:.0f} s",
            after,
        ]
        text = " | ".join(each.replace("|", "\\|") for each in cells)
        text = re.sub(rf"{re.escape(str(folder))}/\w+", "/data", text)
        return f"| {text} |"


def run(site: Site, cases: Sequence[Case], chosen: Sequence[str]) -> Iterator[Shown]:
    where = str(site.snapshots)
    until(lambda: site.job.status()["saved_cut"] and not site.job.status()["figures"]["troubles"], WITHIN)
    for case in cases:
        if chosen and case.name not in chosen:
            continue
        with ExitStack() as stack:
            stack.enter_context(case.cause(site))
            began = time.monotonic()
            named = False
            while time.monotonic() - began < WITHIN and not named:
                named = case.of(site.page()) is not None or case.cause is down
                time.sleep(0.1)
            shown = Shown(case, time.monotonic() - began)
            texts = {
                "page": "\n".join(site.page()),
                "status": ask("status", where).out,
                "top": ask("top", where, "--once", env={"COLUMNS": "2000"}).out,
            }
            shown.said = {
                name: case.of([each.removeprefix("! ") for each in text.splitlines()]) for name, text in texts.items()
            }
            print(
                f"\n===== {case.name}: {case.cause.__doc__}; named by {[name for name, each in shown.said.items() if each]}"
            )
            for name, text in texts.items():
                print(f"--- {name}\n{text}", flush=True)
        if case.mended:
            with suppress(AssertionError):
                shown.after = until(lambda case=case: case.over(site.page()), WITHIN)  # type: ignore[misc]
            print(f"--- mended: {shown.after}\n{chr(10).join(site.page())}", flush=True)
        yield shown


def main() -> None:
    chosen = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="drill-") as place:
        folder, found = Path(place), []
        for kind, cases in ((Site, FILES), (KafkaSite, KAFKA)):
            if chosen and not any(case.name in chosen for case in cases):
                continue
            with two_workers() as client:
                (folder / kind.__name__.lower()).mkdir()
                site = kind(client, folder / kind.__name__.lower())
                try:
                    found += list(run(site, cases, chosen))
                finally:
                    site.close()
        print(
            "\n| what is done | what `status`, `top` and the dashboard say | after | once it is mended |\n|---|---|---|---|"
        )
        print("\n".join(each.row(folder) for each in found))


if __name__ == "__main__":
    main()

"""A bank whose total never changes, and readers who would notice if it did.

    python -m benchmarks.queries --consistency 10000

Every line of two logs moves an amount between two of forty accounts, which lie in two partitions: at any one position the balances add up
to zero. Readers ask with ``consistent=True`` (SQL, Flight scans and lookups, through a gateway) while the job ingests, a worker is killed
and the gateway restarts; what they are told must add up, and must never go back. Reads of the latest may fall between two positions, and
must say so. `Writes` appends lines of its own and reads each of them back (``at_least=``), before the worker is killed and after.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
from distributed import Client

import flowstate as fs
from flowstate.view.answer import Answer

SCHEMA = pa.schema({"accounts": pa.list_(pa.string()), "moved": pa.list_(pa.int64())})
ACCOUNTS = [f"account-{each}" for each in range(40)]
QUERY = "select coalesce(sum(balance), 0)::bigint, coalesce(sum(rows), 0)::bigint from accounts"
#: Own accounts of `Writes`, which reads them back; nobody else moves anything there.
MINE = ("mine", "yours")


def flow(pattern: str) -> Any:
    """``accounts``: balance and rows of each."""
    events = fs.scan_files(pattern, schema=SCHEMA, follow=True).explode("accounts", "moved")
    return events.group_by("accounts").agg(balance=fs.col("moved").sum(), rows=fs.len()).view("accounts")


def generate(folder: Path, seed: int = 7) -> None:
    """Append transfers to two logs until killed."""
    chance = random.Random(seed)
    with ExitStack() as stack:
        logs = [stack.enter_context((folder / f"{each}.jsonl").open("ab", buffering=0)) for each in range(2)]
        while True:
            lines = []
            for _ in range(chance.randint(1, 40)):
                amount, (one, other) = chance.randint(-1000, 1000), chance.sample(ACCOUNTS, 2)
                lines.append(json.dumps({"accounts": [one, other], "moved": [amount, -amount]}) + "\n")
            chance.choice(logs).write("".join(lines).encode())
            time.sleep(0.01)


@contextmanager
def transfers(folder: Path) -> Iterator[None]:
    """A process that appends as long as this lasts."""
    for each in range(2):
        (folder / f"{each}.jsonl").touch()
    command = [
        sys.executable,
        "-c",
        f"from benchmarks.transfers import generate, Path; generate(Path({str(folder)!r}))",
    ]
    writer = subprocess.Popen(command, cwd=Path(__file__).resolve().parent.parent)
    try:
        while not all((folder / f"{each}.jsonl").stat().st_size for each in range(2)):
            assert writer.poll() is None, "the generator ended"
            time.sleep(0.01)
        yield
    finally:
        writer.kill()
        writer.wait(10)


#: Sum of balances, rows, and what says that both were live and at one position; nothing if they were not.
Found = tuple[int, int, object]


def is_refusal(error: Exception) -> bool:
    """Allowed while a worker is away, as long as nothing is wrong."""
    return isinstance(error, fs.Unavailable) or "Unavailable: " in str(error)


@dataclass
class Reader(threading.Thread):
    """Asks again and again until `over`. `read` gives what it saw (`Found`)."""

    label: str
    read: Callable[[], Found]
    over: threading.Event
    done: int = 0
    refused: int = 0
    apart: int = 0
    newest: int = 0
    seen: set[int] = field(default_factory=set)
    refusals: set[str] = field(default_factory=set)
    told: object = None
    error: BaseException | None = None

    def __post_init__(self) -> None:
        super().__init__(name=self.label, daemon=True)

    __hash__ = threading.Thread.__hash__

    @property
    def summary(self) -> str:
        refused = f", {self.refused} refused" if self.refused else ""
        apart = f", {self.apart} between two positions or saved, and said so" if self.apart else ""
        return f"{self.label:14} {self.done:6,} reads, {len(self.seen):6,} different, none wrong{apart}{refused}"

    def run(self) -> None:
        while not self.over.is_set():
            try:
                balance, rows, whole = self.read()
            except (fs.Unavailable, duckdb.Error) as error:
                if not is_refusal(error):
                    self.error = error
                    self.over.set()
                    return
                self.refused += 1
                self.refusals.add(str(error))
                continue
            except BaseException as error:
                self.error = error
                self.over.set()
                return
            self.done += 1
            self.seen.add(rows)
            if self.label == "latest":
                self.over.wait(0.02)  # it is there to be told apart from the others, not to take their time
            if not whole:
                self.apart += 1
                continue
            if balance != 0 or rows % 2 or rows < self.newest:
                self.error = AssertionError(
                    f"{self.label}: {balance=}, {rows=} after {self.newest}: {whole}, before {self.told}"
                )
                self.over.set()
                return
            self.newest, self.told = rows, whole


def by_sql(reads: fs.Job | Any) -> Callable[[], Found]:
    def read() -> Found:
        [(balance, rows)] = reads.sql(QUERY, consistent=True).fetchall()
        return balance, rows, True

    return read


def by_scan(reads: Any, **asked: Any) -> Callable[[], Found]:
    """Says itself whether it was at one position."""

    def read() -> Found:
        table = reads["accounts"].to_table(**asked)
        answer = Answer.of(table.schema)
        assert answer is not None
        # What is away is answered from what it saved, if no more was asked for: that is older, and says so.
        whole = answer.live and all(each.position == answer.parts[0].position for each in answer.parts)
        assert whole or not asked.get("consistent"), "a consistent answer of several positions"
        assert answer.consistent == bool(asked.get("consistent"))
        return pc.sum(table["balance"]).as_py() or 0, pc.sum(table["rows"]).as_py() or 0, answer if whole else None

    return read


def by_keys(reads: Any) -> Callable[[], Found]:
    def read() -> Found:
        table = reads["accounts"].lookup(ACCOUNTS, consistent=True)
        return pc.sum(table["balance"]).as_py() or 0, pc.sum(table["rows"]).as_py() or 0, True

    return read


def by_session(reads: Any) -> Callable[[], Found]:
    """One moment, read three times by three ways: the same each time."""

    def read() -> Found:
        with reads.snapshot() as moment:
            [first] = moment.sql(QUERY).fetchall()
            table = moment["accounts"].to_table()
            assert (pc.sum(table["balance"]).as_py() or 0, pc.sum(table["rows"]).as_py() or 0) == first
            assert moment.sql(QUERY).fetchall() == [first]
            return first[0], first[1], True

    return read


class Readers:
    """All ways at once."""

    def __init__(self, job: fs.Job, gateway: str | None) -> None:
        self.over = threading.Event()
        self.stack = ExitStack()
        direct = self.stack.enter_context(fs.connect(job.address))
        ways: dict[str, Callable[[], Found]] = {
            "SQL": by_sql(job),
            "scans": by_scan(direct, consistent=True),
            "lookups": by_keys(direct),
            "sessions": by_session(job),
            "latest": by_scan(job),
        }
        if gateway is not None:
            through = self.stack.enter_context(fs.connect(gateway))
            ways["gateway scans"] = by_scan(through, consistent=True)
            ways["gateway SQL"] = by_sql(through)
        self.readers = [Reader(label, read, self.over) for label, read in ways.items()]
        for each in self.readers:
            each.start()

    @property
    def done(self) -> int:
        """Consistent reads so far."""
        return sum(each.done for each in self.readers if each.label != "latest")

    def wait(self, reads: int, seconds: float) -> None:
        """Until so many consistent reads are done, and some of each way."""
        least, deadline = {each: each.done + 3 for each in self.readers}, time.monotonic() + seconds
        while self.done < reads or any(each.done < least[each] for each in self.readers):
            assert time.monotonic() < deadline, {each.label: (each.done, each.refusals) for each in self.readers}
            if self.over.wait(0.02):
                break

    def close(self) -> None:
        """Raises what a reader found."""
        self.over.set()
        for each in self.readers:
            each.join(60)
            assert not each.is_alive(), f"{each.label} hangs"
        self.stack.close()
        for each in self.readers:
            if each.error is not None:
                raise each.error


def split_of(job: fs.Job, path: Path) -> str:
    """The name of a file's split."""
    [split] = [name for name, each in job.status()["splits"].items() if path.name in json.dumps([name, each])]
    return str(split)


class Writes:
    """Appends transfers between `MINE` and reads each back by turns of SQL, key and scan."""

    def __init__(self, job: fs.Job, path: Path) -> None:
        self.job, self.path, self.count, self.refused = job, path, 0, 0
        self.split = split_of(job, path)
        self.offset = path.stat().st_size

    @staticmethod
    def begin(path: Path) -> None:
        """So that it is there when the job starts."""
        path.write_text(json.dumps({"accounts": list(MINE), "moved": [0, 0]}) + "\n")

    def write_and_read(self, seconds: float = 120.0) -> None:
        """What is refused while a worker is away is asked again, for so long."""
        line = json.dumps({"accounts": list(MINE), "moved": [1, -1]}) + "\n"
        with self.path.open("ab", buffering=0) as log:
            log.write(line.encode())
        self.offset += len(line)
        self.count += 1
        deadline = time.monotonic() + seconds
        while True:
            try:
                found = self._read({"at_least": {self.split: self.offset}})
            except (fs.Unavailable, duckdb.Error) as error:
                if not is_refusal(error) or time.monotonic() > deadline:
                    raise
                self.refused += 1
            else:
                break
        assert found == self.count, f"wrote {self.count}, read {found}"

    def _read(self, fresh: dict[str, Any]) -> int:
        if self.count % 3 == 0:
            query = "select balance from accounts where accounts = 'mine'"
            return int(self.job.sql(query, **fresh).fetchall()[0][0])
        if self.count % 3 == 1:
            table = self.job["accounts"].lookup("mine", **fresh)
        else:
            table = self.job["accounts"].to_table(filter=pc.field("accounts") == "mine", **fresh)
        return int(table["balance"].to_pylist()[0])


def check(
    folder: Path,
    client: Client,
    *,
    reads: int,
    writes: int,
    seconds: float,
    tell: Callable[[str], None] = lambda _: None,
) -> list[Reader]:
    """Everything: half of the reads and writes, a worker killed and the gateway restarted, and as many again. `tell` hears how far it is.
    Raises AssertionError for what must not be."""
    mine = folder / "mine.jsonl"
    Writes.begin(mine)
    with (
        transfers(folder),
        fs.start(flow(f"{folder}/*.jsonl"), snapshots=folder / "snapshots", every="1s", client=client) as job,
        ExitStack() as stack,
    ):
        gateway = fs.gateway(snapshots=folder / "snapshots")
        stack.callback(lambda: gateway.close())
        readers = Readers(job, gateway.address)
        own = Writes(job, mine)

        def half(since: int) -> None:
            for _ in range(writes // 2):
                if readers.over.is_set():
                    break
                own.write_and_read()
                if own.count % 500 == 0:
                    tell(f"{own.count:,} writes read back, {readers.done:,} consistent reads")
            readers.wait(since + reads // 2, seconds)
            tell(f"{own.count:,} writes read back ({own.refused} refused meanwhile), {readers.done:,} consistent reads")

        try:
            saved = job.status()["saved_cut"].get("number", 0)
            half(0)
            if not readers.over.is_set():
                victim = next(iter(client.run(os.getpid).values()))
                os.kill(victim, signal.SIGKILL)
                tell("a worker is killed")
                port, since = gateway.port, readers.done
                gateway.close()
                gateway = fs.gateway(snapshots=folder / "snapshots", port=port)
                tell("the gateway is there again")
                half(since)
            deadline = time.monotonic() + 60
            while not readers.over.wait(0.1) and job.status()["saved_cut"].get("number", 0) <= saved:
                assert time.monotonic() < deadline, "those who read keep the job from saving"
        finally:
            readers.close()
        assert job.sql("select count(*) from dead_letters").fetchall() == [(0,)]
        own.write_and_read()
    return readers.readers

"""Every kind of output of one running job, while a worker is killed and the job is stopped and started again: each row once."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from distributed import Client

import flowstate as fs
from flowstate.errors import InvalidFlow

SCHEMA = pa.schema(
    {"key": pa.string(), "a": pa.string(), "at": pa.timestamp("ms", "UTC"), "tags": pa.list_(pa.string())}
)
BEGIN = datetime(2024, 1, 1, tzinfo=UTC)
ROWS, FILES = 900, 3


def record(file: int, number: int, source: random.Random) -> dict[str, Any]:
    """Most in order; some three hours late, too late for their window; some whose `a`, which is different in all others, is no number."""
    at = BEGIN + timedelta(minutes=number) - timedelta(hours=3 if number % 40 == 39 else 0)
    return {
        "key": source.choice(["anna", "bob", "carl", "dora", None]),
        "a": "none" if number % 50 == 7 else str(FILES * number + file),
        "at": at.isoformat(timespec="milliseconds"),
        "tags": ["same"] * (number % 3),
    }


def outputs(folder: Path) -> list[Any]:
    rows = fs.scan_files(f"{folder}/in/*.jsonl", schema=SCHEMA, event_time="at", follow=True)
    numbers = rows.with_columns(n=fs.col("a").cast(pa.int64()))
    view = (
        numbers.group_by("key", hour=fs.window("at", every="1h", grace="1h", keep="2h"))
        .agg(total=fs.col("n").sum(), events=fs.len(), last=fs.col("a").last())
        .view("hourly")
    )
    return [
        view.changes().sink_parquet(folder / "changes"),
        view.final().sink_parquet(folder / "final", partition_by="key", roll_bytes="1MB"),
        view.late().sink_json(folder / "late"),
        numbers.explode("tags").select("key", "tags", "n").sink_csv(folder / "tags", roll_after="1h"),
        fs.dead_letters().sink_json(folder / "dead"),
    ]


def wait_for(what: Any, problem: str, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, problem
        time.sleep(0.02)


def published(folder: Path, kind: str) -> int:
    return len(list(folder.glob(f"**/*.{kind}")))


def json_lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for each in folder.glob("**/*.json*") for line in each.read_text().splitlines()]


def judged(files: list[list[dict[str, Any]]]) -> tuple[list[int], dict[Any, list[int]]]:
    """The numbers of late rows, and those in time by key and hour: a row is late if its window closed before it in its own file."""
    late, in_time = list[int](), dict[Any, list[int]]()
    for records in files:
        newest = BEGIN - timedelta(days=1)
        for each in records:
            at = datetime.fromisoformat(each["at"])
            hour = at.replace(minute=0, second=0, microsecond=0)
            if each["a"] != "none":
                if hour + timedelta(hours=2) <= newest:
                    late.append(int(each["a"]))
                else:
                    in_time.setdefault((each["key"], hour), []).append(int(each["a"]))
            newest = max(newest, at)
    return late, in_time


def test_every_row_leaves_once_in_every_way(client: Client, tmp_path: Path) -> None:
    source = random.Random(11)
    files = [[record(file, number, source) for number in range(ROWS)] for file in range(FILES)]
    (tmp_path / "in").mkdir()

    def write(since: int, to: int) -> None:
        for number, records in enumerate(files):
            with (tmp_path / "in" / f"{number}.jsonl").open("a") as file:
                file.writelines(json.dumps(each) + "\n" for each in records[since:to])

    def start() -> fs.Job:
        return fs.start(
            *outputs(tmp_path), snapshots=tmp_path / "snapshots", every="200ms", client=client, partitions=2
        )

    write(0, 300)
    job = start()
    assert job.name == "hourly"
    # One file is enough: the seed of the routing is new at each start, and once in sixteen all five keys have one owner.
    wait_for(lambda: published(tmp_path / "changes", "parquet"), "no changes came out")
    os.kill(next(iter(client.run(os.getpid).values())), signal.SIGKILL)
    write(300, 600)
    wait_for(lambda: client.scheduler_info()["workers"] and job.status()["ready"], "the job did not come back")
    job.stop()
    write(600, ROWS)
    job = start()
    job.drain()
    wait_for(lambda: job.status()["state"] == "finished", "the job did not come to an end")
    with pytest.raises(InvalidFlow, match="no view '_stream_1'"):
        job["_stream_1"]
    job.stop()

    everything = [each for records in files for each in records]
    good = [each for each in everything if each["a"] != "none"]
    # A stream: every row of every record, once.
    tables = [pyarrow.csv.read_csv(each) for each in (tmp_path / "tags").glob("*.csv")]
    tags = [(row["key"] or None, row["tags"] or None, row["n"]) for each in tables for row in each.to_pylist()]
    assert Counter(tags) == Counter(
        (each["key"], tag, int(each["a"])) for each in good for tag in each["tags"] or [None]
    )
    # What failed: once for the view and once for the stream.
    dead = json_lines(tmp_path / "dead")
    assert Counter(each["view"] for each in dead) == {
        name: len(everything) - len(good) for name in ("hourly", "_stream_1")
    }
    assert len({(each["split"], each["offset"], each["view"]) for each in dead}) == len(dead)
    # Late rows are in no view, and all others are.
    late, in_time = judged(files)
    assert sorted(each["n"] for each in json_lines(tmp_path / "late")) == sorted(late)
    final = pq.read_table(tmp_path / "final").to_pylist()
    assert len(final) == len(in_time)
    assert {(row["key"], row["hour"]): (row["total"], row["events"]) for row in final} == {
        key: (sum(numbers), len(numbers)) for key, numbers in in_time.items()
    }
    # The greatest revision of each key is its final row, under an epoch that only grows; the revision is the number of its rows.
    changes = pq.read_table(tmp_path / "changes").to_pylist()
    holds: dict[Any, dict[str, Any]] = {}
    for row in sorted(changes, key=lambda row: (row["_epoch"], row["_revision"])):
        holds[row["key"], row["hour"]] = row
    assert all(row["_revision"] == row["events"] for row in changes)
    assert len({(row["key"], row["hour"], row["_epoch"], row["_revision"]) for row in changes}) == len(changes)
    names = ["key", "hour", "hour_end", "total", "events", "last"]
    assert sorted(str([row[name] for name in names]) for row in holds.values()) == sorted(
        str([row[name] for name in names]) for row in final
    )
    assert len({row["_epoch"] for row in changes}) >= 2  # the owner of all keys may be the one that was not killed

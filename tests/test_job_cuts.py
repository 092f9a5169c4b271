"""Consistent reads when a worker dies between the cut and the read of it: who did not name the cut is answered from another one, who
did is refused."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from local_cluster import two_workers

import flowstate as fs
from flowstate.view.answer import Answer
from flowstate.view.freshness import checked

KEYS = 50
TOTAL = "select sum(total)::bigint, count(*) from totals"
BOTH = "select (select sum(total)::bigint from totals), (select sum(events)::bigint from counts)"


def flow(path: Path) -> list[Any]:
    events = fs.scan_files(path, schema=pa.schema({"key": pa.string(), "amount": pa.int64()}), follow=True)
    return [
        events.group_by("key").agg(total=fs.col("amount").sum()).view("totals"),
        events.group_by("key").agg(events=fs.len()).view("counts"),
    ]


def append(path: Path, rounds: int) -> None:
    lines = [json.dumps({"key": f"k{each}", "amount": 1}) + "\n" for each in range(KEYS)]
    with path.open("a") as log:
        log.write("".join(lines) * rounds)


def test_a_cut_that_is_lost_before_it_was_read(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    append(path, 1)
    with (
        two_workers() as client,
        fs.start(*flow(path), snapshots=tmp_path / "snapshots", every="500ms", client=client) as job,
    ):
        append(path, 1)
        job.to_table("totals", at_least=written(job, path))
        reader = job._reader
        reader._reading.patience = 60.0  # a loaded machine recovers slowly
        named = job.snapshot()
        asked = reader.moment(checked(consistent=True))
        query, several, read = (job.sql(each, consistent=True) for each in (TOTAL, BOTH, TOTAL))
        assert read.fetchall() == [(2 * KEYS, KEYS)]

        append(path, 1)
        [victim] = {pid for address, pid in client.run(os.getpid).items() if address == hosts(job)[0]}
        os.kill(victim, signal.SIGKILL)

        found = reader.scan("totals", fresh=asked)
        answer = Answer.of(found.schema)
        assert answer is not None and answer.consistent
        assert len({json.dumps(sorted(each.position.items())) for each in answer.parts}) == 1
        assert found.num_rows == KEYS and sum(found["total"].to_pylist()) >= 2 * KEYS
        total, keys = query.fetchall()[0]
        assert keys == KEYS and total >= 2 * KEYS
        job.to_table("totals", at_least=written(job, path))
        assert query.fetchall() == [(total, keys)]  # it has been read by now, so it stays
        assert reader.scan("totals", fresh=asked).equals(found)
        first, second = several.fetchall()[0]
        assert first == second  # two views, one cut

        begun = time.monotonic()
        with pytest.raises(fs.Unavailable, match="was lost since it was made"):
            named.to_table("totals")
        for again in (named.sql(TOTAL), read):
            with pytest.raises(duckdb.Error, match="was lost since it was made"):
                again.fetchall()
        assert time.monotonic() - begun < 10.0
        assert job["totals"].lookup("k1", consistent=True)["total"].to_pylist() == [3]


def hosts(job: fs.Job) -> list[str]:
    """The Dask address of the worker of each partition."""
    return [each["worker"] for _, each in sorted(job.status()["partitions"].items())]


def written(job: fs.Job, path: Path) -> dict[str, int]:
    [split] = job.status()["splits"]
    return {split: path.stat().st_size}
